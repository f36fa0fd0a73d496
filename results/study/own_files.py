"""The files that a study's folder may have before anything is written in it: it may come from somebody else."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from results.study.paths import shown
from trainable.errors import UserError
from trainable.regular_files import leads_out

WRITTEN_IN_PLACE = (".lock", "search.log")
"""All other files are replaced by new ones."""


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
