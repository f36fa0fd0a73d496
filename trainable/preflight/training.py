"""The model's part of the preflight: the checks that need its weights, in an order that lets one spare the next."""

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from trainable.config import TrialConfig
from trainable.data.tokens import Corpus, sample_batch
from trainable.evaluation import EvalProtocol, eval_windows
from trainable.loop import train
from trainable.model.lora import add_adapters, merge_adapters
from trainable.model.models import context_limit
from trainable.model.modes import dropout_fields, in_mode, without_dropout
from trainable.preflight.causality import check_causality, check_evaluation_repeats
from trainable.preflight.check_result import Check, judged, skipped
from trainable.preflight.configuration import check_block_sizes, check_dropout, check_finite_weights, check_precision
from trainable.preflight.corpus_checks import check_tokenizer_ids
from trainable.preflight.gradients import check_frozen, check_gradient_reach, check_slope, cut_modules
from trainable.preflight.initial_weights import (
    BASE_NAME,
    Origin,
    Predictions,
    check_against_base,
    check_initial_loss,
    check_offsets,
    predict,
)
from trainable.preflight.lora_checks import check_adapters, check_merge
from trainable.preflight.memory import check_memory
from trainable.preflight.offset_profile import offset_profile
from trainable.preflight.optimizer_check import check_updates
from trainable.preflight.optimizer_watch import OptimizerWatch
from trainable.rows import StepRow
from trainable.run import RunSpec
from trainable.state import new_state

EQUAL_FRAC = 1e-4
"""Of a loss: fp32 arithmetic in another order. Offsets differ by 1e-3 and more even at random weights."""
SMALL_MODEL_WEIGHTS = 20_000_000
"""Larger ones get fewer tokens: 512 tell the offsets of a pretrained model apart, which lie nats from each other."""
SHORTEST_BLOCK, LONGEST_BLOCK = 32, 256
LONGEST_BLOCK_OF_LARGE = 64


@dataclass(frozen=True, kw_only=True)
class FirstSteps:
    """What the loop reported, and what the model said of the first batch before."""

    rows: list[StepRow]
    profile: dict[int, float]
    updates: Check
    """What the loop's optimizer did to the weights."""


def make_first_steps(model: PreTrainedModel, corpus: Corpus, config: TrialConfig, protocol: EvalProtocol) -> FirstSteps:
    """Return the rows of config's steps through the loop, with dropout at 0; the model is trained by them.

    Its gradients are left as the last step's.
    """
    device = next(model.parameters()).device
    with without_dropout(model):
        state = new_state(config, model, device=device, unigram_entropy=math.nan, from_scratch=False)
        same_draws = torch.Generator()
        same_draws.set_state(state.batches.get_state())
        with in_mode(model, training=True):
            profile = offset_profile(model, sample_batch(corpus.train, config, same_draws))
        rows = []
        with closing(OptimizerWatch(model, state.optimizer)) as watch:
            for row in train(state, corpus, protocol, eval_steps=()):
                if isinstance(row, StepRow):
                    rows.append(row)
                    watch.end_step()
    updates = check_updates(watch, learning_rate=config.learning_rate, weight_decay=config.weight_decay)
    return FirstSteps(rows=rows, profile=profile, updates=updates)


def check_loop_loss(steps: FirstSteps) -> Check:
    """Return whether the loss that the loop trains on is that of the next token."""
    loss = steps.rows[0].train_loss
    equal = [offset for offset, nats in steps.profile.items() if abs(nats - loss) <= EQUAL_FRAC * max(1.0, abs(nats))]
    where = f"that at offset {equal[0]:+d}" if equal else "that of no offset"
    listed = ", ".join(f"{offset:+d} {nats:.5f}" for offset, nats in steps.profile.items())
    return judged(
        "loop loss offset",
        failed=1 not in equal,
        measured=f"the loop's loss is {loss:.5f}; from the logits {listed}",
        expected=f"that at +1 within {EQUAL_FRAC:.0e} of it",
        advice=f"The loop's loss is {where}: the labels are not the next token. Fix trainable.loss.",
    )


def check_first_steps(steps: FirstSteps) -> Check:
    """Return whether loss and gradient of the first steps are finite numbers."""
    finite = all(math.isfinite(row.train_loss) and math.isfinite(row.grad_norm) for row in steps.rows)
    listed = "; ".join(f"loss {row.train_loss:.4f}, gradient norm {row.grad_norm:.3g}" for row in steps.rows)
    return judged(
        "first steps",
        failed=not finite,
        measured=listed,
        expected="finite numbers",
        advice="The model overflows in the first steps. Check its weights and the scales of its layers.",
    )


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What is to be trained, the model aside."""

    spec: RunSpec
    tokenizer: Tokenizer
    config: TrialConfig
    largest: TrialConfig
    origin: Origin
    available_bytes: int | None = None
    base: Predictions | None = None
    """What the checkpoint's base predicts (base_predictions); None where there is no checkpoint or no base."""


@dataclass(frozen=True, kw_only=True)
class _Samples:
    """What the checks run on: the same windows every time, few enough for the model's size."""

    windows: torch.Tensor
    """(N, T + 1) of the training tokens."""
    step: TrialConfig
    """A configuration whose steps are cheap."""
    slope_windows: int
    protocol: EvalProtocol
    """The study's context, on few tokens."""


def base_predictions(model: PreTrainedModel, setup: Setup) -> Predictions | None:
    """Return what a model predicts before a checkpoint is loaded into it; None where its tokenizer does not fit."""
    ids = check_tokenizer_ids(setup.tokenizer, setup.spec.corpus, model.get_input_embeddings().weight.shape[0])
    if ids.status == "fail":
        return None
    return predict(model, _samples(model, setup, context_limit(model.config)).windows)


def check_model_setup(model: PreTrainedModel, setup: Setup) -> Iterator[Check]:
    """Yield the checks of `model`, which is on its device; it is trained by three steps and worthless afterwards."""
    limit = context_limit(model.config)
    rows = model.get_input_embeddings().weight.shape[0]
    blocks = {
        "block_size": setup.config.block_size,
        "the largest block_size": setup.largest.block_size,
        "eval_block_size": setup.spec.protocol.block_size,
    }
    ids = check_tokenizer_ids(setup.tokenizer, setup.spec.corpus, rows)
    weights = check_finite_weights(model)
    yield ids
    yield check_block_sizes(limit, blocks)
    yield weights
    if ids.status == "fail" or weights.status == "fail":
        yield skipped("the model's other checks", "they need ids that the model embeds and finite weights")
        return
    samples = _samples(model, setup, limit)
    yield from _check_predictions(model, setup, samples)
    yield check_precision(setup.config, model, samples.windows)
    yield check_dropout(setup.config, model)
    yield from _check_steps(model, setup, samples, limit)


def _check_predictions(model: PreTrainedModel, setup: Setup, samples: _Samples) -> Iterator[Check]:
    predictions = predict(model, samples.windows)
    entropy = setup.spec.corpus.unigram_entropy
    yield check_initial_loss(predictions, unigram_entropy=entropy, origin=setup.origin)
    if setup.origin == "random":
        yield skipped("checkpoint offsets", "the weights are random")
    else:
        yield check_offsets(predictions, unigram_entropy=entropy)
    if setup.base is not None:
        yield check_against_base(predictions, setup.base)
    else:
        yield skipped(
            BASE_NAME,
            "no base is named; to compare a fine-tuned model, set GPT2_MODEL_NAME to the pretrained model that it "
            "began as and CHECKPOINT_PATH to its weights",
        )
    yield check_causality(model, samples.windows[:2, :-1])
    yield check_evaluation_repeats(model, eval_windows(setup.spec.corpus.val, samples.protocol))


def _check_steps(model: PreTrainedModel, setup: Setup, samples: _Samples, limit: int | None) -> Iterator[Check]:
    yield check_adapters(model) if setup.config.use_lora else check_frozen(model)
    cut, reaches_weights = cut_modules(model, samples.windows[:1])
    if not reaches_weights:
        yield check_gradient_reach(model, cut)
        yield skipped("training steps, gradient slope and memory", "no weight can be trained")
        return
    steps: FirstSteps = make_first_steps(model, setup.spec.corpus, samples.step, samples.protocol)
    yield check_loop_loss(steps)
    yield check_first_steps(steps)
    yield check_gradient_reach(model, cut)
    yield steps.updates
    yield check_slope(model, samples.windows[: samples.slope_windows])
    if setup.config.use_lora:
        yield check_merge(model, samples.windows)
    _train_as(model, setup.config, setup.largest)
    if limit is not None and setup.largest.block_size > limit:
        yield skipped("memory", "the largest block is longer than the model's positions")
        return
    yield check_memory(
        model,
        setup.spec.corpus,
        setup.largest,
        samples.protocol,
        available_bytes=setup.available_bytes,
        s_per_token=steps.rows[-1].step_time_s / samples.step.tokens_per_step,
    )


def _train_as(model: PreTrainedModel, config: TrialConfig, largest: TrialConfig) -> None:
    """Let the model's trainable weights and its dropout be those of `largest` where they are others than config's."""
    for holder in (*model.modules(), model.config):
        for field in dropout_fields(holder):
            if getattr(holder, field) == config.dropout:
                setattr(holder, field, largest.dropout)
    weights = [(one.use_lora, one.use_lora and (one.lora_rank, one.lora_targets)) for one in (config, largest)]
    if weights[0] != weights[1]:
        merge_adapters(model)
        if largest.use_lora:
            add_adapters(model, largest)


def _samples(model: PreTrainedModel, setup: Setup, limit: int | None) -> _Samples:
    corpus, config = setup.spec.corpus, setup.config
    small = sum(weight.numel() for weight in model.parameters()) <= SMALL_MODEL_WEIGHTS
    most = LONGEST_BLOCK if small else LONGEST_BLOCK_OF_LARGE
    longest = min(most, limit or most, len(corpus.train) - 1)
    block = min(max(config.block_size, SHORTEST_BLOCK), longest)
    count = max(4, (4096 if small else 512) // block)
    step = replace(
        config,
        batch_size=max(1, (1024 if small else 128) // block),
        block_size=block,
        grad_accum_steps=1,
        learning_rate=1e-4,
        lr_schedule="constant",
        warmup_steps=0,
        training_steps=2,
        precision="fp32",
    )
    # Of a large model the arithmetic is looked at, not the study's own context: that costs nothing but time.
    eval_block = min(setup.spec.protocol.block_size, limit or most, *(() if small else (most,)))
    windows = eval_windows(corpus.train, EvalProtocol(block_size=block, tokens=count * (block // 2)))
    return _Samples(
        windows=windows,
        step=step,
        slope_windows=2 if small else 1,
        protocol=EvalProtocol(block_size=eval_block, tokens=eval_block),
    )
