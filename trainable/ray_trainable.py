"""SearchTrial: one trial of a study as a Ray Tune class Trainable. The only file of this package that knows Ray."""

import faulthandler
import gc
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import ray.actor
import torch
from pydantic import SecretStr
from ray import tune

from trainable.checkpoint.checkpoint_store import BackgroundSaver, CheckpointStore
from trainable.config import TrialConfig, without_seed
from trainable.data.node_cache import SharedInputs
from trainable.device.device_memory import has_grown, is_out_of_memory, prepare_memory, release_memory
from trainable.errors import InputChangedError, reason
from trainable.loop import TrainRow, train
from trainable.rows import MetricsRow, StepRow, TrialStatus, Verdict, fidelity_tokens, objective
from trainable.run import RunSpec, resume_run, start_run
from trainable.stability import STOP_KINDS
from trainable.state import TrainState

STEPS_TO_KNOW_THEIR_TIME = 3
INPUT_FAULT_PAUSE_S = 0.5
HUNG_TIMES_EXPECTED = 10
"""A trial is not hung before so many times what its first steps promise for the way to the next evaluation."""


@cache
def _freeze_libraries() -> None:
    """Have the collection between two trials not walk all that the libraries brought, a quarter of a second long."""
    gc.freeze()


class SearchTrial(tune.Trainable):  # type: ignore[misc]
    """Trains to the next evaluation at every step(); actors are reused between trials.

    Config keys: "spec" (RunSpec), "shared_inputs" (where a node gets what it lacks of it, or None), "trial" and
    "baseline" (hyperparameters), "trial_id" (int), "milestones" ((tokens of the study's budget, step to evaluate after)
    pairs), "checkpoint_root" (a folder or URI; a folder below it is the trial's own; a SecretStr, for trackers keep a
    trial's config), "checkpoint_interval_s", "leave_path" (a file whose appearance asks to save once, between two
    steps, for the study is left; or None), "evaluation_timeout_s" (without an evaluation for so long it is hung),
    "threads", "memory_frac" (its share of a GPU's memory), "refusal" (why the trial ends as out of memory without being
    run).
    """

    def setup(self, config: dict[str, Any]) -> None:
        """Take a trial's config; the first step() builds the model, where running out of memory can be told apart."""
        torch.set_num_threads(config["threads"])
        self._device = torch.device(config["spec"].device)
        prepare_memory(self._device, share_frac=config["memory_frac"])
        _freeze_libraries()
        self._spec: RunSpec = config["spec"]
        self._shared_inputs: SharedInputs | None = config["shared_inputs"]
        self._config = TrialConfig(**config["trial"])
        self._refusal: str | None = config.get("refusal")
        self._milestones: tuple[tuple[int, int], ...] = config["milestones"]
        root: SecretStr = config["checkpoint_root"]
        self._store = CheckpointStore(root=root.get_secret_value(), trial_id=config["trial_id"])
        self._saver = BackgroundSaver(self._store)
        self._evaluation_timeout_s: float = config["evaluation_timeout_s"]
        self._notes: list[str] = []
        self._checkpoint_interval_s: float = config["checkpoint_interval_s"]
        self._leave_path: Path | None = config["leave_path"]
        self._left = False
        self._eval_steps: set[int] = set()
        # Without the baseline's loss at the full budget there is nothing to compare with; only a non-finite loss
        # ends it.
        is_baseline = without_seed(self._config) == without_seed(TrialConfig(**config["baseline"]))
        self._stop_on = ("nonfinite",) if is_baseline else STOP_KINDS
        self._state: TrainState | None = None
        self._rows: Iterator[TrainRow] | None = None
        self._saved_at_active_s = 0.0

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Begin another trial in this process."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Return the next evaluation, or how the trial ended, always with a finite "objective".

        A checkpoint between two evaluations is returned too, for the steps that led to it: "metrics" is None and
        "objective" that of the evaluation before. "input_fault" is a text and a remedy when the study's inputs are no
        longer what they were: the study is to be left, and the trial has neither failed nor trained.

        A hung one ends its process, all threads' stacks on stderr: it is then started again from its last checkpoint.
        """
        if self._rows is None and has_grown(self._device):
            # Tune starts the trial again in a new process. Refused in reset_config() it would fail for good.
            ray.actor.exit_actor()
        faulthandler.dump_traceback_later(self._evaluation_timeout_s, exit=True)
        try:
            return self._next_result()
        except InputChangedError as error:
            # Until the study is left Tune asks again at once.
            time.sleep(INPUT_FAULT_PAUSE_S)
            self._left = True
            return self._result("running", steps=[], input_fault=(str(error), error.remedy))
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            shape = f"batch_size={self._config.batch_size} x block_size={self._config.block_size}"
            out = self._result(
                "out_of_memory", steps=[], evidence=f"{shape} does not fit in {self._spec.device} memory"
            )
        finally:
            faulthandler.cancel_dump_traceback_later()
        # Only now: the error's traceback held what was in the frames, and nobody knows when the next trial comes.
        self.cleanup()
        return out

    def _next_result(self) -> dict[str, Any]:
        if self._refusal is not None:
            return self._result("out_of_memory", steps=[], evidence=self._refusal)
        if self._rows is None:
            self._state = self._begin()
            eval_steps = {step for _, step in self._milestones} - {0}
            self._eval_steps = eval_steps | {self._config.training_steps}
            self._rows = train(
                self._state,
                self._spec.corpus,
                self._spec.protocol,
                eval_steps=eval_steps,
                stop_on=self._stop_on,
                evaluate_first=not self._state.since_evaluation.losses,
                start=self._spec.known_start(self._config),
            )
        assert self._state is not None
        steps: list[StepRow] = []
        for row in self._rows:
            if isinstance(row, StepRow):
                steps.append(row)
                if len(steps) == STEPS_TO_KNOW_THEIR_TIME:
                    self._allow_time_for(steps)
                if row.optimizer_steps not in self._eval_steps and self._maybe_save(finished=False):
                    return self._result("running", steps=steps, saved=True)
            elif isinstance(row, Verdict):
                return self._result("unstable", steps=steps, evidence=row.evidence, verdict=row)
            elif isinstance(row, MetricsRow):
                finished = self._state.optimizer_steps >= self._config.training_steps
                saved = self._maybe_save(finished=finished)
                return self._result("completed" if finished else "running", steps=steps, metrics=row, saved=saved)
        raise AssertionError("a run ends with its last evaluation or a verdict")

    def _allow_time_for(self, steps: list[StepRow]) -> None:
        """Give a slow machine more time, now that a step's is known."""
        done = steps[-1].optimizer_steps
        steps_left = next((step for _, step in self._milestones if step > done), done) - done
        expected_s = steps_left * sum(step.step_time_s for step in steps) / len(steps)
        timeout_s = max(self._evaluation_timeout_s, HUNG_TIMES_EXPECTED * expected_s)
        faulthandler.dump_traceback_later(timeout_s, exit=True)

    def _begin(self) -> TrainState:
        # A trial that was cut off is started again with the same config: its own checkpoints say where it was.
        if self._shared_inputs is not None:
            self._spec = self._shared_inputs.localized(self._spec)
        saved, damaged = self._store.newest()
        self._notes += damaged
        if saved is None:
            state = start_run(self._spec, self._config)
        else:
            state = resume_run(self._spec, self._config, saved, may_be_over=True)
            self._saved_at_active_s = state.active_s
        if state.compile_note:
            self._notes.append(state.compile_note)
        return state

    def _maybe_save(self, *, finished: bool) -> bool:
        """Begin to save where it is due, or do it where the study is left; return whether it was."""
        state = self._state
        assert state is not None
        leaving = not self._left and self._leave_path is not None and self._leave_path.exists()
        self._left = self._left or leaving
        if state.optimizer_steps == 0:
            return False  # there is nothing yet that could not be made again at once
        due = finished or leaving or state.active_s - self._saved_at_active_s >= self._checkpoint_interval_s
        if due:
            fingerprint = self._spec.corpus.fingerprint
            self._wait_for_save()
            self._saver.save(state, model_name=self._spec.model_name, corpus_fingerprint=fingerprint)
            self._saved_at_active_s = state.active_s
        if finished or leaving:
            self._wait_for_save()
        return due

    def _wait_for_save(self) -> None:
        # A full disk, or memory, costs the checkpoint, not the trial: what is trained is still right.
        try:
            self._saver.wait()
        except Exception as error:
            if not isinstance(error, OSError) and not is_out_of_memory(error):
                raise
            self._notes.append(f"no checkpoint was saved: {reason(error) if str(error) else 'out of memory'}")

    def _result(
        self,
        status: TrialStatus,
        *,
        steps: list[StepRow],
        metrics: MetricsRow | None = None,
        verdict: Verdict | None = None,
        evidence: str = "",
        saved: bool = False,
        input_fault: tuple[str, str] | None = None,
    ) -> dict[str, Any]:
        state, notes, self._notes = self._state, self._notes, []
        optimizer_steps = state.optimizer_steps if state else 0
        tokens_seen = state.tokens_seen if state else 0
        val_loss = metrics.val_loss if metrics else None
        if metrics is None and status == "running" and state is not None:
            val_loss = state.since_evaluation.val_loss
        return {
            "status": status,
            "done": status != "running",
            "objective": objective(val_loss),
            "fidelity_tokens": fidelity_tokens(self._milestones, optimizer_steps=optimizer_steps),
            "metrics": asdict(metrics) if metrics else None,
            "steps": [asdict(row) for row in steps],
            "verdict": asdict(verdict) if verdict else None,
            "evidence": evidence,
            "saved": saved,
            "left": self._left,
            "input_fault": input_fault,
            "notes": notes,
            "optimizer_steps": optimizer_steps,
            "tokens_seen": tokens_seen,
            "active_s": state.active_s if state else 0.0,
        }

    def cleanup(self) -> None:
        """Free the device."""
        self._rows = None
        self._wait_for_save()
        self._state = None
        # Also where it ran out of memory before there was a state.
        release_memory(self._device)
