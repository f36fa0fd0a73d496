"""A Ray callback for a cluster: reports lost nodes and has their trials tried again."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import ray
from ray import cloudpickle
from ray.exceptions import ActorUnavailableError, RayActorError
from ray.tune import Callback
from ray.tune.experiment import Trial

from search.terminal.live_view import StudyView

NODES_INTERVAL_S = 5.0
NODE_DEATH_WORDS = "its node has died"


@dataclass(eq=False)
class NodeWatch(Callback):  # type: ignore[misc]
    """Reports lost and new nodes; a trial that lost its node gets another try."""

    view: StudyView
    _alive: dict[str, str] = field(default_factory=dict)
    _looked_at: float = float("-inf")

    def on_step_end(self, **info: Any) -> None:
        """Compare the nodes with those of the last look."""
        if time.monotonic() - self._looked_at < NODES_INTERVAL_S:
            return
        self._looked_at = time.monotonic()
        alive = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        for node_id in self._alive.keys() - alive.keys():
            self.view.say(
                f"node {self._alive[node_id]} ({node_id[:8]}) was lost, {len(alive)} left; its trials go on elsewhere "
                "from their last checkpoints"
            )
        for node_id in alive.keys() - self._alive.keys() if self._alive else ():
            self.view.say(f"node {alive[node_id]} ({node_id[:8]}) has joined the cluster")
        self._alive = alive

    def on_trial_recover(self, *, trial: Trial, **info: Any) -> None:
        """Allow one failure more if the node or the network was at fault, and not the trial's own process."""
        error = last_error(trial)
        # The node reports a worker that dies alone. When the node dies, Ray first finds the worker unavailable.
        if isinstance(error, ActorUnavailableError) or (
            isinstance(error, RayActorError) and (error.preempted or NODE_DEATH_WORDS in str(error))
        ):
            trial.max_failures += 1


def last_error(trial: Trial) -> object:
    """Return what the trial failed with last, None where Ray kept nothing: its text does not name the error's class."""
    # Not get_pickled_error(), which reads the storage's copy: that comes later.
    path = trial.pickled_error_file
    if path is None or not Path(path).exists():
        return None
    with Path(path).open("rb") as file:
        return cast(object, cloudpickle.load(file))
