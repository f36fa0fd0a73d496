"""Faults of one trial's process: killed, raising, out of memory, hung, stopped. Does the study go on, and say so?

`python tests/faults/kill_worker.py`; about 5 minutes. The kernel's own out-of-memory killer needs root and cgroups.
"""

import json
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from results.study.folder import Study
from search.tune.optuna_searcher import FIRST_RUNG_LAG, startup_trials
from spaces.overrides import space_of_document
from tests.faults.common import STEADY, Place, differences, report
from tests.running import Running
from trainable.rows import ENDINGS

CGROUPS = (("memory/gpt2-search-faults", "memory.limit_in_bytes"), ("gpt2-search-faults", "memory.max"))
"""Of the old kind and of the new one, below /sys/fs/cgroup."""
Fault = dict[str, Any]


def start(
    place: Place, name: str, faults: list[Fault], *, environment: Mapping[str, str] | None = None, **variables: Any
) -> Running:
    """Start a study whose trials' processes do what `faults` say."""
    return place.start("run", name, environment={**injecting(place, name, faults), **(environment or {})}, **variables)


def injecting(place: Place, name: str, faults: list[Fault]) -> dict[str, str]:
    """Return what the environment must hold for the trials' processes to do what `faults` say."""
    folder = place.path / f"inject-{name}"
    folder.mkdir()
    shutil.copy(Path(__file__).with_name("inject.py"), folder / "sitecustomize.py")
    (folder / "faults.json").write_text(json.dumps(faults))
    return {"PYTHONPATH": str(folder)}


def fault(trial_id: int, do: str, *, step: int = 30, times: int = 1) -> Fault:
    """Return a fault that strikes so many times."""
    return {"trial_id": trial_id, "step": step, "do": do, "times": times}


def missing(study: Study, *words: str) -> list[str]:
    """Return which of the words the study did not say."""
    log = study.log_path.read_text()
    return [f"{study.name}: not said: {one}" for one in words if one not in log]


def struck_once(place: Place) -> list[str]:
    """Each trial is given a second chance, and the answer is that of a study left alone."""
    # One that is stopped at its first rung does not get so far.
    last = max(row["trial_id"] for row in place.study("alone").trials() if row["optimizer_steps"] > 30)
    start(place, "killed", [fault(0, "die"), fault(last, "die while saving", step=20)]).ended(code=0)
    start(place, "hung", [fault(0, "raise"), fault(last, "hang")], EVALUATION_TIMEOUT_S=8).ended(code=0)
    killed, hung = place.study("killed"), place.study("hung")
    lost = [f"killed: {one}" for one in differences(place.study("alone"), killed)]
    lost += [f"hung: {one}" for one in differences(place.study("alone"), hung)]
    again = "it starts again from its last checkpoint"
    lost += missing(killed, f"trial 0 lost its worker; {again}", f"trial {last} lost its worker; {again}")
    return lost + missing(hung, f"trial {last} lost its worker (hung: no evaluation in ")


def struck_twice(place: Place) -> list[str]:
    """A trial that fails again has failed; the others do not notice."""
    faults = [fault(1, "ask for a petabyte"), fault(2, "raise", times=2), fault(3, "hang", times=2)]
    start(place, "failing", faults, EVALUATION_TIMEOUT_S=8).ended(code=0)
    study = place.study("failing")
    rows = study.trials()
    lost = missing(study, "trial 2 failed at ", "ValueError: injected: the batch has no labels", "trial 3 failed at ")
    lost += missing(study, "(hung: no evaluation in ", "trial 1 out of memory at ", "does not fit in cpu memory")
    statuses = [row["status"] for row in rows]
    if statuses[1:4] != ["out_of_memory", "failed", "failed"] or "completed" not in statuses[4:]:
        lost.append(f"failing: {statuses}")
    return lost + too_large_again(study, 1)


def too_large_again(study: Study, trial_id: int) -> list[str]:
    """Return which trials are as large as one that ran out of memory, of those proposed when its end is known."""
    rows = study.trials()
    lag = min(FIRST_RUNG_LAG, startup_trials(space_of_document(study.document())[0]))
    size = rows[trial_id]["batch_size"]
    return [
        f"{study.name}: trial {row['trial_id']} at batch {row['batch_size']} after {size} ran out of memory"
        for row in rows[trial_id + lag :]
        if row["batch_size"] >= size and row["block_size"] >= rows[trial_id]["block_size"]
    ]


@contextmanager
def memory_cgroup() -> Iterator[Path | None]:
    """Make a cgroup whose processes may hold 3 GiB; None where that is not allowed."""
    for name, limit in CGROUPS:
        group = Path("/sys/fs/cgroup") / name
        try:
            group.mkdir(exist_ok=True)
            (group / limit).write_text(str(3 << 30))
        except OSError:
            continue
        yield group
        with suppress(OSError):
            group.rmdir()
        return
    yield None


def killed_for_memory(place: Place) -> list[str]:
    """A worker that the system kills for want of memory: the kernel, in a cgroup as in a container, or Ray's."""
    with memory_cgroup() as cgroup:
        environment = {} if cgroup else {"RAY_memory_usage_threshold": "0.5"}
        running = start(place, "memory", [fault(1, "grow", times=2)], environment=environment)
        if cgroup is not None:
            (cgroup / "cgroup.procs").write_text(str(running.process.pid))
        running.ended(code=0)
    study = place.study("memory")
    statuses = [row["status"] for row in study.trials()]
    lost = [] if statuses[1] == "out_of_memory" and set(statuses) <= set(ENDINGS) else [f"memory: {statuses}"]
    lost += missing(study, "trial 1 out of memory at ", "the system killed its worker: out of memory")
    return lost + too_large_again(study, 1)


def stopped_by_a_signal(place: Place) -> list[str]:
    """A stopped worker waits to be continued; after a long while it starts again; Ctrl-C ends it as any other."""
    lost = []
    running = start(place, "stopped", [], EVALUATION_TIMEOUT_S=8)
    study = place.study("stopped")
    [worker] = running.wait_for(lambda: running.workers() if study.metrics() else [])
    for stopped_s in (2, 14):
        time.sleep(2)
        worker.send_signal(signal.SIGSTOP)
        time.sleep(stopped_s)
        worker.send_signal(signal.SIGCONT)
    running.ended(code=0)
    lost += [f"stopped: {one}" for one in differences(place.study("steady"), study)]
    lost += missing(study, "lost its worker (hung: no evaluation in ")
    running = start(place, "stopped-for-good", [])
    [worker] = running.wait_for(lambda: running.workers() if place.study("stopped-for-good").metrics() else [])
    worker.send_signal(signal.SIGSTOP)
    time.sleep(1)
    running.signal(signal.SIGINT)
    if (code := running.ended().code) != 130:
        lost.append(f"stopped for good: exit code {code}")
    return lost + [f"stopped for good: left behind {one}" for one in running.orphans()]


def main() -> None:
    """Do them all."""
    place, steady = Place(), Place(space=STEADY)
    place.left_alone()
    lost = struck_once(place)
    steady.left_alone("steady")
    for strike in (struck_twice, killed_for_memory, stopped_by_a_signal):
        lost += strike(steady)
    report("faults of a worker", tried=11, lost=lost)


if __name__ == "__main__":
    main()
