"""Ray callbacks that copy a study into TensorBoard's event files and an Optuna storage while it runs."""

from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune import Callback
from ray.tune.experiment import Trial
from tensorboardX import SummaryWriter

from spaces.optuna_domains import distribution_of, point_of
from spaces.space import SearchSpace
from trainable.config import TrialConfig

STEP_SCALARS = ("train_loss", "grad_norm", "learning_rate")
METRIC_SCALARS = ("val_loss", "tokens_per_s")


class TensorBoardMirror(Callback):  # type: ignore[misc]
    """A run per trial below `folder`; every scalar by training tokens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[int, SummaryWriter] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray pickles callbacks for a restore that studies never use."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Write the steps and the evaluation."""
        trial_id: int = trial.config["trial_id"]
        if trial_id not in self._writers:
            self._writers[trial_id] = SummaryWriter(str(self._folder / f"trial_{trial_id:04d}"))
        writer = self._writers[trial_id]
        for row in result["steps"]:
            for name in STEP_SCALARS:
                writer.add_scalar(name, row[name], row["tokens_seen"])
        for name in METRIC_SCALARS:
            if result["metrics"] is not None:
                writer.add_scalar(name, result["metrics"][name], result["metrics"]["tokens_seen"])

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close the trial's file."""
        self._close(trial)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Close the trial's file."""
        self._close(trial)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Close what is left."""
        for trial_id in list(self._writers):
            self._writers.pop(trial_id).close()

    def _close(self, trial: Trial) -> None:
        writer = self._writers.pop(trial.config["trial_id"], None)
        if writer is not None:
            writer.close()


class OptunaMirror(Callback):  # type: ignore[misc]
    """Adds every trial that ended to an Optuna study: completed, pruned (stopped), or failed (any other ending)."""

    def __init__(self, storage: str, study_name: str, space: SearchSpace) -> None:
        self._space = space
        self._losses: dict[int, dict[int, float]] = {}
        self._study = optuna.create_study(
            study_name=study_name, storage=storage, direction="minimize", load_if_exists=True
        )

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray pickles callbacks for a restore that studies never use."""
        return {}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Note an evaluation by its tokens."""
        if result["metrics"] is not None:
            losses = self._losses.setdefault(trial.config["trial_id"], {})
            losses[result["fidelity_tokens"]] = result["objective"]

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Add the trial."""
        self._add(trial, trial.last_result["status"], trial.last_result.get("evidence") or "")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Add the trial as failed."""
        self._add(trial, "failed", "")

    def _add(self, trial: Trial, status: str, evidence: str) -> None:
        trial_id: int = trial.config["trial_id"]
        point = point_of(self._space, TrialConfig(**trial.config["trial"]))
        losses = self._losses.pop(trial_id, {})
        # "running" is what a trial last said that the scheduler then stopped.
        state = {"completed": TrialState.COMPLETE, "running": TrialState.PRUNED}.get(status, TrialState.FAIL)
        ending = "stopped" if status == "running" else status
        domains = {parameter.name: parameter.domain for parameter in self._space.parameters}
        self._study.add_trial(
            optuna.trial.create_trial(
                state=state,
                value=losses[max(losses)] if state == TrialState.COMPLETE else None,
                params=point,
                distributions={name: distribution_of(domains[name]) for name in point},
                intermediate_values=losses,
                user_attrs={"trial_id": trial_id, "ending": ending, "evidence": evidence, **trial.config["trial"]},
            )
        )
