"""`make -s export`: a study's best configuration on stdout, for a shell, a program, a space file or make."""

import sys

from results.export import export_cli, export_env, export_json, export_toml
from results.study.folder import LATEST, open_study
from search.options import Options
from search.terminal.console import Terminal, plain

FORMATS = {"env": export_env, "json": export_json, "toml": export_toml, "cli": export_cli}


def export_command(options: Options, terminal: Terminal) -> int:
    """Print the best completed trial of STUDY (default: the latest search) in FORMAT, as long as BUDGET_TOKENS asks."""
    name = "json" if terminal.as_json else options.format
    text = FORMATS[name](open_study(options.study or LATEST), options.budget_tokens)
    if sys.stdout.isatty():
        text = plain(text)
    # A path that is not UTF-8 came in by surrogateescape and leaves by it.
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    sys.stdout.write(text)
    return 0
