"""PreflightCallback: the cheap checks on the first steps of a script that trains with transformers.Trainer."""

import logging
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from trainable.preflight.causality import causal_model, check_causality
from trainable.preflight.check_result import Check, judged
from trainable.preflight.gradients import check_gradient_reach
from trainable.preflight.optimizer_check import WATCHED_STEPS, check_updates
from trainable.preflight.optimizer_watch import OptimizerWatch
from trainable.preflight.target_watch import TargetWatch

logger = logging.getLogger(__name__)

MOST_STEPS = 10
"""A warm-up from 0 makes its first step at learning rate 0, which shows nothing of the optimizer."""
CAUSALITY_TOKENS = 256


class PreflightCallback(TrainerCallback):  # type: ignore[misc]
    """Stops training in its first steps, with the finding as a UserError, when the set-up is not sound.

    Looked at: which token the loss trains on, whether the model sees what it is to predict, whether every trainable
    tensor has a gradient and the optimizer moves it as AdamW would. Training itself goes on as it would without it, to
    the bit. Sharded training (FSDP, DeepSpeed) and compiled models are asked only what can be seen of them.
    """

    def __init__(self) -> None:
        self.checks: list[Check] = []
        """What was found, in the order in which it was looked at."""
        self._targets: TargetWatch | None = None
        self._updates: OptimizerWatch | None = None
        self._begun_at: int | None = None
        """The schedule's step before the first one, where it counts them."""

    def on_train_begin(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        """Begin to watch."""
        self._stop()
        self.checks = []
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        if not args.torch_compile and args.n_gpu <= 1:
            self._targets = TargetWatch(model)
        if not args.fsdp and not args.deepspeed and optimizer is not None:
            self._updates = OptimizerWatch(model, optimizer)
            if (contradiction := _contradiction(args, self._updates)) is not None:
                self._report(contradiction)
        self._begun_at = getattr(kwargs.get("lr_scheduler"), "last_epoch", None)

    def on_substep_end(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        """Look at the labels, after the first backward that has any."""
        self._check_targets(kwargs["model"], args.gradient_accumulation_steps)

    def on_pre_optimizer_step(self, args: TrainingArguments, *_: Any, **kwargs: Any) -> None:
        """Look at the labels, and from the second step on at the gradients."""
        # Behind LoRA's B, which begins as 0, there is no gradient until B has moved.
        is_last = self._updates is not None and self._updates.moving_steps == WATCHED_STEPS - 1
        self._check_targets(kwargs["model"], args.gradient_accumulation_steps, is_last=is_last)
        if is_last:
            self._report(check_gradient_reach(kwargs["model"], []))

    def on_step_end(self, *_: Any, **kwargs: Any) -> None:
        """Look at the weights, once enough steps have shown what the optimizer does."""
        watch = self._updates
        if watch is None:
            return
        watch.end_step()
        moved = 0 if self._begun_at is None else kwargs["lr_scheduler"].last_epoch - self._begun_at
        if moved > watch.ends:
            self._report(
                judged(
                    "learning-rate schedule",
                    failed=True,
                    measured=f"it moved on by {moved} steps in {watch.ends}",
                    expected="one a step",
                    advice="The Trainer steps it. Leave out the scheduler.step() of your own.",
                )
            )
        # A loss scaler leaves out steps until its scale fits.
        if watch.moving_steps >= WATCHED_STEPS or watch.steps >= MOST_STEPS or watch.ends >= 2 * MOST_STEPS:
            self._stop()
            self._report(check_updates(watch))

    def on_train_end(self, *_: Any, **kwargs: Any) -> None:
        """Look at the weights where training ended first; leave nothing attached to the model."""
        watch = self._updates
        self._stop()
        # At a learning rate of 0 nothing has shown yet; without any gradient or step all has.
        if watch is not None and watch.ends and (watch.moving_steps or not any(one.steps for one in watch.tensors)):
            self._report(check_updates(watch))

    def _check_targets(self, model: torch.nn.Module, micro_batches: int, *, is_last: bool = False) -> None:
        watch, self._targets = self._targets, None
        if watch is None:
            return
        watch.close()
        if not watch.has_targets and not is_last:
            # A prompt that fills its block leaves a micro-batch without a label.
            self._targets = TargetWatch(model)
            return
        labels = watch.check()
        self._report(labels)
        if labels.status == "pass":
            self._report(watch.check_scale(micro_batches))
        causal = causal_model(model)
        if labels.status == "pass" and causal is not None and watch.ids is not None:
            row = watch.ids[:1, :CAUSALITY_TOKENS]
            self._report(check_causality(causal, torch.cat([row, row.flip(1)])))

    def _report(self, check: Check) -> None:
        self.checks.append(check)
        if check.status == "fail":
            self._stop()
        check.raise_if_failed()
        level = logging.WARNING if check.status == "warn" else logging.INFO
        logger.log(level, "preflight: %s: %s. %s", check.name, check.measured, check.advice)

    def _stop(self) -> None:
        for watch in (self._targets, self._updates):
            if watch is not None:
                watch.close()
        self._targets = self._updates = None


def _contradiction(args: TrainingArguments, watch: OptimizerWatch) -> Check | None:
    """Return a warning where an argument that was set is in none of the optimizer's groups."""
    groups = [group for optimizer in watch.optimizers for group in optimizer.param_groups]
    words = []
    for name, key in (("learning_rate", "initial_lr"), ("weight_decay", "weight_decay"), ("adam_epsilon", "eps")):
        # Adafactor's eps is a pair.
        meant, found = getattr(args, name), sorted({v for group in groups if isinstance(v := group.get(key), float)})
        if found and meant != TrainingArguments.__dataclass_fields__[name].default and meant not in found:
            words.append(f"{name}={meant:g} and {', '.join(f'{value:g}' for value in found)} in the optimizer")
    if not words:
        return None
    return judged(
        "training arguments",
        warned=True,
        measured="; ".join(words),
        expected="the optimizer's groups as the arguments say",
        advice="Right only if it is meant so: an optimizer of your own does not read the arguments.",
    )
