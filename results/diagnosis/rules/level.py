"""Rules about a loss that leaves its course for good: non-finite, diverging, and the rate that sent it there."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import pairwise

from results.diagnosis.findings import Diagnosis
from results.diagnosis.rules.spike import Spike, calmer, poisoned, rate_text, spike_finding, spikes_of
from results.diagnosis.rules.update import FALLEN_NATS, falls_since, rate_jump
from results.diagnosis.run_view import RunView, noise_sd
from results.diagnosis.trace import Column
from trainable.stability import DEFAULT_RULES

HIDDEN_ROWS = 3
RESUME_ROWS = 8
JUMP_ROWS = 60
GROWN_NORM, GROWTH, GROWTH_FRAC = 10.0, 100.0, 0.05
"""(Least norm, times the first one, share of the rows at each end): a sound run's norm falls or grows a few times."""


def level_findings(run: RunView) -> Iterator[Diagnosis]:
    """Yield where the loss left its course."""
    divergence = _divergence(run) or _worse_than_start(run)
    nonfinite = _nonfinite(run)
    spikes = spikes_of(run) if divergence is None else []
    jump = _jump(run, divergence, spikes)
    resume = _resume_jump(run)
    if resume and resume.steps:
        # One finding for one rise.
        spikes = [spike for spike in spikes if not resume.steps[0] <= spike.step <= resume.steps[1]]
    of_spikes = spike_finding(run, spikes), poisoned(run, spikes)
    growth = _growing_norm(run) if divergence is nonfinite is None else None
    yield from filter(None, (jump, divergence, nonfinite, resume, *of_spikes, growth))


def _nonfinite(run: RunView) -> Diagnosis | None:
    columns: tuple[tuple[str, Column], ...] = (("training loss", "train_loss"), ("validation loss", "val_loss"))
    for name, column in columns:
        steps, values = run.trace.series(column)
        bad = [(step, value) for step, value in zip(steps, values, strict=True) if not math.isfinite(value)]
        if not bad:
            continue
        (first, value), (last, _) = bad[0], bad[-1]
        summary = f"the {name} is {value:g} at {len(bad)} of {len(steps)} rows, first at {run.unit} {first}"
        summary += ", and finite again after"
        next_step = "look for batches without a scored token (a mean over nothing is NaN) and for fp16 without a scaler"
        stays = last == steps[-1] and len(bad) > 0.5 * sum(step >= first for step in steps)
        if stays:
            summary = f"the {name} is {value:g} from {run.unit} {first} on"
            next_step = f"no later row means anything: {calmer(run)}, and bf16 or fp32 in place of fp16"
        if column == "val_loss" and run.train.between(first + 1, run.last_step):
            next_step = (
                "the training loss stays finite, so the evaluation is at fault: look for held-out batches without a "
                "scored token (a mean over nothing is NaN), and evaluate in bf16 or fp32"
            )
        return Diagnosis(
            kind="nonfinite",
            confidence=0.97 if stays else 0.7,
            summary=summary,
            evidence=_before_text(run, first),
            next_step=next_step,
            steps=(first, last),
        )
    return _hidden_nonfinite(run) or _overflows(run)


def _overflows(run: RunView) -> Diagnosis | None:
    """Judge a loss scaler that keeps skipping steps: a few at the start are how it finds its scale."""
    count = int(run.trace.announced.get("overflows", 0))
    if count < max(20, 0.02 * run.last_step):
        return None
    return Diagnosis(
        kind="nonfinite",
        confidence=0.75,
        summary="the loss scaler skips many steps: their gradients are not finite in fp16",
        evidence=f"{count} lines of the log name an overflow, in {run.last_step} steps",
        next_step="train in bf16 or fp32; with fp16 only, a lower learning rate, a warm-up and a clip at norm 1.0",
        steps=(run.trace.steps[0], run.last_step),
    )


def _hidden_nonfinite(run: RunView) -> Diagnosis | None:
    """Judge what some trainers print in place of NaN: a loss of exactly 0, or a non-finite gradient norm to the end."""
    steps, norms = run.trace.series("grad_norm")
    bad = next((index + 1 for index in reversed(range(len(norms))) if math.isfinite(norms[index])), 0)
    zero = next((index + 1 for index in reversed(range(len(run.train))) if run.train.values[index]), 0)
    if len(norms) - bad >= HIDDEN_ROWS and not falls_since(run, steps[bad]):
        step, what = steps[bad], f"the gradient norm is {norms[bad]:g}"
    elif len(run.train) - zero >= HIDDEN_ROWS and (zero == 0 or run.train.values[zero - 1] > FALLEN_NATS):
        step, what = run.train.steps[zero], "the training loss is exactly 0"
        if any(run.grad_norm.between(step, run.last_step)):
            # Finite weights with something to learn: a policy gradient's loss, which is 0 while its gradient is not.
            return None
    else:
        return None
    return Diagnosis(
        kind="nonfinite",
        confidence=0.9,
        summary=f"{what} from {run.unit} {step} to the end: the weights are not finite, or no label is scored",
        evidence=_before_text(run, step),
        next_step="go back to a checkpoint before; bf16 or fp32 in place of fp16; look for batches whose labels "
        "are all masked",
        steps=(step, run.last_step),
    )


def _before_text(run: RunView, step: int) -> str:
    said = []
    for name, curve, form in (
        ("loss", run.train if run.train.steps else run.val, ".3f"),
        ("gradient norm", run.grad_norm, ".3g"),
        ("learning rate", run.learning_rate, ".2e"),
    ):
        before = curve.before(step, 5)
        if before:
            said.append(f"{name} {' '.join(format(value, form) for value in before)}")
    precision = run.trace.announced.get("precision")
    said += [f"precision {precision}"] if precision else []
    return f"the last finite values before: {'; '.join(said)}" if said else f"the first row is at {run.unit} {step}"


def _divergence(run: RunView) -> Diagnosis | None:
    finding = run.finding("divergence")
    if finding is None:
        return None if run.is_dense else _sparse_divergence(run)
    if _came_back(run, finding.step):
        return None
    return Diagnosis(
        kind="divergence",
        confidence=0.92,
        summary=f"the loss diverges before {run.unit} {finding.step} and does not come back",
        evidence=f"{finding.evidence}; {rate_text(run, finding.step)}",
        next_step=calmer(run),
        steps=(finding.step, run.last_step),
    )


def _came_back(run: RunView, step: int) -> bool:
    """Whether the loss ends where it was before the monitor called it diverging: then it was a long spike."""
    losses = run.train.values
    before = run.train.values[: bisect_left(run.train.steps, step)]
    best = min(statistics.median(before[at : at + 5]) for at in range(max(1, len(before) - 4)))
    return statistics.median(losses[-max(5, len(losses) // 20) :]) < best + DEFAULT_RULES.divergence_margin / 2


def _sparse_divergence(run: RunView) -> Diagnosis | None:
    """Judge a record of evaluations alone: both losses end well above their best and are not coming back."""
    curves = sorted((curve for curve in (run.train, run.val) if len(curve) >= 4), key=len)
    if not curves:
        return None
    if len(curves[0]) < len(curves[-1]):
        # The longer one: of few values the noise cannot be told from the course.
        curves = curves[-1:]
    onset = 0
    for curve in curves:
        best = curve.values.index(min(curve.values))
        tail = curve.values[best + 1 :]
        if len(tail) < 2:
            return None
        noise = noise_sd(curve.values[: best + 1])
        margin = max(DEFAULT_RULES.divergence_margin, DEFAULT_RULES.divergence_noise * noise)
        high = [value > curve.values[best] + margin for value in tail]
        falling = tail[-1] < tail[-2] - 0.2 * (tail[-2] - curve.values[best])
        if not (high[-1] and high[-2]) or falling:
            return None
        onset = max(onset, curve.steps[best + 1 + high.index(True)])
    other = run.val if curves[0] is run.train else run.train
    if len(curves) == 1 and other.steps:
        # One batch may be easy by luck, and validation alone rises by overfitting: the other loss must have risen too.
        best_step = curves[0].steps[curves[0].values.index(min(curves[0].values))]
        # Of the evaluations the one before: the nearest may have seen the rise.
        then = (other.before(best_step + 1, 1) or other.values)[0]
        if other.values[-1] < then + DEFAULT_RULES.divergence_margin / 2:
            return None
    if not run.train.steps:
        # Overfitting raises held-out losses as well, though little by little.
        tail = run.val.values[run.val.values.index(min(run.val.values)) :]
        if max(b - a for a, b in pairwise(tail)) < 0.5 * (max(tail) - tail[0]):
            return None
    rise, back = ("both losses rise", "do not") if len(curves) == 2 else ("the loss rises", "does not")
    said = ", ".join(f"{min(c.values):.3f} at best and {c.values[-1]:.3f} at {run.unit} {c.steps[-1]}" for c in curves)
    return Diagnosis(
        kind="divergence",
        confidence=0.85 if len(curves) == 2 or len(curves[0]) >= 20 else 0.75,
        summary=f"{rise} from {run.unit} {onset} on and {back} come back: the run diverges"
        + (", this is not overfitting" if run.train.steps else ""),
        evidence=f"{said}; {rate_text(run, onset)}",
        next_step=calmer(run),
        steps=(onset, run.last_step),
    )


def _worse_than_start(run: RunView) -> Diagnosis | None:
    """Judge a run that ends above its first loss, though it may be on its way down again."""
    if not run.starts_at_start or len(run.train) < 8:
        return None
    if run.val.steps[:1] == (run.start_step,) and run.val.values[-1] < run.val.values[0]:
        # Of few tokens the first batch may be an easy one.
        return None
    rises = []
    for curve in (run.train, run.val):
        # Held-out text alone may be scored at the start, and overfitting ends above that.
        if len(curve) >= 4 and (curve is run.train or curve.steps[0] == run.start_step):
            end = statistics.median(curve.values[-max(3, len(curve) // 10) :])
            rises.append((end - curve.values[0] - max(0.25, 4 * noise_sd(curve.values)), end))
    if not rises or min(rises)[0] < 0:
        return None
    steps, losses = run.train.steps, run.train.values
    after = range(losses.index(min(losses)), len(losses))
    onset = next((steps[row] for row in after if losses[row] > losses[0]), run.start_step)
    return Diagnosis(
        kind="divergence",
        confidence=0.75,
        summary=f"the run ends above the loss it started with, {run.train.values[0]:.2f} nats/token: training has made "
        "the model worse",
        evidence=f"{rises[0][1]:.3f} at the end, {min(losses):.3f} at best; {run.peak_lr_words}",
        next_step=calmer(run),
        steps=(onset, run.last_step),
    )


def _growing_norm(run: RunView) -> Diagnosis | None:
    """Judge a gradient norm that grows beside a loss that is sound, as yet."""
    norms = run.grad_norm
    rows = max(3, round(GROWTH_FRAC * len(norms)))
    if len(norms) < 4 * rows:
        return None
    first, last = statistics.median(norms.values[:rows]), statistics.median(norms.values[-rows:])
    if last < max(GROWN_NORM, GROWTH * first) or first <= 0:
        return None
    return Diagnosis(
        kind="gradient_growth",
        confidence=0.75,
        summary=f"the gradient norm grows {last / first:.3g}-fold over the run to {last:.3g}; the loss is sound as yet",
        evidence=f"the median of the first {rows} recorded norms is {first:.3g}, of the last {rows} {last:.3g}; "
        f"{run.peak_lr_words}",
        next_step="where the loss scaler of fp16 is on, log the norm after unscale_; otherwise log the norm of each "
        "layer, try a third of the learning rate, and clip at norm 1.0",
        steps=(norms.steps[0], norms.steps[-1]),
    )


def _resume_jump(run: RunView) -> Diagnosis | None:
    """Judge the first loss after each restart by the last before it."""
    for step in run.trace.restarts:
        for curve in (run.train, run.val):
            before = curve.before(step, RESUME_ROWS)
            first = bisect_left(curve.steps, step)
            if len(before) < 2 or first == len(curve):
                continue
            at, value = curve.steps[first], curve.values[first]
            level = min(before[-2:]) if len(before) < RESUME_ROWS else statistics.median(before)
            if value - level < max(0.3, 6 * noise_sd(before)):
                continue
            start = run.start_loss if run.starts_at_start else None
            anew = start is not None and abs(value - start) < 0.1 + 0.1 * (start - level)
            return Diagnosis(
                kind="resume_jump",
                confidence=0.85,
                summary=f"after the restart at {run.unit} {step} the loss is {value - level:.2f} nats/token higher "
                f"than before it: {'the weights were initialized again' if anew else 'not everything was restored'}",
                evidence=f"{level:.4f} before, {value:.4f} at {run.unit} {at}",
                next_step="check whether the checkpoint's weights were really loaded (strict=True, the wrapper's "
                "prefix), and the optimizer's state and the schedule's step with them",
                steps=(step, at),
            )
    return None


def _jump(run: RunView, divergence: Diagnosis | None, spikes: Sequence[Spike]) -> Diagnosis | None:
    steps = [divergence.steps[0]] if divergence and divergence.steps else []
    steps += [max(spikes, key=lambda spike: spike.rise).step] if spikes else []
    for step in steps:
        # The monitor reports a divergence only once its windows are full.
        rows = run.train.steps[: bisect_left(run.train.steps, step)][-JUMP_ROWS:]
        back = max(JUMP_ROWS, round(0.05 * run.last_step), step - rows[0] if rows and run.is_dense else 0)
        found = rate_jump(run, step - back, step)
        if found:
            at, before, after = found
            return Diagnosis(
                kind="learning_rate_jump",
                confidence=0.92,
                summary=f"the learning rate jumps {after / before:.0f}-fold at {run.unit} {at}, and the loss with it",
                evidence=f"{before:.2e} before, {after:.2e} at {run.unit} {at}; the loss leaves its course by "
                f"{run.unit} {step}",
                next_step="find what sets the rate there: a scheduler created again on resume, a restart without "
                "warm-up, two schedulers",
                steps=(at, step),
            )
    return None
