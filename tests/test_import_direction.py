"""Which package may import which, read from the source itself, imports inside functions and for types included."""

import ast
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("search", "trainable", "spaces", "results")
TORCH_FREE = (
    "trainable.config",
    "trainable.errors",
    "trainable.regular_files",
    "trainable.rows",
    "trainable.schedule",
    "trainable.stability*",
    "trainable.checkpoint.exam.exam_facts",
    "trainable.model.model_names",
)
ALLOWED = {
    "trainable": ("trainable*",),
    "spaces": (
        "spaces*",
        "trainable.config",
        "trainable.errors",
        "trainable.regular_files",
        "trainable.stability.rules",
    ),
    "results": ("results*", "spaces*", *TORCH_FREE),
    "search": ("search*", "trainable*", "spaces*", "results*"),
}


def module_name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path, root: Path) -> Iterator[str]:
    """Yield the module of every import, relative ones resolved."""
    package = path.relative_to(root).parent.parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, (node.module,))))
            for alias in node.names:
                # "from trainable import config" imports the module, "from trainable.config import BEFORE" a name in it.
                inner = f"{base}.{alias.name}"
                yield inner if root.joinpath(*inner.split(".")).with_suffix(".py").exists() else base


@cache
def project_imports() -> Mapping[str, frozenset[str]]:
    """Return what every module of the four packages imports, by its name."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return {module_name(path, ROOT): frozenset(imports_of(path, ROOT)) for path in paths}


def matches(module: str, patterns: tuple[str, ...]) -> bool:
    return any(
        module.startswith(pattern.removesuffix("*")) if pattern.endswith("*") else module == pattern
        for pattern in patterns
    )


def top(module: str) -> str:
    return module.partition(".")[0]


def test_the_modules_are_found() -> None:
    assert {
        "trainable.loop",
        "spaces.read.load",
        "results.study.folder",
        "search.tune.engine",
        "trainable",
    } <= project_imports().keys()
    assert "trainable.loss" in project_imports()["trainable.loop"]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_only_what_lies_below_it(package: str) -> None:
    wrong = [
        f"{name} imports {module}"
        for name, modules in project_imports().items()
        for module in sorted(modules)
        if top(name) == package and top(module) in PACKAGES and not matches(module, ALLOWED[package])
    ]
    assert wrong == []


SEARCH_LAYERS = (
    ("__main__",),
    ("commands",),
    ("setup",),
    ("tune",),
    ("cluster", "trackers"),
    ("terminal", "options"),
    ("option_names",),
)
"""The folders of search/, from the top down."""


def search_layer(module: str) -> tuple[int, str] | None:
    folder = module.split(".")[1] if module.startswith("search.") else ""
    return next(((depth, folder) for depth, names in enumerate(SEARCH_LAYERS) if folder in names), None)


def test_imports_in_search_run_downwards_only() -> None:
    wrong = []
    for name, modules in project_imports().items():
        for module in sorted(modules):
            upper, lower = search_layer(name), search_layer(module)
            if upper and lower and lower != upper and lower[0] <= upper[0] and upper[1] != "__main__":
                wrong.append(f"{name} imports {module}")
    assert wrong == []
    assert {name for name in project_imports() if name.startswith("search.") and search_layer(name) is None} == set()


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    assert circles(project_imports()) == {}


def circles(imports: Mapping[str, Collection[str]]) -> dict[str, list[str]]:
    """Return the modules that import each other, or lie between two such circles, with their imports."""
    left = {name: (set(modules) & imports.keys()) - {name} for name, modules in imports.items()}
    while True:
        imported = set().union(*left.values())
        ends = [name for name, modules in left.items() if not modules or name not in imported]
        if not ends:
            return {name: sorted(modules) for name, modules in left.items()}
        left = {name: modules - set(ends) for name, modules in left.items() if name not in ends}


def test_no_two_modules_have_one_name() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.stem != "__init__"]
    stems = Counter(path.stem for path in files)
    assert sorted(stem for stem, count in stems.items() if count > 1) == []


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("ray", ("search*", "trainable.ray_trainable")),
        ("torch", ("search*", "trainable*")),
        ("transformers", ("search*", "trainable*")),
        ("tokenizers", ("search*", "trainable*")),
    ],
)
def test_a_heavy_library_is_imported_in_its_place_alone(library: str, allowed: tuple[str, ...]) -> None:
    importers = [name for name, modules in project_imports().items() if library in map(top, modules)]
    assert importers
    assert [name for name in importers if not matches(name, allowed)] == []


def test_what_results_may_use_of_trainable_reaches_no_torch() -> None:
    imports = project_imports()
    reached = {name for name in imports if matches(name, TORCH_FREE)}
    while more := {module for name in reached for module in imports[name] if module in imports} - reached:
        reached |= more
    heavy = {"torch", "ray", "transformers", "tokenizers"}
    assert [name for name in sorted(reached) if heavy & set(map(top, imports[name]))] == []


def test_relative_and_lazy_imports_are_seen(tmp_path: Path) -> None:
    package = tmp_path / "spaces" / "deep"
    package.mkdir(parents=True)
    (package / "other.py").touch()
    module = package / "module.py"
    lines = ["from . import other", "from .other import x", "from ..load import y", "def f():", "    import ray.tune"]
    module.write_text("\n".join(lines))
    assert module_name(module, tmp_path) == "spaces.deep.module"
    assert sorted(imports_of(module, tmp_path)) == [
        "ray.tune",
        "spaces.deep.other",
        "spaces.deep.other",
        "spaces.load",
    ]
