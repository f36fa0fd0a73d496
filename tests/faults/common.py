"""A small study that is broken on purpose, and the question whether its answer is that of one left alone."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil

from results.study import Study

ROOT = Path(__file__).parents[2]
SPACE = """
description = "Some seconds a trial: completed, stopped and unstable ones"
trials = 6
[baseline]
from = "documented"
batch_size = 8
block_size = 64
learning_rate = 3e-4
[budget]
tokens = 60_000
[evaluation]
tokens = 256
count = 12
[search]
batch_size = { choice = [4, 8] }
learning_rate = { log_uniform = [1e-5, 30.0] }
"""
CLOCKS = {"active_s", "tokens_per_s", "started_at", "ended_at"}
RAYS = ("raylet", "gcs_server", "ray::", "default_worker.py", "log_monitor.py")


class Place:
    """A temporary folder with the space, the studies and a cache that all runs share."""

    def __init__(self, folder: str | None = None, space: str = SPACE) -> None:
        self.path = Path(folder or tempfile.mkdtemp(prefix="faults-"))
        self.path.mkdir(parents=True, exist_ok=True)
        self.space = self.path / "small.toml"
        self.space.write_text(space)
        self.studies = self.path / "studies"

    def study(self, name: str) -> Study:
        """Return the study of that name."""
        return Study(self.studies / name)

    def start(self, command: str, name: str, **variables: Any) -> "Running":
        """Start run, resume or another command on a study, on one slot."""
        words = {"STUDY": name, "CONCURRENCY": 1, "CHECKPOINT_INTERVAL_S": 1, **variables}
        if command == "run":
            words = {"SPACE": self.space, "SKIP_PREFLIGHT": 1, **words}
        return Running(command, {"STUDIES_DIR": self.studies, "CACHE_DIR": self.path / "cache", **words})

    def left_alone(self, name: str = "alone") -> Study:
        """Return the study as it ends when nothing happens to it."""
        self.start("run", name).ended(code=0)
        return self.study(name)


class Running:
    """A command under way."""

    def __init__(self, command: str, variables: Mapping[str, Any]) -> None:
        self.started_at = time.time()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "search", command, *(f"{name}={value}" for name, value in variables.items())],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""

    def ended(self, code: int | None = None, timeout_s: float = 600) -> int:
        """Wait for the end; return the exit code, which must be `code` when that is given."""
        if not self.output:
            self.output = self.process.communicate(timeout=timeout_s)[0]
        assert code is None or self.process.returncode == code, (self.process.returncode, self.output)
        return self.process.returncode

    def ends_within(self, seconds: float) -> bool:
        """Return whether the command ends in that time."""
        try:
            self.ended(timeout_s=seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_for(self, condition: Callable[[], Any], timeout_s: float = 120) -> Any:
        """Return what `condition` gives once that is true."""
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline, "it did not come to it"
            time.sleep(0.02)
        return found

    def signal(self, number: int) -> None:
        """Send a signal to the driver alone."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End the driver at once."""
        self.signal(signal.SIGKILL)
        self.ended()

    def workers(self) -> list[psutil.Process]:
        """Return the processes that train."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if "SearchTrial" in " ".join(_command(child))]

    def orphans(self, within_s: float = 20) -> list[str]:
        """Return which of Ray's processes of this command are still there after so many seconds."""
        deadline = time.monotonic() + within_s
        while True:
            left = [
                " ".join(_command(process))[:80]
                for process in psutil.process_iter(["create_time"])
                if process.info["create_time"] >= self.started_at - 1
                and any(name in " ".join(_command(process)) for name in RAYS)
            ]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.2)


def _command(process: psutil.Process) -> list[str]:
    try:
        words: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return words


def says(study: Study, words: str) -> bool:
    """Return whether the study's log holds the words."""
    return study.log_path.exists() and words in study.log_path.read_text()


def has_begun(study: Study, trials: int) -> bool:
    """Return whether so many trials have begun."""
    return len(study.trials()) >= trials


def differences(expected: Study, found: Study) -> list[str]:
    """Return in what the two studies' answers differ: every trial, every evaluation, all but the clocks."""
    told = []
    pairs = (("trial", expected.trials(), found.trials()), ("evaluation", expected.metrics(), found.metrics()))
    for what, wanted, got in pairs:
        if len(wanted) != len(got):
            told.append(f"{len(got)} {what}s instead of {len(wanted)}")
        for one, other in zip(wanted, got, strict=False):
            told += [
                f"{what} {one['trial_id']}: {name} {other[name]} instead of {one[name]}"
                for name in one
                if name not in CLOCKS and one[name] != other[name]
            ]
    return told


def strays(place: Place) -> list[str]:
    """Return the files of the place that no study, cache or table accounts for."""
    hidden = [path for path in place.studies.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    known = (".lock", ".previous", ".json")
    return [str(path) for path in hidden if not path.name.endswith(known)] + [
        str(path) for path in place.studies.glob("*/ray")
    ]


def report(what: str, *, tried: int, lost: list[str]) -> None:
    """Print the count and end with exit code 1 when something was lost."""
    print(f"{what}: tried {tried}, survived {tried - len(lost)}, lost {len(lost)}", flush=True)
    for line in lost:
        print(f"  {line}")
    if lost:
        sys.exit(1)
