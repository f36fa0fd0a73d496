"""Paths as a person reads them."""

from contextlib import suppress
from pathlib import Path

from trainable.errors import UserError

PICTURES = "results/pictures"
"""Below the current folder, and ignored by git: pictures of logs, checkpoints and texts, which have no study."""


def path_error(path: Path) -> str | None:
    """Return why the system takes no such path at all (too long, a NUL in it, an unreadable parent), or None."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def expanded(text: str, variable: str) -> Path:
    """Return a path that a person wrote, absolute. Raises UserError, naming the variable, for the home of nobody."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise UserError(f"{variable}={text!r}: there is no such user. Write the whole path.") from None


def picture_path(name: str) -> Path:
    """Return where the picture of something that is no study goes; its folder is there where it can be made."""
    folder = Path.cwd() / PICTURES
    with suppress(OSError):  # whoever writes the picture says why it is not there
        folder.mkdir(parents=True, exist_ok=True)
    return folder / name


def shown(path: Path) -> str:
    """Return `path` for one line of text: relative to the current folder when below it, quoted when it must be."""
    text = str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
    return text if text.isprintable() else repr(text)
