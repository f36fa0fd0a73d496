"""Ray callbacks that copy a study into TensorBoard's event files and an Optuna storage while it runs.

GuardedTracker: when a tracker fails, the study goes on without it.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partialmethod
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState, create_trial
from ray.tune import Callback
from ray.tune.experiment import Trial
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import scalar

from results.ranking import ranked_trials
from results.study.ledger import Ledger
from results.study.planned_run import Row
from spaces.optuna_domains import distribution_of, point_of
from spaces.space import SearchSpace
from trainable.config import config_from
from trainable.errors import full_reason
from trainable.rows import ENDINGS

STEP_SCALARS = ("train_loss", "grad_norm", "learning_rate")
METRIC_SCALARS = ("val_loss", "tokens_per_s")
HOOKS = [name for name in vars(Callback) if name == "setup" or name.startswith("on_")]


class TensorBoardMirror(Callback):  # type: ignore[misc]
    """A run per trial below `folder`; every scalar by training tokens."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[int, EventsWriter] = {}

    def on_trial_result(self, *, trial: Trial, result: dict[str, Any], **info: Any) -> None:
        """Write the steps and the evaluation."""
        trial_id: int = trial.config["trial_id"]
        if trial_id not in self._writers:
            folder = self._folder / f"trial_{trial_id:04d}"
            folder.mkdir(parents=True, exist_ok=True)
            # Not a SummaryWriter: the thread it writes from dies silently on a full disk, and later writes block.
            self._writers[trial_id] = EventsWriter(str(folder / "events"))
        for names, rows in ((STEP_SCALARS, result["steps"]), (METRIC_SCALARS, [result["metrics"] or {}])):
            for row in rows:
                # TensorBoard draws no NaN, and tensorboardX prints a line for each.
                for name in [name for name in names if math.isfinite(row.get(name, math.nan))]:
                    event = Event(wall_time=time.time(), step=row["tokens_seen"], summary=scalar(name, row[name]))
                    self._writers[trial_id].write_event(event)
        self._writers[trial_id].flush()

    def on_trial_complete(self, *, trial: Trial, **info: Any) -> None:
        """Close the trial's file."""
        writer = self._writers.pop(trial.config["trial_id"], None)
        if writer is not None:
            writer.close()

    on_trial_error = on_trial_complete


class OptunaMirror(Callback):  # type: ignore[misc]
    """Copies the search's trials into an Optuna study under their own numbers, those of earlier runs too.

    Optuna numbers trials in the order they are added, so each is added after the one numbered before it. completed is
    COMPLETE, stopped PRUNED, everything else FAIL.
    """

    def __init__(self, storage_url: str, ledger: Ledger, study_name: str, space: SearchSpace) -> None:
        self._ledger = ledger
        self._space = space
        self._storage = optuna.storages.get_storage(storage_url)
        optuna.create_study(study_name=study_name, storage=self._storage, direction="minimize", load_if_exists=True)
        self._study_id = self._storage.get_study_id_from_name(study_name)
        self._unfinished: dict[int, FrozenTrial] = {}
        """By number, the trials that have not ended in Optuna, as last written there."""
        self._added = 0
        self._copy()

    def on_trial_start(self, *, trial: Trial, **info: Any) -> None:
        """Bring the storage up to date."""
        self._copy()

    on_trial_result = on_trial_complete = on_trial_error = on_trial_start

    def _copy(self) -> None:
        rows = {row["trial_id"]: row for row in self._ledger.trials()}
        searched = {row["trial_id"] for row in ranked_trials(list(rows.values()))}
        there = self._storage.get_n_trials(self._study_id)
        while self._added in rows:
            number, self._added = self._added, self._added + 1
            if number >= there:
                self._storage.create_new_trial(self._study_id, self._template(rows[number], number in searched))
            optuna_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
            self._unfinished[number] = self._storage.get_trial(optuna_id)
        losses: dict[int, dict[int, float]] = {number: {} for number in self._unfinished}
        for one in self._ledger.metrics():
            if one["trial_id"] in losses and one["val_loss"] is not None:
                losses[one["trial_id"]][one["tokens_seen"]] = one["val_loss"]
        under_way = [number for number in searched if rows[number]["status"] not in ENDINGS]
        for number, trial in list(self._unfinished.items()):
            # Optuna's final states cannot be changed, and a trial may still be stopped while an earlier one runs.
            ended = rows[number]["status"] == "stopped" or number < min(under_way, default=number + 1)
            if not trial.state.is_finished():
                self._update(trial, rows[number], losses[number], ended=ended)
            if trial.state.is_finished() or ended:
                del self._unfinished[number]

    def _update(self, trial: FrozenTrial, row: Row, losses: dict[int, float], *, ended: bool) -> None:
        optuna_id = self._storage.get_trial_id_from_study_id_trial_number(self._study_id, trial.number)
        for tokens, loss in losses.items():
            if trial.intermediate_values.get(tokens) != loss:
                self._storage.set_trial_intermediate_value(optuna_id, tokens, loss)
                trial.intermediate_values[tokens] = loss
        if ended:
            for name in ("status", "verdict"):
                self._storage.set_trial_user_attr(optuna_id, name, row[name])
            completed = row["status"] == "completed" and row["val_loss"] is not None
            pruned = TrialState.PRUNED if row["status"] == "stopped" else TrialState.FAIL
            state, values = (TrialState.COMPLETE, [row["val_loss"]]) if completed else (pruned, None)
            self._storage.set_trial_state_values(optuna_id, state, values)

    def _template(self, row: Row, is_searched: bool) -> FrozenTrial:
        """Return the trial as it starts; a failed one in place of a run that is not the search's."""
        if not is_searched:
            return create_trial(state=TrialState.FAIL)
        config = config_from(row)
        point = point_of(self._space, config)
        domains = {parameter.name: parameter.domain for parameter in self._space.parameters}
        return create_trial(
            state=TrialState.RUNNING,
            params=point,
            distributions={name: distribution_of(domains[name]) for name in point},
            user_attrs={name: row[name] for name in ("trial_id", *asdict(config))},
        )


class GuardedTracker(Callback):  # type: ignore[misc]
    """Passes every hook to the callback that `make` returns, until one raises, which is printed once."""

    def __init__(self, name: str, make: Callable[[], Callback], say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._callback: Callback | None = None
        with self._guarded():
            self._callback = make()

    def _pass_on(self, hook: str, *args: Any, **info: Any) -> None:
        if self._callback is not None:
            with self._guarded():
                getattr(self._callback, hook)(*args, **info)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        # Ray would fail the trial for an error in a callback, and it is only the tracker's server or disk.
        except Exception as error:
            self._callback = None
            self._say(f"{self._name} failed ({full_reason(error)}); the study goes on without it")


for _hook in HOOKS:
    setattr(GuardedTracker, _hook, partialmethod(GuardedTracker._pass_on, _hook))
