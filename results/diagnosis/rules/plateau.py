"""Rules about a loss that stays high: whether the learning rate, word frequencies or a fault keeps it there."""

import statistics

from results.diagnosis.findings import Diagnosis
from results.diagnosis.rules.start import (
    BELOW_UNIFORM,
    DOUBTFUL_NATS,
    FINE_RATES,
    LEARNED_NATS,
    TOO_HIGH_LR,
    is_flat,
    is_ruinous,
    lower_rate,
    worse_than_uniform,
)
from results.diagnosis.run_view import RunView

GPT2_FLOOR_NATS = 6.3
"""English paid by word frequencies alone costs 6.5 to 7.5 nats/token in GPT-2's tokens; narrow text a little less."""
FLOOR_MARGIN = 0.35
"""What the stability monitor's plateau rule uses."""
TOO_LOW_SCRATCH = 5e-5
HIGH_AT_ONCE = 2e-3
"""Without a warm-up."""
TOO_LOW_FINE, TOO_HIGH_FINE = 2e-6, 1e-3
NEGLIGIBLE_LR, STILL_FRAC = 1e-6, 0.01
"""A loss that changes by less than this share of itself stands still."""
POLICY_NATS = 0.1
MIN_STEPS, LONG_STEPS = 150, 2000
"""Of so many, micro-batches though they may be, random weights learn much at any rate that is meant for them."""
SETTLED_FRAC = 0.2
"""Of the whole fall, in the record's second half: a run that learns falls by more."""
_FAULTS = {
    "impossible_initial_loss": "a fault in labels or weights, not the learning rate, keeps it there",
    "detached_gradients": "no gradient reaches the weights",
    "schedule_not_stepping": "the learning rate is not what it was meant to be",
    "learning_rate_mismatch": "the learning rate is not what it was meant to be",
    "precision_stall": "the updates do not reach the weights",
}
"""Findings that explain a plateau, each with how."""


def plateau_finding(run: RunView, others: list[Diagnosis]) -> Diagnosis | None:
    """Return the plateau, with its cause as far as `others` and the learning rate tell."""
    if len(run.coarse) < 4 or _is_short(run) or worse_than_uniform(run):
        return None
    negligible = _negligible_rate(run, others)
    if negligible:
        return negligible
    level = statistics.median(run.coarse.values[-max(3, len(run.coarse) // 5) :])
    flagged = run.finding("floor", "plateau")
    flat = is_flat(run)
    floor = _floor(run)
    middle = run.coarse.values[len(run.coarse) // 2]
    ruined = is_ruinous(run) and middle - level < SETTLED_FRAC * (max(run.coarse.values) - level)
    # A run that was lower by this has not stopped learning: it has diverged.
    if min(run.coarse.values) < level - 0.4:
        return None
    # The monitor judged the middle of the run, and with less doubt.
    margin = 0.3 if flagged else 0.5 if ruined else 0.0
    if level <= floor - margin or {"divergence", "nonfinite"} & {one.kind for one in others}:
        return None
    slow = not flat and (_is_slow(run, level, floor) or ruined)
    if not flat and not slow and flagged is None:
        return None
    since = flagged.step if flagged else run.coarse.steps[len(run.coarse) // 2]
    if flat:
        since = run.coarse.first_below(level + 0.1, otherwise=run.coarse.steps[0])
    kind, cause, advice, confidence = _cause(run, others, flat=flat)
    how = "stays near" if flat else "has only come down to"
    known = f"about {floor + FLOOR_MARGIN:.1f}, estimated"
    if run.unigram_entropy is not None:
        known = f"{run.unigram_entropy:.2f} measured"
    return Diagnosis(
        kind=kind,
        confidence=confidence if flat or flagged or ruined else confidence - 0.15,
        summary=f"the loss {how} {level:.2f} nats/token from {run.unit} {since} on: {cause}",
        evidence=f"word frequencies alone give {known}; best {min(run.coarse.values):.4f}; {run.peak_lr_words}"
        + (f"; {flagged.evidence}" if flagged else ""),
        next_step=advice,
        steps=(since, run.last_step),
    )


def _negligible_rate(run: RunView, others: list[Diagnosis]) -> Diagnosis | None:
    """Judge a loss that stands still at a rate too low for any weights, pretrained ones too."""
    rate, values = run.peak_lr, run.coarse.values
    third = len(values) // 3
    # A resumed run may be the end of a schedule, whose peak it does not show.
    if not third or not rate or rate > NEGLIGIBLE_LR or run.is_resumed:
        return None
    first, level, last = statistics.fmean(values[:third]), statistics.median(values), statistics.fmean(values[-third:])
    # A policy's loss stays near 0 however well it learns, and at such rates it does.
    is_still = abs(first - last) < STILL_FRAC * level and level > POLICY_NATS
    if not is_still or any("learning_rate" in one.kind for one in others):
        return None
    return Diagnosis(
        kind="plateau",
        confidence=0.8,
        summary=f"the loss hardly moves from {level:.2f} nats/token: a learning rate of {rate:.1e} is too low",
        evidence=f"mean of the first third {first:.4f}, of the last {last:.4f}",
        next_step=FINE_RATES,
        steps=(run.coarse.steps[0], run.last_step),
    )


def _is_short(run: RunView) -> bool:
    span = run.last_step - run.coarse.steps[0]
    # A row without a step stands for ten steps at least in what prints so. Ruin takes few steps.
    return span * (10 if run.unit == "row" else 1) < (MIN_STEPS / 3 if is_ruinous(run) else MIN_STEPS)


def _floor(run: RunView) -> float:
    """Return the level above which a model makes no use of the context."""
    if run.unigram_entropy is not None:
        return run.unigram_entropy - FLOOR_MARGIN
    if run.pretrained:
        return LEARNED_NATS
    uniform = run.uniform_loss
    start = run.start_loss
    if start is not None and not run.vocab_is_known and DOUBTFUL_NATS < start < uniform - BELOW_UNIFORM:
        # Random weights of a smaller vocabulary, as far as can be told.
        uniform = start
    # Between the unigram entropies of English with 1,024 tokens (5.66) and 50,257 (about 7.2), less a doubt of 0.5.
    return min(2.9 + 0.4 * uniform - 0.5, GPT2_FLOOR_NATS)


def _is_slow(run: RunView, level: float, floor: float) -> bool:
    rate = run.peak_lr
    learned_little = run.start_loss is not None and run.start_loss - level < 1.5
    half_done = run.done_frac is None or run.done_frac >= 0.5
    is_low = run.from_scratch and run.last_step >= LONG_STEPS if rate is None else rate <= TOO_LOW_SCRATCH
    return is_low and learned_little and half_done and level > floor


def _cause(run: RunView, others: list[Diagnosis], *, flat: bool) -> tuple[str, str, str, float]:
    sure = {found.kind for found in others if found.confidence >= 0.65}
    cause = next((cause for kind, cause in _FAULTS.items() if kind in sure), None)
    if cause is not None:
        return "plateau", cause, "fix that finding first: no learning rate helps until then", 0.9
    rate = run.peak_lr
    low, high = (TOO_LOW_SCRATCH, TOO_HIGH_LR) if run.from_scratch else (TOO_LOW_FINE, TOO_HIGH_FINE)
    if run.learning_rate.values and run.learning_rate.values[0] == rate and run.is_initial:
        high = min(high, HIGH_AT_ONCE)
    if rate is not None and rate <= low:
        advice = (
            f"try {10 * rate:.0e} and {50 * rate:.0e}: make search SPACE=plateau. If the weights themselves are bf16, "
            "keep them in fp32: small updates vanish in bf16"
            + (". If GPT-2's own weights were meant, they were not loaded" if run.pretrained is None else "")
        )
        weights = " for random weights" if run.from_scratch else ""
        return "plateau", f"a learning rate of {rate:.1e} is too low{weights}", advice, 0.8
    if rate is not None and rate >= high:
        lower = lower_rate(run, 10)
        return (
            "collapse",
            f"a learning rate of {rate:.1e} is too high"
            + (": the model has fallen to word frequencies" if flat else " for the model to learn"),
            FINE_RATES
            if run.pretrained
            else f"try {lower:.0e} and {lower / 3:.0e}, with a warm-up: make search SPACE=plateau",
            0.85,
        )
    if rate is None:
        return (
            "plateau",
            "the model makes little use of the context; without the learning rate the cause cannot be told",
            "log the learning rate and the gradient norm; make preflight tells whether labels, mask and "
            "gradients are right",
            0.7,
        )
    return (
        "plateau",
        "the model makes little use of the context; with this learning rate that is a fault in labels, mask or layers",
        "make preflight compares the loop's loss with the loss at offsets +1 and +2 and counts tensors without "
        "gradient; make diagnose TARGET=<a checkpoint>",
        0.75 if flat else 0.65,
    )
