"""Which token a training script's loss really trains on, found from its model, one batch and its own loss."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from inspect import signature
from statistics import fmean, pstdev
from typing import Any

import torch

from trainable.checkpoint.exam.exam_facts import OffsetGain, gain_words, learned_doubled_labels
from trainable.device.device import untouched_rng
from trainable.errors import UserError
from trainable.model.modes import in_mode
from trainable.preflight.causality import causal_model
from trainable.preflight.check_result import Check, judged
from trainable.preflight.offset_profile import (
    OFFSETS,
    Forward,
    everywhere,
    has_target,
    mean_loss,
    offset_gains,
    offset_losses,
)

IGNORED_LABEL = -100
NEAREST_SHARE = 1 / 3
"""A loss belongs to an offset when it is so much nearer to it than to the next best (a wrong one: than to +1)."""
EXACT_NATS = 1e-3
WIDE_NATS = 0.2
"""... and equals it or is so far from the other. Offsets are 3 apart in a pretrained model and 0.02 at random weights,
where a loss over one token more than the batch holds could look like another offset's."""
DROPOUT_PASSES = 4
DROPOUT_SIGMAS = 4.0
"""In training mode dropout moves a loss by 0.002 to 0.05; the other offset must be so many deviations away."""
NAME = "labels"
DOUBLED_ADVICE = (
    "Compared with the base these weights are worse at the next token and better at the one after it: the labels were "
    "shifted twice, in the batch and again in the model. Fix the script and train again from the base."
)
LABELS_EXPECTED = "labels to learn from"
MASKED_ADVICE = "Look at what masks prompts and padding, and cuts off answers: every label is -100."

ADVICE = {
    -1: "The labels are shifted the wrong way, to the token before. Score logits[:, :-1] with ids[:, 1:].",
    0: "Nothing is shifted: the loss scores the token just read. Score logits[:, :-1] with ids[:, 1:].",
    2: "The labels are shifted twice, in the batch and again in the model. Models of transformers shift `labels` "
    "themselves: pass labels=input_ids.",
    3: "The labels are shifted too often. Models of transformers shift `labels` themselves: pass labels=input_ids.",
}


def check_labels(model: torch.nn.Module, batch: Any, loss: Any, *, base: torch.nn.Module | None = None) -> Check:
    """Return whether `loss` scores the next token, and otherwise which: `check_labels(...).raise_if_failed()`.

    batch: as it is fed, ids (B, T), or a mapping with input_ids and, if there are any, labels and attention_mask, or a
    pair (ids, labels); -100 in labels is left out. loss: this batch's mean loss in nats (a number, a tensor, a model's
    output) under the weights as they are, so before the optimizer's step; or a function without arguments returning it,
    which is called without dropout and gradients and so can be told apart even at random weights. A number is compared
    with the model in the mode it is in. Mode, gradients and random numbers stay as they were.
    base: the pretrained model that `model` began as. A loss of the next token then fails too if `model` has given it
    up since for the one after it, as steps on doubly shifted labels do; a batch of 1,024 tokens is enough.
    Raises UserError when batch, loss or the model's logits cannot be read.
    """
    inputs, labels = _read_batch(model, batch)
    if labels is not None and not (labels != IGNORED_LABEL).any():
        measured = "the batch has no label to score"
        return judged(NAME, failed=True, measured=measured, expected=LABELS_EXPECTED, advice=MASKED_ADVICE)
    by_call = callable(loss) and not isinstance(loss, torch.Tensor)
    training = model.training and not by_call
    with untouched_rng(inputs["input_ids"].device), in_mode(model, training=training), torch.no_grad():
        value = _as_number(loss() if by_call else loss)
        passes = [list(_candidates(model, inputs, labels)) for _ in range(DROPOUT_PASSES if training else 1)]
    by_candidate = [(several[0][0], [nats for _, nats in several]) for several in zip(*passes, strict=True)]
    # An offset at which no position is scored, or a model that overflows, has no number.
    noise = max((pstdev(nats) for _, nats in by_candidate if all(map(math.isfinite, nats))), default=0.0)
    found = _judged(value, [(offset, fmean(nats)) for offset, nats in by_candidate], noise=noise)
    if base is None or found.status == "fail":
        return found
    gains = _gains(model, base, inputs)
    if not learned_doubled_labels(gains):
        return found
    measured = f"{found.measured}; gain on the base by offset {gain_words(gains)}"
    return replace(found, status="fail", measured=measured, advice=DOUBLED_ADVICE)


def _gains(model: torch.nn.Module, base: torch.nn.Module, inputs: Mapping[str, torch.Tensor]) -> dict[int, OffsetGain]:
    ids = inputs["input_ids"]
    with untouched_rng(ids.device), in_mode(model, training=False), in_mode(base, training=False):
        base_ids = {name: tensor.to(next(base.parameters()).device) for name, tensor in inputs.items()}
        before, now = (
            everywhere(offset_losses(_forward(one), some, some["input_ids"]), ids.shape[1])
            for one, some in ((base, base_ids), (model, inputs))
        )
    return offset_gains({offset: losses.to(ids.device) for offset, losses in before.items()}, now)


def _judged(value: float, candidates: list[tuple[int, float]], *, noise: float) -> Check:
    nearest: dict[int, float] = {}
    for offset, nats in candidates:
        if math.isfinite(nats) and abs(nats - value) < abs(nearest.get(offset, math.inf) - value):
            nearest[offset] = nats
    listed = ", ".join(f"{offset:+d} {nats:.4f}" for offset, nats in sorted(nearest.items()))
    measured = f"loss {value:.4f}; from the logits at offset {listed}" if nearest else f"loss {value:.4f}, logits NaN"
    order = sorted(nearest, key=lambda offset: abs(nearest[offset] - value))
    failed, warned = not math.isfinite(value) or len(order) < 2, False
    advice = "The loss or the logits are not finite, or the sequences too short. Check weights and batch first."
    if not failed:
        found = order[0]
        best, other = (abs(nearest[offset] - value) for offset in (found, order[1] if found == 1 else 1))
        is_clear = best < NEAREST_SHARE * other and other >= DROPOUT_SIGMAS * noise
        warned = not is_clear or (best > max(EXACT_NATS, 2 * noise) and other < WIDE_NATS)
        failed, advice = not warned and found != 1, ADVICE.get(found, "")
        measured += "" if warned else f": it is that of {found:+d}"
    if warned:
        advice = "It matches no offset. Pass a function that returns the plain mean in nats, and labels with the batch."
    expected = "the loss at offset +1, the next token"
    return judged(NAME, failed=failed, warned=warned, measured=measured, expected=expected, advice=advice)


def _candidates(
    model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], labels: torch.Tensor | None
) -> Iterator[tuple[int, float]]:
    ids = inputs["input_ids"]
    tokens, allowed = _targets(ids, labels)
    choices = [allowed]
    mask = inputs.get("attention_mask")
    if labels is None and mask is not None and mask.shape == ids.shape:
        # The labels are not at hand: scripts either score the padding too or leave it out.
        choices.append(mask.bool())
    losses = offset_losses(_forward(model), inputs, tokens)
    for offset in OFFSETS:
        for choice in choices:
            yield offset, mean_loss(losses[offset], has_target(choice, offset, ids.shape[1]))


def _targets(ids: torch.Tensor, labels: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the text as far as ids and labels tell it, (B, T or T + 1), and which of its tokens are labelled."""
    everything = torch.ones_like(ids, dtype=torch.bool)
    if labels is None:
        return ids, everything
    labelled = labels != IGNORED_LABEL
    if torch.equal(labels[labelled], ids[labelled]):
        return ids, labelled
    if torch.equal(labels[:, :-1][labelled[:, :-1]], ids[:, 1:][labelled[:, :-1]]):
        return (torch.cat([ids, labels[:, -1:].clamp(min=0)], dim=1), torch.cat([everything[:, :1], labelled], dim=1))
    return ids, everything


def _forward(model: torch.nn.Module) -> Forward:
    # A wrapper may return no logits, or other ones with labels than without: the model inside it always does.
    causal = causal_model(model)

    def forward(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        ids = inputs["input_ids"]
        if causal is not None:
            known = signature(causal.forward).parameters
            output = causal(**{name: tensor for name, tensor in inputs.items() if name in known})
            return _logits(output, ids, with_all_positions=True)
        first = model(ids) if len(inputs) == 1 else model(**inputs)
        logits = _logits(first, ids, with_all_positions=False)
        # nanoGPT's habit: without targets the head is applied to the last position alone.
        return logits if logits.shape[1] == ids.shape[1] else _logits(model(ids, ids), ids, with_all_positions=True)

    return forward


def _logits(output: Any, ids: torch.Tensor, *, with_all_positions: bool) -> torch.Tensor:
    for value in (getattr(output, "logits", None), *_values(output)):
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        if value.dim() == 2 and value.shape[0] == ids.numel():
            value = value.view(*ids.shape, -1)
        fits = value.dim() == 3 and value.shape[0] == ids.shape[0]
        if fits and (value.shape[1] == ids.shape[1] or not with_all_positions):
            return value
    raise UserError(
        f"the model returns no logits of shape (batch, tokens, vocabulary) for ids {tuple(ids.shape)}. "
        "Give check_labels the model whose forward returns them."
    )


def _values(output: Any) -> tuple[Any, ...]:
    if isinstance(output, Mapping):
        return tuple(output.values())
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def _as_number(loss: Any) -> float:
    value = getattr(loss, "loss", loss)
    if isinstance(value, Mapping | tuple | list):
        scalars = [item for item in _values(value) if isinstance(item, torch.Tensor) and item.numel() == 1]
        value = scalars[0] if scalars else value
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(
            f"the loss given to check_labels is a {type(value).__name__}, not one number. Give the batch's mean loss."
        ) from None


def _read_batch(model: torch.nn.Module, batch: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor | None]:
    device = next(model.parameters()).device
    given = {"input_ids": batch} if isinstance(batch, torch.Tensor) else batch
    if isinstance(given, tuple | list) and len(given) == 2:
        given = {"input_ids": given[0], "labels": given[1]}
    if not isinstance(given, Mapping) or not isinstance(given.get("input_ids"), torch.Tensor):
        raise UserError(
            f"the batch given to check_labels is a {type(batch).__name__} without token ids. "
            "Give ids (batch, tokens), a mapping with 'input_ids', or a pair (ids, labels)."
        )
    tensors = {
        name: (tensor.unsqueeze(0) if tensor.dim() == 1 else tensor).to(device)
        for name, tensor in given.items()
        if isinstance(tensor, torch.Tensor)
    }
    labels = tensors.pop("labels", None)
    ids = tensors["input_ids"]
    if ids.dim() != 2 or ids.is_floating_point() or ids.shape[1] < 4:
        raise UserError(
            f"the ids given to check_labels are {ids.dtype} {tuple(ids.shape)}; they must be whole numbers "
            "(batch, tokens) with at least 4 tokens."
        )
    if labels is not None and labels.shape != ids.shape:
        raise UserError(f"labels are {tuple(labels.shape)} and ids {tuple(ids.shape)}. Give both as they are fed.")
    return tensors, labels
