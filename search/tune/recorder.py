"""StudyRecorder: writes what Ray reports into the study's ledger and tells the view. It decides nothing."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.text import Text

from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from search.terminal.live_view import StudyView
from search.tune.early_end import write_part_losses
from search.tune.oom_kills import OomCounter
from search.tune.trial_log import TrialLog
from trainable.checkpoint.checkpoint_store import CheckpointStore
from trainable.rows import MetricsRow, StepRow, TrialStatus, Verdict

WORKER_DIED = ("ActorDiedError", "ActorUnavailableError", "RayActorError", "WorkerCrashedError")
"""How Ray tells that a process ended; what its code raised is told otherwise, whatever was killed meanwhile."""
OUT_OF_MEMORY_SIGNS = ("ray.exceptions.OutOfMemoryError", "CUDA out of memory")
"""Ray's memory monitor, and a device's allocator where it kills the worker."""


class StudyRecorder(Callback):  # type: ignore[misc]
    """The only writer of a running study's tables."""

    def __init__(
        self,
        ledger: Ledger,
        log: TrialLog,
        view: StudyView,
        *,
        planned_run: Callable[[Mapping[str, Any]], PlannedRun],
        checkpoints_of: Callable[[int], CheckpointStore],
        on_ended: Callable[[int], None],
        evaluation_timeout_s: float,
        oom_counter_of: Callable[[int | None], OomCounter],
    ) -> None:
        self._ledger = ledger
        self._log = log
        self._view = view
        self._planned_run = planned_run
        self._checkpoints_of = checkpoints_of
        self._on_ended = on_ended
        self._evaluation_timeout_s = evaluation_timeout_s
        self._oom_counter_of = oom_counter_of
        self._oom_kills_before: dict[int, tuple[OomCounter, int]] = {}
        """By trial: where its worker's death would be counted, and the count when it was last heard of."""
        self._oom_kills_explained: Counter[OomCounter] = Counter()
        """Each kill explains one death of a worker, not several."""
        self._heard_at: dict[int, float] = {}
        self.storage_error: OSError | None = None
        """Why the study could not be written; the engine leaves when there is one."""
        self.input_fault: str | None = None
        """Which input is gone or another; the engine leaves, and no trial counts as failed for it."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray pickles callbacks for a restore that studies never use, and a live screen has locks."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Enter the trial; one that is started again keeps its row. Its process has yet to look for its checkpoints."""
        trial_id: int = trial.config["trial_id"]
        self._heard_at[trial_id] = time.monotonic()
        self._view.trial_waits(trial_id, waits=False)
        if trial_id not in self._oom_kills_before:
            self._note_oom_kills(trial_id, pid=None)
        with self._kept():
            self._ledger.start_trial(self._planned_run(trial.config), started_at=datetime.now(UTC))
            self._checkpoints_of(trial_id).forget_after(self._ledger.known_steps(trial_id))
        self._view.refresh()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Enter an evaluation and the steps before it; a trial that ended by itself is closed at once."""
        trial_id: int = trial.config["trial_id"]
        self._heard_at[trial_id] = time.monotonic()
        self._note_oom_kills(trial_id, pid=result.get("pid"))
        self.end_late_stops()
        self.input_fault = self.input_fault or result["input_fault"]
        with self._kept():
            self._ledger.add_steps(trial_id, [StepRow(**row) for row in result["steps"]])
            if result["metrics"] is not None:
                row = MetricsRow(**result["metrics"])
                self._ledger.add_metrics(trial_id, row, self._log.rung_of(result["fidelity_tokens"]))
            if result["saved"]:
                # What led to a checkpoint must be on disk before the next one: else neither could be gone on from.
                self._ledger.flush()
        for note in (*result["notes"], *self._ledger.take_notes()):
            self._view.say(note if f"trial {trial_id}" in note else f"trial {trial_id}: {note}")
        self._view.refresh()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Write what the ledger holds back: the next evaluation, with which it would write it, may be hours away."""
        with self._kept():
            self._ledger.flush_if_due()
        if self._log.early_end is not None:
            self._view.trials_planned = self._log.early_end.trials
        self._view.refresh()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Tell of a worker that died; Ray starts the trial again, once."""
        trial_id = trial.config["trial_id"]
        self._enter(iteration, trials, trial)
        self._view.trial_waits(trial_id, waits=True)
        self._killed_for_memory(trial_id, _error_text(trial))
        self._view.say(
            f"trial {trial_id} lost its worker{self._silence_words(trial_id)}; it starts again from its last checkpoint"
        )

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close the trial: it says how it ended, or else the scheduler stopped it."""
        result = trial.last_result
        status: TrialStatus = "stopped" if result["status"] == "running" else result["status"]
        self._end(trial, status, result)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close a trial that raised or whose worker died; its retries are used up."""
        self._enter(iteration, trials, trial)
        text = _error_text(trial)
        reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "unknown error")
        self._view.log(text.strip())
        killed = self._killed_for_memory(trial.config["trial_id"], text)
        out_of_memory = killed or any(sign in text for sign in OUT_OF_MEMORY_SIGNS)
        status: TrialStatus = "out_of_memory" if out_of_memory else "failed"
        evidence = "the system killed its worker: out of memory" if out_of_memory else reason
        evidence += self._silence_words(trial.config["trial_id"])
        self._end(trial, status, {**(trial.last_result or {}), "evidence": evidence})

    def _enter(self, iteration: int, trials: list[Trial], trial: Trial) -> None:
        # A worker, or its node, may die before its trial has begun.
        if trial.config["trial_id"] not in self._heard_at:
            self.on_trial_start(iteration, trials, trial)

    def interrupt(self) -> None:
        """Note that what runs now was cut off."""
        with self._kept():
            self._ledger.interrupt(datetime.now(UTC))

    def _note_oom_kills(self, trial_id: int, *, pid: int | None) -> None:
        counter = self._oom_counter_of(pid)
        self._oom_kills_before[trial_id] = counter, counter.kills() - self._oom_kills_explained[counter]

    def _killed_for_memory(self, trial_id: int, error_text: str) -> bool:
        """Return whether a kill that no other worker's death explains came since the trial was heard of."""
        counter, before = self._oom_kills_before[trial_id]
        died = any(sign in error_text for sign in WORKER_DIED)
        killed = died and counter.kills() - self._oom_kills_explained[counter] > before
        self._oom_kills_explained[counter] += killed
        return killed

    def _silence_words(self, trial_id: int) -> str:
        silent_s = time.monotonic() - self._heard_at.get(trial_id, time.monotonic())
        return f" (hung: no evaluation in {silent_s:.0f} s)" if silent_s >= self._evaluation_timeout_s else ""

    @contextmanager
    def _kept(self) -> Iterator[None]:
        # Ray would take an error in here for the trial's. The ledger still holds it all, so the study ends in order.
        try:
            yield
        except OSError as error:
            self.storage_error = self.storage_error or error

    def _end(self, trial: Trial, status: TrialStatus, result: dict[str, Any]) -> None:
        trial_id: int = trial.config["trial_id"]
        # The log is told here and not by Ray, which does not tell a worker that ran out of memory from a bug.
        metrics = result.get("metrics") or {}
        self._log.end(trial_id, status, metrics.get("val_loss"), metrics.get("part_losses", ()))
        if self._log.stopped_at(trial_id) is not None:
            status = "stopped"
        if self._log.ends_early and metrics.get("part_losses"):
            # Before the row: a resumed search must find them with every trial that has completed.
            with self._kept():
                write_part_losses(self._view.study, self._log.trials)
        # Before the row that brought the verdicts: were that written alone, a study killed here would count as over.
        self.end_late_stops()
        verdict = result.get("verdict")
        with self._kept():
            self._ledger.end_trial(
                trial_id,
                status=status,
                verdict=Verdict(**verdict) if verdict and status == "unstable" else None,
                ended_at=datetime.now(UTC),
                optimizer_steps=result.get("optimizer_steps"),
                tokens_seen=result.get("tokens_seen"),
                active_s=result.get("active_s"),
            )
            self._end_at_rung(trial_id)
        self._view.trial_ended(trial_id, note=result.get("evidence", ""))
        # However it ended: of a dozen stopped in a row each would keep two checkpoints until one completes.
        self._on_ended(trial_id)

    def end_late_stops(self) -> None:
        """End the rows of trials that are over, at the rungs at which they are found to be stopped only now."""
        for trial_id in self._log.take_stops():
            row = self._ledger.trial(trial_id)
            # One that runs is ended when Ray has stopped it.
            if row["status"] not in ("running", "stopped"):
                with self._kept():
                    self._end_at_rung(trial_id)
                self._view.trial_ended(trial_id, note="")

    def _end_at_rung(self, trial_id: int) -> None:
        rung = self._log.stopped_at(trial_id)
        if rung is not None:
            self._ledger.end_at_rung(trial_id, rung=rung, evaluations=len(self._log[trial_id].losses))


def _error_text(trial: Trial) -> str:
    # trial.get_error() reads the storage's copy, which comes later.
    text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
    return Text.from_ansi(text).plain
