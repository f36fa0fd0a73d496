"""Confirmed studies without training: the rows that an attempt leaves in trials.parquet, with planted losses."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from results.confirmation.attempt import Attempt, judged, load_attempts, plan_attempt, planned_runs, write_attempts
from results.study.folder import Study
from results.study.planned_run import Row
from results.study.tables import TRIALS, write_table


def confirmation_rows(
    attempt: Attempt, trials: Sequence[Row], losses: Mapping[int, Sequence[float | str | None]]
) -> list[Row]:
    """Return the rows of an attempt: losses by trial, a seed each; a word is another ending, None not started."""
    sources = {row["trial_id"]: row for row in trials}
    rows: list[Row] = []
    next_id = max(sources) + 1
    for run in planned_runs(attempt, trials):
        assert run.of_trial is not None
        loss = losses[run.of_trial][attempt.seeds.index(run.config.seed)]
        if loss is None:
            continue
        ending = {"status": loss, "val_loss": None} if isinstance(loss, str) else {"val_loss": loss}
        columns = replace(run, trial_id=next_id + len(rows)).columns()
        rows.append({**sources[run.of_trial], "status": "completed", **columns, **ending})
    return rows


def add_attempt(study: Study, losses: Mapping[int, Sequence[float | str | None]], *, top: int | None = None) -> Attempt:
    """Write another attempt into the study, its rows and its verdicts; return it."""
    trials, earlier = study.trials(), load_attempts(study)
    seeds = len(next(iter(losses.values())))
    attempt = plan_attempt(trials, earlier, study="one", top=top or len(losses) - 1, seeds=seeds)
    trials = [*trials, *confirmation_rows(attempt, trials, losses)]
    write_table(study.trials_path, trials, TRIALS)
    attempt = judged(attempt, trials)
    write_attempts(study, (*earlier, attempt))
    return attempt
