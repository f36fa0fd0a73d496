"""ADDRESS=ray://: runs the command itself on the cluster's head, and brings back its output and the study's tables.

Ray's client would run Tune there and its callbacks too, away from the study's files. `ray job submit` would mix the
streams, leave text, model and study behind, and kill a job three seconds after a signal, before trials are saved.
"""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread

from results.study.folder import LATEST, Study, studies_dir
from results.study.paths import expanded, path_error, shown
from search.cluster.connection import check_port, connect
from search.cluster.study_storage import TableMirror, fetch_study, fetch_tables, probed, read_probe
from search.options import FOLDERS, OUTSIDE, Options
from search.terminal.console import Terminal, plain
from search.terminal.signals import Interrupts
from trainable.config import BASELINES
from trainable.data.node_cache import SharedCopy, share
from trainable.data.remote_files import files_at
from trainable.errors import UserError, full_reason

GO_ON = ("resume", "confirm", "attribute")
COMMANDS = ("run", "baseline", *GO_ON)
READ_FROM_DISK = ("SPACE", "TRAINING_DATA_SOURCE", "VALIDATION_DATA_SOURCE", "GPT2_MODEL_NAME", "CHECKPOINT_PATH")
POLL_S = 0.5
HEAD_TIMEOUT_S = 180.0


def remote_command(command: str, options: Options, terminal: Terminal) -> int:
    """Run the command on the cluster's head and bring its studies here; return its exit code. Raises UserError."""
    address, storage = options.address or "", options.storage
    if storage is None:
        raise UserError(
            f"ADDRESS={address} needs STORAGE, which the cluster and this machine both see, such as s3://..."
        )
    compares_documented = options.from_ or options.to
    if command in GO_ON and options.study in (None, LATEST) and not compares_documented:
        raise UserError(
            f"ADDRESS={address}: the cluster does not know which study was last here. Set STUDY to its name."
        )
    check_port(address, address.removeprefix(OUTSIDE))
    if importlib.util.find_spec("grpc") is None:
        raise UserError(f"ADDRESS={address}: Ray's client needs grpcio. Install it: pip install 'ray[client]'")
    connect(address)
    import ray

    try:
        with Interrupts() as interrupts:
            return _on_head(command, options, storage, terminal, interrupts)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise UserError(
            f"ADDRESS={address}: the connection to the cluster's head was lost: {full_reason(error)}. Go on with make "
            "resume and the same STORAGE."
        ) from None
    except OSError as error:
        raise UserError(
            f"STORAGE={storage}: {full_reason(error)}. Go on with make resume and the same STORAGE."
        ) from None
    finally:
        ray.shutdown()


def _on_head(command: str, options: Options, storage: str, terminal: Terminal, interrupts: Interrupts) -> int:
    import ray

    # On the head, where clients are served; its marker resource has room for many actors.
    head = ray.remote(num_cpus=0, resources={"node:__internal_head__": 0.001})(HeadCommand).remote()
    with probed(storage) as (probe, word):
        try:
            seen = ray.get(head.read.remote(storage, probe), timeout=HEAD_TIMEOUT_S)
        except ray.exceptions.GetTimeoutError:
            raise UserError(
                f"the cluster's head did not start a process in {HEAD_TIMEOUT_S:.0f} s. Check that machine."
            ) from None
    if seen != word:
        raise UserError(
            f"STORAGE={storage}: the cluster does not see what was written here. Name a bucket, such as s3://..."
        )
    values = {name: text for name, text in options.texts.items() if name not in FOLDERS}
    copies = {name: share(path, storage) for name in READ_FROM_DISK if (path := _on_disk(name, options)) is not None}
    terminal.say("the command runs on the cluster's head, which prints:")
    ray.get(head.start.remote(command, values, copies, storage, terminal.as_json))
    code, told = None, False
    while code is None:
        if interrupts.code is not None and not told:
            ray.get(head.send_signal.remote(interrupts.code - 128))
            told = True
        time.sleep(POLL_S)
        lines, code = ray.get(head.news.remote())
        for stream, line in lines:
            print(plain(line), file=sys.stdout if stream == "stdout" else sys.stderr, flush=True)
    for name in ray.get(head.hand_over.remote(storage)):
        fetch_tables(name, storage)
        terminal.say(f"fetched from the storage: {shown(studies_dir() / name)}")
    return int(code)


def _on_disk(name: str, options: Options) -> Path | None:
    text = options.texts.get(name)
    path = expanded(text, name) if text else None
    if path is None or path_error(path) is not None:
        return None
    return path if path.exists() and (name != "SPACE" or path.is_file()) else None


class HeadCommand:
    """An actor on the cluster's head that runs a command of ours as a process, reads its output and passes signals."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="gpt2-search-"))
        self._lines: list[tuple[str, str]] = []
        self._process: subprocess.Popen[str] | None = None
        self._readers: list[Thread] = []

    def read(self, storage: str, probe: str) -> str:
        """Return the small file's content as the head sees it."""
        return read_probe(storage, probe)

    def start(
        self, command: str, values: Mapping[str, str], copies: Mapping[str, SharedCopy], storage: str, as_json: bool
    ) -> None:
        """Start the command; copies: of the files on the client's disk, by variable."""
        import ray

        address = ray.get_runtime_context().gcs_address
        local = {name: str(copy.local()) for name, copy in copies.items()}
        words = [f"{name}={text}" for name, text in {**values, **local, "ADDRESS": address, "STORAGE": storage}.items()]
        os.environ["STUDIES_DIR"] = str(self._folder)
        for name in _studies_read(command, values, storage):
            fetch_study(name, storage)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "search", command, *words, *(["--json"] if as_json else [])],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Without Ray's variables for this worker.
            env={
                **{
                    name: text
                    for name, text in os.environ.items()
                    if not name.startswith("RAY_") or name.startswith(("RAY_AUTH_", "RAY_USAGE_"))
                },
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            preexec_fn=_hear_signals,
        )
        for stream in ("stdout", "stderr"):
            self._readers.append(Thread(target=self._listen, args=(stream,), daemon=True))
            self._readers[-1].start()

    def news(self) -> tuple[Sequence[tuple[str, str]], int | None]:
        """Return the lines since the last call, and with the last ones the exit code."""
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            for reader in self._readers:
                reader.join()
        lines, self._lines = self._lines, []
        return lines, code

    def send_signal(self, number: int) -> None:
        """Send the command a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def hand_over(self, storage: str) -> list[str]:
        """Move the command's studies into the storage and return their names."""
        paths = [path.parent for path in sorted(self._folder.glob("*/study.json"))]
        for path in paths:
            TableMirror(Study(path), storage, print).close()
        shutil.rmtree(self._folder)
        return [path.name for path in paths]

    def _listen(self, stream: str) -> None:
        assert self._process is not None
        with getattr(self._process, stream) as pipe:
            for line in pipe:
                self._lines.append((stream, line.rstrip("\n")))


def _studies_read(command: str, values: Mapping[str, str], storage: str) -> list[str]:
    """Return the names of the studies that the command continues or learns from."""
    from pyarrow import fs

    names = [values[name] for name in ("WARM_START", "BASELINE") if name in values and values[name] not in BASELINES]
    names += [values["STUDY"]] if "STUDY" in values and command in GO_ON else []
    if command != "attribute":
        return names
    files, root = files_at(storage)
    found = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
    return names + [one.base_name for one in found if one.base_name.startswith("attribute-")]


def _hear_signals() -> None:
    # Ray blocks SIGINT in its workers, and a child process inherits that.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # When the client goes away the actor dies, and the command gets SIGTERM, so that it marks its trials interrupted.
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG of prctl.h
