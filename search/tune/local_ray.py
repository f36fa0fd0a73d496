"""Starts Ray on this machine in a private folder, or joins a cluster, and ends it. It runs no trial."""

import ctypes
import logging
import math
import os
import re
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any

import psutil
import ray
from filelock import FileLock, Timeout
from ray._private import parameter, ray_constants, services
from ray._private.node import Node
from ray._private.parameter import RayParams

from search.cluster.connection import connect, keep_ray_off_stdout
from search.terminal.signals import ending_in_order
from search.tune import fork_server
from search.tune.resources import Slots
from trainable.device.device import threads_left
from trainable.device.own_process import unheard
from trainable.errors import MachineError, count_words, full_reason

PREFIX = "gpt2-ray-"
LONGEST_SOCKET_BYTES = 103
"""The limit of macOS; Linux allows four more."""
SOCKET_IN_FOLDER = f"{PREFIX}abcdefgh/r/session_2025-11-29_00-31-38_123456_{2**22}/sockets/plasma_store"
LONGEST_FOLDER_BYTES = LONGEST_SOCKET_BYTES - len(SOCKET_IN_FOLDER) - 1
LEAST_FREE_BYTES = 64 << 20
OBJECT_STORE_BYTES = 128 << 20
"""Ray would map a third of the memory, which a limit on address space refuses; all trials share one file of tokens."""
THREADS_OF_RAY, THREADS_A_SLOT = 90, 20
"""At least: on 2 cores a command with 2 slots had 136 threads, got by with 120, and stood still with 110."""
ABANDONED_AFTER_S = 3600.0
STARTS = 2
SLOW_START_S = 30.0
LOOK_INTERVAL_S = 0.05
LOADED_BY_WORKERS = "search.__main__,trainable.ray_trainable"
"""Imported by each worker ahead of its first trial: what a command sets before any library, then torch and the like."""
UNUSED_PROCESSES = ("start_api_server", "start_monitor", "start_log_monitor")
"""Of Ray's head: the dashboard's server, the autoscaler, and the monitor of the workers' logs."""
AGENTS = ("dashboard_agent", "runtime_env_agent")
"""Which a raylet must have, and whose ports it waits for; they serve the dashboard and runtime_env, which none use."""
AGENT_PORTS = ("metrics-agent-port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")
_LIBC = ctypes.CDLL(None)
_SIGTERM_ACTION = ctypes.create_string_buffer(256)
"""At least the size of C's struct sigaction: 152 on Linux, 16 on macOS."""
_KILL_ALL = Node.kill_all_processes
_START_PROCESS = services.start_ray_process
DEATHS = ("Traceback", "Fatal Python error")
"""Lines of a Python process that died; an error's name alone may stand in a warning."""


@contextmanager
def ray_ahead(slots: Slots) -> Iterator[None]:
    """Start Ray on this machine in the background, for the first running_ray() inside; end it if there was none.

    A cluster is joined only by running_ray().
    """
    global _ahead
    if slots.address is not None or _ahead is not None:
        yield
        return
    # Without this a signal would leave Ray's processes behind for a while.
    with ending_in_order():
        _ahead = _RayHere(slots)
        try:
            yield
        finally:
            if _ahead is not None:
                _ahead.end()
                _ahead = None


@contextmanager
def running_ray(slots: Slots, say: Callable[[str], None]) -> Iterator[Path | None]:
    """Have Ray running inside; yield the folder of its log files, None for a cluster.

    Raises MachineError when it does not start, and UserError when a cluster cannot be joined.
    """
    global _ahead
    if slots.address is not None:
        # The recorder prints a trial's failure in a line and keeps its traceback in search.log.
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        connect(slots.address)
        try:
            yield None
        finally:
            with _sigterm_kept():
                ray.shutdown()
        return
    here, _ahead = _ahead or _RayHere(slots), None
    try:
        folder = here.wait(say)
        _use_loaded_workers()
        yield folder
    finally:
        here.end()


class _RayHere:
    """Ray on this machine, from its start to its end in a thread of its own."""

    def __init__(self, slots: Slots) -> None:
        logging.getLogger("ray").setLevel(logging.CRITICAL)
        self._slots = slots
        self._began_at = time.monotonic()
        self._said: SimpleQueue[str] = SimpleQueue()
        self._is_up, self._is_over = Event(), Event()
        self._folder: Path | None = None
        self._error: BaseException | None = None
        # Set here and not in the thread, because libraries read the environment when this thread imports them.
        self._variables = ExitStack()
        variables = {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "RAY_preload_python_modules": LOADED_BY_WORKERS,
            # Ray sets it for a trial, when its worker has loaded the libraries that read it.
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(slots.threads)),
        }
        if fork_server.is_there():
            # init() would wait for workers, deaf to Ctrl-C, and for ever where they die. Forked ones start soon enough.
            variables["RAY_prestart_worker_first_driver"] = "0"
        self._variables.enter_context(_environment(variables))
        # A thread that lives as long as Ray: the kernel ends Ray's processes with the thread that started them.
        self._thread = Thread(target=self._run, name="ray", daemon=True)
        self._thread.start()

    def wait(self, say: Callable[[str], None]) -> Path:
        """Return Ray's folder once it is up, and print what its start says meanwhile. Raises what its start raised."""
        slow_at = self._began_at + SLOW_START_S
        while not self._is_up.wait(LOOK_INTERVAL_S) or not self._said.empty():
            with suppress(Empty):
                say(self._said.get_nowait())
            if time.monotonic() > slow_at and not self._is_up.is_set():
                slow_at = math.inf
                say(f"Ray has not started in {SLOW_START_S:.0f} s; waiting for it")
        self._variables.close()
        if self._error is not None:
            raise self._error
        assert self._folder is not None
        return self._folder

    def end(self) -> None:
        """Return when Ray and its folder are gone; a start under way is waited for."""
        self._is_over.set()
        self._thread.join()
        self._variables.close()

    def _run(self) -> None:
        try:
            with private_folder() as folder:
                try:
                    _start(folder, self._slots, say=self._said.put)
                    self._folder = folder
                    self._is_up.set()
                    self._is_over.wait()
                finally:
                    with _sigterm_kept():
                        ray.shutdown(wait_for_processes=True)
                    end_workers(folder)
        except BaseException as error:  # raised by wait()
            self._error = error
        finally:
            self._is_up.set()


_ahead: _RayHere | None = None
"""Set while ray_ahead() holds a Ray that no running_ray() has taken: a process has one Ray."""


def _use_loaded_workers() -> None:
    """Have Tune run trials in the workers that Ray started ahead; neither of these has a switch.

    Tune sets environment variables for its actors, for which Ray starts new processes; ours inherit them already. And
    Tune waits for a placement group by a task, which takes one of the workers for good.
    """
    from ray.air.execution import FixedResourceManager
    from ray.tune.execution import class_cache, tune_controller

    class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = {}, set()
    tune_controller.PlacementGroupResourceManager = FixedResourceManager


def end_workers(folder: Path) -> None:
    """End the workers that are still starting in Ray's `folder`: Ray does not, and they would recreate the folder."""
    processes = psutil.process_iter(["cmdline"])
    _kill([process for process in processes if str(folder) in " ".join(process.info["cmdline"] or ())])
    # Only now: the server forks none any more for a launcher that has ended.
    _kill(fork_server.forked_workers())


@contextmanager
def private_folder() -> Iterator[Path]:
    """Have a folder for Ray in one of mode 0700, with a path short enough for its sockets, removed at the end.

    Folders that dead processes left behind are removed too.
    """
    folder, held = _locked_folder()
    with held:
        _sweep(folder.parent)
        # Ray makes its own folder writable for everybody, who could then put another socket in a socket's place.
        rays = folder / "r"
        rays.mkdir()
        try:
            yield rays
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _locked_folder() -> tuple[Path, AbstractContextManager[object]]:
    """Return a new folder and its lock, which marks it as in use: a process id could belong to another machine."""
    while True:
        folder = _new_folder()
        mode = folder.stat().st_mode
        # Another command's sweep may take the lock before this one does, and remove the folder with it; FileLock then
        # makes the folder again, for everybody to look into.
        with suppress(FileNotFoundError):
            held = FileLock(folder / ".lock").acquire()
            if folder.stat().st_mode == mode:
                return folder, held
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
        f"{LONGEST_FOLDER_BYTES} bytes; tried {', '.join(folders_to_try(os.environ))}. Name one: RAY_TMPDIR=/folder."
    )


def folders_to_try(environ: Mapping[str, str]) -> list[str]:
    """Return where Ray's folder may be made, best first: the user's variables, then the usual places."""
    named = [environ.get(name, "") for name in ("RAY_TMPDIR", "TMPDIR")]
    usual = ["/tmp", environ.get("XDG_RUNTIME_DIR", ""), "/var/tmp", "/dev/shm"]
    return [
        base
        for base in (*named, *usual)
        # Ray sends paths as UTF-8, which a name on disk need not be: what is not is not printable either.
        if Path(base).is_absolute() and base.isprintable() and not fork_server.unusable_characters(base)
        if len(base.encode()) <= LONGEST_FOLDER_BYTES
    ]


def _sweep(base: Path) -> None:
    for path in base.glob(f"{PREFIX}*"):
        with suppress(OSError, Timeout):
            status = path.lstat()
            if status.st_uid != os.geteuid() or path.is_symlink():
                continue
            lock = path / ".lock"
            # Without a lock it is being made right now, or its process died before it made the lock.
            if not lock.exists():
                if time.time() - status.st_mtime > ABANDONED_AFTER_S:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            with FileLock(lock, timeout=0):
                shutil.rmtree(path, ignore_errors=True)


def _check_threads(slots: Slots) -> None:
    """Raise MachineError where Ray would lack threads: it waits for them for ever, deaf to every signal."""
    left, needed = threads_left(), THREADS_OF_RAY + slots.count * THREADS_A_SLOT
    if left < needed:
        fewer = ", or lower CONCURRENCY" if slots.count > 1 else ""
        raise MachineError(
            f"Ray needs about {needed} threads for {count_words(slots.count, 'trial')} at a time, and only "
            f"{max(0, left):.0f} more may be started here. Raise the limit (ulimit -u, a container's pids limit)"
            f"{fewer}."
        )


def _start(folder: Path, slots: Slots, *, say: Callable[[str], None]) -> None:
    _check_threads(slots)
    for attempt in range(1, STARTS + 1):
        try:
            _init(folder, slots)
            return
        except Exception as error:
            # Of any other kind it is a bug in the call. Ray raises plain Exceptions for processes that do not come up.
            of_ray = OSError | RuntimeError | ValueError | ray.exceptions.RayError
            if type(error) is not Exception and not isinstance(error, of_ray):
                raise
            # The processes of the failed start end with this one.
            with _sigterm_kept():
                ray.shutdown()
            cause = last_error(folder) or full_reason(error)
            if attempt == STARTS:
                raise MachineError(
                    f"Ray did not start on this machine: {cause}. Check free memory, /dev/shm and the limits "
                    "(ulimit -a); RAY_TMPDIR=/folder moves its files. Then run the command again."
                ) from None
            # On a busy machine a start may fail, not only by a timeout, and the second one succeed.
            say(f"Ray did not start ({cause}); trying once more")


def _init(folder: Path, slots: Slots) -> None:
    # A token of this process alone keeps other users of the machine away from the workers, and leaves no file behind.
    # Ray checks it unless RAY_AUTH_MODE says otherwise.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # The only way to make Ray listen on loopback alone, as it does on macOS: it overrules a loopback node address.
    ray_constants.ENABLE_RAY_CLUSTER = False
    # init() has no switch for these, and waiting for the first is 40 % of its time.
    for name in UNUSED_PROCESSES:
        setattr(Node, name, lambda *_, **__: None)
    services.start_ray_process = _start_process
    Node.kill_all_processes = _kill_at_once
    if fork_server.forks_workers(folder):
        # Which init() does not hand on.
        parameter.RayParams = partial(RayParams, worker_path=str(fork_server.LAUNCHER))
    keep_ray_off_stdout()
    # A closed terminal, and whatever ends a whole job (scancel, systemd, timeout), signals Ray's processes too: they
    # would be gone before the trials are saved. Ray itself blocks SIGINT there.
    with unheard(signal.SIGHUP, signal.SIGTERM), _sigterm_kept():
        ray.init(
            address="local",  # and not a cluster that happens to run here
            num_cpus=slots.count,
            resources=slots.of_the_machine,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            _temp_dir=str(folder),
        )


def _start_process(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
    """Start a process of Ray's; a raylet has cat for its agents.

    Theirs take two thirds of Ray's start and 0.1 GB, and live on for a minute where the raylet is killed. cat ends with
    it, at the end of its standard input.
    """
    if process_type == ray_constants.PROCESS_TYPE_RAYLET:
        # Of an option that is given twice the last one counts.
        command = [*command, *(f"--{name}=1" for name in AGENT_PORTS), *(f"--{name}_command=cat" for name in AGENTS)]
    return _START_PROCESS(command, process_type, *args, **kwargs)


def _kill_at_once(node: Node, check_alive: bool = True, wait: bool = False, **_: bool) -> None:
    """End Ray's processes by SIGKILL, and the raylet's workers with it: SIGTERM, which they block, comes to nothing."""
    # Within ray.shutdown(), whose core has just dropped it: what follows takes a while.
    _put_back_sigterm()
    workers: list[psutil.Process] = []
    for _, process in node.live_processes():
        with suppress(psutil.Error):
            workers += psutil.Process(process.pid).children(recursive=True)
    _KILL_ALL(node, check_alive=check_alive, allow_graceful=False, wait=wait)
    _kill([*workers, *fork_server.forked_workers()])


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    for process in processes:
        with suppress(psutil.Error):
            # Not wait(): in a container whose first process reaps no orphans, a dead one stays a zombie for ever.
            while process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(LOOK_INTERVAL_S / 5)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables that Ray's processes inherit; workers then import this checkout even if it is not installed.

    Not a runtime_env: Ray expands `$` in its values, and starts new workers for it, by an unquoted shell line.
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
def _sigterm_kept() -> Iterator[None]:
    """Have the handler of SIGTERM afterwards that was there before: Ray's C++ core sets its own, and then none.

    Its own prints a stack trace. Python can set a handler in its main thread only, and Ray starts and ends in another.
    """
    _LIBC.sigaction(signal.SIGTERM, None, _SIGTERM_ACTION)
    try:
        yield
    finally:
        _put_back_sigterm()


def _put_back_sigterm() -> None:
    _LIBC.sigaction(signal.SIGTERM, _SIGTERM_ACTION, None)


def last_error(folder: Path) -> str:
    """Return the last error line in the logs of Ray's own processes; empty without one."""
    signs = ("Check failed", "rror", "No space", "denied", "annot", "ailed")
    for lines, is_err in _logs(folder, "raylet.err", "gcs_server.err", "raylet.out", "gcs_server.out"):
        if told := [line for line in lines if any(sign in line for sign in signs)] or (lines if is_err else []):
            return _words(told[-1])
    return ""


def worker_death(folder: Path) -> str:
    """Return the last line of a worker that died while starting; empty if none did."""
    # Until it is connected a worker writes into the raylet's.
    for lines, _ in _logs(folder, "worker-*.err", "raylet.err"):
        if any(line.startswith(DEATHS) for line in lines):
            return _words(lines[-1])
    return ""


def _logs(folder: Path, *names: str) -> Iterator[tuple[list[str], bool]]:
    """Yield the lines of Ray's logs of these names, and whether it is a log of errors alone."""
    for path in (path for name in names for path in sorted(folder.glob(f"session_2*/logs/{name}"), reverse=True)):
        with suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            yield [line.strip() for line in text.splitlines() if line.strip()], path.suffix == ".err"


def _words(line: str) -> str:
    # Without the time, process and source line at its front, and without the request to report a bug in Ray.
    return re.sub(r"^\[[^]]*\]\s*(\(\w+\)\s*)?(\S+:\d+:\s*)?(.*(?=Check failed))?", "", line)[:300].rstrip(". ")
