"""STORAGE: a study's checkpoints, and a copy of its tables from which another machine can resume it."""

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
from zipfile import is_zipfile

from results.model_card import model_row
from results.study.folder import LATEST, Study, check_study_name, open_study, studies_dir
from results.study.lock import check_own_files
from results.study.paths import shown
from search.options import Options
from trainable.data.remote_files import below, blocks_of, files_at, local_folder, write_whole
from trainable.errors import UserError, full_reason

if TYPE_CHECKING:
    from results.study.planned_run import Row
    from trainable.checkpoint.checkpoint import Checkpoint

INTERVAL_S = 30.0
CHECKPOINTS = "checkpoints"
MARK = ".driver.json"
"""Names the driver that writes the study; renewed with every copy, deleted at the end."""
MIRRORED = ("best.*", "report.*", "*.json", "*.png", "steps/*.parquet", "metrics.parquet", "trials.parquet")
"""Copied in this order, trials last, so that every loss in it has its evaluation."""


class NoCheckpointError(UserError):
    """A trial's last checkpoint was deleted, or is damaged."""


def checkpoint_root(study: Study, storage: str | None) -> str:
    """Return the folder or URI of the study's checkpoints."""
    return below(storage, study.name, CHECKPOINTS) if storage else str(study.path / CHECKPOINTS)


def model_checkpoint(study: Study, storage: str | None, trial: "Row") -> "Checkpoint":
    """Return the checkpoint of a completed trial's model. Raises NoCheckpointError, and OSError."""
    from trainable.checkpoint.checkpoint_store import CheckpointStore

    step = model_row(study, trial)["optimizer_steps"]
    damaged: list[str] = []
    # A run of train keeps its checkpoints in its own folder, and STORAGE may have been set later than the study ran.
    for root in dict.fromkeys(checkpoint_root(study, place) for place in (storage, None)):
        checkpoint, notes = CheckpointStore(root=root, trial_id=trial["trial_id"]).newest(at_most=step)
        if checkpoint is not None and checkpoint.optimizer_steps == step:
            return checkpoint
        damaged += notes
    what = "its checkpoint is damaged" if damaged else f"no checkpoint of its step {step} was kept"
    raise NoCheckpointError(f"trial {trial['trial_id']} of study {study.name}: {what}.")


def lies_in(study: Study, storage: str) -> bool:
    """Return whether the storage is the folder of the studies, and the study's own folder its place there."""
    folder = local_folder(storage)
    return folder is not None and (folder / study.name).resolve() == study.path.resolve()


@contextmanager
def written(storage: str) -> Iterator[None]:
    """Turn an OSError into the UserError that the storage cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"STORAGE={storage} cannot be written: {full_reason(error)}. Name another place.") from None


@contextmanager
def probed(storage: str) -> Iterator[tuple[str, str]]:
    """Have a small file in the storage while inside; yield its path and its content.

    Raises UserError when it cannot be written or deleted: no such bucket, no permission, no answer.
    """
    files, root = files_at(storage)
    path, word = f"{root}/.probe-{secrets.token_hex(4)}", secrets.token_hex(8)
    with written(storage):
        write_whole(files, path, iter([word.encode()]))
    try:
        yield path, word
    finally:
        with written(storage):
            files.delete_file(path)


def read_probe(storage: str, path: str) -> str:
    """Return the small file's content; empty if this machine does not see it."""
    try:
        return b"".join(blocks_of(files_at(storage)[0], path)).decode()
    except OSError:
        return ""


@dataclass
class TableMirror:
    """Copies a study's tables to the storage in a thread, so that a slow store delays no trial."""

    study: Study
    storage: str
    say: Callable[[str], None]
    _copied_at: float = -INTERVAL_S
    _known: dict[Path, int] = field(default_factory=dict)
    _thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="mirror"))
    _copying: Future[None] | None = None
    _told: bool = False

    def copy_if_due(self, *, at_once: bool = False) -> None:
        """Start copying what has changed, unless a copy is under way or, without at_once, the last one is recent."""
        if self._copying is not None and not self._copying.done():
            return
        self._end_copy()
        if at_once or time.monotonic() - self._copied_at >= INTERVAL_S:
            self._copied_at = time.monotonic()
            self._copying = self._thread.submit(self._copy)

    def close(self) -> None:
        """Copy what has changed, and return when that is done."""
        for last in (self._copy, self._remove_mark):
            self._end_copy()
            self._copying = self._thread.submit(last)
        self._end_copy()
        self._thread.shutdown()

    def _end_copy(self) -> None:
        try:
            if self._copying is not None:
                self._copying.result()
        except (OSError, UserError) as error:
            if not self._told:
                self.say(f"STORAGE={self.storage} is behind, the study itself is up to date: {full_reason(error)}")
            self._told = True
        self._copying = None

    def _remove_mark(self) -> None:
        files, root = files_at(below(self.storage, self.study.name))
        files.delete_file(f"{root}/{MARK}")

    def _copy(self) -> None:
        files, root = files_at(below(self.storage, self.study.name))
        changed: list[tuple[Path, int, bytes]] = []
        # Over the study itself an older table would be put in place of a newer one.
        copied = () if lies_in(self.study, self.storage) else MIRRORED
        # Read in the opposite order of writing, so that each table is at least as new as those that refer to it.
        for pattern in reversed(copied):
            for path in sorted(self.study.path.glob(pattern)):
                mtime_ns = path.stat().st_mtime_ns
                if self._known.get(path) != mtime_ns and not path.name.startswith("."):
                    changed.append((path, mtime_ns, path.read_bytes()))
        write_whole(files, f"{root}/{MARK}", iter([json.dumps(this_driver()).encode()]))
        for path, mtime_ns, data in reversed(changed):
            write_whole(files, f"{root}/{path.relative_to(self.study.path).as_posix()}", iter([data]))
            self._known[path] = mtime_ns


def this_driver() -> dict[str, Any]:
    """Return the host and process id of this process."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def open_or_fetch_study(options: Options) -> tuple[Study, Options]:
    """Return STUDY, fetched from STORAGE if it is not here, or the latest one; and the options with its own STORAGE.

    Raises UserError when there is none, it cannot be read, or its STORAGE must be named.
    """
    if options.study is not None and options.study != LATEST and options.storage is not None:
        fetch_study(options.study, options.storage)
    study = open_study(options.study or LATEST)
    own = study.document().get("storage")
    if options.storage is not None or own is None:
        return study, options
    folder = local_folder(own)
    is_missing = folder is not None and not (folder / study.name).is_dir()
    if is_missing or "***" in own:
        why = f"which has no {study.name} now" if is_missing else "whose password is not kept"
        raise UserError(
            f"study {study.name} has its checkpoints in STORAGE={own}, {why}. Set STORAGE to where they are, or to "
            f"{shown(studies_dir())} to go on without them."
        )
    fetch_study(study.name, own)  # refuses one that has gone on elsewhere
    return study, options.model_copy(update={"storage": own})


def fetch_study(name: str, storage: str) -> None:
    """Fetch a study that is not here from the storage; its checkpoints stay there.

    Raises UserError when it does not exist, or the local one was continued elsewhere.
    """
    check_study_name(name)
    study = Study(studies_dir() / name)
    if not study.study_json.exists():
        fetch_tables(name, storage)
        return
    try:
        here = _tokens_of(study)
    except UserError:
        # Damaged; the ledger has an earlier copy.
        return
    there = _mirrored_tokens(name, storage)
    if there > here:
        raise UserError(
            f"study {name} has gone on elsewhere: STORAGE={storage} holds {there:,} trained tokens of it, {study.path} "
            f"{here:,}. Move that folder away and run the command again with STORAGE: it is then fetched."
        )


def _mirrored_tokens(name: str, storage: str) -> int:
    files, root = files_at(below(storage, name))
    with tempfile.TemporaryDirectory() as folder:
        copy = Study(Path(folder))
        try:
            copy.trials_path.write_bytes(b"".join(blocks_of(files, f"{root}/{copy.trials_path.name}")))
            return _tokens_of(copy)
        except (OSError, UserError):
            # Missing or damaged there: the local study counts.
            return 0


def _tokens_of(study: Study) -> int:
    return sum(row["tokens_seen"] for row in study.trials())


def fetch_checkpoint(study: Study, storage: str, trial_id: int) -> Path | None:
    """Copy a trial's newest whole checkpoint from the storage into the study and return it, None where there is none.

    Raises UserError.
    """
    from pyarrow import fs

    files, root = files_at(below(checkpoint_root(study, storage), f"{trial_id}"))
    try:
        found = files.get_file_info(fs.FileSelector(root, allow_not_found=True))
        for name in sorted((one.base_name for one in found if one.base_name.startswith("step_")), reverse=True):
            path = study.checkpoint_dir(trial_id) / str(name)
            write_whole(*files_at(str(path)), blocks_of(files, f"{root}/{name}"))
            # An object store shows a file too whose writer was killed; the end of an archive is its last block.
            if is_zipfile(path):
                return path
            path.unlink()
    except OSError as error:
        raise UserError(
            f"STORAGE={storage}: the checkpoint of trial {trial_id} of study {study.name} cannot be fetched: "
            f"{full_reason(error)}. Run the command again once it can be read."
        ) from None
    return None


def fetch_tables(name: str, storage: str) -> None:
    """Fetch a study's tables from the storage over the local ones. Raises UserError."""
    from pyarrow import fs

    study = Study(studies_dir() / name)
    try:
        files, root = files_at(below(storage, name))
        if isinstance(files, fs.LocalFileSystem):
            check_own_files(Path(root))  # whoever else writes there must not have our other files fetched and mirrored
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
        raise UserError(f"study {name} cannot be fetched from STORAGE={storage}: {full_reason(error)}.") from None
    (study.path / "steps").mkdir(exist_ok=True)
