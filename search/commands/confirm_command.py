"""`make confirm`: the best trials and the baseline again on fresh seeds, and what that proves."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rich.table import Table

from results.confirmation.confirmation import (
    Confirmation,
    ConfirmationRun,
    confirm,
    load_confirmation,
    plan_confirmation,
    to_json,
    write_confirmation,
)
from results.study.folder import Study
from results.study.ledger import Ledger
from results.study.lock import hold
from results.words import UNKNOWN, config_words, difference_words
from search.cluster.study_storage import open_or_fetch_study
from search.options import Options
from search.setup.finish import finish_study
from search.setup.reopen import Reopened, reopen, run_more
from search.terminal.console import Preparing, Terminal
from trainable.config import config_from
from trainable.rows import ENDINGS

DEFAULT_SEEDS = 5


def confirm_command(options: Options, terminal: Terminal) -> int:
    """Confirm STUDY's best TOP trials on SEEDS fresh seeds; return the exit code."""
    study, storage = open_or_fetch_study(options)
    code = confirm_study(study, options, terminal)
    finish_study(study, terminal, storage)
    confirmation = load_confirmation(study)
    assert confirmation is not None
    say_confirmation(study, confirmation, terminal)
    terminal.document({"study": study.name, "path": str(study.path), **to_json(confirmation)})
    return code


def confirm_study(study: Study, options: Options, terminal: Terminal) -> int:
    """Plan the confirmation, or take up the one that was begun, and run what is missing of it; return the exit code."""
    seeds = options.seeds or DEFAULT_SEEDS
    trials = study.trials()
    known = load_confirmation(study)
    if known is not None and not known.verdicts:
        runs: Sequence[ConfirmationRun] = known.runs
    else:
        # A second one judges its own fresh seeds alone: looking again until it says "better" would prove nothing.
        used = {run.seed for run in known.runs} if known else set()
        study_seed = study.document()["seed"]
        plan = plan_confirmation(trials, top=options.top, seeds=seeds, study_seed=study_seed, used_seeds=used)
        runs = [ConfirmationRun(source_trial_id=source, seed=seed) for source, seed in plan]
    with hold(study):
        with Preparing(terminal.console) as progress:
            reopened = reopen(study, options, progress)
        ledger = Ledger.load(study)
        runs = _numbered(runs, trials)
        write_confirmation(study, confirm(trials, runs))
        code = _run_missing(reopened, runs, trials, terminal, ledger)
    rows = {row["trial_id"]: row for row in study.trials()}
    write_confirmation(study, confirm(trials, [_measured(run, rows) for run in runs]))
    return code or 0


def _numbered(runs: Sequence[ConfirmationRun], trials: Sequence[dict[str, Any]]) -> list[ConfirmationRun]:
    """Return the runs, each with the row it has or will have; one that was cut off goes on in its own."""
    known = {row["trial_id"] for row in trials}
    next_id = max(row["trial_id"] for row in trials) + 1
    numbered = []
    for run in runs:
        if run.trial_id not in known:
            run, next_id = replace(run, trial_id=next_id), next_id + 1
        numbered.append(run)
    return numbered


def _run_missing(
    reopened: Reopened,
    runs: Sequence[ConfirmationRun],
    trials: Sequence[dict[str, Any]],
    terminal: Terminal,
    ledger: Ledger,
) -> int | None:
    from search.tune.workload import list_workload

    rows = {row["trial_id"]: row for row in trials}
    ended = {row["trial_id"] for row in trials if row["status"] in ENDINGS}
    missing = {
        run.trial_id: replace(config_from(rows[run.source_trial_id]), seed=run.seed)
        for run in runs
        if run.trial_id is not None and run.trial_id not in ended
    }
    if not missing:
        return None
    return run_more(
        reopened,
        lambda: list_workload(missing, baseline=reopened.baseline, milestones_tokens=reopened.milestones_tokens),
        terminal,
        ledger,
        lines=[f"study {reopened.study.name}: {len(missing)} runs on fresh seeds"],
    )


def _measured(run: ConfirmationRun, rows: dict[int, dict[str, Any]]) -> ConfirmationRun:
    row = rows.get(run.trial_id) if run.trial_id is not None else None
    if row is None or row["status"] not in ENDINGS:
        return run
    return replace(run, val_loss=row["val_loss"], status=row["status"])


def say_confirmation(study: Study, confirmation: Confirmation, terminal: Terminal) -> None:
    """Print what was proven, and the ranks by search and by confirmation."""
    rows = {row["trial_id"]: row for row in study.trials()}
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("trial", "by search", "confirmed", "v baseline", "95 % interval", "p", "verdict"):
        table.add_column(heading, justify="left" if heading in ("trial", "verdict") else "right", overflow="fold")
    ranks = {trial_id: rank for rank, trial_id in enumerate(confirmation.rank_by_confirmation, start=1)}
    verdicts = {verdict.trial_id: verdict for verdict in confirmation.verdicts}
    for rank, trial_id in enumerate(confirmation.rank_by_search, start=1):
        verdict = verdicts.get(trial_id)
        name = "baseline" if rows[trial_id]["is_baseline"] else f"{trial_id}"
        if verdict is None:
            table.add_row(name, str(rank), str(ranks.get(trial_id, UNKNOWN)))
            continue
        low, high = difference_words(verdict.low), difference_words(verdict.high)
        table.add_row(
            name,
            str(rank),
            str(ranks[trial_id]),
            difference_words(verdict.mean_difference),
            f"{low} to {high}",
            UNKNOWN if verdict.p_value is None else f"{verdict.p_value:.2g}",
            verdict.words,
        )
    terminal.console.print(table)
    for verdict in confirmation.verdicts:
        terminal.say(f"trial {verdict.trial_id} ({config_words(rows[verdict.trial_id])}): {verdict.words}")
    if not confirmation.verdicts:
        done = sum(run.status is not None for run in confirmation.runs)
        terminal.say(f"{done} of {len(confirmation.runs)} runs have ended; make confirm STUDY={study.name} goes on")
