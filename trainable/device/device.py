"""The device a run uses: choosing it, its name, its precision. Neither its memory nor a model."""

import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import psutil
import torch

from trainable.errors import UserError

DEVICE_TYPES = ("cuda", "mps", "cpu")
CPU_INFO = Path("/proc/cpuinfo")
PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")
QUOTA = ("quota", "period")
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """What a study records of its device."""

    type: str
    name: str
    count: int
    """Devices of this type (for cpu: cores this process may use)."""


def pick_device(requested: str | None, *, own: str | None = None) -> torch.device:
    """Return the requested device, else one of type `own`, or CUDA, else MPS, else CPU.

    Raises UserError for a requested one that is not there.

    cuda:1 is pinned: it is this process's only GPU from then on, and that of the processes that it starts, as "cuda".
    """
    kind, _, number = (requested or "").partition(":")
    if requested is not None and (kind not in DEVICE_TYPES or not (number.isdecimal() or requested == kind)):
        raise UserError(f"DEVICE={requested} is not a device. Choose cuda, mps or cpu, or unset it.")
    if kind == "cuda" and number:
        _pin_gpu(int(number))
    is_here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    available = [name for name in DEVICE_TYPES if is_here[name]]
    if requested is None:
        return torch.device(own if own in available else available[0])
    if kind not in available:
        raise UserError(f"DEVICE={requested} is not available here; available: {', '.join(available)}. Unset DEVICE.")
    return torch.device(kind)


@cache
def _pin_gpu(number: int) -> None:
    # Ray renumbers a worker's GPUs, and CUDA reads the variable once: this comes before anything asks it.
    count = torch.cuda.device_count()
    if not count:
        return  # what is said of a machine without one is said of this GPU too
    if number >= count:
        raise UserError(f"DEVICE=cuda:{number}: this machine has {count} CUDA devices, counted from 0.")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[number].strip() if visible[0] else str(number)
    if count > 1 and torch.cuda.device_count() != 1:
        pinned = os.environ["CUDA_VISIBLE_DEVICES"]
        raise UserError(f"DEVICE=cuda:{number}: CUDA had begun before. Set CUDA_VISIBLE_DEVICES={pinned} DEVICE=cuda.")


def device_info(device: torch.device) -> DeviceInfo:
    """Return the device's type, its name for people, and how many there are."""
    if device.type == "cuda":
        return DeviceInfo(type="cuda", name=torch.cuda.get_device_name(device), count=torch.cuda.device_count())
    if device.type == "mps":
        return DeviceInfo(type="mps", name=f"{_chip_name()} GPU", count=1)
    return DeviceInfo(type="cpu", name=_chip_name(), count=cpu_cores())


@cache
def _chip_name() -> str:
    """Return the processor's name, which Python's own platform module does not know on Linux and on a Mac."""
    named = [line.partition(":")[2].strip() for line in text_of(CPU_INFO).splitlines() if line.startswith("model name")]
    if named:
        return named[0]
    if sys.platform == "darwin":
        command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
        with suppress(OSError, subprocess.SubprocessError):
            return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    return platform.processor() or platform.machine()


def cpu_cores() -> int:
    """Return how many cores this process may use: those it may run on, or a container's share of their time if less.

    A share of 1.5 counts as 2: with one core too many a trial waits now and then, with one too few a core idles.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(share)) for share in _cgroup_cpus())])


def _cgroup_cpus() -> Iterator[float]:
    """Yield each limit on this process's share of CPU time, in CPUs."""
    for folder in cgroup_folders("cpu"):
        limit = text_of(folder / "cpu.max") or " ".join(text_of(folder / f"cpu.cfs_{name}_us") for name in QUOTA)
        quota, _, period = " ".join(limit.split()).partition(" ")
        if quota.isdigit() and period.isdigit() and int(period):
            yield int(quota) / int(period)


def threads_left() -> float:
    """Return how many threads this user and a container may still start, inf without a limit."""
    left = [math.inf]
    for folder in cgroup_folders("pids"):
        limit, used = (text_of(folder / f"pids.{name}").strip() for name in ("max", "current"))
        if limit.isdigit() and used.isdigit():
            left.append(int(limit) - int(used))
    # Elsewhere the limit counts processes; root has none.
    if sys.platform == "linux" and os.getuid() != 0:
        most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
        if most != resource.RLIM_INFINITY:
            found = (process.info for process in psutil.process_iter(["uids", "num_threads"]))
            own = (one for one in found if one["uids"] and one["uids"].real == os.getuid())
            left.append(most - sum(one["num_threads"] or 0 for one in own))
    return min(left)


def cgroup_folders(controller: str, pid: int | None = None) -> Iterator[Path]:
    """Yield the folders of the control groups that can limit a process: its own and those above, version 2 or 1.

    pid: None is this process.
    """
    for line in text_of(PROC / (str(pid) if pid else "self") / "cgroup").splitlines():
        _, controllers, own = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            # In a container this may be the group's name on the machine, whose limit is then found at the root.
            yield from (CGROUPS / controllers / group.relative_to("/") for group in (Path(own), *Path(own).parents))


def text_of(path: Path) -> str:
    """Return a file's text, empty where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context for a forward pass: autocast for bf16 and fp16, nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_DTYPES[precision])


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute fp32 products in full fp32, even where allow_tf32() lets training round their factors."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def allow_tf32(device: torch.device) -> None:
    """Let a CUDA device round the factors of fp32 products to TF32's 10 bits; elsewhere nothing happens."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")


def rng_state(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of torch's global generators: the CPU's, and the device's by its type."""
    states = {"torch": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device.type).get_rng_state()
    return states


def set_rng_state(device: torch.device, states: Mapping[str, torch.Tensor]) -> None:
    """Put back what rng_state() returned. States of another type of device leave this one's as it is."""
    torch.set_rng_state(states["torch"])
    if device.type != "cpu" and device.type in states:
        torch.get_device_module(device.type).set_rng_state(states[device.type])


@contextmanager
def untouched_rng(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators of the CPU and of `device` at the end."""
    states = rng_state(device)
    try:
        yield
    finally:
        set_rng_state(device, states)


def to_device(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor on the device; on CUDA it is copied while the program goes on."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def begin_read(*scalars: torch.Tensor) -> Callable[[], list[float]]:
    """Return a function that returns the scalars' values, all in one transfer.

    On CUDA that function waits only for the work queued before this call. What is queued between the two calls keeps
    the device busy while the program reads the values and queues the next step.
    """
    values = torch.stack([scalar.detach().float() for scalar in scalars])
    if values.device.type != "cuda":
        return values.tolist
    copied = values.to("cpu", non_blocking=True)
    done = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record()

    def read() -> list[float]:
        done.synchronize()
        found: list[float] = copied.tolist()
        return found

    return read
