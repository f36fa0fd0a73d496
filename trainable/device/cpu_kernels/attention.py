"""Causal attention with dropout on a CPU, where torch falls back to its slowest path; elsewhere torch's own is used."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainable.device.cpu_kernels.dropout import dropout_mask

NAME = "causal_dropout_on_cpu"
UNMASKED_NAME = f"unmasked_{NAME}"
UNMASKED_FAMILIES = ("gpt2",)
"""In these, each token attends to all tokens before it, so none needs a mask. For other families transformers asks the
device at every forward pass whether a mask is needed, and waits for the answer."""
CHUNK_QUERIES = 64
"""Queries at a time. A chunk skips the keys after its end: over all chunks, half of the products."""


_as_on_mps = ContextVar("_as_on_mps", default=False)


@contextmanager
def as_on_mps() -> Iterator[None]:
    """Have attention take as much memory as on MPS, where torch keeps the weights of all pairs."""
    token = _as_on_mps.set(True)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _as_on_mps.reset(token)


class _CausalAttention(torch.autograd.Function):
    """softmax(scale q k^T) under a causal mask, dropped out, times v; the products' chunks are kept for backward.

    Vaswani et al. 2017. Products with future keys are not computed, and as every row has a key, nothing guards against
    empty rows.
    """

    @staticmethod
    def forward(
        ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, dropout: float, scale: float
    ) -> torch.Tensor:
        q, k, v = (part.reshape(-1, *part.shape[2:]) for part in (query, key, value))  # (B * H, T, D)
        length = q.shape[1]
        future = torch.full((CHUNK_QUERIES, CHUNK_QUERIES), -torch.inf, dtype=q.dtype).triu_(1)
        output = torch.empty_like(q)
        kept = []
        for start in range(0, length, CHUNK_QUERIES):
            end = min(start + CHUNK_QUERIES, length)
            scores = torch.bmm(q[:, start:end], k[:, :end].transpose(1, 2)).mul_(scale)  # (B * H, n, end)
            scores[:, :, start:].add_(future[: end - start, : end - start])
            weights = torch.softmax(scores, -1, dtype=torch.float32)
            mask = dropout_mask(weights.shape, dropout)
            torch.bmm((weights * mask).to(q.dtype), v[:, :end], out=output[:, start:end])
            kept += [weights, mask]
        ctx.save_for_backward(q, k, v, *kept)
        ctx.scale = scale
        return output.view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        q, k, v, *kept = ctx.saved_tensors
        grad = grad_outputs[0]
        shape, grad = grad.shape, grad.reshape(q.shape)
        grad_q, grad_k, grad_v = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        for index, start in enumerate(range(0, q.shape[1], CHUNK_QUERIES)):
            weights, mask = kept[2 * index], kept[2 * index + 1]
            end = start + weights.shape[1]
            grad_chunk = grad[:, start:end]
            grad_v[:, :end] += torch.bmm((weights * mask).to(q.dtype).transpose(1, 2), grad_chunk)
            grad_weights = torch.bmm(grad_chunk, v[:, :end].transpose(1, 2)).float().mul_(mask)
            grad_scores = torch.ops.aten._softmax_backward_data(grad_weights, weights, -1, torch.float32)
            grad_scores = grad_scores.mul_(ctx.scale).to(q.dtype)
            torch.bmm(grad_scores, k[:, :end], out=grad_q[:, start:end])
            grad_k[:, :end] += torch.bmm(grad_scores.transpose(1, 2), q[:, start:end])
        return grad_q.view(shape), grad_k.view(shape), grad_v.view(shape), None, None


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Return (B, T, H, D) as transformers' attention functions do."""
    is_causal = others.get("is_causal")
    # As transformers decides it: what is said at the call, else what the layer says, else causal.
    is_causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    plain = query.shape == key.shape == value.shape and attention_mask is None and is_causal
    # A compiler fuses torch's own attention, and gives up at a function that it cannot trace.
    if dropout == 0.0 or query.device.type != "cpu" or not plain or torch.compiler.is_compiling() or _as_on_mps.get():
        output: tuple[torch.Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return output
    if torch.is_autocast_enabled("cpu"):
        # As autocast does for torch's own: rotary embeddings leave query and key in fp32 beside a bf16 value.
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    attended: torch.Tensor = _CausalAttention.apply(query, key, value, dropout, scale)  # type: ignore[no-untyped-call]
    return attended.transpose(1, 2), None


def use_in(model: PreTrainedModel) -> None:
    """Give the model this attention in place of torch's own, where it has torch's own."""
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        AttentionInterface.register(UNMASKED_NAME, _attention)
        AttentionInterface.register(NAME, _attention)
        AttentionMaskInterface.register(NAME, sdpa_mask)
        model.set_attn_implementation(UNMASKED_NAME if model.config.model_type in UNMASKED_FAMILIES else NAME)
