"""What a trial's evaluation counts as in a search: the milestone it reached and a finite objective. Needs no torch."""

import math
from collections.abc import Iterable

PENALTY_NATS = 1e3
"""The objective of a trial that has no loss to show. Finite, for ASHA and Optuna both mishandle NaN and inf."""


def fidelity_tokens(milestones: Iterable[tuple[int, int]], *, optimizer_steps: int) -> int:
    """Return the highest milestone whose last whole step is done; 0 before the first step.

    milestones: (tokens of the study's budget, the step with which the trial has come so far).
    """
    if optimizer_steps == 0:
        return 0
    return max((tokens for tokens, step in milestones if step <= optimizer_steps), default=0)


def objective(val_loss: float | None) -> float:
    """Return the loss in nats/token, or the penalty where it is not finite."""
    return val_loss if val_loss is not None and math.isfinite(val_loss) else PENALTY_NATS
