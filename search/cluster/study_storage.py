"""STORAGE: a study's tables, mirrored where another machine can take the study over; its checkpoints lie there too."""

import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.model_card import model_row
from results.study.folder import LATEST, Study, check_study_name, open_study, studies_dir
from results.study.own_files import check_own_files
from search.options import Options
from trainable.data.remote_files import below, blocks_of, files_at, reason, write_whole
from trainable.errors import UserError

if TYPE_CHECKING:
    from results.study.tables import Row
    from trainable.checkpoint.checkpoint import Checkpoint

INTERVAL_S = 30.0
CHECKPOINTS = "checkpoints"
MARK = ".driver.json"
"""Who writes a study into the storage now; renewed with every copy, gone at the end."""
MIRRORED = ("best.*", "report.*", "*.json", "*.png", "steps/*.parquet", "metrics.parquet", "trials.parquet")
"""In this order, trials last: a reader never finds a loss that no evaluation shows."""


class NoCheckpointError(UserError):
    """A trial's last weights are not kept any more: deleted or damaged."""


def checkpoint_root(study: Study, storage: str | None) -> str:
    """Return where the study's checkpoints lie."""
    return below(storage, study.name, CHECKPOINTS) if storage else str(study.path / CHECKPOINTS)


def model_checkpoint(study: Study, storage: str | None, trial: "Row") -> "Checkpoint":
    """Return the checkpoint of a completed trial's model. Raises NoCheckpointError, and OSError."""
    from trainable.checkpoint.checkpoint_store import CheckpointStore

    step = model_row(study, trial)["optimizer_steps"]
    store = CheckpointStore(root=checkpoint_root(study, storage), trial_id=trial["trial_id"])
    checkpoint, damaged = store.newest(at_most=step)
    if checkpoint is not None and checkpoint.optimizer_steps == step:
        return checkpoint
    what = "its checkpoint is damaged" if damaged else f"it has no checkpoint of step {step} any more"
    raise NoCheckpointError(f"trial {trial['trial_id']} of study {study.name}: {what}.")


@contextmanager
def probed(storage: str) -> Iterator[tuple[str, str]]:
    """Have a small file in the storage; yield its path and the word in it.

    Raises UserError where nothing can be written: no such bucket, no right to, no answer.
    """
    files, root = files_at(storage)
    path, word = f"{root}/.probe-{secrets.token_hex(4)}", secrets.token_hex(8)
    try:
        write_whole(files, path, iter([word.encode()]))
    except OSError as error:
        raise UserError(f"STORAGE={storage} cannot be written: {reason(error)}. Name another place.") from None
    try:
        yield path, word
    finally:
        files.delete_file(path)


def read_probe(storage: str, path: str) -> str:
    """Return what this machine finds in the small file; what it does not find is an empty word."""
    try:
        return b"".join(blocks_of(files_at(storage)[0], path)).decode()
    except OSError:
        return ""


@dataclass
class TableMirror:
    """Copies a study's tables to the storage from a thread of its own, so that a slow store delays no trial."""

    study: Study
    storage: str
    say: Callable[[str], None]
    _copied_at: float = -INTERVAL_S
    _known: dict[Path, int] = field(default_factory=dict)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="mirror"))
    _copying: Future[None] | None = None
    _told: bool = False

    def copy_if_due(self, *, at_once: bool = False) -> None:
        """Begin to copy what has changed, unless a copy is under way or, without at_once, the last one is recent."""
        if self._copying is not None:
            if not self._copying.done():
                return
            self._end_copy(self._copying)
        if at_once or time.monotonic() - self._copied_at >= INTERVAL_S:
            self._copied_at = time.monotonic()
            self._copying = self._thread.submit(self._copy)

    def close(self) -> None:
        """Copy what has changed, and return when it is there."""
        if self._copying is not None:
            self._end_copy(self._copying)
        self._end_copy(self._thread.submit(self._copy))
        self._end_copy(self._thread.submit(self._remove_mark))
        self._thread.shutdown()

    def _end_copy(self, copying: Future[None]) -> None:
        try:
            copying.result()
        except (OSError, UserError) as error:
            if not self._told:
                self.say(f"STORAGE={self.storage} is behind, the study itself is up to date: {reason(error)}")
            self._told = True
        self._copying = None

    def _remove_mark(self) -> None:
        files, root = files_at(below(self.storage, self.study.name))
        files.delete_file(f"{root}/{MARK}")

    def _copy(self) -> None:
        files, root = files_at(below(self.storage, self.study.name))
        changed: list[tuple[Path, int, bytes]] = []
        # Read in the opposite order: each table is at least as new as those that build on it.
        for pattern in reversed(MIRRORED):
            for path in sorted(self.study.path.glob(pattern)):
                mtime_ns = path.stat().st_mtime_ns
                if self._known.get(path) != mtime_ns and not path.name.startswith("."):
                    changed.append((path, mtime_ns, path.read_bytes()))
        write_whole(files, f"{root}/{MARK}", iter([json.dumps(this_driver()).encode()]))
        for path, mtime_ns, data in reversed(changed):
            write_whole(files, f"{root}/{path.relative_to(self.study.path).as_posix()}", iter([data]))
            self._known[path] = mtime_ns


def this_driver() -> dict[str, Any]:
    """Return what tells this process from others."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def open_or_fetch_study(options: Options) -> Study:
    """Return STUDY, brought from STORAGE where it is not here, or the latest one.

    Raises UserError when there is none, or it cannot be read.
    """
    if options.study is not None and options.storage is not None:
        fetch_study(options.study, options.storage)
    return open_study(options.study or LATEST)


def fetch_study(name: str, storage: str) -> None:
    """Bring a study that is not here from the storage; its checkpoints stay there.

    Raises UserError when it is nowhere, or when the one that is here has gone on elsewhere since.
    """
    check_study_name(name)
    study = Study(studies_dir() / name)
    if not study.study_json.exists():
        fetch_tables(name, storage)
        return
    try:
        here = _tokens_of(study)
    except UserError:
        # Damaged: the ledger has a copy from before.
        return
    there = _mirrored_tokens(name, storage)
    if there > here:
        raise UserError(
            f"study {name} has gone on elsewhere: STORAGE={storage} holds {there:,} trained tokens of it, {study.path} "
            f"{here:,}. Move that folder away and run the command again: it is then fetched."
        )


def _mirrored_tokens(name: str, storage: str) -> int:
    files, root = files_at(below(storage, name))
    with tempfile.TemporaryDirectory() as folder:
        copy = Study(Path(folder))
        try:
            copy.trials_path.write_bytes(b"".join(blocks_of(files, f"{root}/{copy.trials_path.name}")))
            return _tokens_of(copy)
        except (OSError, UserError):
            # Nothing there, or nothing whole: what is here is the truth.
            return 0


def _tokens_of(study: Study) -> int:
    return sum(row["tokens_seen"] for row in study.trials())


def fetch_tables(name: str, storage: str) -> None:
    """Bring a study's tables from the storage, in place of those that are here. Raises UserError."""
    from pyarrow import fs

    study = Study(studies_dir() / name)
    try:
        files, root = files_at(below(storage, name))
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        found = [one for one in files.get_file_info(selector) if one.type == fs.FileType.File]
        tables = [one for one in found if not one.path.startswith(f"{root}/{CHECKPOINTS}/") and one.base_name[0] != "."]
        if not any(one.base_name == "study.json" for one in tables):
            raise UserError(f"no study named '{name}' in {studies_dir()} or in STORAGE={storage}.")
        if any(".." in one.path.split("/") for one in tables):
            raise UserError(f"STORAGE={storage}: study {name} has a file with .. in its path. It is not fetched.")
        if study.path.exists():
            check_own_files(study.path)
        # study.json last: without it the folder is no study yet.
        for one in sorted(tables, key=lambda one: one.base_name == "study.json"):
            target = study.path / one.path.removeprefix(f"{root}/")
            write_whole(*files_at(str(target)), blocks_of(files, one.path))
    except OSError as error:
        raise UserError(f"study {name} cannot be fetched from STORAGE={storage}: {reason(error)}.") from None
    (study.path / "steps").mkdir(exist_ok=True)
