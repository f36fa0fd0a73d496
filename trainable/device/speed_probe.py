"""How fast so many runs go side by side on one device: a few seconds of the real loop, each in a process of its own."""

import math
import multiprocessing
import time
from dataclasses import dataclass, replace
from typing import Any

import torch

from trainable.config import TrialConfig
from trainable.device.device_memory import CONTEXT_BYTES, prepare_memory
from trainable.loop import train
from trainable.rows import StepRow
from trainable.run import RunSpec, start_run

WARM_UP_STEPS = 2
PROBE_S = 4.0
TIMEOUT_S = 300.0


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What so many runs at once did."""

    count: int
    threads: int
    """CPU threads of each."""
    tokens_per_s: float
    """Of all together; 0 when one of them did not get through."""
    peak_memory_bytes: int
    """Of a CUDA device, by the process that took most, its context and what it reserved included; 0 elsewhere."""


def probe(spec: RunSpec, config: TrialConfig, *, count: int, threads: int, seconds: float = PROBE_S) -> Probe:
    """Return the speed of `count` runs of `config` side by side, over `seconds` after their warm-up."""
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(count), context.SimpleQueue()
    processes = [
        context.Process(target=_run, args=(spec, config, threads, seconds, barrier, results), daemon=True)
        for _ in range(count)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + TIMEOUT_S
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    measured = []
    while not results.empty():
        measured.append(results.get())
    through = len(measured) == count
    return Probe(
        count=count,
        threads=threads,
        tokens_per_s=sum(rate for rate, _ in measured) if through else 0.0,
        peak_memory_bytes=max((peak for _, peak in measured), default=0),
    )


def _run(spec: RunSpec, config: TrialConfig, threads: int, seconds: float, barrier: Any, results: Any) -> None:
    torch.set_num_threads(threads)
    prepare_memory(torch.device(spec.device))
    # The longest there is, so that it does not end before the probe does; compiling alone would outlast all probes.
    eager = replace(spec, compile_mode="off")
    state = start_run(eager, replace(config, training_steps=10**9, warmup_steps=0))
    steps = (row for row in train(state, spec.corpus, spec.protocol, eval_steps=()) if isinstance(row, StepRow))
    for _ in range(WARM_UP_STEPS):
        next(steps)
    try:
        barrier.wait(TIMEOUT_S)
        started, tokens = time.perf_counter(), 0
        while time.perf_counter() - started < seconds:
            next(steps)
            tokens += config.tokens_per_step
        elapsed_s = time.perf_counter() - started
    except BaseException:
        barrier.abort()  # nobody waits for one that ran out of memory
        raise
    # What the allocator has reserved is not there for others, used or not, nor is the context.
    peak = torch.cuda.max_memory_reserved() + CONTEXT_BYTES if state.device.type == "cuda" else 0
    results.put((tokens / elapsed_s if elapsed_s else math.nan, peak))
