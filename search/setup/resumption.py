"""The configuration of a run that continues from a checkpoint, and lines on how it differs. No torch."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from results.words import value_words
from search.options import with_default_warmup
from trainable.config import DOCUMENTED, HYPERPARAMETERS, TrialConfig, make_config, variable_of
from trainable.errors import UserError
from trainable.schedule import learning_rate_at

if TYPE_CHECKING:
    from trainable.checkpoint.checkpoint import Checkpoint

DOCUMENTED_RESUME_STEPS = 2000
WITHOUT_HORIZON = ("constant", "warmup_constant")
"""Schedules whose rate does not depend on the length of the run."""
THE_RATE = ("learning_rate", "lr_schedule", "warmup_steps", "min_lr_frac", "decay_frac")


def resumed_config(
    given: Mapping[str, Any], checkpoint: "Checkpoint", *, resume_steps: int | None, hold_rate: bool
) -> TrialConfig:
    """Return the configuration to continue with: the given values in the checkpoint's, or else in the documented one.

    hold_rate keeps the learning rate of the checkpoint's step. Raises UserError for a checkpoint without a step.
    """
    base, step = checkpoint.config or DOCUMENTED, checkpoint.step_to_continue_from
    values = dict(given)
    if resume_steps is not None:
        values["training_steps"] = step + resume_steps
    elif checkpoint.config is None:
        values.setdefault("training_steps", step + DOCUMENTED_RESUME_STEPS)
    if hold_rate:
        values |= _held_rate(given, checkpoint)
    return make_config(base, with_default_warmup(values, base))


def resumption_words(checkpoint: "Checkpoint", config: TrialConfig, *, corpus_fingerprint: str) -> list[str]:
    """Return lines on the step the run continues from, whether bit for bit, and how its learning rate goes on."""
    step, before = checkpoint.step_to_continue_from, checkpoint.config
    where = f"resumed from {checkpoint.path} at step {step}"
    if before is None or checkpoint.ours is None:
        return [f"{where}, with its weights; the optimizer starts from zero"]
    changed = [
        f"{name} {value_words(getattr(config, name))} (was {value_words(getattr(before, name))})"
        for name in HYPERPARAMETERS
        if name != "training_steps" and getattr(config, name) != getattr(before, name)
    ]
    same_text = checkpoint.ours["corpus_fingerprint"] == corpus_fingerprint
    same_plan = config.training_steps == before.training_steps or config.lr_schedule in WITHOUT_HORIZON
    if same_text and same_plan and not changed:
        return [f"{where}, exactly as it was left"]
    lines = [f"{where}, with its optimizer, random numbers and data position"]
    if changed:
        lines.append(f"changed since: {', '.join(changed)}")
    lines += _rate_words(step, before, config)
    if not same_text:
        lines.append("the checkpoint's text or tokenizer was another one: its losses cannot be compared with these")
    return lines


def _held_rate(given: Mapping[str, Any], checkpoint: "Checkpoint") -> dict[str, Any]:
    named = [name for name in THE_RATE if name in given]
    if named:
        variable = variable_of(named[0])
        raise UserError(f"RESUME_LR=hold keeps the checkpoint's own rate, and {variable} sets another. Unset one.")
    if checkpoint.config is None:
        raise UserError(
            f"RESUME_LR=hold: CHECKPOINT_PATH={checkpoint.path} is not ours and does not say its rate. "
            "Set LEARNING_RATE and LR_SCHEDULE=constant."
        )
    rate = learning_rate_at(checkpoint.step_to_continue_from, checkpoint.config)
    if rate == 0:
        raise UserError("RESUME_LR=hold: the run's learning rate had come to 0. Unset RESUME_LR.")
    return {"learning_rate": rate, "lr_schedule": "constant", "warmup_steps": 0}


def _rate_words(step: int, before: TrialConfig, config: TrialConfig) -> list[str]:
    was, now = learning_rate_at(step, before), learning_rate_at(step, config)
    ended = "ended at" if step >= before.training_steps else "had come to"
    if config.lr_schedule == "constant" and before.lr_schedule != "constant" and was == now:
        return [f"the rate is held at {now:.2e}, which the run before {ended}"]
    if config.training_steps == before.training_steps or config.lr_schedule in WITHOUT_HORIZON:
        return [f"the rate continues at {now:.2e}; the run before {ended} {was:.2e}"] if now != was else []
    horizon = f"the schedule's horizon is now {config.training_steps} steps (it was {before.training_steps})"
    if f"{now:.2e}" == f"{was:.2e}":
        return [f"the rate continues at {now:.2e} and falls later than planned: {horizon}"]
    return [
        f"the rate continues at {now:.2e}; the run before {ended} {was:.2e}, because {horizon}. "
        f"RESUME_LR=hold stays at {was:.2e}."
    ]
