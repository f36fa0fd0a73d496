"""The best trial at equal device time, in a study whose budget is tokens. results.winner says who won the study."""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from statistics import median
from typing import Any

from results.ranking import final_loss, ranked_trials
from results.study.planned_run import Row
from results.winner import Winner
from results.words import duration_words, loss_words, run_words
from spaces.budget import budget_of
from trainable.config import SCHEDULES_WITH_WARMUP, TrialConfig, config_from, shape_of

NOISE_NATS = 0.01
"""Measured standard error of the difference of two losses on the same windows: smaller differences are noise."""
DECAYING = tuple(name for name in SCHEDULES_WITH_WARMUP if name != "warmup_constant")


def time_winner(
    document: Mapping[str, Any], trials: Sequence[Row], metrics: Sequence[Row], winner: Winner
) -> Row | None:
    """Return the trial that is ahead of the winner at the same device time; None where none is, or the budget is time.

    It is {"trial_id", "device_s", "val_loss", "winner_val_loss", "words"}, the losses at device_s.

    The time is the shortest of any completed trial, which all of them reached, so that no loss is extrapolated. The
    fastest trial has its last loss there, the others a loss interpolated between two evaluations. A decaying rate
    favours the fast ones: a slow trial's rate has yet to fall, which the words say. Only completed trials count: the
    final loss of a stopped one is not known. A trial of the winner's own shape takes the same time and is not named.
    """
    if budget_of(document).device_s is not None or winner.trial is None:
        return None
    curves: dict[int, list[tuple[float, float]]] = {}
    for row in metrics:
        if row["val_loss"] is not None:
            curves.setdefault(row["trial_id"], []).append((row["active_s"], row["val_loss"]))
    completed = [row for row in ranked_trials(trials) if final_loss(row) is not None and row["trial_id"] in curves]
    shapes = {row["trial_id"]: shape_of(config_from(row)) for row in completed}
    ends_s = defaultdict[TrialConfig, list[float]](list)
    for trial_id, shape in shapes.items():
        ends_s[shape].append(curves[trial_id][-1][0])
    for trial_id, shape in shapes.items():
        # A machine that was busy during one trial must not decide between shapes.
        slower = curves[trial_id][-1][0] / (median(ends_s[shape]) or 1.0) or 1.0
        curves[trial_id] = [(at_s / slower, loss) for at_s, loss in curves[trial_id]]
    device_s = min((curves[row["trial_id"]][-1][0] for row in completed), default=0.0)
    losses = {row["trial_id"]: _loss_at(curves[row["trial_id"]], device_s) for row in completed}
    others = [row for row in completed if shapes[row["trial_id"]] != shape_of(config_from(winner.trial))]
    best = min(others, key=lambda row: (losses[row["trial_id"]], row["trial_id"]), default=None)
    ours = losses.get(winner.trial["trial_id"], math.inf)
    if best is None or not losses[best["trial_id"]] + NOISE_NATS < ours < math.inf:
        return None
    words = (
        f"by tokens {winner.name}; by device time {run_words(best, None)}: at the same device time, "
        f"{duration_words(device_s)}, it has a val loss of {loss_words(losses[best['trial_id']])} and {winner.name} "
        f"{loss_words(ours)}"
    )
    words += ", whose learning rate had yet to fall" if winner.trial["lr_schedule"] in DECAYING else ""
    of_best = {"trial_id": best["trial_id"], "device_s": device_s, "val_loss": losses[best["trial_id"]]}
    return {**of_best, "winner_val_loss": ours, "words": words}


def _loss_at(curve: Sequence[tuple[float, float]], device_s: float) -> float:
    """Return the loss of a curve of (seconds, loss) at a time; infinite before its first evaluation."""
    for (before_s, before), (after_s, after) in pairwise(curve):
        if before_s <= device_s <= after_s:
            share = (device_s - before_s) / (after_s - before_s) if after_s > before_s else 1.0
            return before + share * (after - before)
    return curve[-1][1] if curve[-1][0] <= device_s else math.inf
