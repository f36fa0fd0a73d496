"""An attempt at a proof: the trials to confirm, the fresh seeds, and the verdicts. It trains nothing.

A study's attempts are in confirmation.json, written and read back checked. Attempts are added, never erased.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from results.confirmation.paired_t import MIN_SEEDS, CandidateVerdict, Outcome, attempt_alpha, judge
from results.ranking import baseline_trial, final_loss, leaderboard, ranked_trials
from results.study.atomic import read_document, value_of, write_document
from results.study.folder import Study
from results.study.planned_run import PlannedRun, Row, fresh_seeds, has_result, rows_by_config
from trainable.config import config_from, without_seed
from trainable.errors import NothingToDoError, UserError, check_bounds

MAX_SEEDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One attempt to prove candidates better than the baseline, on seeds of its own."""

    number: int
    """From 1."""
    alpha: float
    """Its share of the study's 5 %."""
    baseline: int
    """Trial_id."""
    candidates: tuple[int, ...]
    """Trial_ids, the search's best first."""
    seeds: tuple[int, ...]
    verdicts: tuple[CandidateVerdict, ...] = ()
    """One per candidate; empty before every run has ended, because an early look would be one more test."""


def plan_attempt(trials: Sequence[Row], earlier: Sequence[Attempt], *, study: str, top: int, seeds: int) -> Attempt:
    """Return the next attempt: the `top` best trials and the baseline on `seeds` seeds that nothing was run on.

    Candidates are completed trials of the search that are not proven worse and differ from the baseline and from each
    other. Seeds of an earlier attempt are not used again: adding seeds until the answer pleases would prove nothing.
    Raises UserError when there is nothing to confirm.
    """
    check_bounds("SEEDS", seeds, MIN_SEEDS, MAX_SEEDS)
    baseline = baseline_trial(trials)
    if baseline is None:
        raise UserError(
            f"study {study} has no baseline to confirm a trial against. Continue it first: make resume STUDY={study}"
        )
    worse = trials_found("worse", earlier)
    candidates = {without_seed(config_from(baseline)): baseline["trial_id"]}
    for row in leaderboard(ranked_trials(trials)):
        if final_loss(row) is not None and row["trial_id"] not in worse:
            candidates.setdefault(without_seed(config_from(row)), row["trial_id"])
    if len(candidates) == 1:
        raise NothingToDoError(
            f"there is nothing to confirm in study {study}: no trial besides the baseline has completed"
            f"{' and is not proven worse' if worse else ''}."
        )
    taken = {row["seed"] for row in trials} | {seed for attempt in earlier for seed in attempt.seeds}
    number = len(earlier) + 1
    return Attempt(
        number=number,
        alpha=attempt_alpha(number),
        baseline=baseline["trial_id"],
        candidates=tuple(candidates.values())[1 : top + 1],
        seeds=fresh_seeds(seeds, above=baseline["seed"], taken=taken),
    )


def trials_found(outcome: Outcome, attempts: Sequence[Attempt]) -> set[int]:
    """Return the trial_ids with that outcome in any of the attempts."""
    return {verdict.trial_id for one in attempts for verdict in one.verdicts if verdict.outcome == outcome}


def confirmed_rows(attempts: Sequence[Attempt], trials: Sequence[Row]) -> dict[int, Row]:
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


def planned_runs(attempt: Attempt, trials: Sequence[Row]) -> list[PlannedRun]:
    """Return the attempt's runs, not numbered, seed by seed, so that an interruption leaves whole pairs."""
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


def attempt_rows(attempt: Attempt, trials: Sequence[Row]) -> list[tuple[PlannedRun, Row | None]]:
    """Return each of the attempt's runs with its row; None before it started."""
    held = rows_by_config(trials, "confirmation")
    return [(run, held.get(run.config)) for run in planned_runs(attempt, trials)]


def judged(attempt: Attempt, trials: Sequence[Row]) -> Attempt:
    """Return the attempt with its verdicts once every run has a result, else as it is.

    A run that ran out of memory counts as an unstable one: it did not complete where the others did.
    """
    losses: dict[int, dict[int, float | None]] = {}
    for run, row in attempt_rows(attempt, trials):
        if not has_result(row):
            return attempt
        assert run.of_trial is not None
        losses.setdefault(run.of_trial, {})[run.config.seed] = final_loss(row)
    verdicts = judge(
        losses[attempt.baseline],
        {trial_id: losses[trial_id] for trial_id in attempt.candidates},
        alpha=attempt.alpha,
        next_alpha=attempt_alpha(attempt.number + 1),
    )
    return replace(attempt, verdicts=tuple(verdicts))


def to_json(attempts: Sequence[Attempt]) -> Row:
    """Return the attempts as the file holds them."""
    return {"attempts": [asdict(one) for one in attempts]}


def from_json(document: Row) -> tuple[Attempt, ...]:
    """Return the attempts that to_json was given. Raises KeyError, TypeError or ValueError for anything else."""
    attempts = tuple(value_of(Attempt, entry) for entry in document["attempts"])
    for number, attempt in enumerate(attempts, start=1):
        verdicts_of = tuple(verdict.trial_id for verdict in attempt.verdicts)
        is_whole = attempt.number == number and verdicts_of in ((), attempt.candidates)
        if not (is_whole and attempt.candidates and attempt.seeds and 0.0 < attempt.alpha < 1.0):
            raise ValueError(f"attempt {number} is not whole")
    return attempts


def write_attempts(study: Study, attempts: Sequence[Attempt]) -> None:
    """Write the study's confirmation.json. Raises OSError."""
    write_document(study.path / "confirmation.json", to_json(attempts))


def load_attempts(study: Study) -> tuple[Attempt, ...]:
    """Return the study's attempts, the oldest first. Raises UserError when the file is damaged."""
    found = read_document(study.path / "confirmation.json", from_json, what="a confirmation", again="confirm")
    return found or ()
