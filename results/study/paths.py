"""Paths that a person wrote or reads."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from trainable.errors import UserError
from trainable.regular_files import whole_path

PICTURES = "results/pictures"
"""Below the current folder, ignored by git: pictures of logs, checkpoints and texts, which belong to no study."""


def expanded(text: str, variable: str) -> Path:
    """Return a person's path as absolute. Raises UserError, naming the variable, for a URL and an unknown ~NAME."""
    if "://" in text:
        raise UserError(f"{variable}={text} is a URL. Name a file or a folder of this machine.")
    try:
        return whole_path(text)
    except RuntimeError:
        raise UserError(f"{variable}={text!r}: there is no such user. Write the whole path.") from None


def picture_path(drawn: Path, kind: str) -> Path:
    """Return the path of a picture of a log, checkpoint or text, which belongs to no study; its folder is made.

    Each input has one of its own: run-a/log.txt and run-b/log.txt are both called log.
    """
    whose = hashlib.sha256(os.fsencode(drawn.absolute())).hexdigest()[:6]
    folder = Path.cwd() / PICTURES
    with suppress(OSError):  # writing the picture then says what is wrong
        folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{drawn.stem}-{whose}.{kind}.png"


def shown(path: Path) -> str:
    """Return `path` for a line of text: relative to the user's folder when below it, quoted when not printable."""
    # That of the shell, which `make -C` does not change.
    here = Path(os.environ.get("MAKE_CALLED_FROM") or ".").resolve()
    text = str(path.relative_to(here) if path.is_relative_to(here) else path)
    return text if text.isprintable() else repr(text)
