"""The English that comes with Python, in two parts without a common passage: its language reference and its docstrings.

The search fine-tunes on the language reference. The shipped model was pretrained on the docstrings.
"""

import ast
import hashlib
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

SHINGLE_WORDS = 8
MAX_REPEATED_FRAC = 0.2
"""A paragraph goes when more of its runs of 8 words than this came before."""


def language_reference() -> str:
    """Return about 0.4 MB of English: the Python language reference, each passage once."""
    from pydoc_data.topics import topics

    return _joined(_by_hash(topics.values()), seen=set(), repeated_frac=MAX_REPEATED_FRAC)


def docstrings() -> str:
    """Return about 1.3 MB of English: the standard library's docstrings without any passage of the reference."""
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    found: set[str] = set()
    for path in sorted(stdlib.rglob("*.py")):
        if not {"site-packages", "test", "tests", "idlelib", "turtledemo"} & set(path.relative_to(stdlib).parts):
            found.update(_docstrings_of(path))
    once = _joined(_by_hash(found), seen=set(), repeated_frac=MAX_REPEATED_FRAC).split("\n\n")
    return _joined(once, seen=_shingles(language_reference()), repeated_frac=0.0)


def _by_hash(passages: Iterable[str]) -> list[str]:
    # So that the head and the tail of the text, which are its two sides of the split, are alike.
    return sorted(set(passages), key=lambda text: hashlib.sha256(text.encode()).digest())


def _joined(passages: Iterable[str], *, seen: set[int], repeated_frac: float) -> str:
    # Passages are copied from place to place: left in, the validation text would be found in the training text.
    return "\n\n".join(_without_repeats(passages, seen, repeated_frac)) + "\n"


def _without_repeats(passages: Iterable[str], seen: set[int], repeated_frac: float) -> Iterator[str]:
    for passage in passages:
        kept = []
        for paragraph in passage.split("\n\n"):
            shingles = _shingles(paragraph)
            if len(shingles & seen) <= repeated_frac * len(shingles):
                kept.append(paragraph)
            seen |= shingles
        if kept:
            yield "\n\n".join(kept)


def _shingles(text: str) -> set[int]:
    words = text.split()
    return {hash(tuple(words[i : i + SHINGLE_WORDS])) for i in range(len(words) - SHINGLE_WORDS + 1)}


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
