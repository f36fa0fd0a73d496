"""Next-token loss: the one place where a target is computed. Nothing else in the project shifts a label."""

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import PreTrainedModel


def next_token_losses(model: PreTrainedModel, tokens: torch.Tensor, *, last: int | None = None) -> torch.Tensor:
    """Return the loss in nats of every token that is predicted from those before it.

    tokens: (B, T + 1) ids. Returns (B, T) fp32, or (B, last) for the last `last` positions alone: position t holds
    -log p(tokens[:, t + 1] | tokens[:, : t + 1]).
    """
    inputs, targets = tokens[:, :-1], tokens[:, 1:]  # (B, T) each
    # Never `labels=`: the model would shift them a second time.
    logits = model(input_ids=inputs, use_cache=False, logits_to_keep=last or 0).logits  # (B, T or last, V)
    targets = targets[:, -logits.shape[1] :]
    losses = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return losses.view_as(targets)


def next_token_loss(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the mean next-token loss of tokens (B, T + 1), nats/token, a scalar to call backward() on."""
    return next_token_losses(model, tokens).mean()
