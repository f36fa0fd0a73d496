"""RunTrace: a run as it was recorded, whatever recorded it. It holds numbers and judges nothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import compress, pairwise
from typing import TYPE_CHECKING, Literal, get_args

from trainable.errors import UserError

if TYPE_CHECKING:
    from results.study.folder import Study

Column = Literal["train_loss", "val_loss", "grad_norm", "learning_rate", "step_time_s", "printed_steps_per_s"]
Values = tuple[float | None, ...]
Unit = Literal["step", "row"]


@dataclass(frozen=True, kw_only=True)
class RunTrace:
    """One run in columns of equal length, a row per recorded step, steps strictly rising; None is not recorded.

    A loss or norm that was recorded as NaN or infinite is that float.
    """

    source: str
    """The file or trial, for a person."""
    run: str = ""
    """Its name, where a file holds several runs by name."""
    origin: Literal["log", "trial"]
    unit: Unit = "step"
    """What `steps` counts: a log without step numbers has rows."""
    steps: tuple[int, ...]
    train_loss: Values
    """Nats/token."""
    val_loss: Values
    """Nats/token."""
    grad_norm: Values
    """Global L2 norm."""
    learning_rate: Values
    step_time_s: Values
    """Mean seconds a step took since the last row that has one, never since the start."""
    printed_steps_per_s: Values = ()
    """What the log itself said, for comparison: mostly a mean since the start. () is none."""
    total_steps: int | None = None
    """Where the run was to end."""
    restarts: tuple[int, ...] = ()
    """Steps to which the log went back, or at which it started again."""
    earlier_runs: tuple["RunTrace", ...] = ()
    """Runs from the start that stand before this one in the same log, oldest first."""
    announced: Mapping[str, str] = field(default_factory=dict)
    """What the log said of its configuration: vocab_size, pretrained, lr_schedule, warmup_steps, precision ..."""
    notes: tuple[str, ...] = ()
    """What a reader must know of how the log was read."""

    def __post_init__(self) -> None:
        columns = (getattr(self, name) for name in get_args(Column))
        assert all(len(values) == len(self.steps) for values in columns if values), self.source
        assert all(a < b for a, b in pairwise(self.steps)), self.source

    def series(self, column: Column) -> tuple[list[int], list[float]]:
        """Return the steps at which `column` was recorded, and its values there."""
        values = getattr(self, column)
        rows = [row for row, value in enumerate(values) if value is not None]
        return [self.steps[row] for row in rows], [values[row] for row in rows]

    def finite(self, column: Column) -> tuple[list[int], list[float]]:
        """Return the steps at which `column` is a finite number, and its values there."""
        steps, values = self.series(column)
        finite = [math.isfinite(value) for value in values]
        return list(compress(steps, finite)), list(compress(values, finite))


def trace_of_trial(study: "Study", trial_id: int) -> RunTrace:
    """Return a trial's steps and evaluations.

    Raises UserError when the study has no such trial, it recorded no step, or a table is damaged.
    """
    trials = {row["trial_id"]: row for row in study.trials()}
    if trial_id not in trials:
        known = f"it has 0 to {max(trials)}" if trials else "none has started"
        raise UserError(f"study {study.name} has no trial {trial_id}: {known}.")
    trial = trials[trial_id]
    step_rows = study.steps(trial_id)
    evaluations = [row for row in study.metrics() if row["trial_id"] == trial_id]
    if not step_rows and not evaluations:
        raise UserError(f"trial {trial_id} of study {study.name} recorded no step: it is {trial['status']}.")
    by_step = {row["optimizer_steps"]: row for row in step_rows}
    evaluated = {row["optimizer_steps"]: row for row in evaluations}
    # At step 0 there is an evaluation of both losses and no step yet.
    either = evaluated | by_step
    steps = sorted(either)

    def column(name: str, rows: Mapping[int, Mapping[str, float | None]] = by_step) -> Values:
        return tuple(rows[step][name] if step in rows else None for step in steps)

    announced = ["lr_schedule", "precision", "learning_rate", "weight_decay", "dropout"]
    announced += [] if trial["lr_schedule"] == "constant" else ["warmup_steps"]
    return RunTrace(
        source=f"trial {trial_id} of study {study.name}",
        origin="trial",
        steps=tuple(steps),
        train_loss=column("train_loss", either),
        val_loss=column("val_loss", evaluated),
        grad_norm=column("grad_norm"),
        learning_rate=column("learning_rate"),
        step_time_s=column("step_time_s"),
        total_steps=trial["training_steps"],
        announced={name: str(trial[name]) for name in announced},
    )
