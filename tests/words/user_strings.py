"""Every string that a person may read, with its place: messages, docstrings, comments, templates, spaces, pages.

python -m tests.words.user_strings [message docstring comment page] prints them, one a line.
"""

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

ROOT = Path(__file__).parents[2]
PACKAGES = ("search", "trainable", "spaces", "results", "docs")
PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/*.md", "trainable/model/tiny/README.md")
Kind = Literal["message", "docstring", "comment", "page"]
# What stands between the braces of an f-string is a value.
VALUE = "{}"


@dataclass(frozen=True)
class UserString:
    """One string and where it stands."""

    path: str
    line: int
    kind: Kind
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.kind}: {self.text}"


def user_strings() -> Iterator[UserString]:
    """Yield every string, file by file."""
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        yield from _of_module(path)
    for pattern in ("results/report/*.j2", "results/report/*.js", "spaces/*.toml", "Makefile"):
        for path in sorted(ROOT.glob(pattern)):
            yield from _lines(path, "message")
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            yield from _paragraphs(path)


def _of_module(path: Path) -> Iterator[UserString]:
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    docstrings = {
        id(node.value)
        for parent in ast.walk(tree)
        if isinstance(parent, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        for node in parent.body
        # A string that stands alone says what is above it, or is inside.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    }
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        text = _text(node)
        if (
            not isinstance(node, ast.Constant | ast.JoinedStr)
            or text is None
            or (id(node) in inside and not isinstance(node, ast.JoinedStr))
        ):
            continue
        kind: Kind = "docstring" if id(node) in docstrings else "message"
        # A word alone is a name or a key of the program, unless it is one of a heading.
        if kind == "docstring" or " " in text.strip():
            yield UserString(_shown(path), node.lineno, kind, _joined(text))
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT:
                yield UserString(_shown(path), token.start[0], "comment", token.string.lstrip("# "))


def _text(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else VALUE for part in node.values)
    return None


def _lines(path: Path, kind: Kind) -> Iterator[UserString]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        # Of a template the tags are the program's.
        text = re.sub(r"{[{%#].*?[}%#]}", VALUE, line).strip()
        if " " in text:
            yield UserString(_shown(path), number, kind, text)


def _paragraphs(path: Path) -> Iterator[UserString]:
    number = 1
    for block in path.read_text(encoding="utf-8").split("\n\n"):
        if block.strip():
            yield UserString(_shown(path), number, "page", _joined(block))
        number += block.count("\n") + 2


def _joined(text: str) -> str:
    return " ".join(text.split())


def _shown(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


if __name__ == "__main__":
    for one in user_strings():
        if one.kind in (sys.argv[1:] or one.kind):
            print(one)
