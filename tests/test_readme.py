"""README.md and docs/ hold: their commands, variables, space files, imports, links and lists are the program's."""

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.write_variables import PAGE, page
from search.__main__ import COMMANDS, main
from search.options import FIELDS, read_options
from spaces.read.load import load_space, space_from_toml
from trainable.config import BASELINES, ENV_NAMES

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = (README, *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md")), *sorted((ROOT / "docs").glob("*.md")))
MAX_README_LINES = 220
TARGETS = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
ENTRY = ("python -m search", ".venv/bin/python -m search")
CHEAP = ("list", "spaces", "variables", "export", "report", "compare")
"""Commands that answer at once where there is no study."""


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def fenced(text: str, *languages: str) -> Iterator[str]:
    """Yield the fenced blocks of these languages."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if language in languages:
            yield block


def code_lines(text: str) -> Iterator[str]:
    """Yield every line of code that is not a fenced block of another language: indented ones and `marked` ones."""
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in fenced(text, "", "sh"):
        yield from (line.removeprefix("$ ") for line in block.splitlines())
    yield from re.findall(r"^(?: {4}|- {3})\s*(\S.*)$", outside, re.MULTILINE)
    # A marked command may go on in the next line of its paragraph.
    yield from (" ".join(words.split()) for words in re.findall(r"`([^`]+)`", outside))


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield (make target or command of the program, its NAME=value words) of every command line of a page."""
    # A comment stands two spaces behind its command.
    for line in (line.split("  #")[0] for line in code_lines(text)):
        for part in re.split(r'&&|;|\|\|?(?= )|\$\(|"\$\(|\(', line):
            words = part.replace(')"', "").rstrip(")").strip()
            before = re.match(r"(?:[A-Z_0-9]+=\S+ +)*", words)
            assert before is not None
            words = words[before.end() :]
            starts = [start for start in ("make", *ENTRY) if words == start or words.startswith(f"{start} ")]
            if not starts:
                continue
            # shlex keeps what a shell would: quoted values are one word.
            rest = [word for word in shlex.split(words[len(starts[-1]) :]) if word != "-s" and not word.startswith(">")]
            name, *assignments = rest or ["help"]
            yield name, [*shlex.split(before.group()), *assignments]


def all_commands() -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (page, command, words), but for `COMMAND`, which stands for any."""
    found = {(path.name, name, tuple(words)) for path in PAGES for name, words in commands_in(text_of(path))}
    return sorted(one for one in found if one[1] != "COMMAND")


def command_of(name: str) -> str | None:
    """Return the program's command that a make target or a word behind `python -m search` is; None for a tool."""
    name = {"search": "run", "help": "variables"}.get(name, name)
    return name if name in COMMANDS else None


def test_a_page_has_commands_to_check() -> None:
    found = list(commands_in('Say `make -s\nexport STUDY=a`.\n\n    (eval "$(make -s export)"; make train)  # why\n'))
    assert found == [("export", []), ("train", []), ("export", ["STUDY=a"])]
    assert {name for _, name, _ in all_commands()} >= {"search", "confirm", "model", "export", "train", "resume"}


@pytest.mark.parametrize(("where", "name", "words"), all_commands(), ids=str)
def test_every_command_line_is_one_that_the_program_takes(
    where: str, name: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert name in TARGETS or name in COMMANDS
    command = command_of(name)
    if command is None:
        folder = {"bench": "benchmarks", "faults": "faults"}.get(name, "none")
        assert set(words) <= {f"{name.upper()}={path.stem}" for path in (ROOT / "tests" / folder).glob("*.py")}
        return
    # What a page's line names need not be here: a bucket, a tracker's library, a folder.
    monkeypatch.setattr("search.options.files_at", lambda place: (None, place))
    monkeypatch.setattr("search.options._installed", lambda name, library: None)
    monkeypatch.setenv("STUDIES_DIR", "")
    monkeypatch.setenv("CACHE_DIR", "")
    options = read_options([word for word in words if word != "--json"])
    if options.space is not None and "/" not in options.space:
        load_space(options.space)
    if command in CHEAP:
        monkeypatch.chdir(tmp_path)
        code = main([command, *words, f"STUDIES_DIR={tmp_path / 'none'}"])
        assert code == (0 if command in ("list", "spaces", "variables") else 2)


def test_the_help_of_the_program_and_of_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], *([name, "--help"] for name in COMMANDS)):
        assert main(words) == 0
    assert "usage: python -m search" in capsys.readouterr().out


def test_every_command_stands_in_the_readme_and_the_makefile() -> None:
    makefile = text_of(ROOT / "Makefile")
    for name, meaning in COMMANDS.items():
        target = {"run": "search", "variables": "help"}.get(name, name)
        assert f"$(RUN) {name}" in makefile
        assert f"| `make {target}` | {meaning} |" in text_of(README)


def test_the_page_of_variables_is_current() -> None:
    assert text_of(PAGE) == page(), "run .venv/bin/python -m docs.write_variables"
    assert [name for name in (*FIELDS, *ENV_NAMES) if f"| `{name}` |" not in text_of(PAGE)] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_variable_that_a_page_names_exists(path: Path) -> None:
    # A marked word of capitals with an underscore, or one that is given a value, is meant as a variable.
    named = set(re.findall(r"`(?!RAY_|G?OMP_)([A-Z]+[0-9]?_[A-Z_]+[A-Z])(?:=[^`]*)?`", text_of(path)))
    named |= set(re.findall(r"`(?!RAY_|G?OMP_)([A-Z][A-Z0-9_]+)=[^`]*`", text_of(path)))
    of_make = set(re.findall(r"^([A-Z_]+) [?:]?=", text_of(ROOT / "Makefile"), re.MULTILINE))
    assert named <= {*FIELDS, *ENV_NAMES, *of_make, "NAME"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_link_and_picture_is_there(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", text_of(path)):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), target
        headings = [line.lstrip("# ") for line in text_of(file).splitlines() if line.startswith("#")] if anchor else []
        slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert not anchor or anchor in slugs, target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_file_that_a_page_names_exists(path: Path) -> None:
    text = text_of(path)
    named = re.findall(r"`((?:docs|results|search|spaces|tests|trainable)/[\w./-]+\.(?:py|toml|md))`", text)
    named += re.findall(r"python (tests/\S+\.py)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_space_files_and_imports_of_a_page_are_right(path: Path) -> None:
    for block in fenced(text_of(path), "toml"):
        assert space_from_toml(block, name="mine", path=path.name).parameters
    for block in fenced(text_of(path), "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_readme_is_short_and_says_what_the_built_in_configurations_are() -> None:
    text = text_of(README)
    assert len(text.splitlines()) <= MAX_README_LINES
    before, documented = BASELINES["before"], BASELINES["documented"]
    for row in (
        f"| batch size × block size | {before.batch_size} × {before.block_size} | {documented.batch_size} × "
        f"{documented.block_size} |",
        f"| learning rate | {before.learning_rate:.0e} | {documented.learning_rate:.0e} |".replace("e-0", "e-"),
        f"| steps (`make train`) | {before.training_steps} | {documented.training_steps} |",
    ):
        assert row in text
    assert f"{before.warmup_steps} steps of warm-up" in text
    assert not re.search(r"the story|owner", "".join(map(text_of, PAGES)), re.IGNORECASE)
