"""StudyRecorder: writes what Ray reports into the study's ledger and tells the view. It decides nothing.

The kernel's count of out-of-memory kills in a worker's cgroup tells such a death from a crash.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.exceptions import RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.text import Text

from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from search.cluster.node_watch import last_error
from search.cluster.storage_hold import TableMirror
from search.terminal.live_view import StudyView
from search.tune.early_end import write_part_losses
from search.tune.trial_log import TrialLog
from trainable.checkpoint.checkpoint_store import CheckpointStore
from trainable.device.device import cgroup_folders, text_of
from trainable.rows import MetricsRow, StepRow, TrialStatus, Verdict

OUT_OF_MEMORY_SIGNS = ("node running low on memory", "CUDA out of memory")
"""From Ray's memory monitor, and from a CUDA allocator that kills the worker."""
OF_A_GROUP = ("memory.events.local", "memory.oom_control")
"""The file of a group's count, without kills in the groups below: version 2, and 1."""
OF_THE_MACHINE = Path("/proc/vmstat")


@dataclass(eq=False)
class StudyRecorder(Callback):  # type: ignore[misc]
    """The only writer of a running study's tables."""

    ledger: Ledger
    log: TrialLog
    view: StudyView
    planned_run: Callable[[int], PlannedRun]
    checkpoints_of: Callable[[int], CheckpointStore]
    on_ended: Callable[[int], None]
    evaluation_timeout_s: float
    oom_counter_of: Callable[[int | None], Path | None]
    mirror: TableMirror | None = None
    """The copy of the tables in STORAGE."""
    storage_error: OSError | None = None
    """Why the study could not be written; it ends the engine."""
    input_fault: tuple[str, str] | None = None
    """Which input is gone or has changed, and the remedy; it ends the engine, and no trial counts as failed."""
    _oom_kills_before: dict[int, tuple[Path | None, int]] = field(default_factory=dict)
    """By trial: the counter of its worker's cgroup, and its count when the trial was last heard of."""
    _oom_kills_explained: Counter[Path | None] = field(default_factory=Counter)
    """Each kill explains one death of a worker, not several."""
    _heard_at: dict[int, float] = field(default_factory=dict)

    def on_trial_start(self, *, trial: Trial, **info: Any) -> None:
        """Enter the trial, or keep its row if it starts again, and drop checkpoints later than its rows."""
        trial_id: int = trial.config["trial_id"]
        self._heard_at[trial_id] = time.monotonic()
        self.view.waiting.discard(trial_id)
        if trial_id not in self._oom_kills_before:
            self._note_oom_kills(trial_id, pid=None)
        with self._kept():
            self.ledger.start_trial(self.planned_run(trial_id), started_at=datetime.now(UTC))
            eval_steps = [step for _, step in trial.config["milestones"]]
            self.checkpoints_of(trial_id).forget_after(self.ledger.known_steps(trial_id, eval_steps))
        self.view.refresh()

    def on_trial_result(self, *, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        """Enter an evaluation and the steps before it; a trial that ended by itself is closed at once."""
        trial_id: int = trial.config["trial_id"]
        self._heard_at[trial_id] = time.monotonic()
        self._note_oom_kills(trial_id, pid=result.get("pid"))
        self.end_late_stops()
        self.input_fault = self.input_fault or result["input_fault"]
        with self._kept():
            self.ledger.add_steps(trial_id, [StepRow(**row) for row in result["steps"]])
            if result["metrics"] is not None:
                row = MetricsRow(**result["metrics"])
                self.ledger.add_metrics(trial_id, row, self.log.rung_of(result["fidelity_tokens"]))
            if result["saved"]:
                # Rows up to a checkpoint must be on disk before the next one is kept, or no checkpoint matches them.
                self.ledger.flush()
        if self.mirror is not None and result["saved"]:
            # Another machine needs both to go on.
            self.mirror.copy_if_due(at_once=True)
        for note in (*result["notes"], *self.ledger.take_notes()):
            self.view.say(note if f"trial {trial_id}" in note else f"trial {trial_id}: {note}")
        self.view.refresh()

    def on_step_end(self, **info: Any) -> None:
        """Flush the ledger when due: the next evaluation, which flushes too, may be hours away."""
        with self._kept():
            self.ledger.flush_if_due()
        if self.mirror is not None:
            self.mirror.copy_if_due()
        if self.log.early_end is not None:
            self.view.trials_planned = self.log.early_end.trials
        self.view.refresh()

    def on_trial_recover(self, *, trial: Trial, **info: Any) -> None:
        """Tell of a worker that died; Ray starts the trial again, once."""
        trial_id = trial.config["trial_id"]
        self._enter(trial)
        self.view.waiting.add(trial_id)
        self._killed_for_memory(trial)
        self.view.say(
            f"trial {trial_id} lost its worker{self._silence_words(trial_id)}; it starts again from its last checkpoint"
        )

    def on_trial_complete(self, *, trial: Trial, **info: Any) -> None:
        """Close the trial; one that reported no ending was stopped by the scheduler."""
        result = trial.last_result
        status: TrialStatus = "stopped" if result["status"] == "running" else result["status"]
        self._end(trial, status, result)

    def on_trial_error(self, *, trial: Trial, **info: Any) -> None:
        """Close a trial that raised or whose worker died; its retries are used up."""
        self._enter(trial)
        # Not get_error(), for the reason in last_error(). Of several failures each is appended.
        text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
        text = Text.from_ansi(text).plain
        reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "unknown error")
        self.view.log(text.strip())
        last = text.rpartition("Failure #")[2]
        out_of_memory = self._killed_for_memory(trial) or any(sign in last for sign in OUT_OF_MEMORY_SIGNS)
        status: TrialStatus = "out_of_memory" if out_of_memory else "failed"
        evidence = "the system killed its worker: out of memory" if out_of_memory else reason
        evidence += self._silence_words(trial.config["trial_id"])
        self._end(trial, status, {**(trial.last_result or {}), "evidence": evidence})

    def _enter(self, trial: Trial) -> None:
        # A worker, or its node, may die before its trial has begun.
        if trial.config["trial_id"] not in self._heard_at:
            self.on_trial_start(trial=trial)

    def interrupt(self) -> None:
        """Mark the running trials as interrupted."""
        with self._kept():
            self.ledger.interrupt(datetime.now(UTC))

    def _note_oom_kills(self, trial_id: int, *, pid: int | None) -> None:
        counter = self.oom_counter_of(pid)
        self._oom_kills_before[trial_id] = counter, oom_kills(counter) - self._oom_kills_explained[counter]

    def _killed_for_memory(self, trial: Trial) -> bool:
        """Return whether the kernel killed a process since the trial was heard of, not counting explained kills."""
        counter, before = self._oom_kills_before[trial.config["trial_id"]]
        # An exception in the trial's code is another error.
        died = isinstance(last_error(trial), RayActorError)
        killed = died and oom_kills(counter) - self._oom_kills_explained[counter] > before
        self._oom_kills_explained[counter] += killed
        return killed

    def _silence_words(self, trial_id: int) -> str:
        silent_s = time.monotonic() - self._heard_at.get(trial_id, time.monotonic())
        return f" (hung: no evaluation in {silent_s:.0f} s)" if silent_s >= self.evaluation_timeout_s else ""

    @contextmanager
    def _kept(self) -> Iterator[None]:
        # Ray would blame the trial for an error in a callback. The ledger keeps its rows in memory until the end.
        try:
            yield
        except OSError as error:
            self.storage_error = self.storage_error or error

    def _end(self, trial: Trial, status: TrialStatus, result: dict[str, Any]) -> None:
        trial_id: int = trial.config["trial_id"]
        # The log learns it here and not through Ray, for which out of memory and a bug are the same error.
        metrics = result.get("metrics") or {}
        # The row's and not the last result's, which may be a checkpoint: a resumed search knows the row alone.
        val_loss = None if status == "unstable" else self.ledger.trial(trial_id)["val_loss"]
        self.log.end(trial_id, status, val_loss, metrics.get("part_losses", ()))
        if self.log.stopped_at(trial_id) is not None:
            status = "stopped"
        if self.log.ends_early and metrics.get("part_losses"):
            # Before the row, so that every completed trial of a resumed search has them.
            with self._kept():
                write_part_losses(self.view.study, self.log.trials)
        # Before the row that brought the verdicts: if only that were written, a killed study would count as finished.
        self.end_late_stops()
        verdict = result.get("verdict")
        with self._kept():
            self.ledger.end_trial(
                trial_id,
                status=status,
                verdict=Verdict(**verdict) if verdict and status == "unstable" else None,
                ended_at=datetime.now(UTC),
                optimizer_steps=result.get("optimizer_steps"),
                tokens_seen=result.get("tokens_seen"),
                active_s=result.get("active_s"),
                at_rung=self._rung_stopped_at(trial_id),
            )
        self.view.trial_ended(trial_id, note=result.get("evidence", ""))
        # After every ending, or a dozen trials stopped in a row would keep two checkpoints each until one completes.
        self.on_ended(trial_id)

    def end_late_stops(self) -> None:
        """Cut the rows of trials that have ended and are stopped at an earlier rung only now."""
        for trial_id in self.log.take_stops():
            row, at_rung = self.ledger.trial(trial_id), self._rung_stopped_at(trial_id)
            # A running one is cut when Ray has stopped it.
            if at_rung is not None and row["status"] not in ("running", "stopped"):
                with self._kept():
                    self.ledger.end_at_rung(trial_id, at_rung)
                self.view.trial_ended(trial_id, note="")

    def _rung_stopped_at(self, trial_id: int) -> tuple[int, int] | None:
        """Return the rung, and how many evaluations led to it; None for a trial that is not stopped."""
        rung = self.log.stopped_at(trial_id)
        return None if rung is None else (rung, len(self.log[trial_id].losses))


def oom_counter_of(pid: int | None) -> Path:
    """Return the file of the count for a process on this machine, None for this one; without cgroups the machine's."""
    # In a container a group may be named as on the machine, where the container's own is at the root.
    counters = (folder / name for folder in cgroup_folders("memory", pid) for name in OF_A_GROUP)
    return next((path for path in counters if _count(path) is not None), OF_THE_MACHINE)


def oom_kills(counter: Path | None) -> int:
    """Return the count; 0 without a counter."""
    return _count(counter) or 0 if counter else 0


def _count(path: Path) -> int | None:
    lines = text_of(path).splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
