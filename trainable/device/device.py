"""The device a run uses: choosing it, its precision, its memory. No model here."""

import ctypes
import gc
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from trainable.errors import UserError

DEVICE_TYPES = ("cuda", "mps", "cpu")
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
OWN_CGROUP, CGROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
QUOTA = ("quota", "period")
OUT_OF_MEMORY_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cublas_status_alloc_failed",
    "cudnn_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "invalid buffer size",
    "insufficient memory",
)
"""Of RuntimeErrors: CUDA and MPS, the host, CUDA's libraries, Metal (a buffer larger than it gives, and a command)."""
AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class DeviceInfo:
    """What a study records of its device."""

    type: str
    name: str
    count: int
    """Devices of this type (for cpu: cores this process may use)."""


def pick_device(requested: str | None) -> torch.device:
    """Return the requested device, or CUDA, else MPS, else CPU. Raises UserError for one that is not there."""
    available = [name for name in DEVICE_TYPES if _is_available(name)]
    if requested is None:
        return torch.device(available[0])
    kind = requested.partition(":")[0]
    if kind not in DEVICE_TYPES:
        raise UserError(f"DEVICE={requested} is not a device. Choose cuda, mps or cpu, or unset it.")
    if kind not in available:
        raise UserError(f"DEVICE={requested} is not available here; available: {', '.join(available)}. Unset DEVICE.")
    try:
        device = torch.device(requested)
    except RuntimeError:
        raise UserError(f"DEVICE={requested} is not a device. Choose cuda, mps or cpu, or unset it.") from None
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"DEVICE={requested}: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0."
        )
    return device


def device_info(device: torch.device) -> DeviceInfo:
    """Return the device's type, its name for people, and how many there are."""
    if device.type == "cuda":
        return DeviceInfo(type="cuda", name=torch.cuda.get_device_name(device), count=torch.cuda.device_count())
    if device.type == "mps":
        return DeviceInfo(type="mps", name=f"{platform.processor()} GPU", count=1)
    return DeviceInfo(type="cpu", name=platform.processor() or platform.machine(), count=cpu_cores())


def cpu_cores() -> int:
    """Return how many cores this process may use: those it may run on, or a container's share of their time if less.

    A share of 1.5 counts as 2: with one core too many a trial waits now and then, with one too few a core idles.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min([cores, *(max(1, math.ceil(share)) for share in _cgroup_cpus())])


def _cgroup_cpus() -> Iterator[float]:
    """Yield each limit on this process's share of CPU time, in CPUs, of cgroup version 2 or 1: its groups' own."""
    for line in _text(OWN_CGROUP).splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container this may be the group's name on the machine, whose limit is then found at the root.
        for group in (Path(own), *Path(own).parents):
            folder = CGROUPS / controllers / group.relative_to("/")
            limit = _text(folder / "cpu.max") or " ".join(_text(folder / f"cpu.cfs_{name}_us") for name in QUOTA)
            quota, _, period = " ".join(limit.split()).partition(" ")
            if quota.isdigit() and period.isdigit() and int(period):
                yield int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def memory_bytes(device_type: str) -> int:
    """Return the memory of the first CUDA device; 0 for other types, which share the machine's."""
    return int(torch.cuda.get_device_properties(0).total_memory) if device_type == "cuda" else 0


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """Return the context for a forward pass: autocast for bf16 and fp16, nothing for fp32."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=AUTOCAST_DTYPES[precision])


@contextmanager
def without_tf32() -> Iterator[None]:
    """Have fp32 products taken in fp32, also where allow_tf32() has let training round their factors."""
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


def to_device(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """Return a CPU tensor on the device; CUDA fetches it by itself while the program goes on."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def begin_read(*scalars: torch.Tensor) -> Callable[[], list[float]]:
    """Return a function that returns the scalars' values, all in one transfer.

    On CUDA it waits for what was queued before this call alone: what is queued between the two keeps the device busy
    while the program reads them and queues the next.
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


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception is a device or the host running out of memory."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY_WORDS)
    )


def keep_freed_pages() -> None:
    """Tell glibc to keep freed memory for the next allocation; elsewhere nothing happens.

    A step frees and takes the same few hundred megabytes again; handing the pages back each time costs a tenth of it.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2 << 30), (_M_TOP_PAD, 64 << 20)):
            mallopt(option, ctypes.c_int(min(value, 2**31 - 1)))


def release_memory(device: torch.device) -> None:
    """Give unused memory back, so that the next trial in this process starts from none."""
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _is_available(kind: str) -> bool:
    if kind == "cuda":
        return torch.cuda.is_available()
    return kind == "cpu" or torch.backends.mps.is_available()
