"""Writes docs/variables.md from what the program says of its variables: .venv/bin/python -m docs.write_variables"""

from collections.abc import Iterable, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any

from search.__main__ import COMMANDS
from search.options import FIELDS, describe_variable
from trainable.config import BEFORE, DOCUMENTED, HYPERPARAMETERS

PAGE = Path(__file__).with_name("variables.md")

INTRODUCTION = """# Which variables are there?

A variable is set in the environment, or written behind the command: `make search TRIALS=12` and
`python -m search run TRIALS=12` are the same. Each is read once, when a command starts. A wrong value, or a wrong name
on the command line, is refused before anything is loaded, with the nearest name that exists. A name in the environment
that is close to a variable's (`BATCHSIZE`, say) is reported in one line, and the command goes on. `make help` prints
this list with the values that are set. An empty variable counts as not set.

This page is written by `.venv/bin/python -m docs.write_variables`; a test compares it with the program.

## Hyperparameters

In a search a hyperparameter that is set is pinned: it has that value in every trial, the baseline included, and the
header says so. Space files use the names in small letters. `documented` and `before` are the two built-in
configurations of [README](../README.md#documented-and-before).
"""


def page() -> str:
    """Return the page's text."""
    hyperparameters = [
        (f"`{spec.metadata['env']}`", _kind(spec), str(getattr(DOCUMENTED, name)), str(getattr(BEFORE, name)))
        for name, spec in HYPERPARAMETERS.items()
    ]
    meanings = {name: describe_variable(name) for name in FIELDS}
    of_commands = {name: words for name, words in meanings.items() if _names_commands(words)}
    general = [(f"`{name}`", words) for name, words in meanings.items() if name not in of_commands]
    parts = [
        INTRODUCTION,
        _table(("variable", "value", "documented", "before"), hyperparameters),
        "\n## Of several commands\n",
        _table(("variable", "meaning"), general),
        "\n## Of single commands\n",
        "The commands that read a variable stand before its meaning.\n",
        _table(("variable", "meaning"), [(f"`{name}`", words) for name, words in of_commands.items()]),
    ]
    return "\n".join(parts) + "\n"


def _names_commands(words: str) -> bool:
    # The description of a variable that one command alone reads begins with that command's name.
    names = words.partition(": ")[0].split(", ")
    return set(names) <= {*COMMANDS, "search"}


def _kind(spec: Field[Any]) -> str:
    return ", ".join(spec.metadata["choices"]) or spec.metadata["unit"]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
