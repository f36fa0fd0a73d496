"""Files read whole or refused before they are waited for, and files written whole or not at all."""

import errno
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 256 << 20
"""Of a document or a table: millions of rows."""


def file_type(path: Path) -> int | None:
    """Return a path's type (S_IFREG, S_IFDIR, ...), None where nothing is. Raises OSError.

    From Python 3.14 on Path.exists() and its like say False of what the system refuses or cannot reach, too: a table on
    a network disk that does not answer is not an empty one.
    """
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise
        return None
    except ValueError:  # a NUL in it
        return None


def read_regular(path: Path) -> bytes:
    """Return the bytes of a file. Raises OSError, also for what is no regular file (a pipe say) or far too large."""
    # Whoever opens a pipe waits for its writer.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if found.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"larger than the {MAX_FILE_BYTES >> 20} MiB that are read", str(path))
        return file.read()


def state_of(path: Path, found: os.stat_result) -> tuple[Path, int, int, int, int, int]:
    """Return what a change of the file changes, also where its time of modification is set back."""
    return path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def json_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object that a file holds, None where it cannot be read or holds none."""
    try:
        document = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def whole_path(text: str) -> Path:
    """Return a person's path as absolute, without .. where that leads to the same. Raises RuntimeError for ~NOBODY."""
    path = Path(text).expanduser().absolute()
    plain = Path(os.path.normpath(path))
    try:
        # Behind a link .. is elsewhere.
        return plain if plain.samefile(path) else path
    except (OSError, ValueError):
        return path


def cannot_make(path: Path) -> tuple[Path, str] | None:
    """Return (where, why) nothing can be made at `path`, as far as can be seen without writing; None if it can."""
    there = next(one for one in (path, *path.parents) if os.path.lexists(one))
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return there, "cannot be written to" if there.is_dir() else "is not a folder"


def leads_out(entry: Path, folder: Path) -> bool:
    """Return whether an entry of a resolved folder is a link to something outside it."""
    if not entry.is_symlink():
        return False
    try:
        target = entry.resolve()
    except (OSError, RuntimeError):  # links that lead to each other
        return True
    # From Python 3.13 on such links are resolved to one of them.
    return target.is_symlink() or not target.is_relative_to(folder)


@contextmanager
def whole_file(path: Path) -> Iterator[BufferedRandom]:
    """Open a file that takes the place of `path`, on disk, when the block ends; nobody sees it before.

    Raises OSError (a full disk, say) with the old file untouched and nothing left beside it.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable: without it a rename may be undone by a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
