"""Files written whole or not at all, and the reasons why one was not. It is no lock: the last writer wins."""

import errno
import os
from pathlib import Path

from results.study.paths import shown
from trainable.errors import reason
from trainable.regular_files import sync_folder, whole_file

_STORAGE_WORDS = {
    errno.ENOSPC: "no space left on the device. Make room",
    errno.EDQUOT: "the disk quota is used up. Make room, or have it raised",
    errno.EROFS: "the file system is read-only. Make it writable",
    errno.EFBIG: "larger than a limit on files allows. Raise it (ulimit -f)",
    errno.EACCES: "permission denied. Make it writable",
    errno.EIO: "the device reports an error. Check the disk",
}


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, durably when this returns; a reader sees the old file or the new one, never a part.

    Raises OSError (a full disk, say) with the old file untouched and nothing left beside it.
    """
    try:
        with whole_file(path) as file:
            file.write(data)
    except OSError as error:
        error.filename = str(path)  # a write that fails names none, an open the temporary one
        raise
    sync_folder(path.parent)


def is_storage_error(error: OSError) -> bool:
    """Return whether no further write can succeed: the disk is full or read-only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)


def storage_error_words(error: OSError, path: Path | None = None) -> str:
    """Return a line with the file, why it could not be written, and the remedy.

    path: named where the error itself names no file.
    """
    named = error.filename if isinstance(error.filename, str | bytes) else None
    where = Path(os.fsdecode(named)) if named else path
    why = _STORAGE_WORDS.get(error.errno or 0) or f"{reason(error)}. Make it writable"
    return f"{f'{shown(where)}: ' if where else ''}{why}; what was measured so far is kept"
