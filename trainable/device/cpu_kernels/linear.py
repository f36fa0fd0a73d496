"""fp32 matrix products of a CPU by oneDNN, which torch itself takes for bf16 only; elsewhere torch's own are used."""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D


def product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return left (N, K) times right (K, M), plus bias (M); no gradients."""
    if _takes_onednn(left) and left.dtype == right.dtype == torch.float32:
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
        return result
    return left @ right if bias is None else torch.addmm(bias, left, right)


def _takes_onednn(inputs: torch.Tensor) -> bool:
    # Inductor supports this operation for constant weights only, and gives up on the whole layer for others.
    is_plain = not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()
    return _HAS_ONEDNN and inputs.device.type == "cpu" and is_plain


_HAS_ONEDNN = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
_HAS_AVX512 = torch.backends.cpu.get_cpu_capability() == "AVX512"


class _Affine(torch.autograd.Function):
    """x W + b."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        # A frozen weight, as under LoRA, needs no gradient, and so its inputs need not be kept.
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight)
        return product(inputs, weight, bias)

    @staticmethod
    def backward(
        ctx: Any, *grad_outputs: torch.Tensor
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        inputs, weight = ctx.saved_tensors
        grad = grad_outputs[0]
        needs_inputs, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(grad, weight.t()) if needs_inputs else None,
            # oneDNN is no faster where the left factor is transposed.
            inputs.t() @ grad if needs_weight else None,
            grad.sum(0) if needs_bias else None,
        )


class CPUConv1D(Conv1D):  # type: ignore[misc]
    """GPT-2's linear layer, its products taken by oneDNN in fp32 on a CPU."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return inputs (..., nx) times the weight plus the bias, (..., nf)."""
        if not _takes_onednn(inputs):
            outputs: torch.Tensor = super().forward(inputs)
            return outputs
        flat: torch.Tensor = _Affine.apply(inputs.reshape(-1, self.nx), self.weight, self.bias)  # type: ignore[no-untyped-call]
        return flat.view(*inputs.shape[:-1], self.nf)


def replace_linear(model: nn.Module) -> None:
    """Make every plain Conv1D of the model a CPUConv1D, with the same parameters, where that is faster."""
    # With AVX2 alone oneDNN takes 1.1 to 1.8 times as long as torch for a layer's products, but less for a head's.
    if not _HAS_AVX512:
        return
    for module in model.modules():
        if type(module) is Conv1D:
            module.__class__ = CPUConv1D
