"""The one evaluation of a study: the same held-out windows, context and arithmetic for every trial."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel

from trainable.data.tokens import Corpus, Tokens
from trainable.errors import UserError
from trainable.head import find_head
from trainable.loss import next_token_losses
from trainable.model.modes import exact_inference
from trainable.rows import Start

EVAL_TOKENS_PER_FORWARD = 8192
EVAL_LOGITS = 1 << 28
"""A GiB in fp32, where a model's logits cannot be taken a chunk at a time."""
PARTS = 64
"""Enough for a standard error, few enough for a table: the plateau space's windows one by one."""


@dataclass(frozen=True, kw_only=True)
class EvalProtocol:
    """What is measured; two losses can be compared only when their protocols and corpora are equal."""

    block_size: int = 128
    """Context in tokens; windows slide by half of it, rounded down, and only so many at their end are scored."""
    tokens: int = 16_384
    """Scored held-out tokens, at most: fewer where the validation part is smaller."""

    def __post_init__(self) -> None:
        if self.block_size < 2:
            raise UserError(f"EVAL_BLOCK_SIZE={self.block_size} must be at least 2 tokens.")
        if self.tokens < self.block_size:
            raise UserError(f"EVAL_TOKENS={self.tokens} must be at least EVAL_BLOCK_SIZE={self.block_size}.")


def eval_windows(tokens: Tokens, protocol: EvalProtocol) -> torch.Tensor:
    """Return the windows (N, block_size + 1) int64 of a token stream: evenly spread, the same at every call.

    With N the protocol's share of the stream, each scored token is scored once and has at least half a block before it.
    """
    stride = protocol.block_size // 2
    last_start = len(tokens) - protocol.block_size - 1
    assert last_start >= 0, "check_corpus comes first"
    grid = np.arange(0, last_start + 1, stride)
    wanted = protocol.tokens // stride
    chosen = grid[np.linspace(0, len(grid) - 1, min(wanted, len(grid))).round().astype(np.int64)]
    windows = tokens[chosen[:, None] + np.arange(protocol.block_size + 1)]  # (N, T + 1)
    return torch.from_numpy(windows.astype(np.int64))


def evaluate_start(model: PreTrainedModel, corpus: Corpus, protocol: EvalProtocol) -> Start:
    """Return what the model loses before any step.

    There is no mean of steps to show yet as training loss; a glance at the training text is enough.
    """
    block = min(protocol.block_size, len(corpus.train) - 1)  # which need not hold a held-out text's blocks
    glance = EvalProtocol(block_size=block, tokens=max(block, protocol.tokens // 8))
    return Start(
        val_loss=evaluate(model, eval_windows(corpus.val, protocol)),
        train_loss=evaluate(model, eval_windows(corpus.train, glance)),
    )


def evaluate(model: PreTrainedModel, windows: torch.Tensor) -> float:
    """Return the mean loss in nats/token over the second halves of windows (N, T + 1), in fp32 without dropout."""
    return float(window_losses(model, windows).mean())


def part_losses(losses: torch.Tensor) -> tuple[float, ...]:
    """Return the means of at most PARTS neighbouring parts of the losses (N,), as equal as they can be."""
    return tuple(float(part.mean()) for part in torch.tensor_split(losses, min(PARTS, len(losses))))


def window_losses(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """Return the mean loss over the second half of each window, (N,) float64 on the CPU.

    Leaves the model in the mode it was in and draws no random number: a run evaluated more often trains the same.
    """
    device = next(model.parameters()).device
    scored = (windows.shape[1] - 1) // 2  # the stride of eval_windows: no token is scored twice
    most = EVAL_TOKENS_PER_FORWARD
    if find_head(model) is None:
        most = min(most, EVAL_LOGITS // len(model.get_input_embeddings().weight))
    rows = max(1, most // windows.shape[1])
    with exact_inference(model):
        sums = [
            next_token_losses(model, batch.to(device), last=scored).sum(dim=1) for batch in torch.split(windows, rows)
        ]
    return torch.cat(sums).cpu().double() / scored
