"""The slots of a study: from the machines that were found, or measured by CONCURRENCY=auto."""

from dataclasses import replace

from search.cluster.connection import Node
from search.options import Options
from search.setup.inputs import Loaded
from search.terminal.console import Preparing
from search.tune.concurrency_probe import best_concurrency, concurrency_words
from search.tune.resources import Slots, slots_on
from trainable.config import TrialConfig


def slots_for(loaded: Loaded, options: Options, largest: TrialConfig, progress: Preparing) -> Slots:
    """Return the slots on the loaded device; CONCURRENCY=auto measures with `largest`."""
    from trainable.device.device import cpu_cores
    from trainable.device.device_memory import memory_bytes

    info, concurrency, threads = loaded.device_info, options.concurrency, options.threads
    if concurrency == "auto":
        concurrency, threads, tried = best_concurrency(
            loaded.spec,
            largest,
            device_type=info.type,
            device_count=info.count,
            cores=cpu_cores(),
            threads=threads,
            memory_bytes=memory_bytes(info.type),
            progress=progress,
        )
        progress(concurrency_words(tried, concurrency), 1.0)
    here = Node(name="this machine", cpus=cpu_cores(), gpus=info.count if info.type == "cuda" else 0, is_ours=True)
    slots = slots_on(
        loaded.cluster.nodes if loaded.cluster else [here],
        info.type,
        concurrency=concurrency,
        gpu_frac=options.gpu_fraction,
        threads=threads,
    )
    is_ours_alone = info.type == "cpu" and loaded.cluster is None and threads is None
    return replace(
        slots,
        idle_cores=max(0, here.cpus - slots.count) if is_ours_alone else 0,
        address=loaded.cluster.address if loaded.cluster else None,
        device=info.type if loaded.cluster else None,
        storage=options.storage,
        checkpoint_interval_s=float(options.checkpoint_interval_s),
        evaluation_timeout_s=float(options.evaluation_timeout_s),
    )
