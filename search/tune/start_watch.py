"""StartWatch: prints what the trials wait for when none takes a step."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.tune import Callback
from ray.tune.experiment import Trial

from search.tune.local_ray import worker_death
from search.tune.resources import Slots

PATIENCE_S = 30.0


@dataclass(eq=False)
class StartWatch(Callback):  # type: ignore[misc]
    """Prints after half a minute without a first result what the trials wait for, and again when that changes."""

    slots: Slots
    logs: Path | None
    say: Callable[[str], None]
    _look_at: float = field(default_factory=lambda: time.monotonic() + PATIENCE_S)
    _told: str = ""
    _is_over: bool = False

    def on_trial_result(self, **info: Any) -> None:
        """Stop watching: a trial trains."""
        self._is_over = True

    def on_step_end(self, *, trials: list[Any], **info: Any) -> None:
        """Look every half a minute."""
        now = time.monotonic()
        if self._is_over or now < self._look_at:
            return
        self._look_at = now + PATIENCE_S
        words = self._missing(trials)
        if words != self._told:
            self._told = words
            self.say(words)

    def _missing(self, trials: Sequence[Any]) -> str:
        begun = sum(trial.status == Trial.RUNNING for trial in trials)
        if begun:
            return f"no trial has taken a step: {begun} {'loads its' if begun == 1 else 'load their'} model"
        if self.logs is not None and (death := worker_death(self.logs)):
            return f"no trial has begun: a worker died while starting: {death}"
        # Only a cluster may have other work: our own Ray was started with what the trials ask for.
        if self.slots.address is not None and (lack := lacking(self.slots)):
            return f"no trial has begun: {lack}"
        return "no trial has begun: workers are starting"


def lacking(slots: Slots) -> str:
    """Return which resource of a trial the cluster lacks; empty if none."""
    free, there = ray.available_resources(), ray.cluster_resources()
    for name, needed in (("CPU", slots.threads), ("GPU", slots.gpu_frac)):
        left, all_of_it = free.get(name, 0), there.get(name, 0)
        if left < needed:
            return f"the cluster has {left:g} of {all_of_it:g} {name}s free, and a trial takes {needed:g}"
    return ""
