"""Rules about a loss that a sound run cannot have: where it starts, and how low it gets."""

import math
from collections.abc import Mapping
from typing import Any

from results.diagnosis.findings import Diagnosis
from results.diagnosis.run_view import HIGHEST_START_NATS, RunView

PRETRAINED_NATS = (3, 5)
"""What GPT-2 (124M) pays for a token of English prose it was not tuned on; code and other languages stay below 6."""
IMPOSSIBLE_NATS = 6.5
DOUBTFUL_NATS = 6.0
LEARNED_NATS = 5.5
SMALLEST_VOCAB_SIZE = 32
SMALL_VOCAB_SIZE = 20_000
"""The losses above hold for larger vocabularies: a token among fewer is easier to predict."""
FINE_TUNING_LR = 1e-4
"""A higher rate may train random weights; a lower one fine-tunes."""
TOO_HIGH_LR = 1e-2
"""AdamW ruins any weights above: pretrained ones within a few steps, before a Trainer's first row."""
BELOW_UNIFORM = 0.5
"""Random weights start within 0.2 of ln V: a model whose loss is lower by this has learned something."""
NEAR_UNIFORM = 0.3
SUMMED_NATS = 4.0
"""A mean loss starts no further above ln V, however wrong its labels (the shipped model on another's ids: 3.6); a sum
does."""
SHIFTED_NATS = (8.4, 9.9)
"""Where a pretrained GPT-2 starts when it must predict the token after the next."""
CERTAIN_NATS = 7.5
"""A lower first loss may be right pretrained weights on code or another language."""
TEN_THOUSAND = (9.18, 9.32)
"""Random weights of a vocabulary of 10,000 start here too."""
MAX_FINE_RATE = 1e-3
FINE_RATES = "a fine-tune takes 1e-5 to 1e-4, LoRA about 2e-4: make search SPACE=plateau"
LOWEST_FRACS = ((5.75, 0.04), (3.5, 0.02), (1.5, 0.008))
"""(First loss of at least, share of it below which no held-out loss falls). For random weights 0.04 is 0.1
nats/character, half of the best loss on stories for children. Right pretrained weights start below 5.75, and a
fine-tune on templates or class labels ends low: a run that starts lower must fall further to be called wrong."""
NEGATIVE_NATS = -1.0
"""A policy gradient's loss scatters around 0."""
FEW_STEPS = 3000
"""Random weights do not come down to twice that share in so few."""
FLAT_NATS = 0.1
HARD_DROPOUT, HARD_DECAY = 0.5, 2e-3
"""The latter is learning rate times weight decay, a weight's loss in a step. The shipped model, 120 steps of 8 x 128 at
1e-3 from 4.46: 4.17 as documented, 4.18 with weight decay 1, 4.36 with 3, unstable with 10; 4.67 with dropout 0.5.
Preflight refuses a decay of 1e-2 a step, which ruins a model: of less, a model is worse after a longer run."""


def start_finding(run: RunView) -> Diagnosis | None:
    """Return what the first and the lowest losses prove."""
    # A model that is shown its targets starts as high as one with wrong labels; only its lowest loss tells them apart.
    return _negative(run) or _too_low(run) or _impossible_start(run)


def _negative(run: RunView) -> Diagnosis | None:
    if run.start_loss is None or run.start_loss > NEGATIVE_NATS:
        return None
    lowest = min(run.coarse.values)
    return Diagnosis(
        kind="wrong_objective",
        confidence=0.9,
        summary=f"the loss is negative, down to {lowest:.3g}, and a cross-entropy never is: it is minus the loss, or "
        "another one",
        evidence=f"the first losses, at {run.unit} {run.start_step}: {_first_losses(run)}",
        next_step="look at the sign and at what the loss is made of: the likelihood of the next token is to rise",
        steps=(run.start_step, run.last_step),
    )


def _too_low(run: RunView) -> Diagnosis | None:
    """Judge a loss below what a causal model can reach: it is shown the tokens that it is to predict."""
    start, curve = run.start_loss, run.val if run.val.steps else run.coarse
    # A higher start is of a sum. A vocabulary of a few digits or moves holds no language, and its loss may fall to 0.
    is_of_digits = run.vocab_is_known and run.vocab_size < SMALLEST_VOCAB_SIZE
    if start is None or start > HIGHEST_START_NATS or run.is_resumed or is_of_digits:
        return None
    least, share = next(((least, share) for least, share in LOWEST_FRACS if start >= least), (math.inf, 0.0))
    is_random = run.from_scratch or least == LOWEST_FRACS[0][0]
    lowest = min(curve.values)
    few = is_random and curve.first_below(2 * share * start, otherwise=run.last_step) <= FEW_STEPS
    # In training alone a fine-tune that has memorized its text looks the same.
    if lowest >= share * start * (1 + few) or not (run.val.steps or is_random):
        return None
    said = "on held-out text" if run.val.steps else "in training"
    return Diagnosis(
        kind="loss_too_low",
        confidence=0.85 if lowest < 0.5 * share * start and run.val.steps else 0.7,
        summary=f"the loss falls from {start:.2f} to {lowest:.3g} nats/token {said}, lower than a causal model reaches "
        "on language: the model is shown the tokens that it is to predict, or most of them are padding",
        evidence=f"{lowest:.4f} at {run.unit} {curve.first_below(lowest, otherwise=run.last_step)}; the best models "
        "reach about 2 on English, 0.6 a character, and a small one in few steps twice that"
        + ("" if run.val.steps else "; no validation loss is recorded, and a few pages learned by heart give the same"),
        next_step="check whether the labels are shifted (position t predicts token t+1) and -100 on padding, whether "
        "attention is causal, and whether the validation text is in the training text: make preflight. Text made from "
        "one template may be as easy",
        steps=(run.start_step, run.last_step),
    )


def _impossible_start(run: RunView) -> Diagnosis | None:
    start = run.start_loss
    if start is None:
        return None
    limit = IMPOSSIBLE_NATS if run.unigram_entropy is None else max(run.unigram_entropy, PRETRAINED_NATS[1])
    # A fine-tune's first row may be late, but only ever lower than its start, unless the rate threw it out.
    if run.pretrained and start > limit:
        if is_ruinous(run) and not run.is_initial:
            return _thrown_out(run, start)
        is_hot = run.peak_lr is not None and run.peak_lr >= MAX_FINE_RATE
        return _not_pretrained(run, start, confidence=0.97 if run.is_initial or not is_hot else 0.6)
    if worse_than_uniform(run):
        return _worse_than_uniform(run)
    if "resumed" in run.trace.announced and abs(start - run.uniform_loss) <= NEAR_UNIFORM:
        return _not_pretrained(run, start, confidence=0.8)
    if run.vocab_size <= SMALL_VOCAB_SIZE or run.pretrained:
        return None
    confidence = _doubt_known(run, start) if run.vocab_is_known else _doubt_guessed(run, start)
    return _not_pretrained(run, start, confidence=confidence) if confidence else None


def _thrown_out(run: RunView, start: float) -> Diagnosis:
    low, high = PRETRAINED_NATS
    return Diagnosis(
        kind="collapse",
        confidence=0.8,
        summary=f"the record begins at {start:.2f} nats/token, where a pretrained model's loss is {low} to {high}: a "
        f"learning rate of {run.peak_lr:.1e} ruins its weights in the first steps",
        evidence=f"the first losses, at {run.unit} {run.start_step}: {_first_losses(run)}; {run.peak_lr_words}",
        next_step=f"{FINE_RATES}. If the loss begins there at such a rate too, make preflight looks at labels and "
        "weights",
        steps=(run.start_step, run.last_step),
    )


def worse_than_uniform(run: RunView) -> bool:
    """Whether a loss starts higher than guessing all tokens alike."""
    if is_ruinous(run) and not run.is_initial:
        return False
    limit = run.uniform_loss + 0.4 if run.vocab_is_known else max(run.uniform_loss + 0.6, HIGHEST_START_NATS)
    return run.starts_at_start and _highest_start(run) > limit


def _highest_start(run: RunView) -> float:
    return max((curve.values[0] for curve in (run.train, run.val) if curve.steps[:1] == (run.start_step,)), default=0.0)


def is_ruinous(run: RunView) -> bool:
    """Whether the learning rate throws out any weights; a log's of 1 and more are plain SGD's, which they suit."""
    rate = run.peak_lr
    return rate is not None and rate >= TOO_HIGH_LR and (rate < 1 or run.trace.origin == "trial")


def after_hard_settings(settings: Mapping[str, Any], advice: str) -> str:
    """Return what to try: before the advice a dropout or weight decay that no learning rate makes good."""
    rate, decay, dropout = (float(settings.get(name, 0)) for name in ("learning_rate", "weight_decay", "dropout"))
    hard = f"dropout ({dropout:g})" if dropout >= HARD_DROPOUT else None
    # A rate that ruins any weights makes any decay a hard one.
    hard = f"weight decay ({decay:g})" if rate * decay >= HARD_DECAY and rate < TOO_HIGH_LR else hard
    return f"a lower {hard}, which may alone have done it, then {advice}" if hard else advice


def lower_rate(run: RunView, divisor: float) -> float:
    """Return the learning rate divided, and at most one that ruins no weights."""
    assert run.peak_lr is not None
    return min(run.peak_lr / divisor, TOO_HIGH_LR / 3) if is_ruinous(run) else run.peak_lr / divisor


def _is_gentle(run: RunView) -> bool:
    return run.peak_lr is not None and run.peak_lr <= FINE_TUNING_LR


def _doubt_known(run: RunView, start: float) -> float:
    """Return how sure it is that a first loss fits neither kind of weights, of a known vocabulary; 0 where it may."""
    gentle = _is_gentle(run)
    stuck = min(run.coarse.values) >= LEARNED_NATS
    if abs(start - run.uniform_loss) <= NEAR_UNIFORM:
        # GPT-2 is named, and starts as random weights do at the rate of a fine-tune.
        return 0.7 if run.names_gpt2 and run.pretrained is None and gentle and run.starts_at_start else 0.0
    # One AdamW step at a rate for random weights takes off up to a nat.
    if not DOUBTFUL_NATS < start < run.uniform_loss - BELOW_UNIFORM * (2 if run.start_step and not gentle else 1):
        return 0.0
    if run.names_gpt2 and not gentle and run.customary_vocab_size is not None:
        # Of GPT-2's shape, perhaps, with a tokenizer of its own.
        return 0.7 if run.pretrained is None and run.peak_lr is None and start >= SHIFTED_NATS[0] else 0.0
    if run.unit == "row" and gentle and start > CERTAIN_NATS:
        # The first row's steps are unknown: a mean of many may come down so far from random weights.
        return 0.75
    if run.is_initial or (run.starts_at_start and gentle):
        # Neither does this come from random weights: the vocabulary is known.
        return 0.95 if start > CERTAIN_NATS else 0.75 if stuck else 0.0
    return _doubt_resumed(run)


def _doubt_guessed(run: RunView, start: float) -> float:
    """Return the same where only guesses at the vocabulary are at hand: never certain, random weights fit any loss."""
    gentle, rate = _is_gentle(run), run.peak_lr
    stuck = min(run.coarse.values) >= LEARNED_NATS
    fits = run.fitting_vocab_size
    shifted = SHIFTED_NATS[0] <= start <= SHIFTED_NATS[1]
    if run.pretrained is False or abs(start - run.uniform_loss) <= NEAR_UNIFORM or start <= DOUBTFUL_NATS:
        return 0.0
    if start > run.uniform_loss:
        return 0.7 if run.is_initial and fits is None and gentle else 0.0
    if start >= run.uniform_loss - BELOW_UNIFORM and not gentle:
        return 0.0
    if fits is not None:
        # A vocabulary of 8,192 or 16,384 starts where doubly shifted labels do; such labels keep a loss up, though.
        return 0.0 if not gentle else 0.7 if shifted and (stuck or rate != FINE_TUNING_LR) else 0.42 if stuck else 0.0
    if run.starts_at_start and gentle:
        return 0.85 if start > CERTAIN_NATS else 0.75 if stuck else 0.0
    if run.is_initial and start > CERTAIN_NATS and (rate is None or rate < TOO_HIGH_LR):
        ten_thousand = TEN_THOUSAND[0] <= start <= TEN_THOUSAND[1]
        if stuck and is_flat(run):
            return 0.8
        return 0.7 if shifted and not (ten_thousand and rate is not None and not stuck) else 0.0
    return _doubt_resumed(run)


def _doubt_resumed(run: RunView) -> float:
    return 0.75 if run.is_resumed and _is_gentle(run) and min(run.coarse.values) > DOUBTFUL_NATS - 0.2 else 0.0


def _not_pretrained(run: RunView, start: float, *, confidence: float) -> Diagnosis:
    low, high = PRETRAINED_NATS
    at = f"{'resumed' if run.is_resumed else 'starts'} at {start:.2f} nats/token"
    lowest = min(run.coarse.values)
    uniform = f"ln {run.vocab_size} = {run.uniform_loss:.2f}"
    if abs(start - run.uniform_loss) <= NEAR_UNIFORM:
        why = f"that is guessing among {run.vocab_size:,} tokens ({uniform})"
    else:
        why = f"on English such a model's loss is {low} to {high}, that of random weights {uniform}"
    evidence = [f"the first losses, at {run.unit} {run.start_step}: {_first_losses(run)}"]
    if run.unigram_entropy is not None:
        evidence.append(f"word frequencies alone give {run.unigram_entropy:.2f}")
    if lowest > DOUBTFUL_NATS and len(run.coarse) > 2:
        evidence.append(
            f"up to {run.unit} {run.last_step} it has not gone below {lowest:.2f}, about what word frequencies alone "
            "give (6 to 7.5 for English in GPT-2's tokens): the context is not used"
        )
    if not run.pretrained and not run.vocab_is_known:
        tokens = run.fitting_vocab_size or round(math.exp(start - 0.03), -2)
        evidence.append(f"unless it is a model with random weights and about {tokens:,.0f} tokens, which starts there")
    cause, others = _causes(run, start)
    name = "model" if run.pretrained and not run.names_gpt2 and run.trace.origin == "log" else "GPT-2"
    whose = f"a correctly loaded and labelled pretrained {name}"
    if run.pretrained is False:
        whose = "random weights, with which it was to begin"
    elif run.is_resumed and run.pretrained is None:
        whose = "a checkpoint that was correctly loaded"
    return Diagnosis(
        kind="impossible_initial_loss",
        confidence=confidence,
        summary=f"these losses cannot come from {whose}: the run {at}; {why}. What fits: {cause}",
        evidence="; ".join(evidence) + f". Other causes: {others}",
        next_step="do not tune yet: make preflight compares the loop's own loss with the loss at offsets +1 and +2; "
        "make diagnose TARGET=<a checkpoint of this run> shows which token it learned to predict",
        steps=(run.start_step, run.last_step),
    )


def _causes(run: RunView, start: float) -> tuple[str, str]:
    """Return what fits a first loss best, and what else gives one that no sound model has."""
    shifted = "labels shifted twice (in the batch and again in the model, which so learns the token after the next)"
    unloaded = "random weights: the weights were not loaded, or into other names"
    tokenizer = "another tokenizer's ids"
    padding = "padding that is scored (its labels must be -100), or text unlike any it was trained on"
    if run.pretrained is False:
        return "weights that are not random, or another vocabulary than the record names", f"{padding}; {tokenizer}"
    if (run.is_resumed or run.unit == "row") and start < run.uniform_loss - NEAR_UNIFORM:
        return shifted, f"{unloaded}; {tokenizer}; {padding}"
    if start > run.uniform_loss + SUMMED_NATS:
        return "a loss that is a sum over micro-batches or sequences, not a mean", f"{tokenizer}; {padding}"
    if start > run.uniform_loss + NEAR_UNIFORM:
        more = f"which give more than uniform guessing ({run.uniform_loss:.1f})"
        return f"{tokenizer}, {more}", f"{shifted}; {unloaded}; {padding}"
    if start > run.uniform_loss - NEAR_UNIFORM:
        return f"{unloaded} (10.8 with 50,257 tokens)", f"{tokenizer}; {shifted}"
    if SHIFTED_NATS[0] <= start <= SHIFTED_NATS[1]:
        return f"{shifted}, which give 8.5 to 9.8", f"weights that were not loaded; {tokenizer}; {padding}"
    return padding, f"{shifted}, once a few steps are trained; weights loaded in part; {tokenizer}"


def _worse_than_uniform(run: RunView) -> Diagnosis:
    start = _highest_start(run)
    ratio = start / run.uniform_loss
    ids = "check whether the ids come from the model's own tokenizer (another's give more than ln V), "
    ids = ids if ratio < 1.5 else ""
    return Diagnosis(
        kind="impossible_initial_loss",
        confidence=0.85,
        summary=f"the run starts at {start:.2f} nats/token, worse than uniform guessing (ln {run.vocab_size} = "
        f"{run.uniform_loss:.2f})",
        evidence=f"the first losses, at {run.unit} {run.start_step}: {_first_losses(run)}; {ratio:.1f} times uniform "
        "guessing",
        next_step=ids + "check whether the loss is a sum over micro-batches or sequences instead of a mean, then the "
        "scale of the initial weights, the labels and the padding: make preflight",
        steps=(run.start_step, run.start_step),
    )


def _first_losses(run: RunView) -> str:
    named = (("train", run.train), ("validation", run.val))
    return ", ".join(f"{name} {one.values[0]:.4f}" for name, one in named if one.steps[:1] == (run.start_step,))


def is_flat(run: RunView) -> bool:
    """Whether the best loss of the record's second half is not below the first half's by FLAT_NATS."""
    if len(run.coarse) < 4:
        return False
    middle = (run.coarse.steps[0] + run.coarse.steps[-1]) / 2
    first, second = run.coarse.between(-1, middle), run.coarse.between(middle + 0.5, math.inf)
    return bool(first) and len(second) >= 2 and min(first) - min(second) < FLAT_NATS
