"""Loops in processes of their own that take turns, a step at a time: what slows the machine slows all of them alike."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Loop = Callable[[Callable[[], None]], None]
"""Trains for ever and calls its argument between two steps. It is pickled: a partial of a module's function."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What the rounds of one loop gave."""

    step_ms: list[float]
    """Of every round: CPU time on a CPU, wall time up to a synchronisation on CUDA."""
    peak_memory_mib: float
    """Of the process on a CPU, of torch's allocator on CUDA; from its start to its end."""


class _Turns:
    """The parent's end of one loop."""

    def __init__(self, loop: Loop, threads: int, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(loop, threads, device, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def steps(self, count: int) -> float:
        """Run so many steps; return the seconds of all. Raises EOFError when the loop died."""
        self._pipe.send(count)
        return float(self._pipe.recv())

    def end(self) -> float:
        """End the loop; return its peak memory, MiB."""
        self._pipe.send(0)
        peak = float(self._pipe.recv())
        self._process.join()
        return peak


def interleaved(
    loops: Mapping[str, Loop], *, rounds: int, warm_up_steps: int, steps: int = 1, threads: int = 1, device: str = "cpu"
) -> dict[str, Measured]:
    """Return what `rounds` of `steps` steps of each loop in turn gave, after its warm-up."""
    turns = {name: _Turns(loop, threads, device) for name, loop in loops.items()}
    for one in turns.values():
        one.steps(warm_up_steps)
    step_ms: dict[str, list[float]] = {name: [] for name in turns}
    names = list(turns)
    for index in range(rounds):
        # Another first one each time: nobody always follows the same neighbour.
        first = index % len(names)
        for name in names[first:] + names[:first]:
            step_ms[name].append(1e3 * turns[name].steps(steps) / steps)
    return {name: Measured(step_ms=step_ms[name], peak_memory_mib=turns[name].end()) for name in names}


def _run(loop: Loop, threads: int, device: str, pipe: Any) -> None:
    torch.set_num_threads(threads)
    left = int(pipe.recv())
    started = now_s(device)

    def pause() -> None:
        nonlocal left, started
        left -= 1
        if left == 0:
            pipe.send(now_s(device) - started)
            left = int(pipe.recv())
            if left == 0:
                pipe.send(_peak_mib(device))
                sys.exit()
            started = now_s(device)

    loop(pause)


def now_s(device: str) -> float:
    """Return this process's CPU time on a CPU, and the time once all is done on CUDA."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def _peak_mib(device: str) -> float:
    if device == "cpu":
        # KiB on Linux, bytes on a Mac.
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform == "darwin" else 10))
    return torch.cuda.max_memory_allocated() / (1 << 20)
