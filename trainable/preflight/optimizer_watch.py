"""Samples of every trainable tensor around an optimizer's steps, and what AdamW makes of the same gradients."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self

import torch

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
    weight_decay: float


@dataclass(kw_only=True)
class WatchedTensor:
    """A trainable tensor of the model, and what its steps did to it."""

    name: str
    parameter: torch.Tensor
    steps: list[SampledStep]
    is_contiguous: bool = True
    """Whether it, its gradient and the optimizer's state of it lie in memory in the order of their elements."""


@dataclass(kw_only=True)
class _Moments:
    steps: float
    first: torch.Tensor
    second: torch.Tensor
    largest_second: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class _Pending:
    before: torch.Tensor
    gradient: torch.Tensor
    settings: Mapping[str, Any]


class OptimizerWatch:
    """Watches the steps made between entering and leaving; end_step() follows each of them.

    The state of the optimizer is read once, before the first step, and from then on kept by the reference alone: an
    optimizer that loses its state is found at the second step.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any) -> None:
        self.optimizer = plain_optimizer(optimizer)
        self.tensors = [
            WatchedTensor(name=name, parameter=parameter, steps=[])
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        self.steps = 0
        """Optimizer steps seen."""
        self._moments: dict[str, _Moments] = {}
        self._places: dict[str, torch.Tensor] = {}
        self._pending: dict[str, _Pending] = {}
        self._has_begun = False

    def __enter__(self) -> Self:
        self._hook = self.optimizer.register_step_pre_hook(self._begin_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hook.remove()

    @property
    def missing(self) -> list[WatchedTensor]:
        """The trainable tensors that no group of the optimizer holds."""
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        return [tensor for tensor in self.tensors if id(tensor.parameter) not in held]

    def _begin_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        # A subclass whose step() calls its parent's is announced twice.
        if self._has_begun:
            return
        # A GradScaler hands its scale to a fused optimizer, and whether to leave the step out.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) != 0:
            return
        self._has_begun = True
        grad_scale = getattr(optimizer, "grad_scale", None)
        divisor = 1.0 if grad_scale is None else float(grad_scale)
        settings = {
            # A learning rate may be a tensor, which the schedule changes in place after the step.
            id(parameter): {**group, "lr": float(group.get("lr", math.nan))}
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        for tensor in self.tensors:
            gradient, group = tensor.parameter.grad, settings.get(id(tensor.parameter))
            if gradient is None or group is None or gradient.is_sparse or not gradient.numel():
                continue
            if tensor.name not in self._places:
                self._places[tensor.name] = _places(gradient)
                self._read_state(tensor)
            before = self._sample(tensor.parameter, tensor.name)
            if tensor.steps:
                # What counts is what the next step finds: weights may be put back at any time in between.
                tensor.steps[-1] = replace(tensor.steps[-1], after=before)
            self._pending[tensor.name] = _Pending(
                before=before,
                gradient=self._sample(gradient, tensor.name) / divisor,
                settings=group,
            )

    def end_step(self) -> bool:
        """Take the weights as they are now for those after the step; return whether an optimizer step was seen."""
        seen, self._has_begun = self._has_begun, False
        for tensor in self.tensors:
            pending = self._pending.pop(tensor.name, None)
            if pending is None:
                continue
            tensor.is_contiguous &= all(part.is_contiguous() for part in self._parts(tensor))
            tensor.steps.append(
                SampledStep(
                    before=pending.before,
                    after=self._sample(tensor.parameter, tensor.name),
                    gradient=pending.gradient,
                    reference=self._reference(tensor.name, pending),
                    learning_rate=pending.settings["lr"],
                    weight_decay=float(pending.settings.get("weight_decay", 0.0)),
                )
            )
        self.steps += seen
        return seen

    def _parts(self, tensor: WatchedTensor) -> Iterator[torch.Tensor]:
        yield tensor.parameter
        for value in self.optimizer.state.get(tensor.parameter, {}).values():
            if isinstance(value, torch.Tensor) and value.shape == tensor.parameter.shape:
                yield value

    def _sample(self, tensor: torch.Tensor, name: str) -> torch.Tensor:
        places = self._places[name].to(tensor.device)
        return tensor.detach().take(places).cpu().double()  # MPS has no float64

    def _read_state(self, tensor: WatchedTensor) -> None:
        state = self.optimizer.state.get(tensor.parameter, {})
        nothing = torch.zeros(len(self._places[tensor.name]), dtype=torch.float64)
        read = [
            self._sample(state[key], tensor.name) if isinstance(state.get(key), torch.Tensor) else nothing
            for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        ]
        self._moments[tensor.name] = _Moments(
            steps=float(state.get("step", 0)), first=read[0], second=read[1], largest_second=read[2]
        )

    def _reference(self, name: str, pending: _Pending) -> torch.Tensor | None:
        # AdamW is a kind of Adam to torch.
        if not isinstance(self.optimizer, torch.optim.Adam):
            return None
        return _adam_step(pending, self._moments[name])


def plain_optimizer(optimizer: Any) -> Any:
    """Return the torch optimizer inside accelerate's wrappers."""
    while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = optimizer.optimizer
    return optimizer


def _adam_step(pending: _Pending, moments: _Moments) -> torch.Tensor:
    """Return the weights after a step of AdamW (Loshchilov & Hutter 2019, algorithm 2), moving the moments on."""
    settings, weights, gradient = pending.settings, pending.before, pending.gradient
    learning_rate, weight_decay = settings["lr"], float(settings["weight_decay"])
    beta1, beta2 = (float(beta) for beta in settings["betas"])
    if settings.get("maximize"):
        gradient = -gradient
    if settings.get("decoupled_weight_decay", True):
        weights = weights * (1 - learning_rate * weight_decay)
    else:
        gradient = gradient + weight_decay * weights
    moments.steps += 1
    moments.first = beta1 * moments.first + (1 - beta1) * gradient
    moments.second = beta2 * moments.second + (1 - beta2) * gradient.square()
    moments.largest_second = torch.maximum(moments.largest_second, moments.second)
    second = moments.largest_second if settings.get("amsgrad") else moments.second
    first = moments.first / (1 - beta1**moments.steps)
    root = (second / (1 - beta2**moments.steps)).sqrt()
    stepped: torch.Tensor = weights - learning_rate * first / (root + float(settings["eps"]))
    return stepped


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
