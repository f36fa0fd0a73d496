"""GELU in its tanh form on a CPU, where torch's tanh costs three times an exponential; elsewhere torch's is used."""

import math
from typing import Any

import torch
from torch import nn
from transformers.activations import GELUTanh, NewGELUActivation

CHUNK = 1 << 17
"""Elements at a time: what the passes over a chunk share stays in the processor's cache."""
_SLOPE, _CUBIC = 2 * math.sqrt(2 / math.pi), 0.044715


class _TanhGELU(torch.autograd.Function):
    """x (1 + tanh(z / 2)) / 2 = x sigmoid(z), z = 2 sqrt(2 / pi) (x + 0.044715 x^3): Hendrycks and Gimpel 2016."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs.contiguous()
        gates, outputs = torch.empty_like(inputs), torch.empty_like(inputs)
        for x, gate, output in _chunks(inputs, gates, outputs):
            torch.mul(x, x, out=gate)
            gate.mul_(_SLOPE * _CUBIC).add_(_SLOPE).mul_(x).sigmoid_()
            torch.mul(x, gate, out=output)
        ctx.save_for_backward(inputs, gates)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> torch.Tensor:
        inputs, gates = ctx.saved_tensors
        gradients = torch.empty_like(inputs)
        for x, gate, above, gradient in _chunks(inputs, gates, grad_outputs[0].contiguous(), gradients):
            torch.mul(x, x, out=gradient)
            gradient.mul_(3 * _SLOPE * _CUBIC).add_(_SLOPE).mul_(x)  # x dz/dx
            gradient.mul_(torch.addcmul(gate, gate, gate, value=-1)).add_(gate).mul_(above)
        return gradients


def _chunks(*tensors: torch.Tensor) -> "zip[tuple[torch.Tensor, ...]]":
    return zip(*(torch.split(tensor.view(-1), CHUNK) for tensor in tensors), strict=True)


class CPUTanhGELU(nn.Module):
    """That GELU where its input is fp32 on a CPU and nothing is compiled; else the module it stands for."""

    def __init__(self, plain: nn.Module) -> None:
        """Stand for `plain`."""
        super().__init__()
        self.plain = plain

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the inputs' GELU."""
        if inputs.device.type != "cpu" or inputs.dtype != torch.float32 or torch.compiler.is_compiling():
            outputs: torch.Tensor = self.plain(inputs)
            return outputs
        activated: torch.Tensor = _TanhGELU.apply(inputs)  # type: ignore[no-untyped-call]
        return activated


def replace_gelu(model: nn.Module) -> None:
    """Put CPUTanhGELU in the place of every GELU of the model that is computed by tanh."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in (NewGELUActivation, GELUTanh):
                setattr(module, name, CPUTanhGELU(child))
