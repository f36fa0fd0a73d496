"""`make spaces`: lists the space files and checks each."""

from dataclasses import asdict
from typing import Any

from rich.table import Table

from results.words import config_words, short_budget_words
from search.options import Options
from search.terminal.console import Terminal, print_wide
from spaces.overrides import unread_words
from spaces.read.load import load_space
from spaces.read.space_files import list_spaces
from spaces.space import SearchSpace
from trainable.errors import UserError


def spaces_command(options: Options, terminal: Terminal) -> int:
    """List every space, or SPACE alone with its domains; 2 when one is broken."""
    names = [options.space] if options.space else list(map(str, list_spaces()))
    table = Table(box=None, header_style="bold")
    for heading in ("space", "trials", "budget", "searches", "question"):
        table.add_column(heading, overflow="fold", justify="right" if heading in ("trials", "budget") else "left")
    entries: list[dict[str, Any]] = []
    errors: list[str] = []
    lines: list[str] = []
    for name in names:
        try:
            space = load_space(name)
        except UserError as error:
            errors.append(str(error))
            entries.append({"path": name, "error": str(error)})
            continue
        entries.append(_entry(space))
        trials = f"up to {space.trials}" if space.ends_early else f"{space.trials}"
        searched = ", ".join(parameter.name for parameter in space.parameters)
        table.add_row(space.name, trials, short_budget_words(space.budget), searched, space.description)
        if options.space:
            lines = [*space_lines(space), *unread_words(space)]
    if table.row_count:
        print_wide(terminal.console, table)
    terminal.say(*lines)
    for line in errors:
        terminal.say(f"error: {line}")
    terminal.document({"spaces": entries})
    return 2 if errors else 0


def space_lines(space: SearchSpace) -> list[str]:
    """Return lines on the baseline and on what is searched around it."""
    baseline = f"baseline ({space.baseline_name}): {config_words(asdict(space.baseline))}"
    return [baseline, *(f"searched: {parameter}" for parameter in space.parameters)]


def _entry(space: SearchSpace) -> dict[str, Any]:
    in_tokens = space.budget.device_s is None
    return {
        "name": space.name,
        "path": space.path,
        "description": space.description,
        "trials": space.trials,
        "ends_early": space.ends_early,
        "budget_tokens": space.budget.tokens if in_tokens else None,
        "rung_tokens": space.rung_tokens() if in_tokens else None,
        "device_s": space.budget.device_s,
        "baseline": space.baseline_name,
        "search": {parameter.name: str(parameter.domain) for parameter in space.parameters},
    }
