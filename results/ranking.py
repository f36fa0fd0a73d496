"""The rows of trials.parquet as a whole: their order, endings and savings. Pure; it reads no file."""

import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from results.study.planned_run import Row
from trainable.config import TrialConfig, config_from, shape_of
from trainable.rows import ENDINGS, RANKED_PURPOSES, Purpose, TrialStatus

_PLACES: tuple[TrialStatus, ...] = (
    "completed", "stopped", "running", "interrupted", "unstable", "out_of_memory", "failed",
)  # fmt: skip
_LOSS_COUNTS = ("completed", "stopped", "running", "interrupted")
_ENDED_EARLY = ("stopped", "unstable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """The study's cost, and the cost had no trial been ended early."""

    device_s_spent: float
    """Seconds of training and evaluation, summed over trials."""
    device_s_full: float
    """The same if every stopped or unstable trial had run to its full budget; see savings() for its speed."""
    device_s_saved_frac: float
    """1 - spent / full; 0 when nothing ran."""
    tokens_spent: int
    tokens_full: int


def leaderboard(trials: Sequence[Row]) -> list[Row]:
    """Return the trials from best to worst.

    Completed ones come first, by val_loss at the full budget; then stopped ones, the highest rung first, by val_loss;
    then those under way likewise; then unstable, out_of_memory and failed ones. Ties go by trial_id.
    """
    return sorted(trials, key=_place)


def _place(trial: Row) -> tuple[int, int, float, int]:
    status, rung = trial["status"], trial["rung"]
    by_rung = status in _LOSS_COUNTS and status != "completed" and rung is not None
    loss = trial["val_loss"] if status in _LOSS_COUNTS else 0.0
    # NaN compares False with everything: a single one would scramble the order.
    loss = loss if loss is not None and math.isfinite(loss) else math.inf
    # Rungs count from 0, so 1 is the place of trials that reached none.
    return _PLACES.index(status), -rung if by_rung else 1, loss, trial["trial_id"]


def ranked_trials(trials: Sequence[Row]) -> list[Row]:
    """Return the study's own trials, without the runs that confirm or attribute one of them."""
    return [row for row in trials if row["purpose"] in RANKED_PURPOSES]


def final_loss(trial: Mapping[str, Any] | None) -> float | None:
    """Return the val_loss at the full budget; None where no trial is, or it did not complete or has no finite loss."""
    loss: float | None = trial["val_loss"] if trial is not None and trial["status"] == "completed" else None
    return loss if loss is not None and math.isfinite(loss) else None


def is_less(loss: float | None, other: float | None) -> bool:
    """Return whether both losses are known and the first is the lower one."""
    return loss is not None and other is not None and loss < other


def baseline_trial(trials: Sequence[Row]) -> Row | None:
    """Return the baseline, whatever its status; None when it has not started."""
    return next((trial for trial in trials if trial["is_baseline"]), None)


def spent_by_purpose(trials: Sequence[Row]) -> dict[Purpose, Row]:
    """Return {"runs", "device_s", "tokens"} for each purpose that occurs."""
    found = {}
    for purpose in get_args(Purpose):
        rows = [row for row in trials if row["purpose"] == purpose]
        if rows:
            device_s, tokens = math.fsum(row["active_s"] for row in rows), sum(row["tokens_seen"] for row in rows)
            found[purpose] = {"runs": len(rows), "device_s": device_s, "tokens": tokens}
    return found


def full_tokens(trial: Mapping[str, Any]) -> int:
    """Return the training tokens of the trial's full budget, in whole steps."""
    tokens: int = trial["training_steps"] * trial["batch_size"] * trial["block_size"] * trial["grad_accum_steps"]
    return tokens


def budget_frac(trial: Mapping[str, Any]) -> float:
    """Return the share of its full budget that the trial has trained."""
    return float(trial["tokens_seen"] / full_tokens(trial))


def of_their_own(trials: Sequence[Row], metrics: Sequence[Row]) -> list[Row]:
    """Return the trials as what they trained themselves, for their cost; metrics with tokens rising.

    A run of train that goes on from a checkpoint's step counts from its model's start, and is first evaluated there.
    """
    starts = {row["trial_id"]: row for row in reversed(metrics)}
    own = []
    for trial in trials:
        start = starts.get(trial["trial_id"])
        if trial["purpose"] == "train" and start is not None:
            steps = max(1, trial["training_steps"] - start["optimizer_steps"])
            tokens = trial["tokens_seen"] - start["tokens_seen"]
            trial = {**trial, "tokens_seen": tokens, "training_steps": steps, "warmup_steps": 0}
        own.append(trial)
    return own


def seconds_a_token(trials: Sequence[Row]) -> float | None:
    """Return the median device time of a token: of the completed trials, or else of all that trained; None of none."""
    trained = [row for row in trials if row["tokens_seen"] and row["active_s"]]
    # A trial that was stopped soon tells too much: its first steps are slow.
    usual = [row for row in trained if row["status"] == "completed"] or trained
    return statistics.median(row["active_s"] / row["tokens_seen"] for row in usual) if usual else None


def savings(trials: Sequence[Row]) -> Savings:
    """Return the device-seconds and tokens spent against running every trial to its full budget.

    A trial is extrapolated at the speed of the completed ones of its shape, without any at its own, or else at that of
    all. Trials under way, out of memory or failed count as they are on both sides: their remainder was not saved.
    """
    completed: dict[TrialConfig, list[Row]] = defaultdict(list)
    for row in trials:
        if row["status"] == "completed":
            completed[shape_of(config_from(row))].append(row)
    device_s_rest, tokens_rest = 0.0, 0
    for row in trials:
        if row["status"] in _ENDED_EARLY:
            rest = max(full_tokens(row) - row["tokens_seen"], 0)
            tokens_rest += rest
            rates = map(seconds_a_token, (completed[shape_of(config_from(row))], [row], trials))
            device_s_rest += rest * next(filter(None, rates), 0.0)
    spent = math.fsum(row["active_s"] for row in trials)
    tokens_spent = sum(row["tokens_seen"] for row in trials)
    return Savings(
        device_s_spent=spent,
        device_s_full=spent + device_s_rest,
        device_s_saved_frac=device_s_rest / (spent + device_s_rest) if spent + device_s_rest else 0.0,
        tokens_spent=tokens_spent,
        tokens_full=tokens_spent + tokens_rest,
    )


def ending_counts(trials: Sequence[Row]) -> dict[TrialStatus, int]:
    """Return the number of trials by status; every status is a key, endings first."""
    statuses = (*ENDINGS, *(status for status in get_args(TrialStatus) if status not in ENDINGS))
    return {status: sum(trial["status"] == status for trial in trials) for status in statuses}
