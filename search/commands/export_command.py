"""`make -s export`: prints a study's best configuration for a shell, a program, a space file or make."""

import sys

from results.export import export_cli, export_env, export_json, export_toml
from results.study.folder import LATEST, open_study
from search.options import Options
from search.setup.train_plan import length_asked
from search.terminal.console import Terminal, plain
from search.terminal.next_steps import with_remedy

FORMATS = {"env": export_env, "json": export_json, "toml": export_toml, "cli": export_cli}


def export_command(options: Options, terminal: Terminal) -> int:
    """Print the winner of STUDY (default: the latest search) in FORMAT, for another length of run if one is set."""
    name = "json" if terminal.as_json else options.format
    study = open_study(options.study or LATEST)
    with with_remedy(study):
        text = FORMATS[name](study, length_asked(study, options))
    if name == "cli":
        text = f"{terminal.typed(text.rstrip())}\n"
    if sys.stdout.isatty():
        text = plain(text)
    # Writes a path that is not UTF-8 as the bytes that were read.
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    sys.stdout.write(text)
    return 0
