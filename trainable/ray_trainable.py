"""SearchTrial: one trial of a study as a Ray Tune class Trainable. The only file of this package that knows Ray."""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from ray import tune

from trainable.checkpoint import read_checkpoint, save_checkpoint
from trainable.checkpoint_path import checkpoint_name
from trainable.config import TrialConfig
from trainable.device import is_out_of_memory, keep_freed_pages, release_memory
from trainable.loop import TrainRow, train
from trainable.rows import MetricsRow, StepRow, TrialStatus, Verdict
from trainable.run import RunSpec, resume_run, start_run
from trainable.stability import STOP_KINDS
from trainable.state import TrainState

PENALTY_NATS = 1e3
"""The objective of a trial that has no loss to show. Finite, for ASHA and Optuna both mishandle NaN and inf."""


class SearchTrial(tune.Trainable):  # type: ignore[misc]
    """Trains to the next evaluation at every step(); actors are reused between trials.

    Config keys: "spec" (RunSpec), "trial" and "baseline" (hyperparameters), "trial_id" (int), "milestones_tokens"
    (evaluate at each), "checkpoint_root" (a folder below it is the trial's own), "checkpoint_interval_s", "threads".
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial's config; the first step() builds the model, where running out of memory can be told apart."""
        torch.set_num_threads(config["threads"])
        keep_freed_pages()
        self._spec: RunSpec = config["spec"]
        self._config = TrialConfig(**config["trial"])
        self._milestones_tokens: tuple[int, ...] = config["milestones_tokens"]
        self._checkpoint_dir = Path(config["checkpoint_root"]) / str(config["trial_id"])
        self._checkpoint_interval_s: float = config["checkpoint_interval_s"]
        # Without the baseline's loss at the full budget there is nothing to compare with; only a loss that is no number
        # ends it.
        is_baseline = replace(self._config, seed=0) == replace(TrialConfig(**config["baseline"]), seed=0)
        self._stop_on = ("nonfinite",) if is_baseline else STOP_KINDS
        self._state: TrainState | None = None
        self._rows: Iterator[TrainRow] | None = None
        self._saved_at_active_s = 0.0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process."""
        self._drop()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the next evaluation, or how the trial ended, always with a finite "objective"."""
        try:
            return self._next_result()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            shape = f"batch_size={self._config.batch_size} x block_size={self._config.block_size}"
            return self._result(
                "out_of_memory", steps=[], evidence=f"{shape} does not fit in {self._spec.device} memory"
            )

    def cleanup(self) -> None:
        """Free the device."""
        self._drop()

    def _next_result(self) -> dict[str, Any]:
        if self._rows is None:
            self._state = self._begin()
            tokens_per_step = self._config.tokens_per_step
            eval_steps = {tokens // tokens_per_step for tokens in self._milestones_tokens} - {0}
            self._rows = train(
                self._state, self._spec.corpus, self._spec.protocol, eval_steps=eval_steps, stop_on=self._stop_on
            )
        assert self._state is not None
        steps: list[StepRow] = []
        for row in self._rows:
            if isinstance(row, StepRow):
                steps.append(row)
            elif isinstance(row, Verdict):
                return self._result("unstable", steps=steps, evidence=row.evidence, verdict=row)
            elif isinstance(row, MetricsRow):
                finished = self._state.optimizer_steps >= self._config.training_steps
                self._maybe_save(finished=finished)
                return self._result("completed" if finished else "running", steps=steps, metrics=row)
        raise AssertionError("a run ends with its last evaluation or a verdict")

    def _begin(self) -> TrainState:
        # A worker that died is started again with the same config: the trial's own folder says where it was.
        # One that died between its last checkpoint and its last result has nothing to go on with and runs anew.
        end = checkpoint_name(self._config.training_steps)
        saved = sorted(path for path in self._checkpoint_dir.glob("step_*.pt") if path.name < end)
        if saved:
            state = resume_run(self._spec, self._config, read_checkpoint(saved[-1]), may_be_over=True)
            self._saved_at_active_s = state.active_s
            return state
        return start_run(self._spec, self._config)

    def _maybe_save(self, *, finished: bool) -> None:
        state = self._state
        assert state is not None
        if not finished and state.active_s - self._saved_at_active_s < self._checkpoint_interval_s:
            return
        older = list(self._checkpoint_dir.glob("step_*.pt"))
        path = self._checkpoint_dir / checkpoint_name(state.optimizer_steps)
        save_checkpoint(state, path, model_name=self._spec.model_name, corpus_fingerprint=self._spec.corpus.fingerprint)
        self._saved_at_active_s = state.active_s
        for stale in older:
            if stale != path:
                stale.unlink(missing_ok=True)

    def _result(
        self,
        status: TrialStatus,
        *,
        steps: list[StepRow],
        metrics: MetricsRow | None = None,
        verdict: Verdict | None = None,
        evidence: str = "",
    ) -> dict[str, Any]:
        state = self._state
        optimizer_steps = state.optimizer_steps if state else 0
        tokens_seen = state.tokens_seen if state else 0
        reached = [t for t in self._milestones_tokens if t // self._config.tokens_per_step <= optimizer_steps]
        val_loss = metrics.val_loss if metrics else math.inf
        return {
            "status": status,
            "done": status != "running",
            "objective": val_loss if math.isfinite(val_loss) else PENALTY_NATS,
            "fidelity_tokens": max(reached, default=0) if optimizer_steps else 0,
            "metrics": asdict(metrics) if metrics else None,
            "steps": [asdict(row) for row in steps],
            "verdict": asdict(verdict) if verdict else None,
            "evidence": evidence,
            "optimizer_steps": optimizer_steps,
            "tokens_seen": tokens_seen,
            "active_s": state.active_s if state else 0.0,
        }

    def _drop(self) -> None:
        self._rows = None
        if self._state is not None:
            device = self._state.device
            self._state = None
            release_memory(device)
