"""What training yields: a row per optimizer step, a row per evaluation, and a verdict when it goes wrong.

And what an evaluation counts as in a search: the milestone that it reached, and a finite objective.
"""

import math
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_type_hints

TrialStatus = Literal["running", "interrupted", "completed", "stopped", "unstable", "out_of_memory", "failed"]
"""How a trial stands. The first two have not ended; the others are endings, never merged."""

ENDINGS: tuple[TrialStatus, ...] = ("completed", "stopped", "unstable", "out_of_memory", "failed")

Purpose = Literal["search", "baseline", "train", "confirmation", "attribution"]
"""What a run is for. The first three are what a study was made for; the other two explain them and are never ranked."""

RANKED_PURPOSES: tuple[Purpose, ...] = ("search", "baseline", "train")
PENALTY_NATS = 1e3
"""The objective of a trial that has no loss to show. Finite, for ASHA and Optuna both mishandle NaN and inf."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What the weights that a study's runs start from lose, before any step."""

    val_loss: float
    """Nats/token on the study's held-out windows."""
    train_loss: float
    """Nats/token on a few windows of the training text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRow:
    """One optimizer step."""

    optimizer_steps: int
    """Steps done, this one included."""
    tokens_seen: int
    """Training tokens seen, this step's included."""
    train_loss: float
    """Mean over the step's tokens, nats/token, before the update."""
    grad_norm: float
    """Global L2 norm before the clip."""
    learning_rate: float
    step_time_s: float


StepColumns = dict[str, "array[Any]"]


def step_columns(rows: Sequence[Mapping[str, Any]] = ()) -> StepColumns:
    """Return the fields of StepRows as columns of 8 bytes a number: a long run's rows take ten times as much."""
    kinds = get_type_hints(StepRow).items()
    return {name: array("q" if kind is int else "d", [row[name] for row in rows]) for name, kind in kinds}


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsRow:
    """One evaluation."""

    tokens_seen: int
    optimizer_steps: int
    val_loss: float
    """Nats/token on the study's held-out windows, fp32, dropout off."""
    train_loss: float
    """Mean of the steps since the evaluation before, nats/token."""
    grad_norm: float
    """The last step's, before the clip."""
    learning_rate: float
    """The rate of the next step."""
    tokens_per_s: float
    """Training tokens per second of training since the evaluation before, evaluation time excluded."""
    active_s: float
    """Seconds of training and evaluation since the trial's start, pauses and restarts excluded."""
    part_losses: tuple[float, ...] = ()
    """val_loss on equal parts of the held-out windows, in their order; of the evaluation that completes a run alone.
    Two trials' differ by the parts in common, so their scatter is the noise of the difference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Why a run was ended early: its last row."""

    reason: str
    """nonfinite, divergence or floor."""
    step: int
    """The optimizer step at which it was seen."""
    evidence: str
    """The numbers, for a person."""


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
