"""The lock by which one process at a time writes a study. The system frees it when the process ends in any way."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from results.study.atomic import write_atomic
from results.study.folder import Study
from results.study.own_files import check_own_files
from results.words import local_time_words
from trainable.errors import UserError, reason
from trainable.regular_files import read_regular


@contextmanager
def hold(study: Study) -> Iterator[None]:
    """Hold the study while inside.

    Raises UserError that says which process holds it, or why its folder cannot be written; see own_files.
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
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": datetime.now(UTC).isoformat()}
            write_atomic(_holder_path(study), json.dumps(holder).encode())
        yield
    finally:
        with suppress(OSError):
            _holder_path(study).unlink(missing_ok=True)
        lock.release()


def _holder_path(study: Study) -> Path:
    # Not the lock file itself, which any process that asks for the lock may empty.
    return study.path / ".holder.json"


def _holder(study: Study) -> str:
    try:
        holder = json.loads(read_regular(_holder_path(study)))
        return f"process {holder['pid']} on {holder['host']} since {local_time_words(holder['since'])}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
