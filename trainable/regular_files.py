"""Documents that somebody else may have written: read whole, or refused before they are waited for."""

import errno
import os
import stat
from pathlib import Path

MAX_FILE_BYTES = 256 << 20
"""Of a document or a table: millions of rows."""


def read_regular(path: Path) -> bytes:
    """Return the bytes of a file. Raises OSError, also for what is no regular file (a pipe say) or far too large."""
    # Whoever opens a pipe waits for its writer.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:  # noqa: PTH123
        found = os.fstat(file.fileno())
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if found.st_size > MAX_FILE_BYTES:
            raise OSError(errno.EFBIG, f"larger than the {MAX_FILE_BYTES >> 20} MiB that are read", str(path))
        return file.read()
