"""Files of the cache: written whole with their checksum beside them, and believed only while the two agree."""

import fcntl
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom
from pathlib import Path

from trainable.errors import as_user_error
from trainable.model.fingerprint import file_fingerprint
from trainable.regular_files import whole_file

LEFT_AFTER_S = 60.0
"""An older temporary file that no process holds was left by a process that died."""

_LONGEST_SUM_BYTES = 100


def sum_path(path: Path) -> Path:
    """Return the path of the file that holds the length and the SHA-256 of a file of the cache."""
    return path.with_name(f"{path.name}.sha256")


def cached_sum(path: Path) -> str | None:
    """Return the SHA-256 (hex) of a file of the cache; None where it is missing or is not what was written there.

    The length is compared every time, the content once a process and after every change of the file.
    """
    try:
        if not path.is_file() or not sum_path(path).is_file():
            return None
        with sum_path(path).open("rb") as file:
            size_bytes, expected = file.read(_LONGEST_SUM_BYTES).decode("ascii").split()
        if path.stat().st_size != int(size_bytes) or file_fingerprint(path) != expected:
            return None
    except (OSError, ValueError):
        return None
    return expected


@contextmanager
def writing(path: Path) -> Iterator[BufferedRandom]:
    """Open a file that takes its place in the cache when the block ends, with its checksum; nobody sees it before.

    Raises UserError where it cannot be written, as on a full disk; then nothing is left of it.
    """
    _sweep(path.parent)
    with as_user_error(OSError, f"{path} cannot be written", "Make room, or set another CACHE_DIR."):
        with _renamed_to(path) as file:
            yield file
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
        # A process that dies in between leaves a file without its checksum, which is made again.
        with _renamed_to(sum_path(path)) as file:
            file.write(f"{size_bytes} {digest}\n".encode())


@contextmanager
def _renamed_to(path: Path) -> Iterator[BufferedRandom]:
    with whole_file(path) as file:
        # Held for as long as this process lives: see _sweep. Some file systems have no locks.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def _sweep(folder: Path) -> None:
    """Delete what processes that died have left unfinished."""
    for left in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > LEFT_AFTER_S:
                with left.open("rb") as file:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()
