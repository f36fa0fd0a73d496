"""How well a model predicts the token before, the same, the next, and those after: what its labels were."""

from collections.abc import Callable, Mapping

import torch

from trainable.checkpoint.exam.exam_facts import OffsetGain

OFFSETS = (-1, 0, 1, 2, 3)
TOKENS_PER_FORWARD = 2048

Forward = Callable[[Mapping[str, torch.Tensor]], torch.Tensor]
"""From a batch's inputs to logits (B, T, V)."""


def offset_profile(model: torch.nn.Module, tokens: torch.Tensor) -> dict[int, float]:
    """Return, for each of OFFSETS, the mean loss in nats of predicting the token so many places on; +1 is the next.

    tokens: (B, T + 1) ids, of which the model reads the first T, in the mode it is in and without gradients.
    """
    tokens = tokens.to(next(model.parameters()).device)
    inputs = {"input_ids": tokens[:, :-1]}
    return mean_losses(offset_losses(lambda some: model(**some).logits, inputs, tokens), tokens)


def mean_losses(losses: Mapping[int, torch.Tensor], tokens: torch.Tensor) -> dict[int, float]:
    """Return the mean of offset_losses() over all positions (B, T) of tokens (B, T + 1) that have a target."""
    allowed, block = torch.ones_like(tokens, dtype=torch.bool), tokens.shape[1] - 1
    return {offset: mean_loss(some, has_target(allowed, offset, block)) for offset, some in losses.items()}


def offset_losses(
    forward: Forward, inputs: Mapping[str, torch.Tensor], tokens: torch.Tensor
) -> dict[int, torch.Tensor]:
    """Return per offset the losses (B, T) fp32 in nats; what stands where has_target says False has no meaning.

    inputs["input_ids"]: (B, T). tokens: the same ids, with or without further ones to be predicted, (B, T or more).
    """
    batch, block = inputs["input_ids"].shape
    targets = {offset: tokens[:, _places(tokens, offset, block)] for offset in OFFSETS}
    parts: dict[int, list[torch.Tensor]] = {offset: [] for offset in OFFSETS}
    rows = max(1, TOKENS_PER_FORWARD // block)
    with torch.no_grad():
        for first in range(0, batch, rows):
            some = slice(first, first + rows)
            logits = forward({name: _rows(tensor, some, batch) for name, tensor in inputs.items()}).float()
            normalizer = logits.logsumexp(-1)  # (b, T)
            for offset in OFFSETS:
                picked = logits.gather(-1, targets[offset][some].unsqueeze(-1)).squeeze(-1)
                parts[offset].append(normalizer - picked)
    return {offset: torch.cat(parts[offset]) for offset in OFFSETS}


def offset_gains(base: Mapping[int, torch.Tensor], now: Mapping[int, torch.Tensor]) -> dict[int, OffsetGain]:
    """Return by how much the losses `now` are below the base's, by offset; both (N, T) of the same windows."""
    gains = {}
    for offset in (1, 2):
        nats, error = mean_and_error(base[offset] - now[offset])
        gains[offset] = OffsetGain(base_nats=float(base[offset].mean()), nats=nats, error=error)
    return gains


def mean_and_error(losses: torch.Tensor) -> tuple[float, float]:
    """Return the mean of losses (N, T) and its standard error over the N windows; 0 for a single one."""
    by_window = losses.cpu().double().mean(1)  # MPS has no float64
    return float(by_window.mean()), float(by_window.std(correction=0)) / max(1, len(by_window) - 1) ** 0.5


def everywhere(losses: Mapping[int, torch.Tensor], width: int) -> dict[int, torch.Tensor]:
    """Return offset_losses() at the positions that have a target at every offset; width: tokens of a window."""
    inside = slice(-min(OFFSETS), width - max(OFFSETS))
    return {offset: some[:, inside] for offset, some in losses.items()}


def has_target(allowed: torch.Tensor, offset: int, block: int) -> torch.Tensor:
    """Return where (B, T) a target lies inside the text and is allowed; allowed: (B, T or more) bool, by token."""
    places = torch.arange(block, device=allowed.device) + offset
    inside = (places >= 0) & (places < allowed.shape[1])
    return inside & allowed[:, _places(allowed, offset, block)]


def mean_loss(losses: torch.Tensor, scored: torch.Tensor) -> float:
    """Return the mean of the scored losses, NaN where there is none."""
    return float(losses[scored].cpu().double().mean())  # MPS has no float64


def _places(tokens: torch.Tensor, offset: int, block: int) -> torch.Tensor:
    return (torch.arange(block, device=tokens.device) + offset).clamp(0, tokens.shape[1] - 1)


def _rows(tensor: torch.Tensor, rows: slice, batch: int) -> torch.Tensor:
    return tensor[rows] if tensor.dim() > 0 and tensor.shape[0] == batch else tensor
