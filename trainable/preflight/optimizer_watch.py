"""Samples of every trainable tensor around an optimizer's steps, and what AdamW makes of the same gradients."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from trainable.model.models import text_weights

SAMPLED = 2048
LARGEST_GRADIENTS = 256
"""Drawn at random alone, rows of an embedding that this batch did not read could be all that is looked at."""
SEARCHED = 1 << 20
"""Gradients among which the largest are looked for."""


@dataclass(frozen=True, kw_only=True)
class SampledStep:
    """One tensor in one optimizer step, at the sampled places; all (S,) float64 on the CPU."""

    before: torch.Tensor
    after: torch.Tensor
    gradient: torch.Tensor
    reference: torch.Tensor | None
    """What AdamW (or Adam, if that is the optimizer's class) would have left; None for any other optimizer."""
    learning_rate: float
    """NaN where the optimizer has none: Adafactor finds its own."""
    peak_rate: float
    """The rate that a scheduler began with, which it is to reach; without one the step's own."""
    weight_decay: float


@dataclass(kw_only=True, eq=False)
class WatchedTensor:
    """A trainable tensor of the model, and what its steps did to it."""

    name: str
    parameter: torch.Tensor
    steps: list[SampledStep] = field(default_factory=list)
    begun: SampledStep | None = None
    """A step whose end has not been seen; its `after` is not known yet."""
    places: torch.Tensor | None = None
    """Where it is sampled, (S,) flat indices; None before its first step."""
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    """The reference's state of the sampled places, by torch's names."""
    is_contiguous: bool = True
    """Whether it, its gradient and the optimizer's state of it lie in memory in the order of their elements."""
    has_gradient: bool = False
    """Whether any step found a gradient other than 0."""
    awaits_gradient: bool = False
    """Whether nothing has been added to its gradient since the last step."""
    kept_gradient: bool = False
    """Whether a step's gradient was still there when the next one was added."""

    def sample(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values at the sampled places."""
        assert self.places is not None
        return values.detach().take(self.places.to(values.device)).cpu().double()  # MPS has no float64


class OptimizerWatch:
    """Watches the steps of an optimizer, or of several that share a model, until close(); end_step() follows each.

    The state of an optimizer is read once, before its first step, and from then on kept by the reference alone: one
    that loses its state is found at the second step.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any) -> None:
        self.model = model
        self.optimizers = [_unwrapped(one) for one in (optimizer if isinstance(optimizer, Sequence) else [optimizer])]
        self.tensors = [
            WatchedTensor(name=name, parameter=parameter)
            for name, parameter in text_weights(model).items()
            if parameter.requires_grad
        ]
        self.steps = 0
        """Steps seen, of whichever optimizer."""
        self.ends = 0
        """Calls of end_step()."""
        self.stepped: set[int] = set()
        """Places in `optimizers` of those whose step() was seen."""
        self._begun: set[int] = set()
        self._hooks = [
            one.register_step_pre_hook(partial(self._begin_step, at)) for at, one in enumerate(self.optimizers)
        ]
        for tensor in self.tensors:
            self._hooks.append(tensor.parameter.register_hook(partial(self._begin_gradient, tensor)))  # type: ignore[no-untyped-call]

    @property
    def moving_steps(self) -> int:
        """The steps seen so far whose learning rate is not 0."""
        return max((sum(step.learning_rate != 0 for step in tensor.steps) for tensor in self.tensors), default=0)

    def close(self) -> None:
        """Leave nothing attached to the optimizer and the weights."""
        for hook in self._hooks:
            hook.remove()

    def holders(self) -> dict[int, list[tuple[Any, dict[str, Any]]]]:
        """Return by id of a parameter each optimizer that holds it, with its group, as often as it does."""
        found = dict[int, list[tuple[Any, dict[str, Any]]]]()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    found.setdefault(id(parameter), []).append((optimizer, group))
        return found

    def _begin_gradient(self, tensor: WatchedTensor, gradient: torch.Tensor) -> None:
        if tensor.awaits_gradient:
            tensor.awaits_gradient, left = False, tensor.parameter.grad
            tensor.kept_gradient |= left is not None and not left.is_sparse and bool(left.any())

    def _begin_step(self, at: int, optimizer: Any, args: Any, kwargs: Any) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            return self._sample(at, optimizer)

        # Lightning computes the gradients in there.
        def watched() -> Any:
            loss = closure()
            self._sample(at, optimizer)
            return loss

        return args[:1], {**kwargs, "closure": watched}

    def _sample(self, at: int, optimizer: Any) -> None:
        # A subclass whose step() calls its parent's is announced twice.
        if at in self._begun:
            return
        # A GradScaler hands its scale to a fused optimizer, and whether to leave the step out.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) != 0:
            return
        self._begun.add(at)
        self.stepped.add(at)
        grad_scale = getattr(optimizer, "grad_scale", None)
        divisor = 1.0 if grad_scale is None else float(grad_scale)
        # AdamW is a kind of Adam to torch.
        is_adam = isinstance(optimizer, torch.optim.Adam)
        groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        for tensor in self.tensors:
            gradient, group = tensor.parameter.grad, groups.get(id(tensor.parameter))
            if gradient is None or group is None or not gradient.numel():
                continue
            if gradient.is_sparse:
                tensor.has_gradient = True
                continue
            if tensor.places is None:
                tensor.places = _places(gradient)
                if is_adam:
                    self._read_state(tensor, optimizer)
            before, gradient = tensor.sample(tensor.parameter), tensor.sample(gradient) / divisor
            tensor.has_gradient |= bool(gradient.any())
            if tensor.steps:
                # What counts is what the next step finds: weights may be put back at any time in between.
                tensor.steps[-1] = replace(tensor.steps[-1], after=before)
            tensor.begun = SampledStep(
                before=before,
                after=before,
                gradient=gradient,
                reference=_adam_step(tensor.state, before, gradient, group) if is_adam else None,
                # It may be a tensor, which the schedule changes in place after the step.
                learning_rate=_rate(group, "lr"),
                peak_rate=_rate(group, "initial_lr", "lr"),
                weight_decay=float(group.get("weight_decay", 0.0)),
            )

    def end_step(self) -> bool:
        """Take the weights as they are now for those after the step; return whether an optimizer step was seen."""
        seen, self._begun = bool(self._begun), set()
        self.ends += 1
        for tensor in self.tensors:
            tensor.awaits_gradient = seen
            if tensor.begun is None:
                continue
            tensor.is_contiguous &= all(part.is_contiguous() for part in self._parts(tensor))
            tensor.steps.append(replace(tensor.begun, after=tensor.sample(tensor.parameter)))
            tensor.begun = None
        self.steps += seen
        return seen

    def _parts(self, tensor: WatchedTensor) -> Iterator[torch.Tensor]:
        yield tensor.parameter
        for optimizer in self.optimizers:
            for value in optimizer.state.get(tensor.parameter, {}).values():
                if isinstance(value, torch.Tensor) and value.shape == tensor.parameter.shape:
                    yield value

    def _read_state(self, tensor: WatchedTensor, optimizer: Any) -> None:
        state = optimizer.state.get(tensor.parameter, {})
        tensor.state["step"] = torch.tensor(float(state.get("step", 0)))
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            tensor.state[key] = tensor.sample(state.get(key, torch.zeros(()).expand(tensor.parameter.shape)))


def _rate(group: Mapping[str, Any], *names: str) -> float:
    return float(next((group[name] for name in names if group.get(name) is not None), math.nan))


def _unwrapped(optimizer: Any) -> Any:
    # accelerate wraps the torch optimizer, more than once.
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _adam_step(
    state: Mapping[str, torch.Tensor], weights: torch.Tensor, gradient: torch.Tensor, group: Mapping[str, Any]
) -> torch.Tensor:
    """Return the weights after torch's plain step of Adam or AdamW in float64, moving `state` on."""
    stepped = torch.nn.Parameter(weights.clone())
    stepped.grad = gradient
    reference = torch.optim.Adam([stepped], decoupled_weight_decay=True)
    plain = {"params": [stepped], "lr": float(group["lr"]), "foreach": False, "fused": False, "capturable": False}
    reference.param_groups[0].update({**group, **plain})
    reference.state[stepped] = state
    reference.step()
    return stepped.detach()


def _places(gradient: torch.Tensor) -> torch.Tensor:
    """Return the flat places (S,) to look at: all of a small tensor, else random ones and large gradients."""
    count = gradient.numel()
    if count <= SAMPLED:
        return torch.arange(count)
    drawn = torch.randint(count, (SAMPLED,), generator=torch.Generator().manual_seed(0))
    stride = -(-count // SEARCHED)
    searched = gradient.detach().flatten()[::stride].abs().float()
    largest = searched.topk(min(LARGEST_GRADIENTS, len(searched))).indices.cpu() * stride
    # A place drawn twice counts twice, which nothing minds.
    return torch.cat([drawn, largest])
