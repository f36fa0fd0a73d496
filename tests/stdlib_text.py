"""The English on which the shipped model was pretrained: the docstrings of Python's standard library."""

import ast
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from trainable.data.corpus import MAX_REPEATED_FRAC, by_hash, each_once, language_reference, shingles

LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "turtledemo"}


def docstrings() -> str:
    """Return about 1.3 MB of English: the standard library's docstrings without any passage of the reference."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    found: set[str] = set()
    for path in sorted(stdlib.rglob("*.py")):
        if not LEFT_OUT & set(path.relative_to(stdlib).parts):
            found.update(_docstrings_of(path))
    once = each_once(by_hash(found), seen=set(), repeated_frac=MAX_REPEATED_FRAC).split("\n\n")
    return each_once(once, seen=shingles(language_reference()), repeated_frac=0.0)


def _docstrings_of(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) >= 80 and text.isascii():
                yield text
