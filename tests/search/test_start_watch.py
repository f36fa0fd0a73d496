"""What is said of trials that do not begin: by planted states of Ray."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from search.tune.resources import Slots
from search.tune.start_watch import StartWatch

HERE = Slots(count=2, threads=1, gpu_frac=0)
CLUSTER = Slots(count=2, threads=2, gpu_frac=0.5, address="auto")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr("search.tune.start_watch.time.monotonic", lambda: now.s)
    return now


def trials(*states: str) -> list[Any]:
    return [SimpleNamespace(status=state) for state in states]


def test_nothing_is_said_for_half_a_minute_and_a_thing_is_said_once(clock: Any) -> None:
    said = list[str]()
    watch = StartWatch(HERE, None, say=said.append)
    for clock.s in (0.0, 29.0, 30.0, 31.0, 61.0):
        watch.on_step_end(trials=trials("PENDING"))
    assert said == ["no trial has begun: workers are starting"]
    clock.s = 95.0
    watch.on_step_end(trials=trials("RUNNING", "PENDING"))
    assert said[1:] == ["no trial has taken a step: 1 loads its model"]
    watch.on_trial_result(trial=None)
    clock.s = 500.0
    watch.on_step_end(trials=trials("RUNNING", "RUNNING"))
    assert len(said) == 2


def test_what_a_cluster_lacks_is_named(clock: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said, free = list[str](), {"CPU": 0.0, "GPU": 1.0}
    monkeypatch.setattr(ray, "available_resources", lambda: free)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": 1.0})
    watch = StartWatch(CLUSTER, None, say=said.append)
    for clock.s, free["CPU"], free["GPU"] in ((30.0, 0.0, 1.0), (60.0, 2.0, 0.0), (90.0, 2.0, 0.5)):
        watch.on_step_end(trials=trials("PENDING"))
    assert said == [
        "no trial has begun: the cluster has 0 of 8 CPUs free, and a trial takes 2",
        "no trial has begun: the cluster has 0 of 1 GPUs free, and a trial takes 0.5",
        "no trial has begun: workers are starting",
    ]


def test_a_worker_that_died_is_quoted(clock: Any, tmp_path: Path) -> None:
    logs = tmp_path / "session_2025-11-29" / "logs"
    logs.mkdir(parents=True)
    (logs / "worker-1.err").write_text("Traceback (most recent call last):\nOSError: libcudnn.so not found\n")
    said = list[str]()
    watch = StartWatch(HERE, tmp_path, say=said.append)
    clock.s = 40.0
    watch.on_step_end(trials=trials("PENDING"))
    assert said == ["no trial has begun: a worker died while starting: OSError: libcudnn.so not found"]
