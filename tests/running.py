"""A command under way in a process of its own: what it prints, which processes are its own, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from tests.patience import left_behind, wait_until, with_mark

ROOT = Path(__file__).parents[1]
MARK = "SEARCH_TEST_MARK"
Found = TypeVar("Found")


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """What it printed: first on stdout, then on stderr."""
        return self.stdout + self.stderr

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout; json refuses anything beside it."""
        document: dict[str, Any] = json.loads(self.stdout)
        return document


@dataclass
class Running:
    """A command that runs, its output in files so that no full pipe can hold it up."""

    process: "subprocess.Popen[bytes]"
    stdout: Path
    stderr: Path
    mark: str = field(repr=False)

    def family(self) -> list[psutil.Process]:
        """Every process that inherited the command's environment, itself included."""
        return with_mark(MARK, self.mark)

    def workers(self) -> list[psutil.Process]:
        """Return the processes that train."""
        return [process for process in self.family() if "Trainable" in " ".join(_words(process))]

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.so_far().output

    def so_far(self) -> Ran:
        """Return what it has printed, and its exit code where it has one."""
        texts = (path.read_text(encoding="utf-8", errors="surrogateescape") for path in (self.stdout, self.stderr))
        code = self.process.poll()
        return Ran(-1 if code is None else code, *texts)

    def wait_for(self, condition: Callable[[], Found]) -> Found:
        """Return what `condition` gives once that is true; fail when the command ends before, or works no more."""

        def holds() -> Found:
            found = condition()
            assert found or self.process.poll() is None, self.output
            return found

        return wait_until(holds, self.family)

    def ended(self, code: int | None = None) -> Ran:
        """Wait for the end and return it; its exit code must be `code` when that is given."""
        wait_until(lambda: self.process.poll() is not None, self.family)
        ran = self.so_far()
        assert code is None or ran.code == code, (ran.code, ran.output)
        return ran

    def ends_within(self, seconds: float) -> bool:
        """Return whether the command ends in that time."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def signal(self, number: int) -> None:
        """Send a signal to the driver alone."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """End the driver at once."""
        self.process.kill()
        self.process.wait()

    def orphans(self) -> list[str]:
        """Return which processes of the command are still there once those that end have ended."""
        assert self.process.poll() is not None
        return left_behind(self.family)


def start(
    words: list[str],
    environment: Mapping[str, str],
    *,
    cwd: Path = ROOT,
    folder: Path | None = None,
    preexec_fn: Callable[[], None] | None = None,
) -> Running:
    """Start a command; `folder` takes its output, by default a temporary one.

    A MARK in `environment` is one that other processes have too, for which the command waits.
    """
    folder = folder or Path(tempfile.mkdtemp(prefix="output-"))
    mark = environment.get(MARK) or uuid.uuid4().hex
    with (folder / "stdout").open("wb") as stdout, (folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            words,
            cwd=cwd,
            env={**environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            preexec_fn=preexec_fn,
        )
    return Running(process, folder / "stdout", folder / "stderr", mark)


def search(*words: str) -> list[str]:
    """Return the words of a shell that call this project's command."""
    return [sys.executable, "-m", "search", *words]


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def kill_family(running: Running) -> None:
    """End what is left of a command that a test did not wait for."""
    if running.process.poll() is None:
        os.killpg(running.process.pid, signal.SIGKILL)
        running.process.wait()
