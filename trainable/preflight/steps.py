"""Two steps of the real loop on a small batch: which token its loss trains on, and whether its numbers are finite."""

import math
from contextlib import closing
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from trainable.config import TrialConfig
from trainable.data.tokens import Corpus, sample_batch
from trainable.evaluation import EvalProtocol
from trainable.loop import train
from trainable.model.modes import in_mode, without_dropout
from trainable.preflight.check_result import Check, judged
from trainable.preflight.offset_profile import offset_profile
from trainable.preflight.optimizer_check import check_updates
from trainable.preflight.optimizer_watch import OptimizerWatch
from trainable.rows import StepRow
from trainable.state import new_state

EQUAL_FRAC = 1e-4
"""Of a loss: fp32 arithmetic in another order. Offsets differ by 1e-3 and more even at random weights."""


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
        batch = sample_batch(
            corpus.train, batch_size=config.batch_size, block_size=config.block_size, generator=same_draws
        )
        with in_mode(model, training=True):
            profile = offset_profile(model, batch)
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
