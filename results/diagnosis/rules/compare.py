"""Rules that set the training and the validation loss against each other."""

import math
import statistics
from collections.abc import Iterator, Sequence
from itertools import pairwise

from results.diagnosis.findings import Diagnosis
from results.diagnosis.rules.spike import calmer
from results.diagnosis.run_view import RunView, evenly, noise_sd

OVERFIT_NOISE = 4.0
MILD_NOISE = 2.0
ERROR_OF_1024, GAP_ERRORS = 0.13, 4
"""A loss's standard error on 1,024 held-out tokens, in nats, and how many of them a gap is more than chance by."""
EARLY_FRAC, FAR_NATS = 0.1, 1.0
UNSTABLE = {"divergence", "collapse", "nonfinite", "learning_rate_jump", "spike"}


def compare_findings(run: RunView, others: list[Diagnosis]) -> Iterator[Diagnosis]:
    """Yield what the two losses say together, where `others` have not called the run unstable."""
    is_known = not UNSTABLE.isdisjoint(one.kind for one in others)
    rising = _rising_validation(run)
    if rising and is_known and rising.kind == "divergence":
        rising = None
    yield from filter(
        None,
        (rising, _scaled(run) or _same(run) or _gap(run) or _far_above(run), None if is_known else _eval_noise(run)),
    )


def _rising_validation(run: RunView) -> Diagnosis | None:
    """Judge a validation loss that rises while the training loss falls; when both rise the run diverges."""
    val = run.val
    if len(val) < 3:
        return None
    best = val.values.index(min(val.values))
    tail = val.values[best + 1 :]
    if len(tail) < 2 or val.steps[-1] - val.steps[best] < 0.1 * (val.steps[-1] - val.steps[0]):
        return None
    is_steady = all(a < b for a, b in pairwise(val.values[best:]))
    final = tail[-1] if is_steady else statistics.median(val.values[-min(3, len(tail)) :])
    rise = final - val.values[best]
    noise = noise_sd(val.values)
    if len(val) < 8 and len(run.train) >= 2 * len(val):
        # Of few values the noise cannot be told from the course; batches differ by more than evaluations.
        noise = min(noise, max(noise_sd(val.values[best:]), noise_sd(run.train.values)))
    least = max(0.06 if len(val) >= 6 else 0.1, OVERFIT_NOISE * noise)
    rising = sum(a < b for a, b in zip(val.values[best:], tail, strict=False)) / len(tail)
    train_then, train_now = _train_level(run, val.steps[best]), _train_level(run, val.steps[-1])
    mild = rise < least
    if rising < 0.6 or (mild and not _is_mild(run, rise, train_then, train_now, val.values[best:])):
        return None
    if train_then is None or train_now is None:
        confidence, train_text = 0.5, "the training loss is not recorded"
    elif mild or train_then - train_now > min(max(0.02, 0.3 * rise), 0.1 * train_then):
        confidence, train_text = 0.92, f"the training loss fell from {train_then:.3f} to {train_now:.3f} meanwhile"
    elif min(rise, train_now - train_then) >= max(0.15, OVERFIT_NOISE * noise):
        return Diagnosis(
            kind="divergence",
            confidence=0.75,
            summary=f"both losses rise from {run.unit} {val.steps[best]} on: the run diverges, this is not overfitting",
            evidence=f"validation {val.values[best]:.3f} to {final:.3f}, training {train_then:.3f} to {train_now:.3f}",
            next_step=calmer(run),
            steps=(val.steps[best], val.steps[-1]),
        )
    else:
        return _rises_alone(run, best, final, train_then, train_now)
    return Diagnosis(
        kind="overfitting",
        confidence=min(confidence, 0.75) if mild else confidence,
        summary=f"{'mild ' if mild else ''}overfitting: validation is best at {run.unit} {val.steps[best]} "
        f"({val.values[best]:.3f}) and {rise:.{3 if mild else 2}f} nats/token higher at the end",
        evidence=f"{train_text}; validation at the end {final:.3f}, its noise {noise:.3f}",
        next_step=f"take the checkpoint of {run.unit} {val.steps[best]}; then more text, fewer steps, more dropout or "
        "weight decay",
        steps=(val.steps[best], val.steps[-1]),
    )


def _is_mild(
    run: RunView, rise: float, train_then: float | None, train_now: float | None, since_best: Sequence[float]
) -> bool:
    """Whether a small rise is overfitting: training goes on falling by far, and chance does not rise so steadily."""
    if train_then is None or train_now is None:
        return False
    fall = train_then - train_now
    falls_on = fall > 0.1 * train_then and fall > 2 * MILD_NOISE * noise_sd(run.train.values)
    apart = train_now < since_best[-1] - 0.2
    steady = len(since_best) >= 4 or all(a < b for a, b in pairwise(since_best))
    return falls_on and apart and steady and rise >= max(0.015, MILD_NOISE * noise_sd(since_best))


def _rises_alone(run: RunView, best: int, final: float, train_then: float, train_now: float) -> Diagnosis:
    val = run.val
    return Diagnosis(
        kind="validation_rises",
        confidence=0.75,
        summary=f"the validation loss rises from {val.values[best]:.3f} at {run.unit} {val.steps[best]} to "
        f"{final:.3f} while the training loss is flat ({train_then:.3f}, then {train_now:.3f})",
        evidence=f"{len(val) - best - 1} evaluations after the best one; their noise {noise_sd(val.values):.3f}",
        next_step="check whether the evaluation changed (its text, dropout on, another context length), whether the "
        "training text drifts away from the validation text, and whether the learning rate is too high; take the "
        f"checkpoint of {run.unit} {val.steps[best]}",
        steps=(val.steps[best], val.steps[-1]),
    )


def _train_level(run: RunView, step: int) -> float | None:
    train = run.train
    if not train.steps:
        return None
    if not run.is_dense and step in train.steps:
        return train.near(step)
    span = max(1.0, 0.05 * (train.steps[-1] - train.steps[0]))
    near = train.between(step - span, step + span)
    return statistics.median(evenly(near)) if near else train.near(step)


def _scaled(run: RunView) -> Diagnosis | None:
    scale = run.train_scale
    if scale == 1:
        return None
    times, why = f"{scale:.3g} times", f"a sum over {round(scale)} micro-batches or tokens"
    if scale < 1:
        times, why = f"1/{1 / scale:.3g} of", f"a mean that is divided by {round(1 / scale)} once more"
    first = run.train.values[0] * scale
    return Diagnosis(
        kind="impossible_initial_loss" if first > run.uniform_loss and run.starts_at_start else "train_val_gap",
        confidence=0.85,
        summary=f"the training loss is {times} the validation loss at every evaluation: it looks like {why}, not the "
        "mean over tokens",
        evidence=f"{len(run.val)} evaluations; at the last one training "
        f"{run.train.near(run.val.steps[-1]) * scale:.3f}, validation {run.val.values[-1]:.3f}",
        next_step="check how the loss is averaged over gradient accumulation: where the gradient is scaled alike, the "
        "clip does not act as it was meant to",
        steps=(run.val.steps[0], run.val.steps[-1]),
    )


def _same(run: RunView) -> Diagnosis | None:
    at = dict(zip(run.train.steps, run.train.values, strict=True))
    pairs = [(at[step], value) for step, value in zip(run.val.steps, run.val.values, strict=True) if step in at]
    if len(pairs) < 3 or any(train != val for train, val in pairs) or len(set(pairs)) < 2:
        return None
    return Diagnosis(
        kind="validation_is_training",
        confidence=0.9,
        summary="training and validation loss are equal to the last digit: they are measured on the same text",
        evidence=f"{len(pairs)} evaluations, all equal, the last {pairs[-1][0]}",
        next_step="give the validation its own part of the text: the last tenth, never trained on",
        steps=(run.val.steps[0], run.val.steps[-1]),
    )


def _gap(run: RunView) -> Diagnosis | None:
    half = len(run.val) // 2
    steps, vals = run.val.steps[half:], run.val.values[half:]
    trains = [level for step in steps if (level := _train_level(run, step)) is not None]
    if len(trains) < 3:
        return None
    gaps = [train - val for train, val in zip(trains, vals, strict=True)]
    gap = statistics.median(gaps)
    fall = max(abs(a - b) for a, b in pairwise(trains))
    # All evaluations score the same tokens: of few ones all may be easy.
    chance = GAP_ERRORS * ERROR_OF_1024 * math.sqrt(1024 / run.eval_tokens) if run.eval_tokens else 0.0
    if min(gaps) <= 0 or gap < max(0.5, 0.12 * trains[-1], chance) or fall > gap:
        return None
    return Diagnosis(
        kind="train_val_gap",
        confidence=0.65,
        summary=f"the validation loss lies {gap:.2f} nats/token below the training loss: the two are not measured "
        "the same way",
        evidence=f"training {trains[-1]:.3f}, validation {vals[-1]:.3f} at {run.unit} {steps[-1]}; so at the last "
        f"{len(steps)} evaluations",
        next_step="look for validation text inside the training text (make audit), a training loss that is a sum over "
        "micro-batches, a high dropout, or easier validation text",
        steps=(steps[0], steps[-1]),
    )


def _far_above(run: RunView) -> Diagnosis | None:
    """Judge a validation loss far above the training loss from the first evaluation on, too early for overfitting."""
    train, first = run.train, run.trace.steps[0]
    # Of an evaluation before the first row of training none knows where the training loss then was.
    vals = [
        pair for pair in zip(run.val.steps, run.val.values, strict=True) if train.steps and pair[0] >= train.steps[0]
    ]
    if len(vals) < 3 or vals[0][0] - first > EARLY_FRAC * (run.last_step - first):
        return None
    # Its own row too: around an early evaluation the loss falls fast.
    levels = [max(train.near(step), _train_level(run, step) or 0.0) for step, _ in vals]
    gap = min(value - level for (_, value), level in zip(vals, levels, strict=True))
    if gap < max(FAR_NATS, 0.3 * levels[0]):
        return None
    return Diagnosis(
        kind="train_val_gap",
        confidence=0.65,
        summary=f"the validation loss lies {gap:.2f} nats/token and more above the training loss, at the first "
        "evaluation too, which is too early for overfitting: the two are not measured alike",
        evidence=f"training {levels[0]:.3f}, validation {vals[0][1]:.3f} at {run.unit} {vals[0][0]}",
        next_step="check whether the validation text is of the kind of the training text, has the same tokenizer and "
        "the same labels left out, and whether its loss is a mean over tokens of the weights that are trained",
        steps=(vals[0][0], vals[-1][0]),
    )


def _eval_noise(run: RunView) -> Diagnosis | None:
    values = run.val.values
    if len(values) < 10:
        return None
    noise = noise_sd(values)
    third = len(values) // 3
    fall = abs(statistics.fmean(values[:third]) - statistics.fmean(values[-third:]))
    if noise < 0.2 or noise < fall:
        return None
    return Diagnosis(
        kind="eval_noise",
        confidence=0.7,
        summary=f"evaluations differ by chance by {noise:.2f} nats/token, more than the run changes",
        evidence=f"{len(values)} evaluations; from their first to their last third the mean moves by {fall:.3f}",
        next_step="evaluate on the same, fixed windows each time, and on more of them (16,000 tokens give about 0.02)",
        steps=(run.val.steps[0], run.val.steps[-1]),
    )
