"""The wait of tests on commands: patient while something works, and over when nothing does."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests import patience
from tests.patience import wait_until, with_mark

Child = Callable[[str], list[psutil.Process]]


@pytest.fixture
def child() -> Iterator[Child]:
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str) -> list[psutil.Process]:
        started.append(subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "OWN_MARK": "7"}))
        return [psutil.Process(started[-1].pid)]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "STALL_S", 0.6)
    monkeypatch.setattr(patience, "LOOK_INTERVAL_S", 0.2)


@pytest.mark.usefixtures("quick")
def test_it_waits_as_long_as_somebody_works(child: Child) -> None:
    started, workers = time.monotonic(), child("while True: pass")
    assert wait_until(lambda: time.monotonic() - started > 2.0, lambda: workers)


@pytest.mark.usefixtures("quick")
def test_it_fails_when_nobody_works(child: Child) -> None:
    sleepers = child("import time; time.sleep(60)")
    with pytest.raises(AssertionError, match="nothing has worked"):
        wait_until(lambda: False, lambda: sleepers)


def test_a_family_is_known_by_its_mark(child: Child) -> None:
    processes = child("import time; time.sleep(60)")
    assert wait_until(lambda: with_mark("OWN_MARK", "7"), lambda: processes) == processes
    assert with_mark("OWN_MARK", "8") == []
