"""PreflightCallback: the cheap checks on the first steps of a script that trains with transformers.Trainer."""

import logging
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trainable.preflight.causality import causal_model, check_causality
from trainable.preflight.check_result import Check
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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to watch."""
        self._stop()
        self.checks = []
        model, optimizer = kwargs["model"], kwargs.get("optimizer")
        if not args.torch_compile and args.n_gpu <= 1:
            self._targets = TargetWatch(model)
        if not args.fsdp and not args.deepspeed and optimizer is not None:
            self._updates = OptimizerWatch(model, optimizer)

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the labels, after the first backward of an accumulation."""
        self._check_targets(kwargs["model"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the labels, and from the second step on at the gradients."""
        self._check_targets(kwargs["model"])
        # Behind LoRA's B, which begins as 0, there is no gradient in the first step.
        if self._updates is not None and self._updates.steps == WATCHED_STEPS - 1:
            self._report(check_gradient_reach(kwargs["model"], []))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the weights, once enough steps have shown what the optimizer does."""
        watch = self._updates
        if watch is None or not watch.end_step():
            return
        moving = max((sum(step.learning_rate > 0 for step in tensor.steps) for tensor in watch.tensors), default=0)
        if moving >= WATCHED_STEPS or watch.steps >= MOST_STEPS:
            self._stop()
            self._report(check_updates(watch))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave nothing attached to the model."""
        self._stop()

    def _check_targets(self, model: torch.nn.Module) -> None:
        watch, self._targets = self._targets, None
        if watch is None:
            return
        watch.close()
        labels = watch.check()
        self._report(labels)
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
