"""Checks of the gradient: does it reach every weight, and is it the slope of the loss?"""

from collections.abc import Callable
from contextlib import ExitStack

import torch
from transformers import PreTrainedModel

from trainable.device.compiling import layers_of
from trainable.errors import first_of
from trainable.loss import next_token_loss, next_token_losses
from trainable.model.models import text_weights
from trainable.model.modes import in_mode
from trainable.preflight.check_result import Check, judged, skipped

SLOPE_MARGIN = 0.03
PREDICTED_CHANGES = (1e-3, 1e-4, 3e-3)
"""Nats by which a step along the gradient should move the loss. At 1e-3 the slope is 1.000 in fp32 and fp64, at 1e-1
curvature makes it 0.9; the others are for losses of unusual curvature or noise."""


def check_frozen(model: torch.nn.Module) -> Check:
    """Return whether every weight that text can train is to be trained, naming those that are not."""
    text = text_weights(model)
    frozen = [name for name, parameter in text.items() if not parameter.requires_grad]
    return judged(
        "frozen layers",
        failed=bool(frozen),
        measured=f"{len(frozen)} of {len(text)} tensors frozen" + (f": {first_of(frozen)}" if frozen else ""),
        expected="none: a trial trains the whole model",
        advice="Set requires_grad on them, or go on with SKIP_PREFLIGHT=1 if they are frozen on purpose.",
    )


def check_gradient_reach(model: torch.nn.Module, cut_at: list[str]) -> Check:
    """Return whether the gradients that the last backward left reach every trainable tensor.

    cut_at: of cut_modules(). To be asked after two steps: behind a zero-initialised tensor (LoRA's B) is none before.
    """
    trainable = [(name, parameter) for name, parameter in text_weights(model).items() if parameter.requires_grad]
    dead = [name for name, parameter in trainable if parameter.grad is None or not parameter.grad.any()]
    measured = f"{len(dead)} of {len(trainable)} trainable tensors have no gradient after two steps"
    if dead:
        measured += f": {first_of(dead)}"
    if cut_at:
        measured += f"; cut in {first_of(cut_at)}"
    return judged(
        "gradient reach",
        failed=bool(dead or cut_at),
        measured=measured,
        expected="none, and no module run without gradients",
        advice="Look there for no_grad, detach() or an output that is not used; a frozen layer needs no no_grad.",
    )


def cut_modules(model: PreTrainedModel, windows: torch.Tensor) -> tuple[list[str], bool]:
    """Return where one training forward on windows (N, T + 1) loses the gradient: modules that ran without.

    Of those with weights; and whether the loss depends on any trainable weight at all.
    """
    windows = windows.to(next(model.parameters()).device)
    cut: list[str] = []

    def watch(name: str) -> Callable[[torch.nn.Module, tuple[object, ...], object], None]:
        def hook(module: torch.nn.Module, inputs: tuple[object, ...], output: object) -> None:
            trains = any(weight.requires_grad for weight in module.parameters(recurse=False))
            flows_in = any(isinstance(value, torch.Tensor) and value.requires_grad for value in inputs)
            values = output if isinstance(output, tuple) else (output,)
            outputs = [value for value in values if isinstance(value, torch.Tensor) and value.is_floating_point()]
            loses = (trains or flows_in) and bool(outputs) and not any(value.requires_grad for value in outputs)
            if loses or not torch.is_grad_enabled():
                cut.append(name)

        return hook

    with ExitStack() as hooks, in_mode(model, training=True):
        for name, module in model.named_modules():
            if next(module.parameters(recurse=False), None) is not None:
                hooks.enter_context(module.register_forward_hook(watch(name)))
        model(input_ids=windows[:, :-1], use_cache=False)
    # Reentrant gradient checkpointing runs its blocks without gradients, and is right to.
    recomputing = [module for module in model.modules() if getattr(module, "gradient_checkpointing", False)]
    options = [getattr(getattr(one, "_gradient_checkpointing_func", None), "keywords", {}) for one in recomputing]
    is_reentrant = any(one.get("use_reentrant", True) for one in options)
    return [] if is_reentrant else cut, next_token_loss(model, windows).requires_grad


def check_slope(model: PreTrainedModel, windows: torch.Tensor) -> Check:
    """Return whether the loss changes along the first block's gradient as the gradient says.

    A gradient cut anywhere above makes it wrong; over all weights together the last layers would hide that. On failure
    the block above which it is right is named. Weights and gradients are left as they were.
    """
    name = "gradient slope"
    windows = windows.to(next(model.parameters()).device)
    blocks = _blocks(model)
    if not blocks:
        return skipped(name, "the model has no list of blocks with trainable weights")
    first = next(iter(blocks))
    kept = [weight.grad for weight in model.parameters()]
    try:
        with in_mode(model, training=False):
            model.zero_grad(set_to_none=True)
            next_token_loss(model, windows).backward()  # type: ignore[no-untyped-call]
            slope = _slope(model, windows, blocks[first])
            wrong = [first]
            if slope is not None and not _is_right(slope):
                slopes = {label: _slope(model, windows, weights) for label, weights in blocks.items()}
                wrong += [label for label, one in slopes.items() if one is not None and not _is_right(one)]
    finally:
        for weight, gradient in zip(model.parameters(), kept, strict=True):
            weight.grad = gradient
    if slope is None:
        return skipped(name, f"no gradient reaches {first}")
    is_right = _is_right(slope)
    return judged(
        name,
        failed=not is_right,
        measured=f"{slope:.3f} along {first}" + ("" if is_right else f"; wrong as far up as {wrong[-1]}"),
        expected=f"1 within {SLOPE_MARGIN}",
        advice=f"Part of the gradient is lost in or above {wrong[-1]}: look for a layer under no_grad, a detach(), or "
        "a wrong backward of its own.",
    )


def _is_right(slope: float) -> bool:
    return abs(slope - 1) <= SLOPE_MARGIN


def _slope(model: PreTrainedModel, windows: torch.Tensor, weights: list[torch.nn.Parameter]) -> float | None:
    """Return measured over predicted change of the loss, of the step size at which they agree best."""
    with_gradient = [(weight, weight.grad.clone()) for weight in weights if weight.grad is not None]
    squared = sum(float(torch.linalg.vector_norm(gradient)) ** 2 for _, gradient in with_gradient)
    if not squared > 0:
        return None
    before = [weight.detach().clone() for weight, _ in with_gradient]
    slopes: list[float] = []
    with torch.no_grad():
        for change in PREDICTED_CHANGES:
            losses = []
            for step in (change / squared, -change / squared):
                for (weight, gradient), start in zip(with_gradient, before, strict=True):
                    weight.copy_(start + step * gradient)
                losses.append(float(next_token_losses(model, windows).cpu().double().mean()))
            slopes.append((losses[0] - losses[1]) / (2 * change))
            if _is_right(slopes[-1]):
                break
        for (weight, _), start in zip(with_gradient, before, strict=True):
            weight.copy_(start)
    return min(slopes, key=lambda slope: abs(slope - 1))


def _blocks(model: PreTrainedModel) -> dict[str, list[torch.nn.Parameter]]:
    """Return the trainable weights of each of the model's layers that has any, by its name."""
    layers = set(layers_of(model))
    found = {
        name: [weight for weight in layer.parameters() if weight.requires_grad]
        for name, layer in model.named_modules()
        if layer in layers
    }
    return {name: weights for name, weights in found.items() if weights}
