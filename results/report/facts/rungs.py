"""How well rungs predict final losses, what trials cost, and when the baseline was beaten. Pure; it reads no file."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from results.ranking import final_loss, full_tokens, is_less, savings
from results.report.facts.analysis import Measured, Row
from results.words import STATUS_LABELS, duration_words, token_words

MIN_RUNG_TRIALS = 3
"""A rank correlation of fewer says nothing."""
MAX_MILESTONES = 8


def rung_agreement(measured: Measured) -> Iterator[Row]:
    """Yield for each rung the rank correlation of its losses with the final ones, over the trials that have both.

    A study without rungs has its evaluations in their place. Spearman's rho and Kendall's tau-b are None below
    MIN_RUNG_TRIALS trials, or where all losses are equal.
    """
    best, device_s, has_rungs = measured.winner.trial, measured.budget.device_s, bool(measured.rung_tokens)
    for index, tokens in enumerate(measured.rung_tokens or _milestones(measured)):
        share = tokens / measured.budget.tokens
        at = {trial["trial_id"]: measured.loss_at(trial, tokens) for trial in measured.trials}
        pairs = [(at[trial["trial_id"]], final_loss(trial)) for trial in measured.trials]
        both = [(early, final) for early, final in pairs if early is not None and final is not None]
        spearman, kendall = _correlations(both)
        best_at = at[best["trial_id"]] if best else None
        stopped = [t["trial_id"] for t in measured.trials if t["status"] == "stopped" and t["rung"] == index]
        yield {
            "rung": index if has_rungs else None,
            "tokens": tokens,
            "budget_frac": share,
            "at": token_words(tokens) if device_s is None else duration_words(share * device_s),
            "trials_reached": sum(loss is not None for loss in at.values()),
            "trials_stopped": len(stopped),
            "trials_with_both": len(both),
            "spearman": spearman,
            "kendall": kendall,
            "stopped_ahead_of_best": [trial_id for trial_id in stopped if is_less(at[trial_id], best_at)],
        }


def _milestones(measured: Measured) -> tuple[int, ...]:
    baseline = measured.winner.baseline
    rows = measured.evaluations.get(baseline["trial_id"], ()) if baseline else ()
    tokens = [row["tokens_seen"] for row in rows if 0 < row["tokens_seen"] < rows[-1]["tokens_seen"]]
    return tuple(tokens[:: math.ceil(len(tokens) / MAX_MILESTONES)]) if tokens else ()


def _correlations(pairs: Sequence[tuple[float, float]]) -> tuple[float | None, float | None]:
    early, final = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    if len(pairs) < MIN_RUNG_TRIALS or len(set(early)) == 1 or len(set(final)) == 1:
        return None, None
    # Not scipy.stats, whose import takes longer than all the rest of a report.
    import numpy as np

    above = [np.greater.outer(losses, losses).view(np.int8) for losses in (early, final)]
    order = [one - one.T for one in above]  # of each pair of trials: 1, 0, -1
    # A row's sum is a trial's rank, ties sharing theirs, but for a shift and a scale.
    spearman = np.corrcoef([one.sum(axis=1) for one in order])[0, 1]
    kendall = (order[0] * order[1]).sum() / math.sqrt(math.prod((one * one).sum() for one in order))
    return float(spearman), float(kendall)


def costs(trials: Sequence[Row]) -> Iterator[Row]:
    """Yield device-seconds and tokens for each status that occurs, and the tokens of its trials in full."""
    for status in STATUS_LABELS:
        those = [trial for trial in trials if trial["status"] == status]
        if those:
            spent = savings(those)
            yield {
                "status": status,
                "trials": len(those),
                "device_s": spent.device_s_spent,
                "tokens": spent.tokens_spent,
                "tokens_full": spent.tokens_full,
            }


def first_beaten(measured: Measured) -> Row | None:
    """Return when a completed trial first had a lower loss than the baseline, None where none did.

    after_s is wall time since the study's start. device_s is what all trials had used by then, each of those under way
    in proportion to its elapsed time.
    """
    baseline = measured.winner.baseline
    goal = final_loss(baseline)
    ended = [trial for trial in measured.trials if trial["ended_at"] is not None]
    better = [trial for trial in ended if is_less(final_loss(trial), goal)]
    starts = [trial["started_at"] for trial in measured.trials if trial["started_at"] is not None]
    if not better or not starts:
        return None
    first = min(better, key=lambda trial: trial["ended_at"])
    now = first["ended_at"]
    return {
        "trial_id": first["trial_id"],
        "val_loss": first["val_loss"],
        "after_s": (now - min(starts)).total_seconds(),
        "device_s": math.fsum(trial["active_s"] * _done_by(trial, now) for trial in measured.trials),
        "trials_ended": sum(t["ended_at"] is not None and t["ended_at"] <= now for t in measured.trials),
    }


def _done_by(trial: Row, now: Any) -> float:
    start, end = trial["started_at"], trial["ended_at"]
    if start is None or start >= now:
        return 0.0
    if end is None or end <= now:
        return 1.0
    return float((now - start) / (end - start))


def baseline_loss_reached(measured: Measured) -> Row | None:
    """Return the tokens, and the share of its budget, after which the winner had the baseline's final loss.

    None where the winner is the baseline.
    """
    baseline, best = measured.winner.baseline, measured.winner.trial
    goal = final_loss(baseline)
    if best is None or goal is None or best["is_baseline"]:
        return None
    for row in measured.evaluations.get(best["trial_id"], ()):
        if row["tokens_seen"] and row["val_loss"] is not None and row["val_loss"] <= goal:
            return {"tokens": row["tokens_seen"], "frac": row["tokens_seen"] / full_tokens(best)}
    return None
