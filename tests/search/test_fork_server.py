"""Workers that are forked: what they have of their own, what they leave alone, and that none outlives the command."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from search.tune import fork_server
from search.tune.fork_server import LAUNCHER, SOCKET
from tests.patience import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux alone")

COMMAND = """
import atexit, os, sys, time
from pathlib import Path
from search.tune import fork_server
folder, left = Path(sys.argv[1]), [None] * int(sys.argv[2])
def fork(real=os.fork):
    if not left:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    left.pop()
    return real()
os.fork = fork
sys.setprofile(lambda *_: None)
atexit.register(lambda: (folder / "exit").write_text("once" if not (folder / "exit").exists() else "twice"))
print("not flushed before the fork", end="")
fork_server.start_fork_server()
assert fork_server.forks_workers(folder), "there is a server"
assert fork_server.forks_workers(folder), "Ray's second try has the same"
(folder / "ready").touch()
sys.stdin.read()
print(len(fork_server.forked_workers()), end="")
"""
WORKER = """
import json, os, resource, signal, sys, time
from pathlib import Path
held = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))
told = [sys.argv, os.getcwd(), dict(os.environ), held, [signal.getsignal(number) is signal.SIG_DFL for number in held]]
told += [sys.getprofile() is None, resource.getrlimit(resource.RLIMIT_NOFILE)[0]]
print(json.dumps([*told, os.getpid(), os.getppid(), Path("/proc/self/oom_score_adj").read_text().strip()]), flush=True)
print(*os.listdir("/proc/self/fd"), file=sys.stderr, flush=True)
if "stay" in sys.argv:
    time.sleep(600)
sys.exit(3)
"""


@pytest.fixture
def command(tmp_path: Path, request: pytest.FixtureRequest) -> Any:
    """A command with a server; its stdin is what it waits for. Its parameter: how often it can fork."""
    running = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(tmp_path), str(getattr(request, "param", 9))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (tmp_path / "ready").exists() or running.poll() is not None, list)
    assert running.poll() is None
    yield running
    running.kill()
    running.communicate()


def launcher(tmp_path: Path, *words: str, script: str = WORKER) -> dict[str, Any]:
    """Return how Ray runs the launcher, in a folder and an environment of its own, beside a Ray with such a worker."""
    workers = tmp_path / "ray" / "_private" / "workers"
    workers.mkdir(parents=True, exist_ok=True)
    (tmp_path / "ray" / "__init__.py").touch()
    (workers / "default_worker.py").write_text(script)
    command = [sys.executable, str(LAUNCHER), f"--temp-dir={tmp_path}", *words]
    return {
        "args": ["bash", "-c", 'ulimit -Sn 99; exec "$@"', "", *command],
        "cwd": tmp_path,
        # One that is not UTF-8, and more than a socket holds.
        "env": {"PYTHONPATH": str(tmp_path), "OWN": "\udcff", **{f"LONG{n}": "x" * 100_000 for n in range(4)}},
        "text": True,
    }


def has_ended(pid: int) -> bool:
    """Return whether a process has, though nobody may have asked for its exit code yet."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def test_a_worker_has_the_launchers_words_folder_environment_and_streams(command: Any, tmp_path: Path) -> None:
    done = subprocess.run(**launcher(tmp_path, "--worker-id=7"), capture_output=True, check=True)
    argv, folder, environ, held, are_default, is_unwatched, files, _, parent, oom_score_adj = json.loads(done.stdout)
    assert argv[1:] == [f"--temp-dir={tmp_path}", "--worker-id=7"]
    assert argv[0] == str(tmp_path / "ray" / "_private" / "workers" / "default_worker.py")
    assert folder == str(tmp_path)
    assert environ["OWN"] == "\udcff"
    assert "HOME" not in environ
    assert set(held) >= {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    assert all(are_default)
    assert is_unwatched
    assert files == 99
    assert psutil.Process(parent).ppid() == command.pid
    assert oom_score_adj == "1000"
    # Its own streams and the folder that it lists.
    assert len(done.stderr.split()) == 4


def test_the_commands_exit_handlers_and_unprinted_output_are_its_own(command: Any, tmp_path: Path) -> None:
    subprocess.run(**launcher(tmp_path), capture_output=True, check=True)
    assert not (tmp_path / "exit").exists()
    (server,) = psutil.Process(command.pid).children()
    # The launcher has ended with its worker's last line; on a busy machine the worker itself is there a little longer.
    wait_until(lambda: not server.children(), list)
    out, _ = command.communicate("")
    assert out == "not flushed before the fork0"
    assert (tmp_path / "exit").read_text() == "once"


def test_no_worker_outlives_a_killed_command(command: Any, tmp_path: Path) -> None:
    with subprocess.Popen(**launcher(tmp_path, "stay"), stdout=subprocess.PIPE) as started:
        assert started.stdout is not None
        *_, pid, parent, _ = json.loads(started.stdout.readline())
        command.kill()
        wait_until(lambda: has_ended(pid) and has_ended(parent), list)


@pytest.mark.parametrize("command", [1], indirect=True)
def test_where_no_process_can_be_forked_a_worker_starts_as_ray_starts_it(command: Any, tmp_path: Path) -> None:
    script = "import sys; print(*sys.argv[1:], end='')"
    for _ in range(2):
        done = subprocess.run(**launcher(tmp_path, "--worker-id=7", script=script), capture_output=True, check=True)
        assert done.stdout == f"--temp-dir={tmp_path} --worker-id=7"
    assert command.communicate("") == ("not flushed before the fork0", "")


def test_a_command_that_cannot_be_forked_has_no_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fork() -> int:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(os, "fork", fork)
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for ours in ("_control", "_server"):
        monkeypatch.setattr(fork_server, ours, None)
    fork_server.start_fork_server()
    assert not fork_server.forks_workers(tmp_path)


@pytest.mark.parametrize("is_whole", [True, False])
def test_a_launcher_that_ray_has_killed_leaves_no_worker_and_no_words(
    is_whole: bool, command: Any, tmp_path: Path
) -> None:
    script = tmp_path / "worker.py"
    script.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    asked = json.dumps([str(script), [str(script)], str(tmp_path), {}, [99, 99]]).encode()
    with socket.socket(socket.AF_UNIX) as server, (tmp_path / "err").open("w") as err:
        server.connect(str(tmp_path / SOCKET))
        socket.send_fds(server, [b"x"], [0, err.fileno(), err.fileno()])
        server.sendall(asked if is_whole else asked[:9])
    wait_until(lambda: not psutil.Process(command.pid).children()[0].children(), list)
    # The server has answered everybody before.
    subprocess.run(**launcher(tmp_path), capture_output=True, check=False)
    wait_until(lambda: not psutil.Process(command.pid).children()[0].children(), list)
    assert command.communicate("") == ("not flushed before the fork0", "")
    assert not (tmp_path / "ran").exists()
    assert (tmp_path / "err").read_text() == ""


def test_without_a_server_a_worker_starts_as_ray_starts_it(tmp_path: Path) -> None:
    script = "import sys; print(*sys.argv[1:], end='')"
    done = subprocess.run(**launcher(tmp_path, "--worker-id=7", script=script), capture_output=True, check=True)
    assert done.stdout == f"--temp-dir={tmp_path} --worker-id=7"
