"""How many trials a cluster runs at the same time, worked out from its nodes. It asks no cluster."""

from collections.abc import Sequence
from dataclasses import dataclass

from search.cluster.nodes import Node


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many trials a cluster runs at the same time, and what each gets."""

    count: int
    threads: int
    gpu_frac: float


def cluster_share(nodes: Sequence[Node], device_type: str, *, concurrency: int | None, gpu_frac: float) -> Share:
    """Return the slots of a cluster; none spans two nodes, and there are never more than fit at once."""
    if device_type == "cuda":
        nodes = [node for node in nodes if node.gpus]
        if concurrency is not None:
            # As many on a GPU as it takes.
            gpu_frac = min(gpu_frac, 1 / -(-concurrency // sum(node.gpus for node in nodes)))
        places = [int(node.gpus / gpu_frac + 1e-9) for node in nodes]
        threads = max(1, min(node.cpus // count for node, count in zip(nodes, places, strict=True)))
        fit = sum(min(count, node.cpus // threads) for node, count in zip(nodes, places, strict=True))
        return Share(count=min(concurrency or fit, fit), threads=threads, gpu_frac=gpu_frac)
    if device_type == "mps":
        return Share(count=min(concurrency or len(nodes), len(nodes)), threads=min(n.cpus for n in nodes), gpu_frac=0)
    threads = 1
    if concurrency is not None:
        largest = max(node.cpus for node in nodes)
        threads = next(t for t in range(largest, 0, -1) if t == 1 or _fit(nodes, t) >= concurrency)
    return Share(count=min(concurrency or _fit(nodes, threads), _fit(nodes, threads)), threads=threads, gpu_frac=0)


def _fit(nodes: Sequence[Node], threads: int) -> int:
    return sum(node.cpus // threads for node in nodes)
