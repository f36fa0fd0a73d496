"""How fast several runs are side by side on one device: seconds of the real loop, each in a process of its own."""

import math
import multiprocessing
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from statistics import fmean
from typing import Any

import torch

from trainable.config import TrialConfig
from trainable.device.compiling import may_compile
from trainable.device.device_memory import CONTEXT_BYTES, is_out_of_memory, prepare_memory, release_memory
from trainable.device.own_process import unheard
from trainable.evaluation import eval_windows, evaluate
from trainable.loop import train
from trainable.rows import StepRow
from trainable.run import RunSpec, start_run

WARM_UP_STEPS = 2
LEAST_STEPS = 3
PROBE_S = 4.0
TIMEOUT_S = 300.0
ENDLESS_STEPS = 10**9


@dataclass(frozen=True, kw_only=True)
class Probe:
    """The speed of one run, or of several at once; the defaults are of those of which one failed."""

    count: int
    threads: int
    """CPU threads of each."""
    tokens_per_s: float = 0.0
    """Of all together."""
    step_s: float = math.inf
    """Of a step, the mean over the runs."""
    evaluation_s: float = math.inf
    peak_memory_bytes: int = 0
    """Of a CUDA device, by the process that took most, its context and what it reserved included; 0 elsewhere."""


def probe(spec: RunSpec, config: TrialConfig, *, count: int, threads: int, seconds: float = PROBE_S) -> Probe:
    """Return the speed of `count` runs of `config` side by side, over `seconds` after their warm-up."""
    (one,) = probes(spec, [config], count=count, threads=threads, seconds=seconds)
    return one


def probes(
    spec: RunSpec,
    configs: Sequence[TrialConfig],
    *,
    count: int,
    threads: int,
    seconds: float,
    run_s: float | None = None,
) -> Iterator[Probe]:
    """Yield the speed of `count` runs side by side for each configuration, over `seconds` after their warm-up.

    run_s: how long a whole run is, for it to be compiled where that saves time; None never compiles, as compiling alone
    takes longer than a probe.
    """
    if not configs:
        return
    context = multiprocessing.get_context("spawn")
    barrier, readers, processes = context.Barrier(count), [], []
    try:
        for _ in range(count):
            reader, writer = context.Pipe(duplex=False)
            work = (spec, configs, threads, seconds, run_s, barrier, writer)
            process = context.Process(target=_run, args=work, daemon=True)
            # Who waits for them hears Ctrl-C, and they import torch before any line of ours.
            with unheard(signal.SIGINT):
                process.start()
            writer.close()
            readers.append(reader)
            processes.append(process)
        for _ in configs:
            measured = [_received(reader, barrier) for reader in readers]
            whole = [one for one in measured if one is not None]
            together = Probe(count=count, threads=threads)
            if len(whole) == count:
                together = replace(
                    together,
                    tokens_per_s=sum(one.tokens_per_s for one in whole),
                    step_s=fmean(one.step_s for one in whole),
                    evaluation_s=fmean(one.evaluation_s for one in whole),
                    peak_memory_bytes=max(one.peak_memory_bytes for one in whole),
                )
            yield together
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(reader: Connection, barrier: Any) -> Probe | None:
    """Return what a process sends next; None when it ran out of memory, ended or hangs."""
    try:
        if reader.poll(TIMEOUT_S):
            measured: Probe | None = reader.recv()
            return measured
    except EOFError:
        pass
    barrier.abort()  # nobody waits for one that is gone
    return None


def _run(
    spec: RunSpec,
    configs: Sequence[TrialConfig],
    threads: int,
    seconds: float,
    run_s: float | None,
    barrier: Any,
    results: Connection,
) -> None:
    torch.set_num_threads(threads)
    device = torch.device(spec.device)
    prepare_memory(device)
    for config in configs:
        measured = _measured(replace(spec, compile_mode="off"), config, seconds, barrier, training_steps=ENDLESS_STEPS)
        if run_s is not None and may_compile(spec.compile_mode, device.type):
            # As a trial of that length decides it, for its steps are the eager ones or fewer.
            steps = int(run_s / measured.step_s) if measured is not None else 0
            steps = max(steps, WARM_UP_STEPS + LEAST_STEPS)
            measured = _measured(spec, config, seconds, barrier, training_steps=steps)
        results.send(measured)
        release_memory(device)


def _measured(spec: RunSpec, config: TrialConfig, seconds: float, barrier: Any, *, training_steps: int) -> Probe | None:
    """Return the speed of a run, None where it runs out of memory; either way it waits for those beside it."""
    has_waited = False
    try:
        state = start_run(spec, replace(config, training_steps=training_steps, warmup_steps=0))
        rows = train(state, spec.corpus, spec.protocol, eval_steps=(), stop_on=(), evaluate_first=False)
        steps = (row for row in rows if isinstance(row, StepRow))
        for _ in range(WARM_UP_STEPS):
            next(steps)
        barrier.wait(TIMEOUT_S)
        has_waited = True
        started, elapsed_s, times_s = time.perf_counter(), 0.0, list[float]()
        while elapsed_s < seconds or len(times_s) < LEAST_STEPS:
            row = next(steps, None)
            if row is None:
                break
            times_s.append(row.step_time_s)
            elapsed_s = time.perf_counter() - started
        started = time.perf_counter()
        evaluate(state.model, eval_windows(spec.corpus.val, spec.protocol))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if not has_waited:
            barrier.wait(TIMEOUT_S)
        return None
    return Probe(
        count=1,
        threads=torch.get_num_threads(),
        tokens_per_s=len(times_s) * config.tokens_per_step / elapsed_s,
        # The mean: a run takes the sum of its steps, the slow ones included.
        step_s=fmean(times_s),
        evaluation_s=time.perf_counter() - started,
        # What the allocator has reserved is not there for others, used or not, nor is the context.
        peak_memory_bytes=torch.cuda.max_memory_reserved() + CONTEXT_BYTES if state.device.type == "cuda" else 0,
    )
