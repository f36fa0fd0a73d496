"""Which token a loss trains on, read from its gradient: however the loss is computed, and whoever computes it."""

from types import TracebackType
from typing import Any, Self

import torch
from transformers import PreTrainedModel

from trainable.preflight.check_result import Check, CheckStatus, skipped
from trainable.preflight.label_check import ADVICE, NAME
from trainable.preflight.offset_profile import OFFSETS

CLEAR_FRAC = 0.9
"""Of the targets that an offset explains. Right labels give 1; repeated tokens give the offsets beside it some 0.1."""


class TargetWatch:
    """Watches the first forward and backward of a causal model between entering and leaving.

    The gradient of a cross-entropy with respect to its logits is (softmax - one-hot) times a weight: at every scored
    position the target's entry is the most negative. Scales, label smoothing, accumulation and precision leave it so.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = causal_model(model)
        self._ids: torch.Tensor | None = None
        self._targets: torch.Tensor | None = None
        self._is_scored: torch.Tensor | None = None

    @property
    def ids(self) -> torch.Tensor | None:
        """The ids (B, T) that the model read."""
        return self._ids

    def __enter__(self) -> Self:
        self._hooks: list[Any] = []
        if self._model is not None:
            head = self._model.get_output_embeddings()
            self._hooks = [
                self._model.register_forward_pre_hook(self._read_ids, with_kwargs=True),
                head.register_forward_hook(self._read_logits),
            ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def check(self) -> Check:
        """Return whether the targets were the next tokens, and otherwise which. Call it after the backward."""
        if self._ids is None or self._targets is None or self._is_scored is None:
            return skipped(NAME, "the loss does not go through the model's own output layer at all positions")
        if not self._is_scored.any():
            return skipped(NAME, "no position of the first batch is scored")
        shares = {offset: self._share(offset) for offset in OFFSETS}
        best = max(shares, key=lambda offset: shares[offset])
        status: CheckStatus = "pass" if shares[1] >= CLEAR_FRAC else "fail" if shares[best] >= CLEAR_FRAC else "warn"
        listed = ", ".join(f"{offset:+d} {share:.0%}" for offset, share in shares.items())
        return Check(
            name=NAME,
            status=status,
            measured=f"the loss's gradient asks for the token at offset {listed}",
            expected="+1, the next token, at every scored position",
            advice=""
            if status == "pass"
            else ADVICE.get(best, "")
            if status == "fail"
            else "The targets are not the batch's own next tokens. Right only if the loss is meant so.",
        )

    def _read_ids(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if self._ids is None and torch.is_grad_enabled() and isinstance(ids, torch.Tensor) and ids.dim() == 2:
            self._ids = ids.detach()

    def _read_logits(self, module: torch.nn.Module, args: tuple[Any, ...], logits: Any) -> None:
        if self._targets is not None or self._ids is None or not isinstance(logits, torch.Tensor):
            return
        if logits.requires_grad and logits.shape[:2] == self._ids.shape:
            logits.register_hook(self._read_gradient)  # type: ignore[no-untyped-call]

    def _read_gradient(self, gradient: torch.Tensor) -> None:
        if self._targets is None:
            most_negative = gradient.detach().min(-1)
            self._targets, self._is_scored = most_negative.indices, most_negative.values < 0

    def _share(self, offset: int) -> float:
        assert self._ids is not None
        assert self._targets is not None
        assert self._is_scored is not None
        block = self._ids.shape[1]
        places = torch.arange(max(0, -offset), min(block, block - offset), device=self._ids.device)
        same = self._targets[:, places] == self._ids[:, places + offset]
        scored = self._is_scored[:, places]
        return float((same & scored).sum() / scored.sum().clamp(min=1))


def causal_model(model: torch.nn.Module) -> PreTrainedModel | None:
    """Return the model of transformers with a head that this is, or holds; None where there is none."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            return module
    return None
