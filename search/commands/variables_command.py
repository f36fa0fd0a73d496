"""`python -m search variables`: every variable and what it means, for `make help`."""

from rich.table import Table

from search.options import Options, describe_variables
from search.terminal.console import Terminal
from trainable.errors import redacted


def variables_command(options: Options, terminal: Terminal) -> int:
    """Print the variables; one that is set is shown with its value."""
    table = Table.grid(padding=(0, 2))
    for name, meaning in describe_variables():
        value = redacted(options.texts.get(name, ""))
        table.add_row(f"  {name}" + (f"={value}" if value else ""), meaning)
    terminal.console.print(table)
    terminal.document({"variables": dict(describe_variables())})
    return 0
