"""`make -s export`: prints a study's best configuration for a shell, a program, a space file or make."""

import sys

from results.export import export_cli, export_env, export_json, export_toml
from results.study.folder import LATEST, Study, open_study
from results.winner import winner_of
from search.options import Options
from search.terminal.console import Terminal, plain
from spaces.budget import budget_of
from trainable.config import config_from
from trainable.errors import UserError

FORMATS = {"env": export_env, "json": export_json, "toml": export_toml, "cli": export_cli}


def export_command(options: Options, terminal: Terminal) -> int:
    """Print the best completed trial of STUDY (default: the latest search) in FORMAT, at BUDGET_*."""
    name = "json" if terminal.as_json else options.format
    study = open_study(options.study or LATEST)
    text = FORMATS[name](study, options.budget_tokens or _tokens_in_time(study, options))
    if sys.stdout.isatty():
        text = plain(text)
    # Writes a path that is not UTF-8 as the bytes that were read.
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]
    sys.stdout.write(text)
    return 0


def _tokens_in_time(study: Study, options: Options) -> int | None:
    """Return the winner's tokens in BUDGET_TIME at the study's measured speed; None for the study's own budget."""
    budget, device_s = budget_of(study.document()), options.budget_time
    if device_s is None or device_s == budget.device_s:
        return None
    if budget.device_s is None:
        raise UserError(
            f"BUDGET_TIME={options.texts['BUDGET_TIME']}: study {study.name} gave its trials tokens, so no speed of "
            "its winner was measured. Set BUDGET_TOKENS."
        )
    winner = winner_of(study).trial
    if winner is None:
        return None
    config = budget.lasting(device_s).sized(config_from(winner))
    return config.training_steps * config.tokens_per_step
