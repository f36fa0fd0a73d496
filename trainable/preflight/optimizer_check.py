"""Does the optimizer really update? Every trainable tensor's change against a reference AdamW's of the same gradients.

Gradients prove nothing about weights: an optimizer that puts tensors back, or misses them, passes every gradient check.
And is it set up to train its model: the tensors that it holds, its settings, and the gradients that it finds?
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from trainable.errors import first_of
from trainable.model.models import has_lost_its_tie, numberless
from trainable.preflight.causality import causal_model
from trainable.preflight.check_result import Check, judged
from trainable.preflight.optimizer_watch import OptimizerWatch, SampledStep, WatchedTensor

Finding = tuple[str, str]
"""What was measured, and what to do about it."""
NAME = "optimizer updates"
WATCHED_STEPS = 2
"""In the first the moments are whatever they began as; a state that is not kept shows in the second."""
READABLE_ULPS = 4.0
"""An update of fewer units in the last place is mostly rounding, and not compared."""
MIN_READABLE = 4
HELD_FRAC = 0.05
LOST_WARN_FRAC, LOST_FRAC = 0.5, 0.9
"""Of the updates: bf16 weights at 1e-5 lose 85 % of them and train on the rest, at 1e-4 a third."""
WRONG_FRAC = 0.05
"""Of the reference's change. torch's AdamWs, fused or not, are within 1e-4 of it in fp32."""
SAME_RATE_FRAC = 0.02
DECAY_SIGMAS = 6.0
DECAY_FRAC = 0.1
DECAY_MARGIN = 1e-3
_RATE_ADVICE = "The learning rate has no effect: check whose groups the schedule writes it to, and who reads it."


def held_faults(watch: OptimizerWatch) -> Iterator[Finding]:
    """Yield what is wrong with the tensors that the optimizer holds."""
    holders = watch.holders()
    missing = [tensor for tensor in watch.tensors if id(tensor.parameter) not in holders]
    twice = [tensor for tensor in watch.tensors if len(holders.get(id(tensor.parameter), ())) > 1]
    if missing:
        advice = "Give the optimizer model.parameters(), after the last change of the model's tensors."
        yield words_of(missing, watch, "not in the optimizer"), advice
    if twice:
        yield words_of(twice, watch, "in the optimizer more than once"), "Keep each in one group."
    causal = causal_model(watch.model)
    if causal is not None and has_lost_its_tie(causal):
        advice = "Call model.tie_weights() before the optimizer is made: a saved model has one tensor for both again."
        yield "the head and the input embedding are two tensors, which the config ties", advice


def setting_faults(watch: OptimizerWatch, weight_decay: float | None) -> tuple[list[Finding], list[Finding]]:
    """Return what is wrong with the optimizer's settings, and what may be; weight_decay: AdamW's, if it is meant."""
    faults, doubts = dict[str, str](), dict[str, str]()
    for optimizer in watch.optimizers:
        for group in optimizer.param_groups:
            if group.get("maximize"):
                faults["maximize: the steps raise the loss"] = "Leave maximize out."
            if not isinstance(optimizer, torch.optim.Adam):
                continue
            first, second = (float(beta) for beta in group["betas"])
            # Kingma & Ba 2015, theorem 4.1.
            if first**2 >= second**0.5:
                faults[f"betas {first:g} and {second:g}: Adam needs beta1² < √beta2"] = "Look at their order."
            if group.get("weight_decay") and not group.get("decoupled_weight_decay", True):
                is_meant = weight_decay is None and not isinstance(optimizer, torch.optim.AdamW)
                (doubts if is_meant else faults)["weight decay is added to the gradient (L2)"] = (
                    "Use AdamW: Adam's second moment divides most of such a decay away."
                )
    return list(faults.items()), list(doubts.items())


def gradient_faults(watch: OptimizerWatch) -> Iterator[Finding]:
    """Yield which tensors had no gradient in any step, or the last step's in the next."""
    if len(watch.stepped) < len(watch.optimizers):
        advice = "Call it, or give the optimizer that the script steps; a loss scaler leaves out its first."
        yield f"optimizer.step() was not called in {watch.ends} steps", advice
        return
    holders = watch.holders()
    # Behind LoRA's B, which begins as 0, there is no gradient until B has moved.
    held = [one for one in watch.tensors if id(one.parameter) in holders]
    idle = [one for one in held if not one.has_gradient]
    if idle and (watch.moving_steps > 1 or idle == held):
        advice = "Look for detach(), no_grad, zero_grad() before the step, and a clip to 0."
        advice += " Labels that are all -100 give none either." if idle == watch.tensors else ""
        yield words_of(idle, watch, f"without gradient in {watch.steps} steps"), advice
    kept = [one for one in held if one.kept_gradient]
    if kept:
        words = words_of(kept, watch, "with the last step's gradient in this one's")
        yield words, "Call optimizer.zero_grad() once a step."


def frozen_doubts(watch: OptimizerWatch) -> Iterator[Finding]:
    """Yield the frozen tensors above a layer in which the same one is trained: lower layers alone are often frozen."""
    trained, frozen = set[str](), list[str]()
    for name, parameter in watch.model.named_parameters():
        kind = numberless(name)
        if parameter.requires_grad:
            trained.add(kind)
        elif kind in trained:
            frozen.append(name)
    if frozen:
        yield f"{len(frozen)} tensors frozen above trained ones: {first_of(frozen)}", "Right only if it is meant so."


def words_of(tensors: Sequence[WatchedTensor], watch: OptimizerWatch, what: str) -> str:
    """Return how many of the watched tensors are so, and which."""
    names = [tensor.name for tensor in tensors]
    return f"{len(names)} of {len(watch.tensors)} trainable tensors {what}: {first_of(names)}"


def check_optimizer(
    model: torch.nn.Module,
    optimizer: Any,
    step: Callable[[], Any],
    *,
    learning_rate: float | None = None,
    weight_decay: float | None = None,
) -> Check:
    """Return whether `step`, called twice, changes every trainable tensor as AdamW would from the same gradients.

    optimizer: or a list of them, where several share the model. step: one whole step of a training script: forward,
    backward, clipping, optimizer.step(). It trains the model.
    learning_rate, weight_decay: what the script means to use; without them what the optimizer's groups say is believed.
    An optimizer that is neither torch's AdamW nor Adam is asked only whether every tensor is in it and moves.
    """
    with closing(OptimizerWatch(model, optimizer)) as watch:
        for _ in range(WATCHED_STEPS):
            step()
            watch.end_step()
    return check_updates(watch, learning_rate=learning_rate, weight_decay=weight_decay)


def check_updates(
    watch: OptimizerWatch, *, learning_rate: float | None = None, weight_decay: float | None = None
) -> Check:
    """Return whether the watched steps were an AdamW's; learning_rate and weight_decay: what was meant, if known."""
    compared = [_compared(tensor) for tensor in watch.tensors if tensor.steps]
    readable = [one for one in compared if one.is_readable]
    wrong, doubts = setting_faults(watch, weight_decay)
    faults = [*held_faults(watch), *wrong, *gradient_faults(watch), *_rate_faults(watch, learning_rate)]
    doubts += frozen_doubts(watch)
    held = [one for one in readable if one.is_held]
    if held and len(held) == len(readable):
        advice = "The steps do not reach the weights: check the learning rate first."
        faults.append(("in one step at least no weight changed", advice))
    elif held:
        words = words_of([one.tensor for one in held], watch, "unchanged: AdamW would change them")
        if any(not one.tensor.is_contiguous for one in held):
            words += " (not contiguous in memory)"
        faults.append((words, "Look for code that restores weights, and for in-place writes that are lost."))
    faults += _size_faults(watch, [one for one in readable if not one.is_held])
    faults += _decay_faults(watch, [one for one in compared if not one.is_held], weight_decay)
    lost, stepped = (sum(getattr(one, name) for one in compared) for name in ("lost", "stepped"))
    if lost > LOST_WARN_FRAC * stepped:
        words = f"{lost / stepped:.0%} of the updates are rounded away: the weights are too coarse for them"
        advice = "Keep the weights in fp32 (autocast does); look at the learning rate, eps and the clip."
        (faults if lost > LOST_FRAC * stepped else doubts).append((words, advice))
    return _check(watch, faults, doubts, len(readable))


def _check(watch: OptimizerWatch, faults: Sequence[Finding], doubts: Sequence[Finding], readable: int) -> Check:
    total = len(watch.tensors)
    measured = []
    if not faults:
        by_reference = all(isinstance(one, torch.optim.Adam) for one in watch.optimizers)
        kinds = " and ".join(type(one).__name__ for one in watch.optimizers)
        how = "as AdamW would change them" if by_reference else f"moved by {kinds}"
        measured = [f"{readable} of {total} tensors {how} in {watch.steps} steps"]
        if readable < total:
            measured += ["the others have no gradient yet, or updates too small for their precision to show"]
    return judged(
        NAME,
        failed=bool(faults),
        warned=bool(doubts),
        measured="; ".join([*measured, *(words for words, _ in (*faults, *doubts))]),
        expected="every trainable tensor in the optimizer and changed by it as its settings say",
        advice=" ".join(dict.fromkeys(advice for _, advice in (*faults, *doubts))),
    )


@dataclass(frozen=True, kw_only=True)
class _Compared:
    """A tensor's steps against the reference's."""

    tensor: WatchedTensor
    is_readable: bool
    """Whether any step would move it by more than rounding."""
    is_held: bool
    rates: tuple[float, ...] = ()
    """Of every readable step, its size along the reference's: 1 when right."""
    error_frac: float = 0.0
    """The largest difference of a step from the reference's, as a share of that."""
    lost: int = 0
    """Updates that would be rounded away at the peak rate too, of all steps."""
    stepped: int = 0
    """Updates of weights with a gradient."""


def _compared(tensor: WatchedTensor) -> _Compared:
    rates, errors, moved = [], [], []
    lost = stepped = 0
    for step in tensor.steps:
        change = step.after - step.before
        if step.reference is None:
            # What size its step should have is unknown: only that a large gradient moves something.
            if bool(step.gradient.any()) and step.learning_rate != 0:
                moved.append(bool(change.any()))
            continue
        expected = step.reference - step.before
        ulps = _ulps(torch.maximum(step.before.abs(), step.reference.abs()), tensor.parameter.dtype)
        if step.learning_rate:
            # Decay alone moves weights too: at 0.01 and fp32 always by more than their spacing.
            updates = (expected + step.learning_rate * step.weight_decay * step.before)[step.gradient != 0].abs()
            updates *= step.peak_rate / step.learning_rate
            lost += int((updates < ulps[step.gradient != 0] / 2).sum())
            stepped += len(updates)
        clear = expected.abs() > READABLE_ULPS * ulps
        if int(clear.sum()) < min(MIN_READABLE, len(clear)):
            continue
        change, expected, ulps = change[clear], expected[clear], ulps[clear]
        size = float(expected.norm())
        rates.append(float(change @ expected) / size**2)
        errors.append(float(((change - expected).abs() - ulps).clamp(min=0).norm()) / size)
        moved.append(float(change.norm()) > HELD_FRAC * size)
    return _Compared(
        tensor=tensor,
        is_readable=bool(moved),
        is_held=bool(moved) and not all(moved),
        rates=tuple(rates),
        error_frac=max(errors, default=0.0),
        lost=lost,
        stepped=stepped,
    )


def _rate_faults(watch: OptimizerWatch, learning_rate: float | None) -> Iterator[Finding]:
    still = [
        tensor for tensor in watch.tensors if tensor.steps and all(step.learning_rate == 0 for step in tensor.steps)
    ]
    if still:
        advice = "Set the learning rate of their group, or freeze them by requires_grad; a warm-up from 0 needs a step."
        yield words_of(still, watch, f"at learning rate 0 in {watch.steps} steps"), advice
    others = sorted({step.learning_rate for tensor in watch.tensors for step in tensor.steps} - {0.0})
    if learning_rate is not None and any(not math.isclose(rate, learning_rate, rel_tol=1e-6) for rate in others):
        rates = ", ".join(f"{rate:.2e}" for rate in others)
        yield f"learning rate {rates} in the optimizer's groups, {learning_rate:.2e} meant", _RATE_ADVICE


def _size_faults(watch: OptimizerWatch, compared: Sequence[_Compared]) -> Iterator[Finding]:
    wrong = [one for one in compared if one.error_frac > WRONG_FRAC]
    if not wrong:
        return
    rates = [rate for one in compared for rate in one.rates]
    middle = median(rates)
    is_one_rate = len(wrong) == len(compared) and all(abs(rate / middle - 1) < SAME_RATE_FRAC for rate in rates)
    if is_one_rate and abs(middle - 1) > WRONG_FRAC:
        yield f"every tensor changes {middle:.3g} times as much as at its learning rate", _RATE_ADVICE
        return
    words = words_of([one.tensor for one in wrong], watch, "not changed as AdamW would change them")
    advice = "Check whether the optimizer keeps its state between steps, and for other code that writes these weights."
    if any(one.tensor.parameter.dtype == torch.float16 for one in wrong):
        words += " in float16"
        advice = "AdamW's eps and squared gradients are 0 in float16. Keep weights in fp32; autocast computes in fp16."
    yield f"{words} (by up to {max(one.error_frac for one in wrong):.0%} of its step)", advice


def _decay_faults(
    watch: OptimizerWatch, compared: Sequence[_Compared], weight_decay: float | None
) -> Iterator[Finding]:
    advice = "Look at weight_decay in the optimizer's groups, and whether it is decoupled from the gradient (AdamW)."
    wrong: dict[str, tuple[float, float]] = {}
    for one in compared:
        # Vectors (norms, biases) are few and often equal, so that their rounding errors do not cancel.
        if one.tensor.parameter.dim() < 2 or one.error_frac > WRONG_FRAC:
            continue
        for step in one.tensor.steps:
            meant = step.weight_decay if weight_decay is None else weight_decay
            decay, error = _decay(step)
            # 1 - rate * decay is itself rounded: at 1e-5 a decay of 0.01 becomes one of 0.012 in fp32.
            rounding = torch.finfo(one.tensor.parameter.dtype).eps / 2 / max(step.learning_rate, 1e-30)
            if abs(decay - meant) > max(DECAY_MARGIN, DECAY_FRAC * meant, DECAY_SIGMAS * error) + rounding:
                wrong[one.tensor.name] = decay, meant
    if wrong:
        decay, meant = next(iter(wrong.values()))
        tensors = [tensor for tensor in watch.tensors if tensor.name in wrong]
        yield words_of(tensors, watch, f"decay by {round(decay, 4) + 0.0:g} where {meant:.3g} is meant"), advice


def _decay(step: SampledStep) -> tuple[float, float]:
    """Return the weight decay that explains the change best, and its standard error, infinite where it cannot show.

    The reference's step holds decay L; what differs from it is learning_rate * (L - decay) * weights.
    """
    size = float(step.before.norm())
    if step.reference is None or not step.learning_rate or not size:
        return step.weight_decay, math.inf
    left = step.after - step.reference
    scale = step.learning_rate * step.before
    extra = -float(left @ scale) / (step.learning_rate * size) ** 2
    noise = float((left + extra * scale).norm()) / math.sqrt(len(left))
    return step.weight_decay + extra, noise / (step.learning_rate * size)


def _ulps(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return the distance of each value (float64, not negative) to the next number of a type."""
    exponents = torch.frexp(values).exponent - 1
    return torch.finfo(dtype).eps * torch.ldexp(torch.ones_like(values), exponents)
