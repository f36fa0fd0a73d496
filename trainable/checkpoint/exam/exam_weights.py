"""A checkpoint's numbers: its weights as they are stored, and what AdamW's saved state tells of their gradients."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from trainable.checkpoint.foreign import OLD_BUFFERS
from trainable.errors import UserError

MANTISSA_BITS = {torch.bfloat16: 7, torch.float16: 10, torch.float32: 23}
EXAMINED_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LARGEST_NUMBER = 1e9
"""A larger number is not a learning rate."""


def check_weights(where: str, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise UserError naming the first tensor that is no plain array of numbers in the file."""
    for name, tensor in weights.items():
        if not is_plain(tensor) and not name.endswith(OLD_BUFFERS):
            raise UserError(
                f"{where}: tensor '{name}' ({str(tensor.dtype).removeprefix('torch.')}) is sparse, quantized, of a "
                "type that is not examined, or larger than what the file holds. Save it as float32 or bfloat16."
            )


def is_plain(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is dense, of a type that is examined, and all there."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized or tensor.is_complex():
        return False
    if tensor.is_floating_point() and tensor.dtype not in EXAMINED_FLOATS:
        return False
    # An expanded tensor of a few bytes has any size.
    return tensor.untyped_storage().nbytes() >= tensor.numel() * tensor.element_size()


def trained_weights(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the floating tensors that training changes, tied ones once."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in weights.items():
        if not tensor.is_floating_point() or name.endswith(OLD_BUFFERS) or tensor.data_ptr() in seen:
            continue
        if tensor.numel():
            seen.add(tensor.data_ptr())
            found[name] = tensor
    return found


def positive_number(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value <= LARGEST_NUMBER else None


def learning_rate_in(saved: Mapping[str, Any]) -> float | None:
    """Return the rate of an optimizer's saved state, None where it says none."""
    return next((rate for group in _groups(saved) if (rate := positive_number(group.get("lr")))), None)


def gradient_facts(saved: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return CheckpointFacts' fields of AdamW's saved state; none where it was not saved or is another optimizer's."""
    groups, states = _groups(saved), saved.get("state")
    if not isinstance(states, Mapping) or not states:
        return {}
    indices = [index for group in groups for index in _listed(group.get("params")) if isinstance(index, int)]
    squares: dict[int, torch.Tensor] = {
        index: square
        for index in indices
        if isinstance(state := states.get(index), Mapping)
        and isinstance(square := state.get("exp_avg_sq"), torch.Tensor)
    }
    if not all(is_plain(square) for square in squares.values()):
        return {}
    # The optimizer numbers its tensors; the order is the model's own if every shape agrees.
    named = len(groups) == 1 and len(indices) == len(weights)
    named &= all(
        index not in squares or squares[index].shape == tensor.shape
        for index, tensor in zip(indices, weights.values(), strict=False)
    )
    names = list(weights) if named else [f"tensor {index} of the optimizer" for index in indices]
    still = [one for one in zip(indices, names, strict=True) if one[0] not in squares or not squares[one[0]].any()]
    return {
        "optimizer_tensors": len(indices),
        "without_gradient": tuple(name for _, name in still),
        "nonfinite_optimizer": not all(bool(torch.isfinite(square).all()) for square in squares.values()),
    }


def _groups(saved: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [group for group in _listed(saved.get("param_groups")) if isinstance(group, Mapping)]


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def dtypes(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    counts = Counter[str]()
    for tensor in weights.values():
        counts[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return dict(counts)


def bf16_valued_frac(weights: Mapping[str, torch.Tensor]) -> float:
    equal, total = 0, 0
    for tensor in weights.values():
        if tensor.dtype == torch.float32:
            # 0 and 1, where biases and norms begin, are bf16 numbers too and say nothing.
            telling = tensor[(tensor != 0) & (tensor != 1)]
            equal += int((telling.bfloat16().float() == telling).sum())
            total += telling.numel()
    return equal / total if total else 0.0


def unmovable_frac(weights: Iterable[torch.Tensor], learning_rate: float) -> float:
    """Return the share of weights whose half spacing is more than an update of `learning_rate`, AdamW's largest.

    A weight of 2^e <= |w| < 2^(e+1) with m mantissa bits lies 2^(e-m) from the next.
    """
    lost, total = 0, 0
    for tensor in weights:
        total += tensor.numel()
        bits = MANTISSA_BITS.get(tensor.dtype)
        if bits is not None:
            lost += int((tensor.abs() >= 2.0 ** math.ceil(math.log2(learning_rate) + bits + 1)).sum())
    return lost / total if total else 0.0
