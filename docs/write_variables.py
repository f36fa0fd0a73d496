"""Writes docs/variables.md from what the program says of its variables: .venv/bin/python -m docs.write_variables"""

from collections.abc import Iterable, Sequence
from dataclasses import Field
from pathlib import Path
from typing import Any

from search.commands.variables_command import HYPERPARAMETERS_HEADING, variable_groups
from trainable.config import BEFORE, DOCUMENTED, HYPERPARAMETERS

PAGE = Path(__file__).with_name("variables.md")

INTRODUCTION = """# Which variables are there?

A variable is set in the environment, or written behind the command: `make search TRIALS=12` and
`python -m search run TRIALS=12` are the same. Each is read once, when a command starts. A wrong value, or a wrong name
on the command line, is refused before anything is loaded, with the nearest name. A name in the environment
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
    parts = [INTRODUCTION, _table(("variable", "value", "documented", "before"), hyperparameters)]
    for heading, variables in variable_groups().items():
        if heading != HYPERPARAMETERS_HEADING:
            rows = [(f"`{name}`", words) for name, words in variables]
            parts += [f"\n## {heading.capitalize()}\n", _table(("variable", "meaning"), rows)]
    return "\n".join(parts) + "\n"


def _kind(spec: Field[Any]) -> str:
    return ", ".join(spec.metadata["choices"]) or spec.metadata["unit"]


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
