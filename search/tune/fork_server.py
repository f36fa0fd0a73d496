"""A process with torch and transformers loaded, of which Ray's workers on this machine are forked: none imports them.

Python's own forkserver would import them again; this one is forked off the command, which has them. It has no Ray: what
that reads when it is imported is each worker's own. On CUDA workers start as Ray starts them, because a fork has half
of a CUDA context, and on macOS because its frameworks do not survive a fork.
"""

import atexit
import ctypes
import json
import os
import resource
import runpy
import select
import signal
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import psutil

LAUNCHER = Path(__file__).with_name("start_worker.py")
SOCKET = "workers.sock"
"""In Ray's folder: where the launcher asks for a worker."""
UNUSABLE_CHARACTERS = "'\"\\\n"
"""Ray splits its workers' command line at these characters in the path of a script or of Python."""
HELD = {signal.SIGINT, signal.SIGHUP, signal.SIGTERM}
WORKERS_OOM_SCORE_ADJ = "1000"
"""As Ray sets it: where memory runs out, a trial ends and not what the user runs beside."""
PR_SET_PDEATHSIG = 1

_control: socket.socket | None = None
"""This process's end; the server ends when it closes."""
_server: psutil.Process | None = None


def unusable_characters(path: str) -> list[str]:
    """Return those of UNUSABLE_CHARACTERS that are in a path."""
    return [character for character in UNUSABLE_CHARACTERS if character in path]


def start_fork_server() -> None:
    """Fork the server, once in a process: when torch and transformers are loaded and have not yet started threads."""
    global _control, _server
    is_usable = sys.platform == "linux" and not unusable_characters(str(LAUNCHER))
    if not is_usable or _server is not None or "ray" in sys.modules:
        return
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            pid = os.fork()
        except OSError:  # of memory or processes; workers start as Ray starts them
            ours.close()
            return
        if pid == 0:
            _serve(theirs)
    _control = ours
    atexit.register(_control.close)
    _server = psutil.Process(pid)


def is_there() -> bool:
    """Return whether this process has a server."""
    return _control is not None


def forks_workers(folder: Path) -> bool:
    """Have the workers forked that Ray starts in `folder`; return whether there is a server."""
    path = folder / SOCKET
    if _control is None or path.exists():
        return _control is not None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        try:
            socket.send_fds(_control, [b"x"], [listener.fileno()])
        except OSError:  # it has ended
            return False
    return True


def forked_workers() -> list[psutil.Process]:
    """Return the workers that were forked and have not ended."""
    with suppress(psutil.Error):
        return _server.children() if _server is not None else []
    return []


def _serve(control: socket.socket) -> NoReturn:
    try:
        _end_with_the_parent()
        # A debugger or a profiler watches the command, and would slow the trials down.
        sys.settrace(None)
        sys.setprofile(None)
        # The terminal's signals are for the command. Workers inherit the block, as those that Ray starts.
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
        for number in HELD:
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        _close_all_but(control.fileno())
        listener: socket.socket | None = None
        while True:
            ready, _, _ = select.select([control, listener] if listener else [control], [], [])
            if control in ready:
                _, fds, _, _ = socket.recv_fds(control, 1, 1)
                if not fds:
                    break
                listener = socket.socket(fileno=fds[0])
            elif listener is not None:
                # Without memory or processes for another worker, the others go on.
                with suppress(OSError), listener.accept()[0] as asking:
                    if os.fork() == 0:
                        _work(asking)
    finally:
        # Never back into the command, whose exit handlers would remove its files.
        os._exit(0)


def _work(asking: socket.socket) -> NoReturn:
    code = 1
    try:
        _end_with_the_parent()
        with asking:
            script = _take_over(asking)
            # Fails where Ray has killed the launcher and wants no worker any more.
            asking.sendall(b"x")
        code = _run(script)
    finally:
        os._exit(code)


def _take_over(asking: socket.socket) -> str:
    """Take the launcher's words, environment, folder, limits and standard streams; return the script to run."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(WORKERS_OOM_SCORE_ADJ)
    _, streams, _, _ = socket.recv_fds(asking, 1, 3)
    script, sys.argv, folder, environ, open_files = json.load(asking.makefile("rb"))
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    _close_all_but(asking.fileno())
    # What the command's own streams still hold is the command's to print.
    sys.stdout, sys.stderr = (
        os.fdopen(number, "w", buffering=1, errors="backslashreplace", closefd=False) for number in (1, 2)
    )
    # Ray raises it when it starts, after the fork.
    resource.setrlimit(resource.RLIMIT_NOFILE, open_files)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environ)
    return str(script)


def _run(script: str) -> int:
    """Return the exit code of a script that is run in this process."""
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _end_with_the_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _close_all_but(*kept: int) -> None:
    # Not closerange(): the highest number that a container allows may be a billion.
    for fd in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd not in kept:
            with suppress(OSError):
                os.close(fd)
