"""Rules about what moves the weights: gradients, the learning rate, the precision."""

import statistics
from collections.abc import Iterator
from itertools import pairwise

from results.diagnosis.findings import Diagnosis
from results.diagnosis.run_view import Curve, RunView, noise_sd

DECAYING = ("cosine", "linear", "polynomial", "inverse", "decay", "exponential", "onecycle", "one_cycle")
CONSTANT_ROWS = 4
DECAY_SEEN_FRAC = 0.15
"""A cosine has lost 5 % by then, which three printed digits show."""
RATE_TOLERANCE = 0.1
FROZEN_EVALUATIONS, ROUNDED_EVALUATIONS = 4, 20
FALLEN_NATS = 0.01
"""A loss below is equal to others in four decimals, a policy gradient's say, and may become 0 in them."""


def update_findings(run: RunView) -> Iterator[Diagnosis]:
    """Yield why the weights do not move as they were meant to."""
    gradient = _no_gradient(run)
    schedule = _learning_rate_zero(run) or _never_decays(run) or _never_ends_warm_up(run)
    mismatch = None if schedule else _other_than_configured(run) or _schedule_starts_again(run)
    explained = gradient or (schedule and "0" in schedule.summary.split())
    stall = None if explained else _weights_stand_still(run)
    yield from filter(None, (gradient, schedule, mismatch, stall))


def _no_gradient(run: RunView) -> Diagnosis | None:
    norms = run.grad_norm
    tail = _constant_tail(norms, upto=1e-10)
    if len(tail) < 3 or falls_since(run, tail.steps[0]):
        return None
    since = "in every row" if len(tail) == len(norms) else f"from {run.unit} {tail.steps[0]} on"
    next_step = (
        "look for detach(), no_grad() around a layer, requires_grad=False, or a loss that does not depend "
        "on the weights; make preflight names the tensors without gradient"
    )
    losses = run.train.between(tail.steps[0], tail.steps[-1])
    if losses and not any(losses):
        # A Trainer writes 0 for the NaN of a mean over nothing.
        since += ", and so is the loss"
        next_step = "look at the labels, which must all be -100: at what masks prompts and padding, at answers cut off"
    return Diagnosis(
        kind="detached_gradients",
        confidence=0.95,
        summary=f"the gradient norm is 0 {since}: nothing reaches the trainable weights",
        evidence=f"{len(tail)} of {len(norms)} recorded norms are 0, {run.unit}s {tail.steps[0]} to {tail.steps[-1]}",
        next_step=next_step,
        steps=(tail.steps[0], tail.steps[-1]),
    )


def falls_since(run: RunView, step: int) -> bool:
    """Whether the loss falls from a step on: then weights move, whatever norm is printed: 0.00, which is rounded, or
    NaN, as by trainers that do not know it."""
    after = run.coarse.between(step, run.last_step)
    third = len(after) // 3
    if not third:
        return False
    fall = statistics.fmean(after[:third]) - statistics.fmean(after[-third:])
    return fall > max(0.1, 3 * noise_sd(after))


def _learning_rate_zero(run: RunView) -> Diagnosis | None:
    rates = run.learning_rate
    zeros = _constant_tail(rates, upto=0.0)
    if len(zeros) < 3:
        return None
    if len(zeros) == len(rates):
        summary = "the learning rate is 0 in every row: nothing is trained"
    else:
        end = run.trace.total_steps or run.last_step
        span = zeros.steps[-1] - zeros.steps[0]
        if zeros.steps[0] >= 0.9 * end or span < 0.1 * (run.last_step - rates.steps[0]):
            return None
        summary = f"the learning rate is 0 from {run.unit} {zeros.steps[0]} on, long before the end at {run.unit} {end}"
    return Diagnosis(
        kind="schedule_not_stepping",
        confidence=0.95,
        summary=summary,
        evidence=f"{len(zeros)} of {len(rates)} recorded rates are 0; the highest is {max(rates.values):.2e}",
        next_step="look at the rate that was set; set the schedule's horizon to the optimizer steps of the run (not "
        "micro-batches, not an earlier run's), and step it once an optimizer step",
        steps=(zeros.steps[0], zeros.steps[-1]),
    )


def _never_decays(run: RunView) -> Diagnosis | None:
    rates = run.learning_rate
    schedule = run.trace.announced.get("lr_schedule", "")
    warmup_steps = int(run.trace.announced.get("warmup_steps", 0))
    if len(rates) < CONSTANT_ROWS or min(rates.values) != max(rates.values) or rates.values[0] == 0:
        return None
    total = run.trace.total_steps or run.last_step
    is_past_warm_up = run.last_step - warmup_steps >= DECAY_SEEN_FRAC * total
    decays = any(name in schedule for name in DECAYING) and is_past_warm_up
    warms_up = "warm" in schedule and rates.steps[0] < warmup_steps <= run.last_step
    if not decays and not warms_up:
        return None
    return Diagnosis(
        kind="schedule_not_stepping",
        confidence=0.85,
        summary=f"the learning rate stays at {rates.values[0]:.2e} while '{schedule}' is announced: the schedule is "
        "not stepping",
        evidence=f"{len(rates)} rows, {run.unit}s {rates.steps[0]} to {rates.steps[-1]}, all the same"
        + (f"; warm-up was to end at step {warmup_steps}" if warmup_steps else ""),
        next_step="call scheduler.step() after every optimizer step, on the scheduler of this very optimizer, and "
        "log the rate from optimizer.param_groups",
        steps=(rates.steps[0], rates.steps[-1]),
    )


def _other_than_configured(run: RunView) -> Diagnosis | None:
    """Judge recorded rates that never reach the configured peak, or go beyond it."""
    rates, announced = run.learning_rate, run.announced_lr
    if not announced or not rates.values:
        return None
    peak = max(rates.values)
    ratio = peak / announced
    total = run.trace.total_steps or run.last_step
    warmup_steps = int(run.trace.announced.get("warmup_steps", 0)) or DECAY_SEEN_FRAC * total
    still_rises = len(rates) > 1 and rates.values[-1] > 0.999 * peak > min(rates.values)
    saw_the_peak = (
        not run.is_resumed and len(rates) >= CONSTANT_ROWS and run.last_step >= warmup_steps and not still_rises
    )
    if ratio == 0 or (ratio < 1 + RATE_TOLERANCE and (ratio > 1 - RATE_TOLERANCE or not saw_the_peak)):
        return None
    # A record thin beside its schedule misses the peak: by a little of a cosine, by more where the rate falls fast.
    schedule = run.trace.announced.get("lr_schedule", "")
    tolerance = 0.4 if any(name in schedule for name in ("cosine", "linear", "constant")) else 0.6
    if 1 - tolerance < ratio < 1 and min(rates.values) != peak:
        return None
    how = f"{ratio:.3g} times" if ratio > 1 else f"1/{1 / ratio:.3g} of"
    return Diagnosis(
        kind="learning_rate_mismatch",
        confidence=0.85,
        summary=f"the learning rate reaches {peak:.2e}, {how} the configured {announced:.2e}",
        evidence=f"{len(rates)} recorded rates, {min(rates.values):.2e} to {peak:.2e}",
        next_step="find what sets the optimizer's rate: a default that overrides the setting, a second scheduler, a "
        "scaling by the number of devices or by the batch size, parameter groups with rates of their own",
        steps=(rates.steps[0], rates.steps[-1]),
    )


def _never_ends_warm_up(run: RunView) -> Diagnosis | None:
    rates = run.learning_rate
    if len(rates) < 6 or run.done_frac is None or run.done_frac < 0.5:
        return None
    rises = sum(a < b for a, b in pairwise(rates.values))
    if any(a > b for a, b in pairwise(rates.values)) or rises < 0.8 * (len(rates) - 1):
        return None
    return Diagnosis(
        kind="schedule_not_stepping",
        confidence=0.7,
        summary=f"the learning rate still rises at {run.unit} {run.last_step} of {run.trace.total_steps}: "
        "warm-up never ends",
        evidence=f"{rates.values[0]:.2e} at {run.unit} {rates.steps[0]}, {rates.values[-1]:.2e} at {run.unit} "
        f"{rates.steps[-1]}, never lower",
        next_step="set the warm-up to a few per cent of the optimizer steps of the run",
        steps=(rates.steps[0], rates.steps[-1]),
    )


def _schedule_starts_again(run: RunView) -> Diagnosis | None:
    """Judge a rate that falls back to the start of a warm-up in the middle of the run."""
    steps, values = run.learning_rate.steps, run.learning_rate.values
    schedule = run.trace.announced.get("lr_schedule", "")
    if "restart" in schedule or "cycl" in schedule:
        return None
    peak, peak_at = 0.0, 0
    for index in range(2, len(values) - 2):
        earlier, before, first, second = values[index - 2 : index + 2]
        peak, peak_at = max((peak, peak_at), (earlier, index - 2), (before, index - 1))
        # In one row, where a cycle of few rows falls as steeply before.
        falls = first < 0.3 * before and before - first > 1.5 * (earlier - before) and first < second
        if falls and before >= 0.1 * peak and max(values[index:]) >= 0.8 * before:
            break
        # Or it climbs out of a decay in a third of the time that this took at most, from where no cycle ends.
        decay = index - 1 - peak_at
        climbs = decay >= 5 and earlier >= before < first and before < 0.6 * peak
        is_odd = before >= 0.2 * peak or first < 0.8 * peak
        if climbs and is_odd and max(values[index : index + max(1, decay // 3)]) >= 0.8 * peak:
            break
    else:
        return None
    return Diagnosis(
        kind="schedule_restarted",
        confidence=0.8,
        summary=f"the schedule starts again at {run.unit} {steps[index]}: the warm-up runs a second time",
        evidence=f"{before:.2e} before, {first:.2e} at {run.unit} {steps[index]}, then up to {max(values[index:]):.2e}",
        next_step="on resume, restore the scheduler's state or set its step to the checkpoint's: otherwise the "
        "rate is not the planned one from there on",
        steps=(steps[index], run.last_step),
    )


def _weights_stand_still(run: RunView) -> Diagnosis | None:
    """Judge losses that repeat to the last digit: no update reached the weights."""
    losses = run.val if len(run.val) >= FROZEN_EVALUATIONS else run.train
    if len(losses) < FROZEN_EVALUATIONS:
        return None
    tail = _constant_tail(losses, upto=losses.values[-1], downto=losses.values[-1])
    span = tail.steps[-1] - tail.steps[0]
    # Of three decimals some are equal by chance, at the end of a schedule above all; of two most are.
    is_coarse = round(losses.values[-1], 3) == losses.values[-1]
    is_rounded = all(round(value, 2) == value for value in losses.values)
    if (
        abs(losses.values[-1]) < FALLEN_NATS
        or len(tail) < (ROUNDED_EVALUATIONS if is_rounded else FROZEN_EVALUATIONS)
        or (is_coarse and len(tail) < 0.6 * len(losses))
        or span < max(20, 0.2 * (losses.steps[-1] - losses.steps[0]))
    ):
        return None
    precision = run.trace.announced.get("precision", "")
    rate = run.peak_lr
    named = precision in ("bf16", "fp16")
    is_low = rate is not None and rate <= 1e-4
    norm = run.grad_norm.values[-1] if run.grad_norm.values else None
    said = [f"{losses.values[-1]} at {len(tail)} rows, {run.unit}s {tail.steps[0]} to {tail.steps[-1]}"]
    said += [f"learning rate {rate:.2e}"] if rate is not None else []
    said += [f"gradient norm {norm:.3g}"] if norm is not None else []
    said += [f"precision {precision}"] if precision else []
    if losses is run.val and falls_since(run, tail.steps[0]):
        return Diagnosis(
            kind="validation_stands_still",
            confidence=0.9,
            summary=f"the validation loss repeats to the last digit from {run.unit} {tail.steps[0]} on while the "
            "training loss falls: other weights are evaluated than those that are trained",
            evidence=said[0],
            next_step="check whether the evaluation has the model that is trained, and no copy made before it, no "
            "average that is never updated, no adapters switched off; and whether its loss is computed anew each time",
            steps=(tail.steps[0], tail.steps[-1]),
        )
    return Diagnosis(
        kind="precision_stall",
        confidence=0.9 if named else 0.75 if is_low or norm is not None else 0.6,
        summary=f"the loss repeats to the last digit from {run.unit} {tail.steps[0]} on: the updates do not reach the "
        "weights" + (", as in pure bf16 at a small learning rate" if named or is_low else ""),
        evidence="; ".join(said),
        next_step="keep the weights in fp32 and autocast the forward pass: in bf16 a step of 1e-5 is lost on every "
        "weight above about 0.005. If they are fp32, check whether the optimizer was made from this model's parameters",
        steps=(tail.steps[0], tail.steps[-1]),
    )


def rate_jump(run: RunView, first: int, last: int) -> tuple[int, float, float] | None:
    """Return (step, rate before, rate after) of the learning rate's largest abrupt rise between two steps, if any."""
    rates = run.learning_rate
    jumps = [
        (after / before, step, before, after)
        for earlier, before, after, step in zip(
            rates.values, rates.values[1:], rates.values[2:], rates.steps[2:], strict=False
        )
        # From a level, that is: a warm-up's first rows rise as steeply.
        if first <= step <= last and after >= 3 * before > 0 and 0.5 < earlier / before < 2
    ]
    if not jumps:
        return None
    _, step, before, after = max(jumps)
    return step, before, after


def _constant_tail(curve: Curve, *, upto: float, downto: float = 0.0) -> Curve:
    start = len(curve)
    while start and downto <= curve.values[start - 1] <= upto:
        start -= 1
    return Curve(steps=curve.steps[start:], values=curve.values[start:])
