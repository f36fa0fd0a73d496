"""Rules about a loss that a sound run cannot have: where it starts, and how low it gets."""

import math
from collections.abc import Iterator

from results.diagnosis.findings import Diagnosis
from results.diagnosis.run_view import RunView

PRETRAINED_NATS = (3, 5)
"""What GPT-2 (124M) pays for a token of English prose it was not tuned on; code and other languages stay below 6."""
IMPOSSIBLE_NATS = 6.5
DOUBTFUL_NATS = 6.0
LEARNED_NATS = 5.5
SMALL_VOCAB_SIZE = 20_000
"""The losses above are of larger ones; a token of fewer kinds is easier to say."""
FINE_TUNING_LR = 1e-4
"""Nobody trains from random weights below; fine-tuning rates lie there."""
TOO_HIGH_LR = 1e-2
BELOW_UNIFORM = 0.4
ABOVE_UNIFORM = 0.6
LEAK_NATS = 0.2
FLAT_NATS = 0.1


def start_findings(run: RunView) -> Iterator[Diagnosis]:
    """Yield what the first and the lowest losses prove."""
    if run.start_loss is not None:
        found = _impossible_start(run)
        if found:
            yield found
    lowest = min(run.coarse.values, default=math.inf)
    both = min(run.val.values, default=math.inf)
    if lowest < LEAK_NATS and both < LEAK_NATS and run.uniform_loss > 5:
        yield Diagnosis(
            kind="loss_too_low",
            confidence=0.7,
            summary=f"a loss of {both:.2f} nats/token on held-out text is lower than language can be predicted",
            evidence=f"training {lowest:.4f}, validation {both:.4f}; the best language models pay more than 2",
            next_step="check that labels are shifted at all, that the model is causal and that the validation text "
            "is not in the training text: make preflight",
        )


def _impossible_start(run: RunView) -> Diagnosis | None:
    start = run.start_loss
    assert start is not None
    limit = IMPOSSIBLE_NATS if run.unigram_entropy is None else max(run.unigram_entropy, PRETRAINED_NATS[1])
    # A fine-tune's first row may be late, but only ever lower than its start.
    if run.pretrained and start > limit:
        return _not_pretrained(run, start, confidence=0.97)
    if worse_than_uniform(run):
        return _worse_than_uniform(run)
    return _neither(run, start) if run.pretrained is None and run.vocab_size > SMALL_VOCAB_SIZE else None


def worse_than_uniform(run: RunView) -> bool:
    """Whether a loss starts higher than guessing all tokens alike."""
    # Vocabularies reach 256,000 (12.45 nats) where the log does not name its own.
    limit = (run.uniform_loss if run.vocab_is_known else max(run.uniform_loss, 12.5)) + ABOVE_UNIFORM
    return run.starts_at_start and _highest_start(run) > limit


def _highest_start(run: RunView) -> float:
    return max((curve.values[0] for curve in (run.train, run.val) if curve.steps[:1] == (run.start_step,)), default=0.0)


def _neither(run: RunView, start: float) -> Diagnosis | None:
    """Judge a run of unknown origin: too high for pretrained weights, too low for random ones, and it stays there."""
    if not DOUBTFUL_NATS < start < run.uniform_loss - BELOW_UNIFORM or min(run.coarse.values) < LEARNED_NATS:
        return None
    rate = run.peak_lr
    gentle = rate is not None and rate <= FINE_TUNING_LR
    if run.starts_at_start and run.fitting_vocab_size is not None:
        return _not_pretrained(run, start, confidence=0.42) if gentle else None
    if run.starts_at_start and (gentle or (is_flat(run) and (rate is None or (rate < TOO_HIGH_LR and start > 7.5)))):
        return _not_pretrained(run, start, confidence=0.75 if start < 7.5 or (rate and not gentle) else 0.95)
    if run.is_resumed and gentle and min(run.coarse.values) > DOUBTFUL_NATS - 0.2:
        return _not_pretrained(run, start, confidence=0.75)
    return None


def _not_pretrained(run: RunView, start: float, *, confidence: float) -> Diagnosis:
    low, high = PRETRAINED_NATS
    where = "resumed" if run.is_resumed else "starts"
    at = f"{where} at {start:.2f} nats/token"
    lowest = min(run.coarse.values)
    random_start = abs(start - run.uniform_loss) <= BELOW_UNIFORM
    if random_start:
        why = f"that is guessing among {run.vocab_size:,} tokens (ln {run.vocab_size} = {run.uniform_loss:.2f})"
    else:
        why = (
            f"such a model reads English at {low} to {high}, and knowing nothing costs ln {run.vocab_size} = "
            f"{run.uniform_loss:.2f}"
        )
    evidence = [f"the first losses, at step {run.start_step}: {_first_losses(run)}"]
    if run.unigram_entropy is not None:
        evidence.append(f"word frequencies alone give {run.unigram_entropy:.2f}")
    if lowest > DOUBTFUL_NATS and len(run.coarse) > 2:
        evidence.append(
            f"up to step {run.last_step} it has not gone below {lowest:.2f}, about what word frequencies alone give "
            "(6 to 7.5 for English in GPT-2's tokens): the context is not used"
        )
    if run.pretrained is None and run.fitting_vocab_size not in (None, run.vocab_size):
        evidence.append(
            f"unless it is a model with random weights and about {run.fitting_vocab_size:,} tokens: that starts so"
        )
    causes = (
        "the weights were not loaded, or into other names"
        if random_start
        else "labels shifted twice (in the batch and again in the model, so that it must say the token after the "
        "next), weights that were not loaded, or another tokenizer's ids"
    )
    return Diagnosis(
        kind="impossible_initial_loss",
        confidence=confidence,
        summary="these numbers cannot come from a rightly loaded, rightly labelled pretrained GPT-2: the run "
        f"{at}; {why}",
        evidence="; ".join(evidence) + f". What does this: {causes}",
        next_step="do not tune yet. make preflight compares the loop's own loss with the loss at offsets +1 and +2; "
        "make diagnose TARGET=<a checkpoint of this run> shows which token it learned to predict",
        steps=(run.start_step, run.last_step),
    )


def _worse_than_uniform(run: RunView) -> Diagnosis:
    start = _highest_start(run)
    ratio = start / run.uniform_loss
    return Diagnosis(
        kind="impossible_initial_loss",
        confidence=0.85,
        summary=f"the run starts at {start:.2f} nats/token, worse than knowing nothing (ln {run.vocab_size} = "
        f"{run.uniform_loss:.2f})",
        evidence=f"the first losses, at step {run.start_step}: {_first_losses(run)}; {ratio:.1f} times uniform "
        "guessing",
        next_step="look whether the loss is a sum over micro-batches or sequences instead of a mean, then at the "
        "scale of the initial weights, the labels and the padding: make preflight",
        steps=(run.start_step, run.start_step),
    )


def _first_losses(run: RunView) -> str:
    said = []
    for name, curve in (("train", run.train), ("validation", run.val)):
        if curve.steps and curve.steps[0] == run.start_step:
            said.append(f"{name} {curve.values[0]:.4f}")
    return ", ".join(said)


def is_flat(run: RunView) -> bool:
    """Whether the best loss of the record's second half is not below the first half's by FLAT_NATS."""
    if len(run.coarse) < 4:
        return False
    middle = (run.coarse.steps[0] + run.coarse.steps[-1]) / 2
    first, second = run.coarse.between(-1, middle), run.coarse.between(middle + 0.5, math.inf)
    return bool(first) and len(second) >= 2 and min(first) - min(second) < FLAT_NATS
