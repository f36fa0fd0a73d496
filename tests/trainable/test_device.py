"""The device: which one is taken, what is said of one that is not there, its name, and autocast."""

import math
import os
import platform
import resource
import sys
from pathlib import Path

import psutil
import pytest
import torch

from trainable.device import device as device_module
from trainable.device.device import (
    allow_tf32,
    autocast,
    begin_read,
    cpu_cores,
    device_info,
    pick_device,
    threads_left,
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
    # A study that ran on the CPU goes on there, though there is a GPU now; one of another machine's GPU where it can.
    assert pick_device(None, own="cpu") == CPU
    assert pick_device(None, own="elsewhere").type == first


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("requested", ["cuda", "mps"])
def test_a_device_that_is_not_there_is_refused(requested: str) -> None:
    with pytest.raises(UserError, match=rf"DEVICE={requested} is not available here; available: cpu\. Unset DEVICE\."):
        pick_device(requested)


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("visible", ["", "0", "-1", "GPU-a", "0,0"])
def test_a_numbered_gpu_of_a_machine_without_one_is_refused_too(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    device_module._pin_gpu.cache_clear()
    with pytest.raises(UserError, match=r"DEVICE=cuda:9 is not available here; available: cpu\. Unset DEVICE\."):
        pick_device("cuda:9")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == visible


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize("requested", ["gpu", "CPU", "", "cpu:first", "cpu:-1", "cpu:²", "tpu:0"])
def test_a_word_that_is_no_device_is_refused(requested: str) -> None:
    with pytest.raises(UserError, match=f"DEVICE={requested} is not a device. Choose cuda, mps or cpu"):
        pick_device(requested)


@pytest.mark.parametrize(("visible", "pinned"), [(None, "1"), ("", "1"), ("4,7", "7"), ("GPU-a, GPU-b,GPU-c", "GPU-b")])
def test_one_gpu_of_several_is_pinned_for_this_process_and_those_it_starts(
    visible: str | None, pinned: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the driver answers: of what the variable names, or of three.
    def count() -> int:
        named = os.environ.get("CUDA_VISIBLE_DEVICES")
        return len(named.split(",")) if named else 3

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", count)
    # Both ways, so that it is taken back whatever it was.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    device_module._pin_gpu.cache_clear()
    with pytest.raises(UserError, match=r"DEVICE=cuda:3: this machine has [23] CUDA devices, counted from 0"):
        pick_device("cuda:3")
    for _ in range(2):  # the next command of this process asks again
        assert pick_device("cuda:1") == torch.device("cuda")
        assert os.environ["CUDA_VISIBLE_DEVICES"] == pinned


def test_a_driver_that_was_asked_before_cannot_be_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for visible, pinned in (("", "1"), ("4,7", "7")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        device_module._pin_gpu.cache_clear()
        with pytest.raises(UserError, match=rf"CUDA had begun before\. Set CUDA_VISIBLE_DEVICES={pinned} DEVICE=cuda"):
            pick_device("cuda:1")


@pytest.mark.parametrize(
    ("text", "name"),
    [("processor\t: 0\nmodel name\t: AMD EPYC 7B13\nmodel name\t: other\n", "AMD EPYC 7B13"), ("", platform.machine())],
)
def test_a_cpu_has_its_chips_name(text: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(device_module, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "")
    device_module._chip_name.cache_clear()
    if text or sys.platform == "linux":
        assert device_info(CPU).name == name
    device_module._chip_name.cache_clear()


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


def in_cgroup(folder: Path, monkeypatch: pytest.MonkeyPatch, own: str | None, files: dict[str, str]) -> None:
    """Have this process in a control group with those limits."""
    for name, text in files.items():
        (folder / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "cgroup" / name).write_text(text)
    if own is not None:
        (folder / "self").mkdir()
        (folder / "self" / "cgroup").write_text(own)
    monkeypatch.setattr("trainable.device.device.PROC", folder)
    monkeypatch.setattr("trainable.device.device.CGROUPS", folder / "cgroup")


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
    in_cgroup(tmp_path, monkeypatch, own, files)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert cpu_cores() == cores


@pytest.mark.parametrize(
    ("own", "files", "left"),
    [
        ("0::/a\n", {"a/pids.max": "max", "a/pids.current": "9", "pids.max": "100", "pids.current": "40"}, 60),
        ("7:pids:/docker/0a1b\n", {"pids/pids.max": "100\n", "pids/pids.current": "98\n"}, 2),
        ("7:pids:/docker/0a1b\n", {"pids/pids.max": "max\n", "pids/pids.current": "98\n"}, math.inf),
        (None, {}, math.inf),
    ],
)
def test_a_containers_limit_on_threads_counts(
    own: str | None, files: dict[str, str], left: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_cgroup(tmp_path, monkeypatch, own, files)
    monkeypatch.setattr("os.getuid", lambda: 0)
    assert threads_left() == left


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the limit counts processes")
def test_a_users_limit_on_threads_counts_all_that_are_theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_cgroup(tmp_path, monkeypatch, None, {})
    theirs = psutil.Process().uids().real
    monkeypatch.setattr("os.getuid", lambda: theirs or 4242)
    monkeypatch.setattr("resource.getrlimit", lambda kind: (100_000, 100_000))
    if theirs:
        assert 0 < threads_left() < 100_000
    else:
        assert threads_left() == 100_000
    monkeypatch.setattr("resource.getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert threads_left() == math.inf
