"""Slots: how many trials run at the same time, and what each gets, from the machines' CPUs and GPUs. No Ray."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from search.cluster.connection import Node
from search.options import MOST_A_DEVICE
from trainable.errors import UserError, count_words

MPS = "mps"
"""Our name of a Ray resource for a Mac's GPU, which Ray does not know."""
SHARES_A_GPU = 10_000
"""Ray rounds a share to 1/10,000 of a GPU: six shares of 0.1667 do not fit on one."""


@dataclass(frozen=True, kw_only=True)
class Slots:
    """How many trials run at the same time, and what each gets."""

    count: int
    threads: int
    """CPU threads of one trial."""
    gpu_frac: float
    """Share of a GPU of one trial; 0 on a CPU and on MPS."""
    address: str | None = None
    """Of an existing Ray cluster; None starts one on this machine."""
    device: str | None = None
    """The device of a cluster's workers; None for the RunSpec's."""
    on_mps: bool = False
    notes: Sequence[str] = ()
    """slot_notes()."""

    @property
    def count_on_device(self) -> int:
        """How many trials share this machine's device; 1 with a cluster, whose nodes do the work."""
        a_gpu = int(1 / self.gpu_frac + 1e-9) if self.gpu_frac else self.count
        return min(self.count, a_gpu) if self.address is None else 1

    @property
    def memory_frac(self) -> float:
        """The share of a GPU's memory that a trial's process may take."""
        if self.on_mps:
            return 1 / self.count_on_device
        return self.gpu_frac or 1.0

    @property
    def a_trial(self) -> dict[str, float]:
        """A trial's Ray resources; one CPU on this machine, because Ray starts a worker ahead for each CPU."""
        if self.address is not None:
            return {"cpu": float(self.threads), "gpu": self.gpu_frac}
        return {"cpu": 1.0, "gpu": self.gpu_frac, **({MPS: 1.0} if self.on_mps else {})}

    @property
    def of_the_machine(self) -> dict[str, float]:
        """The machine's Ray resources besides CPUs and GPUs."""
        return {MPS: float(self.count)} if self.on_mps else {}


def slot_notes(slots: Slots, cores: int | None, *, threads: int | None) -> list[str]:
    """Return lines for the user.

    cores: this machine's, where it alone trains and on its CPU; threads: those of a trial that the user asks for.
    """
    if slots.on_mps and slots.count_on_device > 1:
        return [
            f"CONCURRENCY={slots.count}: the trials take turns on the Mac's one GPU and share its memory. "
            "Unset it for one at a time."
        ]
    if cores is None:
        return []
    idle_cores = cores - slots.count * slots.threads
    # One thread each is what CONCURRENCY asks for by name.
    if threads is not None and threads > 1 and idle_cores < 0:
        return [f"THREADS={threads} on {count_words(cores, 'core')}: the threads wait for each other."]
    if threads is not None or idle_cores < slots.count:
        return []
    more = slots.threads + idle_cores // slots.count
    return [
        f"{idle_cores} of {cores} cores stay idle. THREADS={more} gives each trial {more} threads, with which losses "
        "differ in their last digits."
    ]


def check_concurrency(concurrency: int | str | None, devices: int, kind: str = "CPU core") -> None:
    """Raise UserError for more trials at a time than MOST_A_DEVICE on each of the devices."""
    if isinstance(concurrency, int) and concurrency > MOST_A_DEVICE * devices:
        most = f"at most {MOST_A_DEVICE} trials share a {kind}, {MOST_A_DEVICE * devices} in all here"
        raise UserError(f"CONCURRENCY={concurrency}: {most}. Lower it, or unset it for one each.")


def slots_on(
    nodes: Sequence[Node], device_type: str, *, concurrency: int | None, gpu_frac: float, threads: int | None = None
) -> Slots:
    """Return the slots of machines: one single-threaded trial per core, one (or 1/gpu_frac) per GPU, one on MPS.

    concurrency asks for another number, among which GPUs are shared, and CPU threads where a GPU trains. threads asks
    for another number of a trial. No trial spans two machines or two GPUs, and there are never more slots than fit at
    once. Raises UserError where none does, and for more than MOST_A_DEVICE.
    """
    if device_type == "cuda":
        nodes = [node for node in nodes if node.gpus]
    devices = [{"cuda": node.gpus, "mps": 1}.get(device_type, node.cpus) for node in nodes]
    each = 1 if concurrency is None else math.ceil(concurrency / sum(devices))
    check_concurrency(concurrency, sum(devices), "CPU core" if device_type == "cpu" else "GPU")
    if device_type == "cuda":
        # Rounded down, because Ray would round up.
        gpu_frac = math.floor(min(gpu_frac, 1 / each) * SHARES_A_GPU + 1e-6) / SHARES_A_GPU
        each = int(1 / gpu_frac + 1e-9)
    places = [each * count for count in devices]
    if threads is None:
        # A sum of another number of threads has other last digits: on a CPU one seed gives one answer on any slots.
        threads = 1 if device_type == "cpu" else _threads(nodes, places, concurrency)
    # Our own Ray is started with as many CPUs as the trials ask for.
    takes_all = device_type != "cpu" or concurrency is not None
    fit = sum(
        room if node.is_ours and takes_all else min(room, max(int(node.is_ours), node.cpus // threads))
        for node, room in zip(nodes, places, strict=True)
    )
    if not fit:
        most = max(node.cpus for node in nodes)
        raise UserError(f"THREADS={threads}: no node of the cluster has more than {most} CPUs. Lower it.")
    return Slots(
        count=min(concurrency or fit, fit),
        threads=threads,
        gpu_frac=gpu_frac if device_type == "cuda" else 0,
        on_mps=device_type == "mps",
    )


def _threads(nodes: Sequence[Node], places: Sequence[int], concurrency: int | None) -> int:
    # Ray may fill a node before it uses the next.
    most = (min(room, concurrency or room) for room in places)
    return max(1, min(node.cpus // count for node, count in zip(nodes, most, strict=True)))
