"""The memory of a device: how much there is, a process's share of it, giving it back, and running out of it."""

import ctypes
import errno
import gc
import os
import re
import sys
from collections.abc import Iterator

import psutil
import torch

from trainable.device.device import cgroup_folders, text_of
from trainable.errors import MachineError, UserError

GIB = 1 << 30
CONTEXT_BYTES = 512 << 20
"""What each process takes of a GPU outside torch's allocator: CUDA's context and its libraries' kernels and workspaces.
Read in others' reports, 0.3 to 0.6 GiB; not measured here."""
GROWN_FRAC = 0.2
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h
CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Limit and use of a control group, version 2 and 1."""
OUT_OF_MEMORY = re.compile(
    # CUDA, HIP, MPS, and a Metal command; torch's allocator on Windows.
    r"out[ _]?of[ _]?memory|insufficient memory|not enough (gpu video )?memory"
    # CUDA's libraries: cuDNN 9 has an allocation fail on host or device.
    r"|alloc_failed|allocation_failed|insufficient resources"
    # A cuBLAS handle is the first thing that a GPU almost full has no room for.
    r"|cublas_status_not_initialized when calling `cublascreate"
    # The host, C++, NCCL; a buffer larger than Metal gives.
    r"|(can't|cannot|could not|unable to|failed to) (cuda )?[cm]?alloc|bad_alloc|invalid buffer size: \d",
    re.IGNORECASE,
)
"""In a RuntimeError's words."""


def prepare_memory(device: torch.device, *, share_frac: float = 1.0) -> None:
    """Have this process keep the pages that it frees, and take no more than its share of the device's memory."""
    _keep_freed_pages()
    if device.type == "cuda":
        # Shapes change from trial to trial: without it a cache of blocks of other sizes is what runs out of memory.
        if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
            os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
        if share_frac < 1:
            total_bytes = memory_bytes("cuda")
            torch.cuda.set_per_process_memory_fraction(max(0.0, share_frac * total_bytes - CONTEXT_BYTES) / total_bytes)
    elif device.type == "mps":
        # By default torch takes up to 1.7 times what Metal recommends, and the Mac swaps.
        torch.mps.set_per_process_memory_fraction(share_frac)


def _keep_freed_pages() -> None:
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
    if device.type != "cpu":
        torch.get_device_module(device.type).empty_cache()


def has_grown(device: torch.device) -> bool:
    """Return whether this process holds so much device memory, with no model loaded, that it should end.

    Metal's driver keeps what it compiled for every shape of tensor, and nothing but the process's end frees it.
    """
    if device.type != "mps":
        return False
    return torch.mps.driver_allocated_memory() > GROWN_FRAC * torch.mps.recommended_max_memory()


def memory_bytes(device_type: str) -> int:
    """Return the memory of the smallest CUDA device; 0 for other types, which share the machine's."""
    if device_type != "cuda":
        return 0
    return min(int(torch.cuda.get_device_properties(at).total_memory) for at in range(torch.cuda.device_count()))


def run_memory_bytes(device: torch.device, *, runs: int = 1, share_frac: float = 1.0) -> int:
    """Return the memory that one of so many runs on one device may take.

    share_frac: of a GPU, what prepare_memory() lets each of them have.
    """
    left = _free_bytes(device) // runs
    if device.type != "cuda":
        return left
    # Of the GPU that has least: which of them a trial gets is not known.
    return min(left, round(share_frac * memory_bytes("cuda"))) - CONTEXT_BYTES


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free = min(int(torch.cuda.mem_get_info(index)[0]) for index in range(torch.cuda.device_count()))
        # What this process holds and does not use, its context included, is there for a run.
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated() + CONTEXT_BYTES
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.current_allocated_memory())
    return min([int(psutil.virtual_memory().available), *_cgroup_bytes()])


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return whether an exception, or one that led to it, is a device or the host running out of memory."""
    # What a person is told may have come of it, and says more.
    if error is None or isinstance(error, UserError | MachineError):
        return False
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)):
        return True
    return is_out_of_memory(error.__cause__ or (None if error.__suppress_context__ else error.__context__))


def _cgroup_bytes() -> Iterator[int]:
    """Yield what is left of each limit on this process's memory."""
    for folder in cgroup_folders("memory"):
        for limit, used in CGROUP_FILES:
            limit_bytes, used_bytes = (text_of(folder / name).strip() for name in (limit, used))
            if limit_bytes.isdigit() and used_bytes.isdigit():
                stat = text_of(folder / "memory.stat").splitlines()
                # Cached files count as used and are given up when memory is wanted.
                cached = next((int(line.split()[1]) for line in stat if line.startswith("inactive_file ")), 0)
                yield int(limit_bytes) - int(used_bytes) + cached
