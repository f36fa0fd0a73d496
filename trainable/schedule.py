"""Learning-rate schedules as pure functions of the step; nothing here knows of an optimizer."""

import math

from trainable.config import TrialConfig


def learning_rate_at(step: int, config: TrialConfig) -> float:
    """Return the learning rate that optimizer step `step` (from 0) uses.

    The horizon is config.training_steps; past it a decayed schedule stays at its end. `before`'s logged rates
    (2.00e-06 at step 0, 2.00e-05 at 500, 1.95e-05 at 1000, 1.55e-05 at 2000) are what warmup_cosine must give.
    Cosine: Loshchilov & Hutter 2017 (SGDR), eq. 5, without restarts. wsd: Hu et al. 2024 (MiniCPM), sec. 4.
    """
    return config.learning_rate * _multiplier(step, config)


def _multiplier(step: int, config: TrialConfig) -> float:
    low = config.min_lr_frac
    if config.lr_schedule == "constant":
        return 1.0
    if step < config.warmup_steps:
        return low + (1.0 - low) * step / config.warmup_steps
    if config.lr_schedule == "warmup_constant":
        return 1.0
    if config.lr_schedule == "wsd":
        decay_steps = min(round(config.decay_frac * config.training_steps), config.training_steps - config.warmup_steps)
        return 1.0 - (1.0 - low) * _progress(step, config.training_steps - decay_steps, decay_steps)
    progress = _progress(step, config.warmup_steps, config.training_steps - config.warmup_steps)
    if config.lr_schedule == "linear":
        return 1.0 - (1.0 - low) * progress
    assert config.lr_schedule == "warmup_cosine", config.lr_schedule
    return low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))


def _progress(step: int, start: int, length: int) -> float:
    if length <= 0:
        return 1.0 if step >= start else 0.0
    return min(max((step - start) / length, 0.0), 1.0)
