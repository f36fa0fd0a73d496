"""Ray's private folder, and what is said when Ray does not come up: planted failures, and no real Ray."""

import ctypes
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from filelock import BaseFileLock, FileLock

from search.terminal.signals import ending_in_order
from search.tune import local_ray
from search.tune.local_ray import (
    LONGEST_SOCKET_BYTES,
    PREFIX,
    SOCKET_IN_FOLDER,
    end_workers,
    folders_to_try,
    last_error,
    private_folder,
    ray_ahead,
    running_ray,
    worker_death,
)
from search.tune.resources import Slots
from trainable.errors import MachineError

SLOTS = Slots(count=1, threads=1, gpu_frac=0)


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where Ray's folder is made; pytest's own folders have too long a path."""
    folder = tmp_path_factory.mktemp("b")
    monkeypatch.setattr("search.tune.local_ray.folders_to_try", lambda environ: ["/absent", str(folder)])
    return folder


def test_a_worker_that_starts_when_ray_ends_is_ended_and_no_other(tmp_path: Path) -> None:
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    folders = [tmp_path / "own", tmp_path / "others"]
    own, other = (subprocess.Popen([*sleeping, f"--temp-dir={folder}"]) for folder in folders)
    try:
        end_workers(folders[0])
        assert own.poll() is not None
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


def test_what_the_person_names_comes_first_and_a_long_path_never() -> None:
    long = "/tmp/" + "t" * 85
    assert folders_to_try({"RAY_TMPDIR": "/r", "TMPDIR": "/t"})[:3] == ["/r", "/t", "/tmp"]
    assert folders_to_try({"TMPDIR": long, "XDG_RUNTIME_DIR": "/run/user/1000"})[:2] == ["/tmp", "/run/user/1000"]
    assert folders_to_try({"TMPDIR": "relative", "RAY_TMPDIR": "/ü" * 9})[0] == "/tmp"
    assert folders_to_try({"TMPDIR": "/ü", "RAY_TMPDIR": "/\udcff"})[0] == "/ü"
    assert folders_to_try({"TMPDIR": "/a b", "RAY_TMPDIR": "/it's"})[0] == "/a b"
    socket = f"/run/user/1000/{SOCKET_IN_FOLDER}"
    assert len(socket) <= LONGEST_SOCKET_BYTES


def test_the_folder_is_private_and_gone_afterwards(base: Path) -> None:
    with private_folder() as folder:
        assert folder.parents[1] == base
        folder.chmod(0o777)  # as Ray does
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        (folder / "session_1").mkdir()
    assert list(base.iterdir()) == []


def test_folders_of_dead_processes_are_removed_and_no_others(base: Path) -> None:
    dead, held, young, old, foreign = (base / f"{PREFIX}{name}" for name in ("dead", "held", "young", "old", "link"))
    for folder in (dead, held, young, old):
        folder.mkdir()
    (dead / ".lock").touch()
    os.utime(old, (time.time() - 7200,) * 2)
    (base / "else").mkdir()
    foreign.symlink_to(base / "else")
    with FileLock(held / ".lock"), private_folder() as own:
        assert set(base.iterdir()) == {held, young, foreign, base / "else", own.parent}


def test_a_folder_that_another_command_sweeps_before_it_is_locked_is_made_again(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    swept: list[Path] = []

    def sweeping(path: Path, timeout: float = -1) -> BaseFileLock:
        if not swept:
            swept.append(path.parent)
            path.parent.rmdir()
        return FileLock(path, timeout=timeout)

    monkeypatch.setattr(local_ray, "FileLock", sweeping)
    with private_folder() as folder:
        assert folder.is_dir()
        assert [folder.parent] == list(base.iterdir()) != swept
    assert list(base.iterdir()) == []


def test_without_any_folder_the_places_that_were_tried_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.tune.local_ray.folders_to_try", lambda environ: ["/absent", "/proc"])
    words = r"64 MiB free .* tried /absent, /proc\. Name one: RAY_TMPDIR="
    with pytest.raises(MachineError, match=words), private_folder():
        pass


Init = Callable[..., Any]


def failing(*errors: BaseException | None, log: str = "") -> tuple[Init, list[dict[str, Any]]]:
    """Return a ray.init() that raises these one after another, and its calls, environment and all."""
    left, calls = list(errors), list[dict[str, Any]]()

    def init(**asked: Any) -> None:
        calls.append({**asked, "PYTHONPATH": os.environ["PYTHONPATH"]})
        if log:
            logs = Path(asked["_temp_dir"]) / f"session_2025_{len(calls)}" / "logs"
            logs.mkdir(parents=True)
            (logs / "raylet.err").write_text(log)
        error = left.pop(0)
        if error is not None:
            raise error

    return init, calls


BLOCKED = BlockingIOError(11, "Resource temporarily unavailable")
TIMED_OUT = Exception("The current node timed out during startup. This could happen because ...")
LOG = """[2025-11-29 00:31:38,123 I 12 12] (raylet) main.cc:1: fine
[2025-11-29 00:31:38,124 C 12 12] (raylet) store.cc:9:  Check failed: _s.ok() Bad status: IOError: No space left
*** StackTrace Information ***
"""


def start(monkeypatch: pytest.MonkeyPatch, init: Init, slots: Slots = SLOTS) -> list[str]:
    said = list[str]()
    monkeypatch.setattr(ray, "init", init)
    with running_ray(slots, said.append):
        said.append("running")
    return said


def test_a_start_that_failed_is_tried_once_more(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "before")
    init, calls = failing(TIMED_OUT, None)
    said = start(monkeypatch, init)
    assert said[0].startswith("Ray did not start (The current node timed out during startup")
    assert said[1:] == ["running"]
    assert len(calls) == 2
    assert list(base.iterdir()) == []
    # Ray's processes import this checkout; what this process starts later is not told so.
    assert str(Path(__file__).parents[2]) in calls[0]["PYTHONPATH"].split(os.pathsep)
    assert os.environ["PYTHONPATH"] == "before"


@pytest.mark.parametrize(
    ("errors", "log", "cause"),
    [
        ((TIMED_OUT, TIMED_OUT), LOG, "Check failed: _s.ok() Bad status: IOError: No space left"),
        ((TIMED_OUT, TIMED_OUT), "", "The current node timed out during startup"),
        ((BLOCKED, BLOCKED), "", "[Errno 11] Resource temporarily unavailable"),
        ((ConnectionError("x"), TimeoutError("ran out")), "", "ran out"),
        ((ConnectionError("x"), RuntimeError("Failed to start GCS.")), "", "Failed to start GCS"),
    ],
)
def test_a_ray_that_does_not_come_up_is_one_line(
    errors: tuple[Exception, ...], log: str, cause: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init, calls = failing(*errors, log=log)
    with pytest.raises(MachineError) as refused:
        start(monkeypatch, init)
    line = str(refused.value)
    assert line.startswith(f"Ray did not start on this machine: {cause}")
    assert line.endswith("Then run the command again.")
    assert "study" not in line
    assert len(calls) == len(errors)
    assert list(base.iterdir()) == []


def test_a_start_that_was_begun_ahead_is_the_one_that_is_used(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    init, calls = failing(None, None)
    monkeypatch.setattr(ray, "init", init)
    with ray_ahead(SLOTS):
        with ray_ahead(SLOTS), running_ray(SLOTS, print) as folder:
            assert folder is not None
            assert folder.parents[1] == base
            assert len(calls) == 1
        assert list(base.iterdir()) == []
        with running_ray(SLOTS, print):
            assert len(calls) == 2
    assert list(base.iterdir()) == []


def test_a_start_that_was_not_needed_ends_with_what_it_was_begun_for(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = dict(os.environ)
    for error in (None, RuntimeError("Failed to start GCS.")):
        init, calls = failing(error)
        monkeypatch.setattr(ray, "init", init)
        with ray_ahead(SLOTS):
            pass
        assert calls
        assert list(base.iterdir()) == []
        assert {**os.environ, "RAY_AUTH_TOKEN": ""} == {**before, "RAY_AUTH_TOKEN": ""}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_meanwhile_ends_what_was_begun(
    number: signal.Signals, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init, calls = failing(None)
    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as ended, ray_ahead(SLOTS):
        signal.raise_signal(number)
    assert ended.value.code == 128 + number
    assert len(calls) == 1
    assert list(base.iterdir()) == []
    assert signal.getsignal(number) == before


def test_what_signals_a_whole_job_ends_no_process_of_ray(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked: list[str] = []

    def init(**_: Any) -> None:
        code = "import signal; print(*sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
        blocked.append(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)

    monkeypatch.setattr(ray, "init", init)
    with ray_ahead(SLOTS):
        pass
    assert [int(word) for word in blocked[0].split()] == sorted([signal.SIGHUP, signal.SIGTERM])
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()


@pytest.mark.parametrize("call", ["init", "shutdown"])
def test_the_handler_that_ray_sets_is_not_left(call: str, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def sets_its_own(**_: Any) -> None:
        ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1))  # SIG_IGN, as no thread but C can set it here

    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, call, sets_its_own)

    def signalled() -> None:
        with ray_ahead(SLOTS):
            assert local_ray._ahead is not None
            local_ray._ahead._is_up.wait()
            if call == "shutdown":
                local_ray._ahead.end()
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        signalled()
    assert ended.value.code == 143


def test_the_handler_is_not_lost_with_a_cluster_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_ray, "connect", lambda address: None)
    monkeypatch.setattr(ray, "shutdown", lambda: ctypes.CDLL(None).signal(signal.SIGTERM, ctypes.c_void_p(1)))

    def signalled() -> None:
        with ending_in_order():
            with running_ray(replace(SLOTS, address="10.0.0.5:6379"), print):
                pass
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as ended:
        signalled()
    assert ended.value.code == 143


@pytest.mark.usefixtures("no_reaping_init")
def test_ray_and_its_workers_end_at_once_though_they_block_the_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()']); print(flush=True); input()"
    raylet = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert raylet.stdout is not None
    raylet.stdout.readline()
    [worker] = psutil.Process(raylet.pid).children()

    class HeadNode:
        def live_processes(self) -> list[tuple[str, Any]]:
            return [("raylet", raylet)]

    asked: list[dict[str, bool]] = []

    def kill_all(_: Any, **options: bool) -> None:
        asked.append(options)
        raylet.kill()
        raylet.wait()

    monkeypatch.setattr(local_ray, "_KILL_ALL", kill_all)
    monkeypatch.setattr(local_ray, "_put_back_sigterm", lambda: asked.append({"put back": True}))
    local_ray._kill_at_once(HeadNode(), check_alive=False, allow_graceful=True, wait=True)
    assert asked == [{"put back": True}, {"check_alive": False, "allow_graceful": False, "wait": True}]
    assert worker.status() == psutil.STATUS_ZOMBIE
    for pipe in (raylet.stdin, raylet.stdout):
        assert pipe is not None
        pipe.close()


@pytest.mark.parametrize(("slots", "left"), [(1, 109), (2, -5)])
def test_too_few_threads_are_told_before_ray_waits_for_them(
    slots: int, left: int, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init, _ = failing(AssertionError("Ray is not to be asked"))
    monkeypatch.setattr(local_ray, "threads_left", lambda: left)
    with pytest.raises(MachineError) as told:
        start(monkeypatch, init, replace(SLOTS, count=slots))
    assert str(told.value) == (
        "Ray needs about 110 threads for 1 trial at a time, and only 109 more may be started here. Raise the limit "
        "(ulimit -u, a container's pids limit)."
        if slots == 1
        else "Ray needs about 130 threads for 2 trials at a time, and only 0 more may be started here. Raise the limit "
        "(ulimit -u, a container's pids limit), or lower CONCURRENCY."
    )
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("error", [TypeError("a bug"), KeyError("a bug"), KeyboardInterrupt()])
def test_a_bug_and_a_signal_stay_what_they_are(
    error: BaseException, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    init, _ = failing(error)
    with pytest.raises(type(error)):
        start(monkeypatch, init)
    assert list(base.iterdir()) == []


def test_the_logs_of_ray_and_of_its_workers_are_read(tmp_path: Path) -> None:
    assert (last_error(tmp_path), worker_death(tmp_path)) == ("", "")
    logs = tmp_path / "session_2025-11-29" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.err").write_text("")
    (logs / "gcs_server.out").write_text("all is well\n[x] (gcs) a.cc:1: Failed to bind\nbye\n")
    (logs / "worker-1.err").write_text("a warning\n")
    assert last_error(tmp_path) == "Failed to bind"
    (logs / "raylet.out").write_text("[x] (raylet) a.cc:1:  You have likely discovered a bug. Check failed: no space\n")
    assert last_error(tmp_path) == "Check failed: no space"
    assert worker_death(tmp_path) == ""
    (logs / "raylet.err").write_text("Traceback (most recent call last):\n  x\nImportError: not yet connected\n")
    assert worker_death(tmp_path) == "ImportError: not yet connected"
    (logs / "worker-2.err").write_text("Traceback (most recent call last):\n  x\nImportError: no module named torch\n")
    assert worker_death(tmp_path) == "ImportError: no module named torch"
