"""Who may write a study: one process at a time, by a lock that the system frees when the process ends in any way.

And only into files of its own: a folder may come from somebody else.
"""

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from results.study.atomic import write_atomic
from results.study.folder import Study
from results.study.holder import this_process
from results.study.paths import shown
from results.words import local_time_words
from trainable.errors import UserError, reason
from trainable.regular_files import leads_out, read_regular

WRITTEN_IN_PLACE = (".lock", "search.log")
"""All other files are replaced by new ones."""
SCRATCH = "ray"
"""A folder of a study that is there while its trials run."""


def check_own_files(folder: Path) -> None:
    """Raise UserError when a link below the folder leads out of it, or an entry is neither a file nor a folder.

    Writing or deleting through such a link, or in place through a hard link, would change somebody else's files. The
    folder itself may be a link.
    """
    root = folder.resolve()
    for entry in _entries(root):
        where = shown(folder / entry.relative_to(root))
        try:
            status = entry.lstat()
        except FileNotFoundError:
            continue  # a temporary file of a process that is writing into the study
        mode = status.st_mode
        if leads_out(entry, root):
            raise UserError(
                f"{where} is a link that leads out of the study's folder, where nothing is written. Replace it by what "
                "it leads to; the study's whole folder may be a link."
            )
        if entry.name in WRITTEN_IN_PLACE and entry.parent == root and status.st_nlink > 1:
            raise UserError(
                f"{where} is one file with another elsewhere (a hard link), which would be written too. Remove it, or "
                "copy the study's folder."
            )
        if not (stat.S_ISLNK(mode) or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(f"{where} is neither a file nor a folder. Remove it.")


def remove_unfinished(folder: Path) -> None:
    """Delete temporary files below the folder, left by a process that was killed while it wrote."""
    for entry in _entries(folder):
        if entry.name.startswith(".") and entry.name.endswith(".tmp") and (entry.is_symlink() or entry.is_file()):
            entry.unlink(missing_ok=True)


def _entries(folder: Path) -> Iterator[Path]:
    """Yield all entries below the folder; a link to a folder is not entered."""
    for place, folders, files in os.walk(folder):
        yield from (Path(place, name) for name in (*folders, *files))


@contextmanager
def hold(study: Study) -> Iterator[None]:
    """Hold the study while inside; what a killed holder left unfinished is deleted.

    Raises UserError that says which process holds it, or why its folder cannot be written; see check_own_files().
    """
    check_own_files(study.path)
    lock = FileLock(study.path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(
            f"study {study.name} is held by {_holder(study)}. Wait for it or stop it, then run the command again."
        ) from None
    except OSError as error:
        raise UserError(
            f"study {study.name} cannot be written: {reason(error)}. Make {study.path} writable, or copy the study."
        ) from None
    try:
        # On a full disk others are not told who holds the lock, but it holds.
        with suppress(OSError):
            holder = {**this_process(), "since": datetime.now(UTC).isoformat()}
            write_atomic(study.holder_path, json.dumps(holder).encode())
        # Only now: who does not hold the study may come upon files that another process is writing.
        remove_unfinished(study.path)
        shutil.rmtree(study.path / SCRATCH, ignore_errors=True)
        yield
    finally:
        with suppress(OSError):
            study.holder_path.unlink(missing_ok=True)
        lock.release()


def _holder(study: Study) -> str:
    try:
        holder = json.loads(read_regular(study.holder_path))
        return f"process {holder['pid']} on {holder['host']} since {local_time_words(holder['since'])}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return "another process"
