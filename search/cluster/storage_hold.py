"""The copy of a study in a storage. One driver at a time writes it, and renews a mark beside the tables while it lives.

Ages are by the storage's clock. The mark is not a lock: two drivers that begin within seconds may both find it free.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyarrow import fs

from results.study.folder import Study, StudyExistsError
from results.study.holder import may_be_there, this_process
from search.cluster.study_storage import lies_in, probed, written
from trainable.data.remote_files import below, blocks_of, files_at, write_whole
from trainable.errors import UserError, full_reason

INTERVAL_S = 30.0
MIRRORED = ("best.*", "report.*", "*.json", "*.png", "steps/*.parquet", "metrics.parquet", "trials.parquet")
"""Copied in this order, trials last, so that every loss in it has its evaluation."""
MARK = ".driver.json"
"""Names the driver that writes the study; renewed with every copy, deleted at the end."""
ALIVE_S = 120
"""A driver that has not renewed its mark for this long is lost."""
_SENT: dict[str, dict[Path, int]] = {}
"""By a study's place in a storage: the files that this process has sent, and when each had been changed. The trials, a
confirmation after them and the report have a mirror each."""


def claim_name(study: Study, storage: str) -> None:
    """Put a new study's documents into the storage, so that its name is taken there too.

    Raises StudyExistsError when the name is taken, and UserError when the storage cannot be written.
    """
    if lies_in(study, storage):
        return
    files, root = files_at(below(storage, study.name))
    with written(storage):
        if isinstance(files, fs.LocalFileSystem):
            Path(root).parent.mkdir(parents=True, exist_ok=True)
            try:
                # Atomic: of two at the same time only one makes the folder. An object store has nothing like it.
                Path(root).mkdir()
            except FileExistsError:
                raise _another(study, storage) from None
        elif files.get_file_info(root).type != fs.FileType.NotFound:
            raise _another(study, storage)
        # study.json last: another machine takes what has one for a whole study.
        for path in sorted(study.path.iterdir(), key=lambda path: path == study.study_json):
            if path.suffix == ".json":
                write_whole(files, f"{root}/{path.name}", [path.read_bytes()])


def release_name(study: Study, storage: str) -> None:
    """Undo claim_name(), for a study in which nothing was run."""
    files, root = files_at(below(storage, study.name))
    with suppress(OSError):
        files.delete_dir(root)


def _another(study: Study, storage: str) -> StudyExistsError:
    return StudyExistsError(
        f"STORAGE={storage} holds another study {study.name}. Choose another STUDY= name, or STORAGE."
    )


def check_unheld(study: Study, storage: str) -> None:
    """Raise UserError when another driver writes the study into the storage, or another study of its name is there."""
    files, root = files_at(below(storage, study.name))
    there = _document(files, f"{root}/study.json")
    if there is not None and there.get("created_at") != study.document()["created_at"]:
        raise _another(study, storage)
    _check_mark(study, storage, files, root)


def _check_mark(study: Study, storage: str, files: Any, root: str) -> None:
    mark = _document(files, f"{root}/{MARK}")
    if mark is None or mark == this_process():
        return
    if not may_be_there(mark):
        return
    # Here too: of a driver that was killed another process may have the number now.
    age_s = _age_s(files, f"{root}/{MARK}", storage)
    if age_s < ALIVE_S:
        raise UserError(
            f"study {study.name} is held by process {mark.get('pid')} on {mark.get('host')}, which wrote to STORAGE "
            f"{age_s} s ago. Stop it; one that is lost is forgotten after {ALIVE_S} s."
        )


def _document(files: Any, path: str) -> dict[str, Any] | None:
    try:
        document = json.loads(b"".join(blocks_of(files, path)))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _age_s(files: Any, path: str, storage: str) -> int:
    with probed(storage) as (now_path, _):
        now, then = files.get_file_info([now_path, path])
    return int(max(0, (now.mtime_ns or 0) - (then.mtime_ns or 0)) / 1e9)


@dataclass
class TableMirror:
    """Copies a study's tables to the storage in a thread, so that a slow store delays no trial."""

    study: Study
    storage: str
    say: Callable[[str], None]
    _copied_at: float = -INTERVAL_S
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
        # Another driver may have gone on with the study since these trials ended.
        if _document(files, f"{root}/{MARK}") == this_process():
            files.delete_file(f"{root}/{MARK}")

    def _copy(self) -> None:
        files, root = files_at(below(self.storage, self.study.name))
        _check_mark(self.study, self.storage, files, root)
        changed: list[tuple[Path, int, bytes]] = []
        known = _SENT.setdefault(below(self.storage, self.study.name), {})
        # Over the study itself an older table would be put in place of a newer one.
        copied = () if lies_in(self.study, self.storage) else MIRRORED
        # A pattern finds nothing where the folder cannot be reached, too.
        found = sorted(self.study.path.iterdir())
        found += [path for folder in found if folder.name == "steps" for path in sorted(folder.iterdir())]
        # Read in the opposite order of writing, so that each table is at least as new as those that refer to it.
        for pattern in reversed(copied):
            for path in (path for path in found if path.match(pattern)):
                mtime_ns = path.stat().st_mtime_ns
                if known.get(path) != mtime_ns and not path.name.startswith("."):
                    changed.append((path, mtime_ns, path.read_bytes()))
        write_whole(files, f"{root}/{MARK}", [json.dumps(this_process()).encode()])
        for path, mtime_ns, data in reversed(changed):
            write_whole(files, f"{root}/{path.relative_to(self.study.path).as_posix()}", [data])
            known[path] = mtime_ns
