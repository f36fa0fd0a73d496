"""A device's memory: a run's share of it, its end, and telling memory errors apart; CUDA and MPS by their answers."""

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainable.device.device_memory import (
    CONTEXT_BYTES,
    GIB,
    has_grown,
    is_out_of_memory,
    memory_bytes,
    prepare_memory,
    release_memory,
    run_memory_bytes,
)
from trainable.errors import UserError

CPU, CUDA, MPS = (torch.device(kind) for kind in ("cpu", "cuda", "mps"))


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """GPUs of 24 and 16 GiB with 20 and 10 of them free; what was asked of a process's share is returned."""
    free, total, shares = [20 * GIB, 10 * GIB], [24 * GIB, 16 * GIB], list[float]()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda at: (free[at], total[at]))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda at: SimpleNamespace(total_memory=total[at]))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: GIB)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    # Set and taken away, so that whatever is set here ends with the test.
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return shares


@pytest.mark.usefixtures("two_gpus")
def test_a_run_has_what_the_fullest_gpu_has_left_divided_by_the_runs_on_it() -> None:
    # 10 GiB free and 2 that this process holds and does not use; each run has a context of its own.
    assert memory_bytes("cuda") == 16 * GIB
    assert run_memory_bytes(CUDA) == 12 * GIB
    assert run_memory_bytes(CUDA, runs=2) == (12 * GIB + CONTEXT_BYTES) // 2 - CONTEXT_BYTES


@pytest.mark.usefixtures("two_gpus")
def test_a_run_has_no_more_than_its_share() -> None:
    assert run_memory_bytes(CUDA, share_frac=0.25) == 4 * GIB - CONTEXT_BYTES


def test_gpu_fraction_is_the_processs_share_of_the_allocator_and_of_the_context(two_gpus: list[float]) -> None:
    prepare_memory(CUDA)
    assert two_gpus == []
    prepare_memory(CUDA, share_frac=0.5)
    assert two_gpus == [(8 * GIB - CONTEXT_BYTES) / (16 * GIB)]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.skipif(sys.platform != "linux", reason="only there")
def test_segments_grow_unless_a_person_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_memory(CUDA)
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    prepare_memory(CUDA)
    assert "PYTORCH_ALLOC_CONF" not in os.environ


def test_a_mac_raises_where_it_would_swap_and_a_worker_that_has_grown_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    shares, kept = list[float](), [0]
    monkeypatch.setattr(torch.mps, "set_per_process_memory_fraction", shares.append)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10 * GIB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 2 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: kept[0])
    for share_frac in (1.0, 0.5):
        prepare_memory(MPS, share_frac=share_frac)
    assert shares == [1.0, 0.5]
    assert run_memory_bytes(MPS, runs=2) == 4 * GIB
    assert not has_grown(MPS)
    kept[0] = 3 * GIB
    assert has_grown(MPS)
    assert not has_grown(CPU)


@pytest.mark.parametrize("cgroups", ["/sys/fs/cgroup", "/nowhere"])
def test_the_memory_left_is_less_than_the_machine_has_and_shared_by_all_runs(
    cgroups: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.device.device.CGROUPS", Path(cgroups))
    assert 0 < run_memory_bytes(CPU, runs=2) < run_memory_bytes(CPU) < 1 << 50


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/\n", {"memory.max": "9000", "memory.current": "3000", "memory.stat": "anon 1\ninactive_file 500\n"}),
        # A systemd service: its own limit holds, and one above it.
        ("0::/a/b\n", {"a/b/memory.max": "8000", "a/b/memory.current": "1500", "a/memory.max": "max"}),
        ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "6500", "a/memory.current": "0"}),
        ("4:memory:/x\n", {"memory/memory.limit_in_bytes": "7000", "memory/memory.usage_in_bytes": "500"}),
    ],
)
def test_a_control_groups_limit_holds(
    own: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(own)
    monkeypatch.setattr("trainable.device.device.PROC", tmp_path)
    monkeypatch.setattr("trainable.device.device.CGROUPS", tmp_path / "cgroup")
    assert run_memory_bytes(CPU) == 6500


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("cusparse error: CUSPARSE_STATUS_ALLOC_FAILED, when calling"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("NCCL error: unhandled cuda error\nLast error:\nFailed to CUDA calloc async 608 bytes"), True),
        (RuntimeError("CUDA_ERROR_OUT_OF_MEMORY"), True),
        (RuntimeError("Caught OutOfMemoryError in replica 0 on device 0."), True),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."), True),
        (RuntimeError("unable to mmap 4096 bytes from file </x>: Cannot allocate memory (12)"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
        (IndexError("index 5 is out of bounds of the memory map"), False),
        (RuntimeError("unsupported memory format option Preserve"), False),
        (RuntimeError("Invalid buffer size: must be a multiple of the element size"), False),
        (RuntimeError("Invalid buffer size: 24.00 GiB"), True),
        (RuntimeError("Error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyError("x"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_what_came_of_running_out_of_memory_is_that_too_unless_a_person_is_told_more() -> None:
    def raised(error: Exception, **cause: Any) -> Exception:
        try:
            try:
                raise torch.OutOfMemoryError
            except torch.OutOfMemoryError as first:
                raise error from cause.get("cause", first)
        except type(error) as caught:
            return caught

    assert is_out_of_memory(raised(RuntimeError("the evaluation failed")))
    assert is_out_of_memory(raised(ValueError("the state could not be copied")))
    assert not is_out_of_memory(raised(RuntimeError("another fault"), cause=None))
    assert not is_out_of_memory(raised(UserError("config.json asks for 10^12 numbers.")))


def test_torchs_own_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


def test_giving_memory_back_and_keeping_pages_change_no_value() -> None:
    values = torch.arange(1000)
    prepare_memory(CPU)
    release_memory(CPU)
    assert torch.equal(values, torch.arange(1000))
