"""`make help`: lists every variable with its meaning, in groups."""

from collections.abc import Mapping

from rich.table import Table

from search.options import FIELDS, Options, describe_variable
from search.terminal.console import Terminal
from trainable.config import ENV_NAMES
from trainable.errors import redacted

FIRST_OF_GROUPS: Mapping[str, str] = {
    "SPACE": "what is searched",
    "GPT2_MODEL_NAME": "your model and text",
    "DEVICE": "the machine",
    "TENSORBOARD": "trackers",
    "WEIGHTS_ONLY": "train",
    "COMPARE": "other commands",
}
"""The heading of each group of Options' fields, by its first variable."""
HYPERPARAMETERS_HEADING = "hyperparameters (pinned for a whole search where they are set)"


def variable_groups() -> dict[str, list[tuple[str, str]]]:
    """Return (name, meaning) of every variable by its group's heading, the hyperparameters last."""
    groups: dict[str, list[tuple[str, str]]] = {}
    heading = ""
    for name in FIELDS:
        heading = FIRST_OF_GROUPS.get(name, heading)
        groups.setdefault(heading, []).append((name, describe_variable(name)))
    return {**groups, HYPERPARAMETERS_HEADING: [(name, describe_variable(name)) for name in ENV_NAMES]}


def variables_command(options: Options, terminal: Terminal) -> int:
    """Print the variables; one that is set is shown with its value."""
    groups = variable_groups()
    width = max(len(name) for group in groups.values() for name, _ in group)
    for heading, variables in groups.items():
        terminal.say(f"\n{heading}")
        table = Table.grid(padding=(0, 2))
        table.add_column(min_width=width + 2, no_wrap=True)
        for name, meaning in variables:
            value = redacted(options.texts.get(name, ""))
            table.add_row(f"  {name}", f"{meaning}; now {value}" if value else meaning)
        terminal.console.print(table)
    terminal.document({"variables": dict(variable for group in groups.values() for variable in group)})
    return 0
