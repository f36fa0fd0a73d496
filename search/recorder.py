"""StudyRecorder: writes what Ray reports into the study's ledger and tells the view. It decides nothing."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich.text import Text

from results.ledger import Ledger
from search.scheduler import TokenASHA
from search.view import StudyView
from trainable.config import TrialConfig
from trainable.rows import MetricsRow, StepRow, TrialStatus, Verdict


class StudyRecorder(Callback):  # type: ignore[misc]
    """The only writer of a running study's tables."""

    def __init__(
        self, ledger: Ledger, scheduler: TokenASHA, view: StudyView, *, on_completed: Callable[[int], None]
    ) -> None:
        self._ledger = ledger
        self._scheduler = scheduler
        self._view = view
        self._on_completed = on_completed

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray pickles callbacks for a restore that studies never use, and a live screen has locks."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Enter the trial; one that is started again keeps its row."""
        trial_id: int = trial.config["trial_id"]
        config = TrialConfig(**trial.config["trial"])
        self._ledger.start_trial(trial_id, is_baseline=trial_id == 0, config=config, started_at=datetime.now(UTC))
        self._view.refresh()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Enter an evaluation and the steps before it; a trial that ended by itself is closed at once."""
        trial_id: int = trial.config["trial_id"]
        self._ledger.add_steps(trial_id, [StepRow(**row) for row in result["steps"]])
        if result["metrics"] is not None:
            row = MetricsRow(**result["metrics"])
            self._ledger.add_metrics(trial_id, row, self._scheduler.rung_of(result["fidelity_tokens"]))
        self._view.refresh()

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Write what the ledger holds back: the next evaluation, with which it would write it, may be hours away."""
        self._ledger.flush_if_due()
        self._view.refresh()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close the trial: it says how it ended, or else the scheduler stopped it."""
        result = trial.last_result
        status: TrialStatus = "stopped" if result["status"] == "running" else result["status"]
        self._end(trial, status, result)
        if status == "completed":
            self._on_completed(trial.config["trial_id"])

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close a trial that raised; its retries are used up."""
        # trial.get_error() reads the storage's copy, which comes later.
        text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
        text = Text.from_ansi(text).plain
        reason = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "unknown error")
        self._view.log(text.strip())
        self._end(trial, "failed", {**(trial.last_result or {}), "evidence": reason})

    def _end(self, trial: Trial, status: TrialStatus, result: dict[str, Any]) -> None:
        verdict = result.get("verdict")
        self._ledger.end_trial(
            trial.config["trial_id"],
            status=status,
            verdict=Verdict(**verdict) if verdict and status == "unstable" else None,
            ended_at=datetime.now(UTC),
            optimizer_steps=result.get("optimizer_steps"),
            tokens_seen=result.get("tokens_seen"),
            active_s=result.get("active_s"),
        )
        self._view.trial_ended(trial.config["trial_id"], note=result.get("evidence", ""))
