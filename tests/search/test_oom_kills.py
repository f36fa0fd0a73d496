"""The kernel's count of processes that it killed for want of memory."""

from pathlib import Path

import pytest

from search.tune.oom_kills import oom_kills


def test_the_count_is_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: "pgfault 9\noom_kill_disable 3\noom_kill 12\nnr_free 1\n")
    assert oom_kills() == 12
    monkeypatch.setattr(Path, "read_text", lambda path: "pgfault 9\n")
    assert oom_kills() == 0


def test_where_the_system_keeps_none_it_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert oom_kills() == 0
