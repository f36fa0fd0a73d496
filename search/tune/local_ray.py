"""Ray for one search: started on this machine in a private folder, or joined; and its end. It runs no trial."""

import logging
import os
import re
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from filelock import FileLock, Timeout
from ray._private import ray_constants

from search.cluster.connection import THREADS_THAT_YIELD, connect
from search.tune.resources import Slots
from trainable.data.remote_files import reason
from trainable.errors import MachineError

PREFIX = "gpt2-ray-"
LONGEST_SOCKET_BYTES = 103
"""What macOS allows; Linux allows four more."""
SOCKET_IN_FOLDER = f"{PREFIX}abcdefgh/session_2025-11-29_00-31-38_123456_{2**22}/sockets/plasma_store"
LEAST_FREE_BYTES = 64 << 20
ABANDONED_AFTER_S = 3600.0
STARTS = 2
SLOW_START_S = 30.0
UNUSABLE_CHARACTERS = "'\"\\\n"
"""Ray splits its workers' command line at these, wherever they stand in the path of Python or of Ray."""

DEATHS = ("Traceback", "Fatal Python error")
"""How the last words of a Python process begin; a warning of one that lives may hold an error's name too."""


@contextmanager
def running_ray(slots: Slots, say: Callable[[str], None]) -> Iterator[Path | None]:
    """Have Ray running inside; yield the folder of its log files where it is this machine's own.

    Raises MachineError when it does not start, and UserError when a cluster cannot be joined.
    """
    # A trial's failure is told by the recorder, in a line; its traceback is in search.log.
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    if slots.address is not None:
        connect(slots.address)
        try:
            yield None
        finally:
            ray.shutdown()
        return
    check_python(sys.executable, str(Path(ray.__file__).parent))
    with private_folder() as folder:
        try:
            _start(folder, slots, say=say)
            yield folder
        finally:
            ray.shutdown(wait_for_processes=True)


def check_python(*paths: str) -> None:
    """Raise MachineError where Ray could not start a worker by these paths: it would wait for one for ever."""
    for path in paths:
        if found := [character for character in UNUSABLE_CHARACTERS if character in path]:
            raise MachineError(
                f"Ray cannot start workers from {path!r}: its command lines do not carry {found[0]!r}. Move the "
                "virtual environment to a path without quotes and backslashes (make VENV=/other/folder)."
            )


@contextmanager
def private_folder() -> Iterator[Path]:
    """Have a folder of mode 0700 for Ray, short enough for its sockets, removed at the end.

    What dead processes of ours left behind is removed too.
    """
    folder = _new_folder()
    # The lock is what tells a folder in use from one left behind: a process's number may be another machine's.
    with FileLock(folder / ".lock"):
        _sweep(folder.parent)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _new_folder() -> Path:
    for base in folders_to_try(os.environ):
        try:
            if shutil.disk_usage(base).free >= LEAST_FREE_BYTES:
                return Path(tempfile.mkdtemp(prefix=PREFIX, dir=base))
        except OSError:
            continue
    raise MachineError(
        f"Ray needs a folder it can write, with {LEAST_FREE_BYTES >> 20} MiB free and a path of at most "
        f"{LONGEST_SOCKET_BYTES - len(SOCKET_IN_FOLDER) - 1} bytes; tried "
        f"{', '.join(folders_to_try(os.environ))}. Name one: RAY_TMPDIR=/folder."
    )


def folders_to_try(environ: Mapping[str, str]) -> list[str]:
    """Return where Ray's folder may be made, first choice first: what the person says, then what a system has."""
    named = [environ.get(name, "") for name in ("RAY_TMPDIR", "TMPDIR")]
    usual = ["/tmp", environ.get("XDG_RUNTIME_DIR", ""), "/var/tmp", "/dev/shm"]
    longest = LONGEST_SOCKET_BYTES - len(SOCKET_IN_FOLDER) - 1
    return [base for base in (*named, *usual) if Path(base).is_absolute() and len(os.fsencode(base)) <= longest]


def _sweep(base: Path) -> None:
    for path in base.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            status = path.lstat()
            if status.st_uid != os.geteuid() or path.is_symlink():
                continue
            lock = path / ".lock"
            # One without a lock is being made at this moment, or its maker died between two lines.
            if not lock.exists():
                if time.time() - status.st_mtime > ABANDONED_AFTER_S:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            with FileLock(lock, timeout=0):
                shutil.rmtree(path, ignore_errors=True)


def _start(folder: Path, slots: Slots, *, say: Callable[[str], None]) -> None:
    slow = threading.Timer(SLOW_START_S, say, [f"Ray has not started in {SLOW_START_S:.0f} s; waiting for it"])
    slow.daemon = True
    slow.start()
    try:
        for attempt in range(1, STARTS + 1):
            try:
                return _init(folder, slots)
            except Exception as error:
                if not is_rays(error):
                    raise
                # What it had begun ends with this process.
                ray.shutdown()
                cause = last_error(folder) or reason(error)
                if attempt == STARTS or not _timed_out(error):
                    raise MachineError(
                        f"Ray did not start on this machine: {cause}. Check free memory, /dev/shm and the limits "
                        "(ulimit -a); RAY_TMPDIR=/folder moves its files. Then run the command again."
                    ) from None
                say(f"Ray did not start in time ({cause}); trying once more")
    finally:
        slow.cancel()


def is_rays(error: Exception) -> bool:
    """Return whether an error of a call to Ray is about Ray and this machine, and not a bug in the call."""
    # Ray raises plain Exceptions for processes that do not come up.
    return type(error) is Exception or isinstance(error, OSError | RuntimeError | ValueError | ray.exceptions.RayError)


def _timed_out(error: Exception) -> bool:
    return isinstance(error, TimeoutError | ConnectionError) or "timed out" in str(error).lower()


def _init(folder: Path, slots: Slots) -> None:
    # A token of this process alone: other users of the machine cannot reach the workers, and no file is left behind.
    # Ray itself asks for it unless RAY_AUTH_MODE says otherwise; a cluster that exists has its own.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Its one switch for listening on the loopback interface, as it does on macOS; an address of that is overruled.
    ray_constants.ENABLE_RAY_CLUSTER = False
    variables = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **THREADS_THAT_YIELD}
    with _environment(variables), _hangups_held():
        ray.init(
            address="local",  # and not a cluster that happens to run here
            num_cpus=slots.count * slots.threads,
            resources=slots.of_the_machine,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(folder),
            # Tune gives its workers a runtime_env, and Ray then starts them by a line of shell with this word in it.
            runtime_env={"py_executable": shlex.quote(sys.executable)},
        )


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set what Ray's processes take over: workers import this checkout even where it is not installed.

    The variables of a runtime_env would not do: Ray expands `$` in their values.
    """
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _hangups_held() -> Iterator[None]:
    """Have the processes that are started inside never die of SIGHUP: a closed terminal would end the trials unsaved.

    What is blocked stays so in them; here it is heard afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def last_error(folder: Path) -> str:
    """Return the last line that Ray's own processes logged as an error; empty where there is none."""
    for name in ("raylet.err", "gcs_server.err", "raylet.out", "gcs_server.out"):
        for path in sorted(folder.glob(f"session_2*/logs/{name}"), reverse=True):
            lines = _lines(path)
            signs = ("Check failed", "rror", "No space", "denied", "annot", "ailed")
            if told := [line for line in lines if any(sign in line for sign in signs)]:
                return _words(told[-1])
            if lines and name.endswith(".err"):
                return _words(lines[-1])
    return ""


def worker_death(folder: Path) -> str:
    """Return the last line of a worker that died while it started; empty where none did."""
    for path in sorted(folder.glob("session_2*/logs/worker-*.err"), reverse=True):
        lines = _lines(path)
        if any(line.startswith(DEATHS) for line in lines):
            return _words(lines[-1])
    return ""


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _words(line: str) -> str:
    # Without time, process and source line, which come first.
    return re.sub(r"^\[[^]]*\]\s*(\(\w+\)\s*)?(\S+:\d+:\s*)?", "", line)[:300].rstrip(". ")
