"""The device: which one is taken, what is said of one that is not there, autocast, and telling memory errors apart."""

import os
from pathlib import Path

import pytest
import torch

from trainable.device.device import (
    allow_tf32,
    autocast,
    begin_read,
    cpu_cores,
    device_info,
    is_out_of_memory,
    keep_freed_pages,
    pick_device,
    release_memory,
    to_device,
    without_tf32,
)
from trainable.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("cuda", "mps", "first"), [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_cuda_comes_before_mps_before_cpu(monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, first: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device(None).type == first
    assert pick_device("cpu") == CPU


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("requested", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_refused(requested: str) -> None:
    with pytest.raises(UserError, match=rf"DEVICE={requested} is not available here; available: cpu\. Unset DEVICE\."):
        pick_device(requested)


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("requested", ["gpu", "CPU", "", "cpu:first", "cpu:-1", "tpu:0"])
def test_a_word_that_is_no_device_is_refused(requested: str) -> None:
    with pytest.raises(UserError, match=f"DEVICE={requested} is not a device. Choose cuda, mps or cpu"):
        pick_device(requested)


def test_a_gpu_beyond_the_last_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(UserError, match=r"DEVICE=cuda:2: this machine has 2 CUDA device\(s\), counted from 0"):
        pick_device("cuda:2")


def test_a_cpu_counts_the_cores_it_may_use() -> None:
    info = device_info(CPU)
    assert info.type == "cpu"
    assert info.name
    assert 1 <= info.count == cpu_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_is_the_precision(precision: str, dtype: torch.dtype) -> None:
    weights = torch.ones(4, 4)
    with autocast(CPU, precision):
        assert (weights @ weights).dtype == dtype
        assert weights.dtype == torch.float32
    assert (weights @ weights).dtype == torch.float32


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True),
        (MemoryError(), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("Invalid buffer size: 24.00 GiB"), True),
        (RuntimeError("Error: Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
        (KeyError("x"), False),
    ],
)
def test_running_out_of_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_torchs_own_allocator_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)


def test_giving_memory_back_and_keeping_pages_change_no_value() -> None:
    values = torch.arange(1000)
    keep_freed_pages()
    release_memory(CPU)
    assert torch.equal(values, torch.arange(1000))


def test_products_are_exact_inside_and_as_before_outside() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with without_tf32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_tf32_is_for_cuda_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", asked.append)
    for kind in ("cpu", "mps", "cuda"):
        allow_tf32(torch.device(kind))
    assert asked == ["high"]


def test_scalars_are_read_as_they_are_where_the_reading_begins() -> None:
    loss, norm = torch.tensor(1.5, requires_grad=True), torch.tensor(0.25, dtype=torch.bfloat16)
    read = begin_read(loss, norm)
    with torch.no_grad():
        loss.zero_()
    assert read() == [1.5, 0.25]
    tokens = torch.arange(4)
    assert torch.equal(to_device(CPU, tokens), tokens)


V1 = "3:cpuset:/\n2:cpu,cpuacct:/docker/abc\n"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        # docker --cpus=2, version 2 with a namespace of its own, and without a limit.
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        # A share of a core counts as one core, and one and a half as two.
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        # A systemd service, whose own limit or one above it holds.
        ("0::/system.slice/a.service\n", {"system.slice/a.service/cpu.max": "400000 100000"}, 4),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "300000 100000", "cpu.max": "900000 100000"}, 3),
        # Version 1: the file names the group as the machine sees it, the limits lie at the root.
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "-1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 64),
        (V1, {"cpuset/cpu.cfs_quota_us": "100000\n", "cpuset/cpu.cfs_period_us": "100000\n"}, 64),
        ("0::/\n", {"cpu.max": "9900000 100000"}, 64),
        ("0::/\n", {"cpu.max": "rubbish"}, 64),
        (None, {}, 64),
    ],
)
def test_a_containers_share_of_the_cpus_counts(
    own: str | None, files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)
    if own is not None:
        (tmp_path / "own").write_text(own)
    monkeypatch.setattr("trainable.device.device.OWN_CGROUP", tmp_path / "own")
    monkeypatch.setattr("trainable.device.device.CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert cpu_cores() == cores
