"""Space files on disk: their list, the one that a name means, and its TOML. What the tables mean is read elsewhere."""

import re
import tomllib
from pathlib import Path
from stat import S_IFREG
from typing import Any

from spaces.read.toml_table import shown
from trainable.errors import UserError, as_user_error, did_you_mean
from trainable.regular_files import file_type

SPACES_DIRECTORY = Path(__file__).resolve().parents[1]
MAX_FILE_BYTES = 1_000_000
_TOML_REMEDIES = {
    "Invalid value": "A text stands in quotes; true and false are written small.",
    "Unclosed array": "Between values stands a comma, and in a number a point.",
    "Unclosed inline table": "What is in { } stands on one line, with commas between.",
    "Invalid initial character for a key": "A key is of plain letters, and what is in { } stands on one line.",
    "Cannot declare": "A table stands once.",
    "Cannot overwrite": "A key stands once.",
}
"""By how Python's message begins."""
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\.toml")


def list_spaces(directory: Path | None = None) -> list[Path]:
    """Return the space files of a folder, by default spaces/, sorted by name. Raises UserError for no such folder."""
    directory = directory or SPACES_DIRECTORY
    with as_user_error(OSError, f"cannot read the space files in {shown_path(directory)}/"):
        found = sorted(path for path in directory.iterdir() if path.suffix == ".toml" and path.is_file())
        return [path for path in found if path.name != "pyproject.toml"]  # a Python project's own


def find_space_file(name_or_path: str) -> Path:
    """Return the file that a space's name, or a path ending in .toml, means. Raises UserError when there is none."""
    if name_or_path.endswith(".toml"):
        return _existing(name_or_path)
    names = [path.stem for path in list_spaces()]
    if name_or_path in names:
        return _named(SPACES_DIRECTORY / f"{name_or_path}.toml")
    if "/" in name_or_path:
        raise UserError(f"{shown(name_or_path)} is not a space: a name has no '/', and a path ends in .toml.")
    hint = did_you_mean(name_or_path[:100], names)
    raise UserError(f"no space named {shown(name_or_path)} in {shown_path(SPACES_DIRECTORY)}/.{hint}")


def _existing(path_text: str) -> Path:
    path = Path(path_text)
    with as_user_error((OSError, ValueError, RuntimeError), f"{shown(path_text)} cannot be opened"):
        path = path.expanduser()
        kind = file_type(path)
        beside = [str(other) for other in list_spaces(path.parent)] if path.parent.is_dir() else []
    if kind == S_IFREG:
        return _named(path)
    if kind is not None:
        raise UserError(f"{shown(path_text)} is not a file.")
    # Without a folder in the path, a space's name is as likely to be meant as a file of the current folder.
    known = beside if path.parent != Path() else [*beside, *(other.stem for other in list_spaces())]
    raise UserError(f"there is no file {shown(path_text)}.{did_you_mean(path_text.removesuffix('.toml'), known)}")


def _named(path: Path) -> Path:
    if not _FILE_NAME.fullmatch(path.name):
        raise UserError(
            f"{shown(path.name)}: a study's folder is named after its space file. Rename the file to at most "
            "64 letters, digits, '_', '-' and '.', the first a letter or a digit."
        )
    return path


def read_space_text(path: Path) -> str:
    """Return the text of a space file. Raises UserError naming the file, and the line where there is one."""
    where = shown_path(path)
    with as_user_error(OSError, f"{where} cannot be read"), path.open("rb") as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{where} is larger than {MAX_FILE_BYTES} bytes: it is not a space file.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{where}: line {line} is not UTF-8. Save the file as UTF-8.") from None


def parse_toml(text: str, where: str) -> dict[str, Any]:
    """Return the tables of TOML text. Raises UserError that begins with `where` and names the line."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise UserError(f"{where}: arrays or tables are nested too deeply.") from None
    except ValueError as error:
        end = f"at line {text.count(chr(10)) + 1}, the end of the file"
        what = str(error).replace("at end of document", end)
        remedy = next((f" {words}" for begin, words in _TOML_REMEDIES.items() if what.startswith(begin)), "")
        raise UserError(f"{where}: not valid TOML: {what}.{remedy}") from None


def shown_path(path: Path) -> str:
    """Return `path` for a message: relative to the current folder when it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (OSError, ValueError):
        return str(path)
