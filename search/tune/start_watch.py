"""StartWatch: says what is missing when no trial takes a step. It changes nothing."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

from search.tune.local_ray import worker_death
from search.tune.resources import Slots

PATIENCE_S = 30.0


class StartWatch(Callback):  # type: ignore[misc]
    """Tells, after half a minute without a first result, what the trials wait for; again when that changes."""

    def __init__(self, slots: Slots, logs: Path | None, *, say: Callable[[str], None]) -> None:
        self._slots = slots
        self._logs = logs
        self._say = say
        self._look_at = time.monotonic() + PATIENCE_S
        self._told = ""
        self._is_over = False

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray pickles callbacks for a restore that studies never use."""
        return {}

    def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
        """Stop watching: a trial trains."""
        self._is_over = True

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Look every half a minute."""
        now = time.monotonic()
        if self._is_over or now < self._look_at:
            return
        self._look_at = now + PATIENCE_S
        words = self._missing(trials)
        if words != self._told:
            self._told = words
            self._say(words)

    def _missing(self, trials: Sequence[Any]) -> str:
        begun = sum(trial.status == Trial.RUNNING for trial in trials)
        if begun:
            return f"no trial has taken a step: {begun} {'loads its' if begun == 1 else 'load their'} model"
        if self._logs is not None and (death := worker_death(self._logs)):
            return f"no trial has begun: a worker died while starting: {death}"
        # A cluster may have other work; Ray on this machine was given as much as the trials ask for.
        if self._slots.address is not None and (lack := lacking(self._slots)):
            return f"no trial has begun: {lack}"
        return "no trial has begun: workers are starting"


def lacking(slots: Slots) -> str:
    """Return which resource of one trial the cluster has not free; empty where all are."""
    free, there = ray.available_resources(), ray.cluster_resources()
    for name, needed in (("CPU", slots.threads), ("GPU", slots.gpu_frac)):
        left, all_of_it = free.get(name, 0), there.get(name, 0)
        if left < needed:
            return f"the cluster has {left:g} of {all_of_it:g} {name}s free, and a trial takes {needed:g}"
    return ""
