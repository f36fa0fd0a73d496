"""A study's tables while it runs: all rows in the driver's memory, flushed to disk. It decides nothing."""

import errno
import math
import os
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from results.study.folder import Study
from results.study.planned_run import PlannedRun, Row
from results.study.tables import METRICS, STEPS, TRIALS, previous_path, read_rows_or_previous, write_table
from trainable.config import config_from
from trainable.regular_files import file_type
from trainable.rows import ENDINGS, MetricsRow, StepColumns, StepRow, TrialStatus, Verdict, step_columns

FLUSH_INTERVAL_S = 5.0
"""Between two writes for evaluations alone; a trial's start and ending are written at once."""
USUAL_FLUSH_S = 0.25
"""A write that takes longer makes the interval as much longer: of the time it is a twentieth at most."""

_COUNTERS = ("tokens_seen", "optimizer_steps", "active_s")


class Ledger:
    """The study's trials, evaluations and the steps of unfinished trials, read from its tables and alone to write them.

    Of a damaged table the previous copy takes its place; UserError where there is none. A flush that raises OSError
    loses nothing: the rows stay in memory for the next one.
    """

    def __init__(
        self, study: Study, *, flush_interval_s: float = FLUSH_INTERVAL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._study = study
        self._has_document = file_type(study.study_json) is not None
        self._flush_interval_s = flush_interval_s
        self._clock = clock
        self._unwritten_metrics = True
        self._unwritten_steps: set[int] = set()
        self._flushed_at = -math.inf
        self._flush_took_s = 0.0
        self._notes: list[str] = []
        self._trials = {row["trial_id"]: row for row in self._read(study.trials_path, TRIALS)}
        self._metrics: dict[int, list[Row]] = {trial_id: [] for trial_id in self._trials}
        for row in sorted(self._read(study.metrics_path, METRICS), key=lambda row: row["tokens_seen"]):
            if row["trial_id"] in self._metrics:
                self._metrics[row["trial_id"]].append(row)
        self._steps = defaultdict[int, StepColumns](step_columns)
        for trial_id, trial in self._trials.items():
            if trial["status"] == "running":
                # Its process was killed, perhaps after the write of the metrics and before that of the trials.
                trial.update(_summary(self._metrics[trial_id]), status="interrupted")
            if trial["status"] not in ENDINGS:
                self._steps[trial_id] = step_columns(self._read(study.steps_path(trial_id), STEPS))

    def trials(self) -> list[Row]:
        """Return copies of the trials' rows, by trial_id."""
        return [dict(self._trials[trial_id]) for trial_id in sorted(self._trials)]

    def trial(self, trial_id: int) -> Row:
        """Return a copy of a trial's row."""
        return dict(self._trials[trial_id])

    def metrics(self) -> list[Row]:
        """Return copies of the evaluations' rows, by trial_id, then tokens_seen."""
        return [dict(row) for trial_id in sorted(self._metrics) for row in self._metrics[trial_id]]

    def known_steps(self, trial_id: int, eval_steps: Iterable[int]) -> int:
        """Return the optimizer step up to which all of a trial's steps and evaluations are known.

        Going on from a later checkpoint, written just before the process died, would leave a gap in the tables.

        eval_steps: the steps after which the trial is evaluated.
        """
        metrics = self._metrics.get(trial_id)
        if not metrics or not (steps := self._steps[trial_id]["optimizer_steps"]):
            return 0
        evaluated, last = metrics[-1]["optimizer_steps"], steps[-1]
        # The steps are written first, so the evaluations after them may be missing.
        return min([step - 1 for step in eval_steps if evaluated < step <= last], default=last)

    def start_trial(self, run: PlannedRun, *, started_at: datetime) -> None:
        """Note that the run has begun; an interrupted one goes on and keeps its start and its evaluations."""
        known = self._trials.get(run.trial_id)
        if known is None:
            new: Row = dict.fromkeys(TRIALS.names)
            new.update(dict.fromkeys(_COUNTERS, 0), active_s=0.0, started_at=started_at, **run.columns())
            known = self._trials[run.trial_id] = new
            self._metrics[run.trial_id] = []
        assert known["status"] not in ENDINGS, f"trial {run.trial_id} is {known['status']}"
        assert run.config == config_from(known), f"trial {run.trial_id}: new config"
        known.update(status="running", ended_at=None)
        self.flush()

    def add_metrics(self, trial_id: int, row: MetricsRow, rung: int | None) -> None:
        """Note an evaluation, and the rung it reached.

        Evaluations at or beyond its step are dropped, for the trial went back to a checkpoint and is evaluated again.
        An earlier one at the same step with the same loss stays: its train_loss is the mean of the steps before.
        """
        trial = self._running(trial_id)
        values = {name: _finite(value) if isinstance(value, float) else value for name, value in asdict(row).items()}
        new = {"trial_id": trial_id, **{name: values[name] for name in METRICS.names if name in values}}
        known = self._metrics[trial_id]
        earlier = [old for old in known if old["optimizer_steps"] < row.optimizer_steps]
        same = [old for old in known if all(old[name] == new[name] for name in ("optimizer_steps", "val_loss"))]
        self._metrics[trial_id] = [*earlier, *(same[:1] or [new])]
        trial.update(_summary(self._metrics[trial_id]))
        if rung is not None:
            trial["rung"] = max(rung, trial["rung"] if trial["rung"] is not None else rung)
        self._unwritten_metrics = True
        self.flush_if_due()

    def add_steps(self, trial_id: int, steps: Sequence[StepRow]) -> None:
        """Note optimizer steps in order; known steps at or beyond the first are dropped, as add_metrics does."""
        self._running(trial_id)
        if not steps:
            return
        known = self._steps[trial_id]
        kept = bisect_left(known["optimizer_steps"], steps[0].optimizer_steps)
        for name, column in known.items():
            del column[kept:]
            column.extend([getattr(step, name) for step in steps])
        self._unwritten_steps.add(trial_id)

    def end_trial(
        self,
        trial_id: int,
        *,
        status: TrialStatus,
        verdict: Verdict | None,
        ended_at: datetime,
        at_rung: tuple[int, int] | None = None,
        **reached: float | None,
    ) -> None:
        """Note how the trial ended; `reached` are the counters, which may be beyond the last evaluation's.

        at_rung: as in end_at_rung(), which is written at once: a row without it would count at a later rung.
        """
        trial = self._running(trial_id)
        assert status in ENDINGS, status
        assert (verdict is not None) == (status == "unstable"), f"trial {trial_id}: {status} with verdict {verdict}"
        trial.update({name: max(value, trial[name]) for name, value in reached.items() if value is not None})
        words = verdict and f"{verdict.reason} at step {verdict.step}: {' '.join(verdict.evidence.split())}"
        trial.update(status=status, verdict=words, ended_at=ended_at)
        if status == "unstable":
            # Its last evaluation, at step 0 perhaps, came before it went wrong and would count as a good loss.
            losses = self._steps[trial_id]["train_loss"]
            trial.update(val_loss=None, end_loss=_finite(losses[-1]) if losses else None)
        if at_rung is None:
            self.flush()
        else:
            self.end_at_rung(trial_id, at_rung)

    def end_at_rung(self, trial_id: int, at_rung: tuple[int, int]) -> None:
        """Note that an ended trial was stopped at a rung; at_rung: its index, and how many evaluations led to it.

        Its counters keep what it trained beyond the rung, because that was spent.
        """
        (rung, evaluations), trial = at_rung, self._trials[trial_id]
        assert trial["status"] != "running", f"trial {trial_id} is running"
        self._metrics[trial_id] = self._metrics[trial_id][:evaluations]
        spent = {name: trial[name] for name in _COUNTERS}
        ending = {"status": "stopped", "verdict": None, "end_loss": None, "rung": rung}
        trial.update(_summary(self._metrics[trial_id]) | spent | ending)
        self._unwritten_metrics = True
        self.flush()

    def interrupt(self, ended_at: datetime, **reached: float) -> None:
        """Note that every running trial was interrupted, with the counters that are beyond its last evaluation's."""
        for trial in self._trials.values():
            if trial["status"] == "running":
                trial.update(reached, status="interrupted", ended_at=ended_at)
        self.flush()

    def flush_if_due(self) -> None:
        """Write what is not on disk yet, if the last write is long enough ago. Raises OSError."""
        unwritten = self._unwritten_metrics or bool(self._unwritten_steps)
        # A table is written whole: those of a run of a million steps take seconds.
        interval_s = self._flush_interval_s * max(1.0, self._flush_took_s / USUAL_FLUSH_S)
        if unwritten and self._clock() - self._flushed_at >= interval_s:
            self.flush()

    def flush(self) -> None:
        """Write what is not on disk yet. Raises OSError."""
        began_at = self._clock()
        if self._has_document and file_type(self._study.study_json) is None:
            # A trial that is saved makes the folder again, and whatever followed would be of no study.
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(self._study.path))
        # Trials last: so a reader never finds a trial's loss without its evaluation.
        self._study.steps_path(0).parent.mkdir(exist_ok=True)  # deleted by hand, perhaps
        for trial_id in sorted(self._unwritten_steps):
            write_table(self._study.steps_path(trial_id), self._steps[trial_id], STEPS)
            self._unwritten_steps.remove(trial_id)
        if self._unwritten_metrics:
            write_table(self._study.metrics_path, self.metrics(), METRICS)
            self._unwritten_metrics = False
        write_table(self._study.trials_path, self.trials(), TRIALS)
        self._flushed_at = self._clock()
        self._flush_took_s = self._flushed_at - began_at
        for trial_id in [key for key in self._steps if self._trials[key]["status"] in ENDINGS]:
            del self._steps[trial_id]

    def take_notes(self) -> list[str]:
        """Return notes on damaged tables that were replaced, once."""
        notes, self._notes = self._notes, []
        return notes

    def _read(self, path: Path, schema: Any) -> list[Row]:
        if file_type(path) is None and file_type(previous_path(path)) is None:
            return []
        rows, note = read_rows_or_previous(path, schema)
        self._notes += [note] if note else []
        return rows

    def _running(self, trial_id: int) -> Row:
        trial = self._trials[trial_id]
        assert trial["status"] == "running", f"trial {trial_id} is {trial['status']}"
        return trial


def _summary(metrics: Sequence[Row]) -> dict[str, Any]:
    if not metrics:
        return {}
    losses = [row["val_loss"] for row in metrics if row["val_loss"] is not None]
    return {
        "val_loss": metrics[-1]["val_loss"],
        "best_val_loss": min(losses, default=None),
        **{name: metrics[-1][name] for name in _COUNTERS},
        "tokens_per_s": _mean_tokens_per_s(metrics),
    }


def _mean_tokens_per_s(metrics: Sequence[Row]) -> float | None:
    # A row's speed is that since the row before, so the mean is weighted by time: tokens / sum(tokens / speed).
    tokens, seconds, before = 0, 0.0, 0
    for row in metrics:
        new, before = row["tokens_seen"] - before, row["tokens_seen"]
        if new > 0 and row["tokens_per_s"]:
            tokens += new
            seconds += new / row["tokens_per_s"]
    return tokens / seconds if seconds else None


def _finite(value: float) -> float | None:
    # Null, not NaN: DuckDB sorts NaN above every number, and pandas cannot tell it from a missing value.
    return value if math.isfinite(value) else None
