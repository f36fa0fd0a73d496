"""Checks of what weights predict before the first step: what they start from, and on which labels they were trained."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from transformers import PreTrainedModel

from trainable.checkpoint.exam.exam_facts import gain_words, learned_doubled_labels
from trainable.model.modes import in_mode
from trainable.preflight.check_result import Check, judged, skipped
from trainable.preflight.label_check import DOUBLED_ADVICE
from trainable.preflight.offset_profile import OFFSETS, everywhere, mean_and_error, offset_gains, offset_losses

BASE_NAME = "checkpoint against its base"
INITIAL_LOSS = "initial loss"
Origin = Literal["random", "checkpoint", "shipped", "named"]
"""A preset's weights; a checkpoint's, of unknown age, perhaps of the first steps from random ones; those that come with
the package, which belong to their tokenizer for sure; another model's."""
RANDOM_MARGIN = 0.1
HOT_INIT_MARGIN = 0.5
"""Initial logits of deviation s cost s^2/2 above ln V: 0.03 at 128 wide, 0.15 at 768, 0.32 at 1600 (GPT-2's 0.02)."""
OFFSET_SIGMAS = 4.0
WRONG_MARGIN = 0.015
"""Doubled labels, `tiny`, 300 steps: -0.03 (standard error 0.006) at LR 1e-4, -0.15 (0.017) at 1e-3."""
RIGHT_MARGIN = 0.05
"""Right labels, the same: 0.18 (0.012) and 1.69 (0.05); GPT-2 has 3.7. Random tied weights have 0.02."""
SAME_TOKEN_MARGIN = 1.0
SAME_TOKEN_BELOW_ENTROPY = 0.5
"""Random tied weights predict the token they read, 1.0 better than the next, and lose that slowly: up to 300 steps at
LR 1e-4. Weights trained on it reach 1.0 below the unigram entropy in 300 steps at LR 1e-5."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """A model's losses on some windows, without dropout."""

    by_offset: dict[int, torch.Tensor]
    """(N, T') nats each, at the positions that have a target at every offset."""
    next_token: float
    """Mean over all positions, nats."""
    next_token_error: float
    """Its standard error over the windows."""
    uniform: float
    """The mean loss of these logits for a token drawn from the whole vocabulary: ln V if they are equal."""
    vocab_size: int
    repeat_frac: float
    """How often two tokens of these windows are the same."""

    @property
    def looks_random(self) -> bool:
        """Whether the loss is that of random weights: near ln V, with all tokens about as likely."""
        spread = math.sqrt(max(0.0, 2 * (self.uniform - math.log(self.vocab_size))))
        # Of a text of few distinct tokens the mean loss hangs on their few random logits.
        margin = max(RANDOM_MARGIN, 3 * spread * math.sqrt(self.repeat_frac))
        return abs(self.next_token - self.uniform) <= margin and spread**2 / 2 <= HOT_INIT_MARGIN


def predict(model: PreTrainedModel, windows: torch.Tensor) -> Predictions:
    """Return what the model predicts on windows (N, T + 1)."""
    windows = windows.to(next(model.parameters()).device)
    uniform: list[torch.Tensor] = []
    vocab_size = 0

    def forward(inputs: object) -> torch.Tensor:
        nonlocal vocab_size
        logits: torch.Tensor = model(**inputs, use_cache=False).logits.float()  # type: ignore[arg-type]
        vocab_size = logits.shape[-1]
        uniform.append((logits.logsumexp(-1) - logits.mean(-1)).flatten())
        return logits

    with in_mode(model, training=False):
        losses = offset_losses(forward, {"input_ids": windows[:, :-1]}, windows)
    next_token, error = mean_and_error(losses[1])
    shares = torch.bincount(windows.flatten()).cpu().double() / windows.numel()
    return Predictions(
        by_offset=everywhere(losses, windows.shape[1]),
        next_token=next_token,
        next_token_error=error,
        uniform=float(torch.cat(uniform).mean()),
        vocab_size=vocab_size,
        repeat_frac=float(shares.square().sum()),
    )


def check_initial_loss(predictions: Predictions, *, unigram_entropy: float, origin: Origin) -> Check:
    """Return whether the loss before the first step is possible for weights of this origin."""
    loss, uniform, log_vocab = predictions.next_token, predictions.uniform, math.log(predictions.vocab_size)
    measured = f"{loss:.2f} nats/token (standard error {predictions.next_token_error:.2f})"
    if not math.isfinite(loss):
        return judged(
            INITIAL_LOSS,
            failed=True,
            measured=measured,
            expected="a finite number",
            advice="The weights are finite and their predictions are not: check the scales of the model's layers.",
        )
    if origin == "random":
        return judged(
            INITIAL_LOSS,
            failed=not predictions.looks_random,
            measured=measured,
            expected=f"{uniform:.2f} within {RANDOM_MARGIN}, that of random weights; ln V = {log_vocab:.2f}",
            advice="Weights or labels are wrong at step 0. Use a preset unchanged.",
        )
    is_explained = True
    if predictions.looks_random and origin != "checkpoint":
        advice = (
            f"These weights look random (ln V = {log_vocab:.2f}): right for a model to be trained from scratch. "
            "If it should be pretrained, other weights were saved than those that were trained."
        )
    elif origin == "checkpoint" and loss <= log_vocab + HOT_INIT_MARGIN:
        advice = (
            "The checkpoint predicts worse than word frequencies: right only early in a run from random weights. "
            "If it began from a pretrained model, labels are shifted, or tokenizer or weights are not that model's."
        )
    elif origin == "shipped":
        advice = (
            "The text is unlike the English that this small model was pretrained on. Name a model that knows its "
            "language, or train one from random weights: GPT2_MODEL_NAME=tiny-scratch."
        )
    else:
        is_explained = False
        advice = (
            "A correctly loaded pretrained model is never there: the labels are shifted, the weights are others, "
            "or the tokenizer is not the one it was trained with (same size, other ids). Check in this order."
        )
    is_high = loss > unigram_entropy + 2 * predictions.next_token_error
    return judged(
        INITIAL_LOSS,
        failed=is_high and not is_explained,
        warned=is_high,
        measured=measured,
        expected=f"below the corpus' unigram entropy of {unigram_entropy:.2f}, which needs no context to reach",
        advice=advice,
    )


def check_offsets(predictions: Predictions, *, unigram_entropy: float) -> Check:
    """Return whether the weights predict the next token best; weights trained on shifted labels predict another."""
    losses = predictions.by_offset
    means = {offset: float(some.cpu().double().mean()) for offset, some in losses.items()}
    margins = {offset: mean_and_error(losses[offset] - losses[1]) for offset in OFFSETS if offset != 1}
    bounds = {offset: max(WRONG_MARGIN, OFFSET_SIGMAS * error) for offset, (_, error) in margins.items()}
    # Of weights that know nothing else it is no sign of labels: Mamba's random ones, tied, are 2.8 better at it.
    is_sign = means[0] < unigram_entropy - SAME_TOKEN_BELOW_ENTROPY and not predictions.looks_random
    bounds[0] = SAME_TOKEN_MARGIN if is_sign else math.inf
    # On another tokenizer's ids a model is worse than guessing at each offset, and at one of them least so.
    log_vocab = math.log(predictions.vocab_size)
    guessed = {offset for offset, nats in means.items() if nats > log_vocab + RANDOM_MARGIN}
    wrong = [offset for offset, (margin, _) in margins.items() if margin < -bounds[offset] and offset not in guessed]
    trained = all(
        margin > max(RIGHT_MARGIN, OFFSET_SIGMAS * error) for offset, (margin, error) in margins.items() if offset > 1
    )
    listed = ", ".join(f"{offset:+d} {means[offset]:.2f}" for offset in OFFSETS)
    margin, error = margins[2]
    advice = "Too little is learned to tell which token the weights were trained on. Check again after more steps."
    if 1 in guessed and not wrong:
        advice = (
            f"The next token is worse than guessed (ln V = {log_vocab:.2f}): these weights were trained on other ids "
            "than the tokenizer gives."
        )
    elif wrong:
        best = min(wrong, key=lambda offset: means[offset])
        cause = "shifted twice, in the batch and again in the model" if best > 1 else "not shifted"
        advice = (
            f"These weights were trained on the token at {best:+d}. The labels were {cause}. "
            "Fix the script (trainable.preflight.check_labels) and train again from the weights before it."
        )
    return judged(
        "checkpoint offsets",
        failed=bool(wrong),
        warned=not trained or 1 in guessed,
        measured=f"loss by offset {listed}; +2 less +1: {margin:+.2f} (standard error {error:.2f})",
        expected="the lowest at +1, the next token",
        advice=advice,
    )


def check_against_base(predictions: Predictions, base: Predictions) -> Check:
    """Return whether the weights differ from their base without the mark of doubly shifted labels."""
    gains = offset_gains(base.by_offset, predictions.by_offset)
    if not any(gain.nats for gain in gains.values()):
        return skipped(BASE_NAME, "the model that is named predicts the same: name the one that training began from")
    return judged(
        BASE_NAME,
        failed=learned_doubled_labels(gains),
        measured=f"gain on the base by offset {gain_words(gains)}",
        expected="no gain at +2 with a loss at +1",
        advice=DOUBLED_ADVICE,
    )
