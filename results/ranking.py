"""What the rows of trials.parquet say together: order, best, endings, time saved. Pure; it reads no file."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from trainable.rows import ENDINGS, RANKED_PURPOSES, Purpose, TrialStatus

_PLACES: tuple[TrialStatus, ...] = (
    "completed", "stopped", "running", "interrupted", "unstable", "out_of_memory", "failed",
)  # fmt: skip
_LOSS_COUNTS = ("completed", "stopped", "running", "interrupted")
_ENDED_EARLY = ("stopped", "unstable")


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """What the study cost, and what it would have cost without ending trials early."""

    device_s_spent: float
    """Seconds that a device slot trained and evaluated, summed over trials."""
    device_s_full: float
    """The same with every trial that was stopped or unstable run to the full budget at its own speed."""
    device_s_saved_frac: float
    """1 - spent / full; 0 when nothing ran."""
    tokens_spent: int
    tokens_full: int


def leaderboard(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the trials from best to worst.

    Completed ones by val_loss, their last evaluation at the full budget; then stopped ones, the highest rung first, by
    val_loss; then those under way likewise; then unstable, out_of_memory and failed. Ties by trial_id.
    """
    return sorted(trials, key=_place)


def _place(trial: dict[str, Any]) -> tuple[int, int, float, int]:
    status, rung = trial["status"], trial["rung"]
    by_rung = status in _LOSS_COUNTS and status != "completed" and rung is not None
    loss = _loss(trial) if status in _LOSS_COUNTS else 0.0
    # Rungs count from 0, so 1 is the place of those that reached none.
    return _PLACES.index(status), -rung if by_rung else 1, loss, trial["trial_id"]


def _loss(trial: dict[str, Any]) -> float:
    loss = trial["val_loss"]
    # NaN compares False with everything: one would scramble the order.
    return loss if loss is not None and math.isfinite(loss) else math.inf


def ranked_trials(trials: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what the study was made for: its trials without the runs that confirm or attribute one of them."""
    return [row for row in trials if row["purpose"] in RANKED_PURPOSES]


def best_trial(trials: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the ranked completed trial of the lowest val_loss, the baseline among them; None when none has one."""
    first = next(iter(leaderboard(ranked_trials(trials))), None)
    return first if first and first["status"] == "completed" and math.isfinite(_loss(first)) else None


def baseline_trial(trials: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the baseline, however it stands; None when it has not started."""
    return next((trial for trial in trials if trial["is_baseline"]), None)


def spent_by_purpose(trials: Sequence[dict[str, Any]]) -> dict[Purpose, tuple[int, float, int]]:
    """Return (runs, device-seconds, tokens) for each purpose that occurs."""
    found: dict[Purpose, tuple[int, float, int]] = {}
    for purpose in get_args(Purpose):
        rows = [row for row in trials if row["purpose"] == purpose]
        if rows:
            device_s, tokens = math.fsum(row["active_s"] for row in rows), sum(row["tokens_seen"] for row in rows)
            found[purpose] = (len(rows), device_s, tokens)
    return found


def full_tokens(trial: Mapping[str, Any]) -> int:
    """Return the training tokens of the trial's full budget, in whole steps."""
    tokens: int = trial["training_steps"] * trial["batch_size"] * trial["block_size"] * trial["grad_accum_steps"]
    return tokens


def budget_frac(trial: Mapping[str, Any]) -> float:
    """Return the share of its full budget that the trial has trained."""
    return float(trial["tokens_seen"] / full_tokens(trial))


def savings(trials: Sequence[dict[str, Any]]) -> Savings:
    """Return the device-seconds and tokens spent against running every trial to its full budget.

    A trial is extrapolated at its own active_s per token; one that ended before that was measured, at the others'
    median. Trials under way, out of memory or failed count as they are, on both sides: nobody saved their rest.
    """
    s_per_token = {row["trial_id"]: row["active_s"] / row["tokens_seen"] for row in trials if row["tokens_seen"]}
    s_per_token = {trial_id: rate for trial_id, rate in s_per_token.items() if rate > 0}
    usual = statistics.median(s_per_token.values()) if s_per_token else 0.0
    device_s_rest, tokens_rest = 0.0, 0
    for row in trials:
        if row["status"] in _ENDED_EARLY:
            rest = max(full_tokens(row) - row["tokens_seen"], 0)
            tokens_rest += rest
            device_s_rest += rest * s_per_token.get(row["trial_id"], usual)
    spent = math.fsum(row["active_s"] for row in trials)
    tokens_spent = sum(row["tokens_seen"] for row in trials)
    return Savings(
        device_s_spent=spent,
        device_s_full=spent + device_s_rest,
        device_s_saved_frac=device_s_rest / (spent + device_s_rest) if spent + device_s_rest else 0.0,
        tokens_spent=tokens_spent,
        tokens_full=tokens_spent + tokens_rest,
    )


def ending_counts(trials: Sequence[dict[str, Any]]) -> dict[TrialStatus, int]:
    """Return how many trials ended in each way, and how many are running or interrupted; every status is a key."""
    statuses = (*ENDINGS, *(status for status in get_args(TrialStatus) if status not in ENDINGS))
    return {status: sum(trial["status"] == status for trial in trials) for status in statuses}
