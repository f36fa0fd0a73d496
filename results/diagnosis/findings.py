"""Diagnosis: one thing found wrong with a run, and how much each kind of thing explains. It finds nothing."""

from collections.abc import Mapping
from dataclasses import dataclass

EXPLAINS: Mapping[str, int] = {
    "impossible_initial_loss": 100,
    "wrong_objective": 98,
    "detached_gradients": 95,
    "learning_rate_jump": 92,
    "schedule_not_stepping": 90,
    "learning_rate_mismatch": 89,
    "precision_stall": 88,
    "nonfinite_weights": 86,
    "divergence": 85,
    "collapse": 84,
    "schedule_restarted": 83,
    "nonfinite": 80,
    "loss_too_low": 78,
    "resume_jump": 77,
    "unstable_trials": 76,
    "out_of_memory": 75,
    "failed": 74,
    "poisoned_optimizer": 72,
    "gradient_growth": 68,
    "plateau": 66,
    "overfitting": 64,
    "validation_rises": 63,
    "validation_is_training": 62,
    "validation_stands_still": 61,
    "spike": 60,
    "slow": 50,
    "train_val_gap": 45,
    "baseline_incomplete": 40,
    "stall": 30,
    "eval_noise": 20,
}
"""By kind: how far up the chain from cause to symptom it stands; findings are ranked by this times confidence."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Something found wrong, for a person who must act on it."""

    kind: str
    """A key of EXPLAINS."""
    confidence: float
    """0 to 1."""
    summary: str
    """What it is, in a line."""
    evidence: str
    """The numbers."""
    next_step: str
    """What to do first."""
    steps: tuple[int, int] | None = None
    """First and last step where it shows; None for the whole run or none of it."""

    def __post_init__(self) -> None:
        assert self.kind in EXPLAINS, self.kind
        assert 0 < self.confidence <= 1, self.confidence

    @property
    def weight(self) -> float:
        """What findings are ranked by."""
        return EXPLAINS[self.kind] * self.confidence


def capitalized(text: str) -> str:
    """Return the text with its first letter large and the others as they are; a command stays as it is typed."""
    return text if text.startswith("make ") else text[:1].upper() + text[1:]


def confidence_word(confidence: float) -> str:
    """Return the confidence as a person says it."""
    return "certain" if confidence >= 0.9 else "likely" if confidence >= 0.65 else "possible"
