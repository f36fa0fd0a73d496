"""Which token a loss trains on, read from its gradient: however the loss is computed, and whoever computes it."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from trainable.preflight.causality import causal_model
from trainable.preflight.check_result import Check, judged, skipped
from trainable.preflight.label_check import ADVICE, LABELS_EXPECTED, MASKED_ADVICE, NAME
from trainable.preflight.offset_profile import OFFSETS

SCALE_PLACES = 64
FUSED_PLACES = 128
HEAD_ROWS = 8192
"""Of the head at a time in fp32: all of a large one would take gibibytes."""
SCALE_MARGIN = 0.03
"""bf16 gradients have three digits, and a whole scale is a third or more away from the next."""
CLEAR_FRAC = 0.9
"""Of the targets that an offset explains. Right labels give 1; repeated tokens give the offsets beside it some 0.1."""


class TargetWatch:
    """Watches the first forward and backward of a causal model, from its making to close().

    The gradient of a cross-entropy with respect to its logits is (softmax - one-hot) times a weight: at every scored
    position the target's entry is the most negative. Scales, label smoothing, accumulation and precision leave it so.
    A fused loss (TRL's, Liger's) makes no logits. The gradient of what the head reads is then these times the head's
    weights: it has the direction of their mean less the target's.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self.ids: torch.Tensor | None = None
        """(B, T) that the model read."""
        self._targets: torch.Tensor | None = None
        self._is_scored: torch.Tensor | None = None
        self._is_finite = True
        self._is_fused = False
        self._scored = 0
        """Positions with a target, of the whole batch."""
        self._opposed: torch.Tensor | None = None
        """(B, T), the tokens that the loss would have less likely than any other."""
        self._few_logits: torch.Tensor | None = None
        self._scale = math.nan
        """How many times the mean loss of its scored positions this loss is."""
        self._hooks: list[Any] = []
        if (causal := causal_model(model)) is not None:
            self._head = causal.get_output_embeddings()
            self._hooks = [
                causal.register_forward_pre_hook(self._read_ids, with_kwargs=True),
                self._head.register_forward_hook(self._read_logits),
            ]
            if (base := causal.base_model) is not causal:
                self._hooks.append(base.register_forward_pre_hook(self._read_ids, with_kwargs=True))
                self._hooks.append(base.register_forward_hook(self._read_hidden))

    def close(self) -> None:
        """Leave nothing attached to the model."""
        for hook in self._hooks:
            hook.remove()

    @property
    def has_targets(self) -> bool:
        """Whether any position of the batch is scored, as far as can be seen."""
        return self._is_scored is None or bool(self._is_scored.any())

    def check(self) -> Check:
        """Return whether the targets were the next tokens, and otherwise which. Call it after the backward."""
        if self.ids is None or self._targets is None or self._opposed is None or self._is_scored is None:
            return skipped(NAME, "the loss does not go through the model's own output layer at all positions")
        if not self.has_targets:
            measured = "the loss's gradient is " + ("0 at every position" if self._is_finite else "not finite")
            advice = MASKED_ADVICE
            if not self._is_finite:
                advice = "Look at the weights and their number format; a mean over labels that are all -100 is NaN too."
            return judged(NAME, failed=True, measured=measured, expected=LABELS_EXPECTED, advice=advice)
        shares = {offset: self._share(self._targets, offset) for offset in OFFSETS}
        best = max(shares, key=lambda offset: shares[offset])
        listed = ", ".join(f"{offset:+d} {share:.0%}" for offset, share in shares.items())
        failed = shares[1] < CLEAR_FRAC <= shares[best]
        if self._is_fused and max(*shares.values(), self._share(self._opposed, 1)) < CLEAR_FRAC:
            # A head that scales or caps its logits hides the direction.
            return skipped(NAME, "the loss does not go through the model's own output layer")
        measured = f"the loss's gradient asks for the token at offset {listed}"
        advice = "The targets are not the batch's own next tokens. Right only if the loss is meant so."
        if is_opposed := shares[1] < CLEAR_FRAC <= self._share(self._opposed, 1):
            measured, advice = "the loss's gradient makes the next token less likely", "Minimise minus its likelihood."
        elif failed:
            advice = ADVICE[best]
        return judged(
            NAME,
            failed=failed or is_opposed,
            warned=shares[1] < CLEAR_FRAC,
            measured=measured,
            expected="+1, the next token, at every scored position",
            advice=advice,
        )

    def check_scale(self, micro_batches: int) -> Check:
        """Return whether this loss is a mean, and divided by the micro-batches of a step where there are several."""
        scored = self._scored
        advice = ""
        if scored > 1 and abs(self._scale / scored - 1) < SCALE_MARGIN:
            advice = "It is the sum over the tokens: gradients, and what the clip leaves of them, grow with the batch."
        elif micro_batches > 1 and abs(self._scale - 1) < SCALE_MARGIN:
            advice = f"Divide it by a step's {micro_batches} micro-batches: the clip sees so many times the gradient."
        return judged(
            "loss scale",
            warned=bool(advice),
            measured=f"the first micro-batch's loss is {self._scale:.3g} times the mean of its {scored} tokens",
            expected=f"a mean over the step's tokens, of {micro_batches} micro-batches",
            advice=advice,
        )

    def _read_ids(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if self.ids is None and torch.is_grad_enabled() and isinstance(ids, torch.Tensor) and ids.dim() == 2:
            self.ids = ids.detach()

    def _read_logits(self, module: torch.nn.Module, args: tuple[Any, ...], logits: Any) -> None:
        if self._targets is not None or self.ids is None or not isinstance(logits, torch.Tensor):
            return
        if logits.requires_grad and logits.shape[:2] == self.ids.shape:
            # All of them would be kept alive until the gradient is there.
            self._few_logits = self._few(logits.detach()).float()
            logits.register_hook(self._read_gradient)  # type: ignore[no-untyped-call]

    def _few(self, values: torch.Tensor) -> torch.Tensor:
        rows = values.flatten(0, 1)
        return rows[torch.linspace(0, len(rows) - 1, min(SCALE_PLACES, len(rows)), device=rows.device).long()]

    def _read_gradient(self, gradient: torch.Tensor) -> None:
        if self._targets is not None:
            return
        assert self._few_logits is not None
        gradient = gradient.detach()
        most_negative = gradient.min(-1)
        self._targets, self._is_scored = most_negative.indices, most_negative.values < 0
        self._is_finite = bool(most_negative.values.isfinite().all())
        self._opposed = gradient.argmax(-1)
        # At the target it is (p - 1) times the position's weight in the loss.
        lowest, targets = self._few(gradient).float().min(-1)
        p = self._few_logits.softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
        weights = (-lowest / (1 - p))[lowest < 0]
        self._scored = int(self._is_scored.sum())
        self._scale = float(weights.mean() * self._scored)

    def _read_hidden(self, module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else getattr(output, "last_hidden_state", None)
        if self._targets is not None or self.ids is None or not isinstance(hidden, torch.Tensor):
            return
        weight: Any = getattr(self._head, "weight", None)
        # A sharded or quantized one is of another type or shape.
        is_plain = type(weight) in (torch.Tensor, torch.nn.Parameter) and weight.device == hidden.device
        is_plain = is_plain and weight.is_floating_point() and weight.shape[1:] == hidden.shape[2:]
        if is_plain and hidden.requires_grad and hidden.shape[:2] == self.ids.shape:
            read = hidden.detach()
            hidden.register_hook(partial(self._read_hidden_gradient, read))  # type: ignore[no-untyped-call]

    def _read_hidden_gradient(self, hidden: torch.Tensor, gradient: torch.Tensor) -> None:
        # The logits' own gradient comes before, where there is one.
        if self._targets is not None:
            return
        assert self.ids is not None
        gradient = gradient.detach()
        scored = gradient.ne(0).any(-1).flatten().nonzero().squeeze(-1)
        self._is_fused, self._scored = True, len(scored)
        some = scored[torch.linspace(0, len(scored) - 1, min(FUSED_PLACES, len(scored)), device=scored.device).long()]
        few, slope = (values.flatten(0, 1)[some].float() for values in (hidden, gradient))  # (N, d)
        parts = torch.split(self._head.weight.detach(), HEAD_ROWS)

        def for_each_token(of: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:  # (N, V)
            return torch.cat([of(rows.float()) for rows in parts], -1)

        logits = for_each_token(lambda rows: few @ rows.T)
        if (bias := getattr(self._head, "bias", None)) is not None:
            logits = logits + bias.detach().float()
        shares = torch.split(logits.softmax(-1), HEAD_ROWS, -1)
        mean = sum((share @ rows.float() for share, rows in zip(shares, parts, strict=True)), torch.zeros_like(few))
        along = (slope * mean).sum(-1, keepdim=True) - for_each_token(lambda rows: slope @ rows.T)
        squared = mean.square().sum(-1, keepdim=True) - for_each_token(
            lambda rows: 2 * mean @ rows.T - rows.square().sum(-1)
        )
        squared = squared.clamp(min=1e-12)
        cosine = along / squared.sqrt()
        self._is_finite = bool(slope.isfinite().all())
        flat = torch.full((self.ids.numel(),), -1, device=self.ids.device)
        self._targets = flat.index_copy(0, some, cosine.argmax(-1)).view_as(self.ids)
        self._opposed = flat.index_copy(0, some, cosine.argmin(-1)).view_as(self.ids)
        self._is_scored = self._targets.ge(0) & self._is_finite
        weights = (along / squared).gather(-1, cosine.argmax(-1, keepdim=True))
        self._scale = float(weights.mean()) * self._scored

    def _share(self, targets: torch.Tensor, offset: int) -> float:
        assert self.ids is not None
        assert self._is_scored is not None
        block = self.ids.shape[1]
        places = torch.arange(max(0, -offset), min(block, block - offset), device=self.ids.device)
        same = targets[:, places] == self.ids[:, places + offset]
        scored = self._is_scored[:, places]
        return float((same & scored).sum() / scored.sum().clamp(min=1))
