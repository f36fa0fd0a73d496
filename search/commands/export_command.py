"""`make -s export`: a study's best configuration on stdout, for a shell, a program, a space file or make."""

import sys

from results.export import export_cli, export_env, export_json, export_toml
from results.study.folder import LATEST, open_study
from search.options import Options
from search.terminal.console import Terminal

FORMATS = {"env": export_env, "json": export_json, "toml": export_toml, "cli": export_cli}


def export_command(options: Options, terminal: Terminal) -> int:
    """Print the best completed trial of STUDY (default: the latest search) in FORMAT, as long as BUDGET_TOKENS asks."""
    name = "json" if terminal.as_json else options.format
    text = FORMATS[name](open_study(options.study or LATEST), options.budget_tokens)
    # A path that is not UTF-8 came in by surrogateescape and leaves by it.
    sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape"))
    sys.stdout.buffer.flush()
    return 0
