"""One driver at a time writes a study into a storage: it renews a mark beside the tables while it lives.

Ages are by the storage's clock. The mark is not a lock: two drivers that begin within seconds may both find it free.
"""

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from pyarrow import fs

from results.study.folder import Study, StudyExistsError
from search.cluster.study_storage import MARK, lies_in, probed, this_driver, written
from trainable.data.remote_files import below, blocks_of, files_at, write_whole
from trainable.errors import UserError

ALIVE_S = 120
"""A driver that has not renewed its mark for this long is lost."""


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
        for path in sorted(study.path.glob("*.json"), key=lambda path: path == study.study_json):
            write_whole(files, f"{root}/{path.name}", iter([path.read_bytes()]))


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
    there, mark = _document(files, f"{root}/study.json"), _document(files, f"{root}/{MARK}")
    if there is not None and there.get("created_at") != study.document()["created_at"]:
        raise _another(study, storage)
    if mark is None or mark == this_driver():
        return
    if mark.get("host") == socket.gethostname():
        pid, age_s = mark.get("pid"), 0
        held = isinstance(pid, int) and _is_alive(pid)
    else:
        age_s = _age_s(files, f"{root}/{MARK}", storage)
        held = age_s < ALIVE_S
    if held:
        raise UserError(
            f"study {study.name} is held by process {mark.get('pid')} on {mark.get('host')}, which wrote to STORAGE "
            f"{age_s} s ago. Stop it; one that is lost is forgotten after {ALIVE_S} s."
        )


def _is_alive(pid: int) -> bool:
    try:
        # By psutil, which knows another user's process too. A zombie has ended, though nobody has reaped it.
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False


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
