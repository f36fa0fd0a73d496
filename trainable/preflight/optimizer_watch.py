"""Samples of every trainable tensor around an optimizer's steps, and what AdamW makes of the same gradients."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.optim.adam import adam

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
    steps: list[SampledStep] = field(default_factory=list)
    begun: SampledStep | None = None
    """A step whose end has not been seen; its `after` is not known yet."""
    places: torch.Tensor | None = None
    """Where it is sampled, (S,) flat indices; None before its first step."""
    state: dict[str, torch.Tensor] = field(default_factory=dict)
    """The reference's state of the sampled places, by torch's names."""
    is_contiguous: bool = True
    """Whether it, its gradient and the optimizer's state of it lie in memory in the order of their elements."""

    def sample(self, values: torch.Tensor) -> torch.Tensor:
        """Return the values at the sampled places."""
        assert self.places is not None
        return values.detach().take(self.places.to(values.device)).cpu().double()  # MPS has no float64


class OptimizerWatch:
    """Watches an optimizer's steps until close(); end_step() follows each of them.

    The state of the optimizer is read once, before the first step, and from then on kept by the reference alone: an
    optimizer that loses its state is found at the second step.
    """

    def __init__(self, model: torch.nn.Module, optimizer: Any) -> None:
        # accelerate wraps the torch optimizer, more than once.
        while isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
            optimizer = optimizer.optimizer
        self.optimizer = optimizer
        self.tensors = [
            WatchedTensor(name=name, parameter=parameter)
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        self.steps = 0
        """Optimizer steps seen."""
        self._has_begun = False
        self._hook = self.optimizer.register_step_pre_hook(self._begin_step)

    def close(self) -> None:
        """Leave nothing attached to the optimizer."""
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
        # AdamW is a kind of Adam to torch.
        is_adam = isinstance(self.optimizer, torch.optim.Adam)
        groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
        for tensor in self.tensors:
            gradient, group = tensor.parameter.grad, groups.get(id(tensor.parameter))
            if gradient is None or group is None or gradient.is_sparse or not gradient.numel():
                continue
            if tensor.places is None:
                tensor.places = _places(gradient)
                if is_adam:
                    self._read_state(tensor)
            before, gradient = tensor.sample(tensor.parameter), tensor.sample(gradient) / divisor
            if tensor.steps:
                # What counts is what the next step finds: weights may be put back at any time in between.
                tensor.steps[-1] = replace(tensor.steps[-1], after=before)
            tensor.begun = SampledStep(
                before=before,
                after=before,
                gradient=gradient,
                reference=_adam_step(tensor.state, before, gradient, group) if is_adam else None,
                # It may be a tensor, which the schedule changes in place after the step.
                learning_rate=float(group.get("lr", math.nan)),
                weight_decay=float(group.get("weight_decay", 0.0)),
            )

    def end_step(self) -> bool:
        """Take the weights as they are now for those after the step; return whether an optimizer step was seen."""
        seen, self._has_begun = self._has_begun, False
        for tensor in self.tensors:
            if tensor.begun is None:
                continue
            tensor.is_contiguous &= all(part.is_contiguous() for part in self._parts(tensor))
            tensor.steps.append(replace(tensor.begun, after=tensor.sample(tensor.parameter)))
            tensor.begun = None
        self.steps += seen
        return seen

    def _parts(self, tensor: WatchedTensor) -> Iterator[torch.Tensor]:
        yield tensor.parameter
        for value in self.optimizer.state.get(tensor.parameter, {}).values():
            if isinstance(value, torch.Tensor) and value.shape == tensor.parameter.shape:
                yield value

    def _read_state(self, tensor: WatchedTensor) -> None:
        state = self.optimizer.state.get(tensor.parameter, {})
        tensor.state["step"] = torch.tensor(float(state.get("step", 0)))
        for key in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
            tensor.state[key] = tensor.sample(state.get(key, torch.zeros(()).expand(tensor.parameter.shape)))


def _adam_step(
    state: Mapping[str, torch.Tensor], weights: torch.Tensor, gradient: torch.Tensor, group: Mapping[str, Any]
) -> torch.Tensor:
    """Return the weights after torch's plain step of Adam or AdamW in float64, moving `state` on."""
    stepped, beta = weights.clone(), [float(beta) for beta in group["betas"]]
    amsgrad = bool(group.get("amsgrad"))
    adam(
        [stepped],
        [gradient],
        [state["exp_avg"]],
        [state["exp_avg_sq"]],
        [state["max_exp_avg_sq"]] if amsgrad else [],
        [state["step"]],
        foreach=False,
        amsgrad=amsgrad,
        beta1=beta[0],
        beta2=beta[1],
        lr=float(group["lr"]),
        weight_decay=float(group["weight_decay"]),
        eps=float(group["eps"]),
        maximize=bool(group.get("maximize")),
        decoupled_weight_decay=group.get("decoupled_weight_decay", True),
    )
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
