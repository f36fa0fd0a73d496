"""Next-token loss: the one place where a target is computed. Nothing else in the project shifts a label."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import PreTrainedModel

from trainable.device.cpu_kernels.linear import product
from trainable.head import Head, find_head, hidden_states

CHUNK_LOGITS = {"cpu": 1 << 20}
"""Logits that exist at a time: a chunk stays in a CPU's cache, and memory no longer grows with the batch."""
GPU_CHUNK_LOGITS = 1 << 26
"""A quarter of a GiB in fp32: every chunk also reads and writes the whole head's gradient once, which a GPU's launches
and memory repay for thousands of rows only."""
MIN_CHUNK_ROWS, MIN_HALF_CHUNK_ROWS = 128, 512
"""In half precision products are faster, and few rows no longer hide what a chunk reads and writes: on a CPU with AMX
512 rows of 50,257 logits take 38 % less time than 128."""


def next_token_losses(model: PreTrainedModel, tokens: torch.Tensor, *, last: int | None = None) -> torch.Tensor:
    """Return the loss in nats of every token that is predicted from those before it; no gradients.

    tokens: (B, T + 1) ids. Returns (B, T) fp32, or (B, last) for the last `last` positions alone: position t holds
    -log p(tokens[:, t + 1] | tokens[:, : t + 1]).
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:][:, -(last or 0) :]  # (B, T), (B, T or last)
    head = find_head(model)
    if head is None:
        logits = _logits(model, inputs, last)  # (B, T or last, V)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
    hidden = hidden_states(model, inputs)[:, -(last or 0) :].flatten(0, 1)  # (N, C)
    weight, bias = _weight_and_bias(model)
    chunks = [
        F.cross_entropy(
            head.logits_(product(hidden[rows], weight.t(), bias).float()), targets.flatten()[rows], reduction="none"
        )
        for rows in _chunks(hidden, weight, hidden.dtype)
    ]
    return torch.cat(chunks).view_as(targets)


def next_token_loss(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token loss of tokens (B, T + 1), nats/token, a scalar to call backward() on."""
    inputs, targets = tokens[:, :-1], tokens[:, 1:]  # (B, T) each
    head = find_head(model)
    if head is None:
        return F.cross_entropy(_logits(model, inputs, None).flatten(0, 1), targets.flatten())
    loss: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_states(model, inputs).flatten(0, 1), *_weight_and_bias(model), targets.flatten(), head
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear head, gradients included, a chunk of rows at a time.

    d loss / d logits = (softmax - one-hot) / N needs nothing from the rest of the graph, so the forward pass can take
    it while a chunk's logits are at hand; Wijmans et al. 2024 (Cut Your Losses) and Liger Kernel do the same.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: Head,
    ) -> torch.Tensor:
        rows_count = len(hidden)
        total = torch.zeros((), device=hidden.device)
        # A frozen head, as under LoRA, has no gradient: a third of the products, and a vocabulary's worth of memory.
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
        # Cast here, once: autocast would cast the whole head again for every chunk.
        states, factor = hidden.to(dtype), weight.to(dtype)  # (N, C), (V, C)
        shift = None if bias is None else bias.to(dtype)  # (V)
        # fp16 would flush the small gradients to zero before the loss scaler has seen them.
        exact = dtype == torch.float16
        grad_states, grad_factor = (hidden.float(), weight.float()) if exact else (states, factor)
        with torch.autocast(kind, enabled=False):
            for rows in _chunks(hidden, weight, dtype):
                logits = head.logits_(product(states[rows], factor.t(), shift).float())  # (n, V)
                slope = head.slope(logits)
                picked = targets[rows].unsqueeze(-1)
                largest = logits.amax(-1, keepdim=True)
                chosen = logits.gather(-1, picked)
                exponentials = logits.sub_(largest).exp_()
                sums = exponentials.sum(-1, keepdim=True)
                total += (sums.log() + largest - chosen).sum()
                grad_logits = exponentials.div_(sums.mul(rows_count))
                grad_logits.scatter_add_(-1, picked, torch.full_like(sums, -1.0 / rows_count))
                if slope is not None:
                    grad_logits.mul_(slope)
                if grad_bias is not None:
                    grad_bias += grad_logits.sum(0)
                grad_logits = grad_logits.to(grad_factor.dtype)
                # Over a whole vocabulary torch's own product takes a fifth to a third less time than oneDNN's.
                grad_hidden[rows] = grad_logits @ grad_factor
                if grad_weight is not None:
                    _add_product(grad_weight, grad_logits.t(), grad_states[rows], is_first=rows.start == 0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        return total / rows_count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        gradients = (None if one is None else one.mul_(grad_outputs[0]) for one in ctx.saved_tensors)
        return (*gradients, None, None)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, is_first: bool) -> None:
    # Zeroing a large head's gradient, and adding a product that lies elsewhere, cost as much as a product itself.
    if left.dtype == total.dtype:
        total.addmm_(left, right, beta=0 if is_first else 1)
    elif is_first:
        total.copy_(left @ right)
    else:
        total += left @ right


def _chunks(hidden: torch.Tensor, head: torch.Tensor, dtype: torch.dtype) -> Iterator[slice]:
    fewest = MIN_CHUNK_ROWS if dtype == torch.float32 else MIN_HALF_CHUNK_ROWS
    size = max(fewest, CHUNK_LOGITS.get(hidden.device.type, GPU_CHUNK_LOGITS) // len(head))
    return (slice(start, start + size) for start in range(0, len(hidden), size))


def _logits(model: PreTrainedModel, inputs: torch.Tensor, last: int | None) -> torch.Tensor:
    # Never `labels=`: the model would shift them a second time.
    logits: torch.Tensor = model(input_ids=inputs, use_cache=False, logits_to_keep=last or 0).logits
    # Some models take logits_to_keep and return them all.
    return logits[:, -(last or 0) :].float()


def _weight_and_bias(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor | None]:
    head = model.get_output_embeddings()
    return head.weight, head.bias  # (V, C), (V)
