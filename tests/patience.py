"""A wait that ends when what it waits for stops making progress, however slow a busy machine makes it."""

import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import psutil

Found = TypeVar("Found")

STALL_S = 150.0
"""Longer than any pause that a command makes by itself: Ray notices a lost node after 14 s, a cluster starts in 20."""
LOOK_INTERVAL_S = 5.0
WORKING_FRAC = 0.05
"""Of a core. Ray's idle processes together take less; one that trains gets more even beside eight busy loops."""


def wait_until(
    condition: Callable[[], Found], processes: Callable[[], Iterable[psutil.Process]], *, poll_s: float = 0.05
) -> Found:
    """Return what `condition` gives once that is true; fail when `processes` have hardly used a core for STALL_S."""
    looked_at = moved_at = time.monotonic()
    used_s = cpu_s(processes())
    while not (found := condition()):
        time.sleep(poll_s)
        now = time.monotonic()
        if now - looked_at < LOOK_INTERVAL_S:
            continue
        before_s, used_s = used_s, cpu_s(processes())
        # A process that ended takes its seconds with it, which is a sign of life too.
        if abs(used_s - before_s) >= WORKING_FRAC * (now - looked_at):
            moved_at = now
        looked_at = now
        assert now - moved_at < STALL_S, f"nothing has worked for {STALL_S:.0f} s"
    return found


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Return the CPU seconds that processes have used so far."""
    total = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        total += times.user + times.system
    return total


def left_behind(processes: Callable[[], Iterable[psutil.Process]]) -> list[str]:
    """Return the commands of processes that do not end: those that are there after the others, and idle, stay."""
    # An ending process works or waits for one that does; ten looks without a change in their number is an end of that.
    names, same = [" "], 0
    while names and same < 10:
        before, names = names, [_command(process) for process in processes()]
        same = same + 1 if names == before else 0
        time.sleep(1.0 if names else 0.0)
    return names


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:80] or process.name()
    except psutil.Error:
        return "gone"


def with_mark(name: str, value: str) -> list[psutil.Process]:
    """Return every living process that inherited the variable, whoever its parent is now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found
