"""The slots of a study, from the machines that were found or measured by CONCURRENCY=auto, and the speed of its shapes.

From that BUDGET_TIME makes steps. It is measured once a study.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

from results.words import duration_words
from search.cluster.connection import Node
from search.options import Options
from search.setup.inputs import Loaded
from search.terminal.console import Preparing
from search.terminal.signals import ending_in_order
from search.tune.resources import Slots, slot_notes, slots_on
from spaces.budget import Speeds
from trainable.config import TrialConfig
from trainable.errors import UserError, count_words

if TYPE_CHECKING:
    from trainable.device.device import DeviceInfo

WORTH_IT = 1.1
"""Tokens per second that more trials at once must gain, as a factor: otherwise one trial that ends sooner is better."""
MEMORY_FRAC = 0.9
MOST = 8
ROUNDS = 3
"""All shapes in turn, so many times: a machine's speed drifts within seconds."""
SHAPE_S = (3.0, 10.0)
"""The least and the most that a shape is measured, in all rounds. Four shapes on two cores of an AMD EPYC: 3 s leave
4 % between the shapes' errors, 10 s leave 2 %."""
SHAPE_SHARE = 1 / 20
"""Of a trial's time, between these two."""


def slots_for(loaded: Loaded, options: Options, largest: TrialConfig, progress: Preparing) -> Slots:
    """Return the slots on the loaded device; CONCURRENCY=auto measures with `largest`."""
    from trainable.device.device import cpu_cores

    info, concurrency, threads = loaded.device_info, options.concurrency, options.threads
    if concurrency == "auto":
        concurrency, threads = _best_concurrency(loaded, largest, cpu_cores(), threads, progress)
    here = Node(name="this machine", cpus=cpu_cores(), gpus=info.count if info.type == "cuda" else 0, is_ours=True)
    slots = slots_on(
        loaded.cluster.nodes if loaded.cluster else [here],
        info.type,
        concurrency=concurrency,
        gpu_frac=options.gpu_fraction,
        threads=threads,
    )
    if loaded.cluster:
        return replace(slots, address=loaded.cluster.address, device=info.type)
    return replace(slots, notes=slot_notes(slots, here.cpus if info.type == "cpu" else None, threads=threads))


@ending_in_order()
def _best_concurrency(
    loaded: Loaded, config: TrialConfig, cores: int, threads: int | None, progress: Preparing
) -> tuple[int, int]:
    """Return how many trials to run at once and the CPU threads of each, by measurements of some ten seconds each.

    threads: of each, where the user asks for so many. On a CPU one single-threaded trial per core is compared with one
    trial on all cores; on CUDA two, four, eight trials share a GPU as long as that pays; MPS runs one.
    """
    from trainable.device.device_memory import memory_bytes
    from trainable.device.speed_probe import Probe, probe

    info, tried = loaded.device_info, list[Probe]()
    # More micro-batches take longer, each as long and as much memory as the second.
    config = replace(config, grad_accum_steps=min(2, config.grad_accum_steps))
    for count, share in _candidates(info, cores, threads):
        if tried and tried[0].peak_memory_bytes * count > MEMORY_FRAC * memory_bytes(info.type):
            break
        progress(f"measuring {count} at a time", 0.0)
        tried.append(probe(loaded.spec, config, count=count, threads=threads or share))
        if info.type == "cuda" and len(tried) > 1 and tried[-1].tokens_per_s < WORTH_IT * tried[-2].tokens_per_s:
            break
    best = tried[0]
    for one in tried[1:]:
        # On a CPU both do about the same work, and the search gains more from many trials.
        needed = WORTH_IT if info.type == "cuda" else 1 / WORTH_IT
        if one.tokens_per_s > needed * best.tokens_per_s:
            best = one
    chosen = best.count * (info.count if info.type == "cuda" else 1)
    measured = ", ".join(f"{one.count} x {count_words(one.threads, 'thread')} {one.tokens_per_s:,.0f}" for one in tried)
    progress(f"CONCURRENCY=auto: {chosen} at a time; tokens/s measured: {measured}", 1.0)
    return chosen, best.threads


def _candidates(info: "DeviceInfo", cores: int, threads: int | None) -> Iterator[tuple[int, int]]:
    yield 1, cores if info.type != "cuda" else max(1, cores // info.count)
    if info.type == "cpu" and cores > (threads or 1):
        yield cores // (threads or 1), 1
    count = 2
    while info.type == "cuda" and count <= MOST:
        yield count, max(1, cores // (count * info.count))
        count *= 2


@ending_in_order()
def measured_speeds(
    loaded: Loaded,
    slots: Slots,
    shapes: Sequence[TrialConfig],
    *,
    known: Speeds | None,
    device_s: float,
    progress: Preparing,
) -> Speeds:
    """Return the speeds of all shapes: the known ones, and the rest measured with all slots busy.

    device_s: a trial's, which decides whether its layers are compiled. Raises UserError if no shape trains.
    """
    from trainable.device.speed_probe import probes

    step_s = {} if known is None else dict(known.step_s)
    # Small ones first: when a large one runs out of memory, the others are known.
    left = sorted((shape for shape in dict.fromkeys(shapes) if shape not in step_s), key=lambda s: s.tokens_per_step)
    count = slots.count_on_device
    least_s, most_s = SHAPE_S
    shape_s = min(max(least_s, SHAPE_SHARE * device_s), most_s)
    takes = f"at least {duration_words(shape_s * len(left))}"
    what = f"BUDGET_TIME: measuring the speed of {count_words(len(left), 'shape')}, {count} at a time, {takes}"
    if left:
        progress(what, 0.0)
    in_turn, found, evaluations_s = left * ROUNDS, defaultdict[TrialConfig, list[float]](list), list[float]()
    seconds = shape_s / ROUNDS
    measured = probes(loaded.spec, in_turn, count=count, threads=slots.threads, seconds=seconds, run_s=device_s)
    for number, (shape, probe) in enumerate(zip(in_turn, measured, strict=True), 1):
        if probe.tokens_per_s:
            found[shape].append(probe.step_s)
            evaluations_s.append(probe.evaluation_s)
        progress(what, number / len(in_turn))
    # The mean: the median of three leaves half as much again between the shapes' errors.
    step_s.update({shape: fmean(times_s) for shape, times_s in found.items()})
    if not step_s:
        raise UserError("BUDGET_TIME: no shape of the space trains here. make preflight says why.")
    # The minimum: the first evaluation of a process takes longer than all that follow.
    evaluation_s = min(evaluations_s) if known is None else known.evaluation_s
    # For the shapes that failed any time will do: their trials run out of memory anyway.
    largest = max(step_s, key=lambda shape: shape.tokens_per_step)
    a_token_s = step_s[largest] / largest.tokens_per_step
    failed = {shape: a_token_s * shape.tokens_per_step for shape in shapes if shape not in step_s}
    return Speeds(step_s={**step_s, **failed}, evaluation_s=evaluation_s)
