"""An attempt at a proof: which trials are confirmed on which fresh seeds, and what came of it. It trains nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from results.confirmation.paired_t import MIN_SEEDS, CandidateVerdict, attempt_alpha, judge
from results.ranking import baseline_trial, leaderboard, ranked_trials
from results.study.planned_run import PlannedRun, fresh_seeds, rows_by_config
from trainable.config import config_from, without_seed
from trainable.errors import UserError
from trainable.rows import ENDINGS

MAX_SEEDS = 1000
MAX_TOP = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt to prove candidates better than the baseline, on seeds of its own."""

    number: int
    """From 1."""
    alpha: float
    """What it may spend of the study's 5 %."""
    baseline: int
    """The trial_id of the baseline."""
    candidates: tuple[int, ...]
    """Trial_ids, the search's best first."""
    seeds: tuple[int, ...]
    verdicts: tuple[CandidateVerdict, ...] = ()
    """By candidate. None before every run has ended: an early look would be one more test."""

    @property
    def ranking(self) -> tuple[int, ...]:
        """The candidates and the baseline: proven better, then unproven and the baseline, then worse.

        Within these the fewest unstable seeds, then the lowest mean difference. Empty as long as verdicts is.
        """
        if not self.verdicts:
            return ()
        places = {self.baseline: (1, len(self.verdicts[0].baseline_unstable_seeds), 0.0)}
        for verdict in self.verdicts:
            group = ("better", "not proven", "worse").index(verdict.outcome)
            mean = math.inf if verdict.mean_difference is None else verdict.mean_difference
            places[verdict.trial_id] = (group, len(verdict.unstable_seeds), mean)
        return tuple(sorted(places, key=lambda trial_id: (places[trial_id], trial_id)))


def plan_attempt(trials: Sequence[dict[str, Any]], earlier: Sequence[Attempt], *, top: int, seeds: int) -> Attempt:
    """Return the next attempt: the `top` best trials and the baseline on `seeds` seeds that nothing was run on.

    Candidates are completed trials of the search that are not proven worse, one of two equal configurations, none
    that equals the baseline's.
    An earlier attempt's seeds are not used again: to add seeds until the answer pleases would prove nothing.
    Raises UserError when there is nothing to confirm.
    """
    _check_number("TOP", top, 1, MAX_TOP)
    _check_number("SEEDS", seeds, MIN_SEEDS, MAX_SEEDS)
    baseline = baseline_trial(trials)
    if baseline is None:
        raise UserError(
            "the study has no baseline to confirm a trial against. Continue it first: make resume STUDY=..."
        )
    worse = {verdict.trial_id for one in earlier for verdict in one.verdicts if verdict.outcome == "worse"}
    known, candidates = {without_seed(config_from(baseline))}, []
    for row in leaderboard(ranked_trials(trials)):
        loss = row["val_loss"] if row["status"] == "completed" and row["trial_id"] not in worse else None
        if loss is None or not math.isfinite(loss):
            continue
        configuration = without_seed(config_from(row))
        if configuration not in known:
            known.add(configuration)
            candidates.append(row["trial_id"])
    if not candidates:
        raise UserError(
            "there is nothing to confirm: no trial besides the baseline has completed"
            f"{' and is not proven worse' if worse else ''}. Run more trials: make resume TRIALS=+..."
        )
    taken = {row["seed"] for row in trials} | {seed for attempt in earlier for seed in attempt.seeds}
    number = len(earlier) + 1
    return Attempt(
        number=number,
        alpha=attempt_alpha(number),
        baseline=baseline["trial_id"],
        candidates=tuple(candidates[:top]),
        seeds=fresh_seeds(seeds, above=baseline["seed"], taken=taken),
    )


def _check_number(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        why = " One seed has no scatter, so it proves nothing." if name == "SEEDS" and value == 1 else ""
        raise UserError(f"{name}={value}: it must be at least {low} and at most {high}.{why}")


def confirmed_rows(attempts: Sequence[Attempt], trials: Sequence[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Return the rows of the attempts' baseline and candidates by trial_id. Raises UserError when one is missing."""
    rows = {row["trial_id"]: row for row in trials}
    wanted = dict.fromkeys(trial_id for attempt in attempts for trial_id in (attempt.baseline, *attempt.candidates))
    for trial_id in wanted:
        if trial_id not in rows:
            raise UserError(
                f"confirmation.json is of trial {trial_id}, which trials.parquet lacks. Restore the table, or move "
                "confirmation.json away and confirm again."
            )
    return {trial_id: rows[trial_id] for trial_id in wanted}


def planned_runs(attempt: Attempt, trials: Sequence[dict[str, Any]]) -> list[PlannedRun]:
    """Return the attempt's runs, not numbered; by seed, so that an interruption leaves whole pairs."""
    rows = confirmed_rows([attempt], trials)
    return [
        PlannedRun(
            config=replace(config_from(rows[trial_id]), seed=seed),
            purpose="confirmation",
            of_trial=trial_id,
            attempt=attempt.number,
        )
        for seed in attempt.seeds
        for trial_id in (attempt.baseline, *attempt.candidates)
    ]


def attempt_rows(attempt: Attempt, trials: Sequence[dict[str, Any]]) -> list[tuple[PlannedRun, dict[str, Any] | None]]:
    """Return each of the attempt's runs with its row, found by its configuration and seed; None before it started."""
    held = rows_by_config(trials, "confirmation")
    return [(run, held.get(run.config)) for run in planned_runs(attempt, trials)]


def judged(attempt: Attempt, trials: Sequence[dict[str, Any]]) -> Attempt:
    """Return the attempt with its verdicts once every run has ended, else as it is.

    A completed run counts with its val_loss, an unstable one as such, and one that ran out of memory likewise: it did
    not complete where the others did. One that failed has not ended: it is run again.
    """
    losses: dict[int, dict[int, float | None]] = {}
    for run, row in attempt_rows(attempt, trials):
        if row is None or row["status"] not in ENDINGS or row["status"] == "failed":
            return attempt
        assert run.of_trial is not None
        loss = row["val_loss"] if row["status"] == "completed" else None
        losses.setdefault(run.of_trial, {})[run.config.seed] = loss
    verdicts = judge(
        losses[attempt.baseline],
        {trial_id: losses[trial_id] for trial_id in attempt.candidates},
        alpha=attempt.alpha,
        next_alpha=attempt_alpha(attempt.number + 1),
    )
    return replace(attempt, verdicts=tuple(verdicts))
