"""CONCURRENCY=auto: a short probe of the training loop finds how many trials should share the device."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from results.words import count_words
from trainable.config import TrialConfig

if TYPE_CHECKING:
    from trainable.device.speed_probe import Probe
    from trainable.run import RunSpec

WORTH_IT = 1.1
"""Tokens per second that more trials at once must gain, as a factor: otherwise one trial that ends sooner is better."""
MEMORY_FRAC = 0.9
MOST = 8


def best_concurrency(
    spec: "RunSpec",
    config: TrialConfig,
    *,
    device_type: str,
    device_count: int,
    cores: int,
    threads: int | None,
    memory_bytes: int,
    progress: Callable[[str, float], None],
) -> "tuple[int, int, list[Probe]]":
    """Return how many trials to run at once, the CPU threads of each, and the measurements, some ten seconds each.

    config: the largest of the study. threads: of each, where the user asks for so many. On a CPU one single-threaded
    trial per core is compared with one trial on all cores; on CUDA two, four, eight trials share a GPU of memory_bytes
    as long as that pays; MPS runs one.
    """
    from trainable.device.speed_probe import probe

    tried: list[Probe] = []
    for count, share in _candidates(device_type, cores, device_count, threads):
        if tried and tried[0].peak_memory_bytes * count > MEMORY_FRAC * memory_bytes:
            break
        progress(f"measuring {count} at a time", 0.0)
        tried.append(probe(spec, config, count=count, threads=threads or share))
        if device_type == "cuda" and len(tried) > 1 and tried[-1].tokens_per_s < WORTH_IT * tried[-2].tokens_per_s:
            break
    best = tried[0]
    for one in tried[1:]:
        # On a CPU both do about the same work, and the search gains more from many trials.
        needed = WORTH_IT if device_type == "cuda" else 1 / WORTH_IT
        if one.tokens_per_s > needed * best.tokens_per_s:
            best = one
    return best.count * (device_count if device_type == "cuda" else 1), best.threads, tried


def _candidates(device_type: str, cores: int, device_count: int, threads: int | None) -> Iterator[tuple[int, int]]:
    yield 1, cores if device_type != "cuda" else max(1, cores // device_count)
    if device_type == "cpu" and cores > (threads or 1):
        yield cores // (threads or 1), 1
    count = 2
    while device_type == "cuda" and count <= MOST:
        yield count, max(1, cores // (count * device_count))
        count *= 2


def concurrency_words(tried: "list[Probe]", chosen: int) -> str:
    """Return a line on what was measured."""
    measured = ", ".join(f"{one.count} x {count_words(one.threads, 'thread')} {one.tokens_per_s:,.0f}" for one in tried)
    return f"CONCURRENCY=auto: {chosen} at a time; tokens/s measured: {measured}"
