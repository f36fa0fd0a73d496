"""Files and JSON documents written whole or not at all, and why one was not. It is no lock: the last writer wins."""

import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from results.study.paths import shown
from trainable.errors import UserError, reason
from trainable.regular_files import read_regular, sync_folder, whole_file

_STORAGE_WORDS = {
    errno.ENOSPC: "no space left on the device. Make room",
    errno.EDQUOT: "the disk quota is used up. Make room, or have it raised",
    errno.EROFS: "the file system is read-only. Make it writable",
    errno.EFBIG: "larger than a limit on files allows. Raise it (ulimit -f)",
    errno.EACCES: "permission denied. Make it writable",
    errno.ESTALE: "deleted or moved while it was written to. Put it back",
    errno.EIO: "the device reports an error. Check the disk",
}
_ENDS_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ESTALE)
"""The disk is full or read-only, or the study is gone."""


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


def storage_error_words(
    error: OSError, path: Path | None = None, *, again: str | None = None, is_certain: bool = False
) -> str:
    """Return a line with the file, why it could not be written, and the remedy.

    path: named where the error itself names no file. again: the command that goes on; None for the one that was typed.
    is_certain: it came from writing; of any other, what does not end all further writes may be a bug: raised again.
    """
    if not is_certain and error.errno not in _ENDS_WRITING:
        raise error
    named = error.filename if isinstance(error.filename, str | bytes) else None
    where = Path(os.fsdecode(named)) if named else path
    why = _STORAGE_WORDS.get(error.errno or 0) or f"{reason(error)}. Make it writable"
    then = "run the command again." if again is None else f"go on with: {again}"
    return f"{f'{shown(where)}: ' if where else ''}{why}; what was measured so far is kept. Then {then}"


Value = TypeVar("Value")


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` to `path`. Raises OSError."""
    write_atomic(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def read_document(path: Path, parse: Callable[[Any], Value], *, what: str, again: str) -> Value | None:
    """Return the value that `parse` makes of the document, None where there is no such file.

    Raises UserError when it is damaged: "not `what`", with the remedy to move it away and `again` again.
    """
    try:
        return parse(json.loads(read_regular(path)))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
        raise UserError(f"{shown(path)}: not {what} ({reason(err)}). Move it away and {again} again.") from None


def value_of(kind: type[Value], document: Any) -> Value:
    """Return the dataclass whose JSON `document` is. Raises ValueError for a field of another type, or NaN."""
    try:
        # From JSON, whose lists may become tuples and sets: from Python's own types strict mode refuses them.
        return TypeAdapter(kind).validate_json(json.dumps(document, allow_nan=False), strict=True)
    except ValidationError as err:
        first = err.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
