"""The kernel's count of processes that it killed for want of memory: of the worker's cgroup, not of the machine."""

from pathlib import Path

import pytest

from search.tune import recorder
from search.tune.recorder import oom_counter_of, oom_kills
from trainable.device import device


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc and a /sys/fs/cgroup of the test's own; the machine has killed 12."""
    for name in ("PROC", "CGROUPS"):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(device, name, tmp_path / name)
    monkeypatch.setattr(recorder, "OF_THE_MACHINE", tmp_path / "PROC" / "vmstat")
    (tmp_path / "PROC" / "vmstat").write_text("pgfault 9\noom_kill_disable 3\noom_kill 12\nnr_free 1\n")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/user/one", "user/one/memory.events.local"),
        ("4:memory:/user/one", "memory/user/one/memory.oom_control"),
        ("4:memory:/docker/abc", "memory/memory.oom_control"),
    ],
)
def test_the_count_is_of_the_workers_own_group(system: Path, line: str, file: str) -> None:
    (system / "PROC" / "17").mkdir()
    (system / "PROC" / "17" / "cgroup").write_text(f"9:name=systemd:/\n{line}\n")
    path = system / "CGROUPS" / file
    path.parent.mkdir(parents=True)
    path.write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n")
    counter = oom_counter_of(17)
    assert (counter, oom_kills(counter)) == (path, 2)
    path.unlink()  # with its worker, a group may go
    assert oom_kills(counter) == 0


def test_without_a_group_it_is_the_machines(system: Path) -> None:
    assert oom_counter_of(17) == oom_counter_of(None)
    assert oom_kills(oom_counter_of(None)) == 12
    (system / "PROC" / "vmstat").write_text("pgfault 9\n")
    assert oom_kills(oom_counter_of(None)) == oom_kills(None) == 0
