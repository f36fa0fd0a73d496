"""STORAGE: a study's tables, mirrored where another machine can take the study over; its checkpoints lie there too."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from results.study import Study, check_study_name, studies_dir
from trainable.errors import UserError

INTERVAL_S = 30.0
MIRRORED = ("study.json", "lessons.json", "confirmation.json", "*.parquet", "steps/*.parquet", "best.*", "report.*")


def checked_storage(text: str | None) -> str | None:
    """Return STORAGE, a URI or an absolute folder. Raises UserError where pyarrow knows no such file system."""
    if text is None:
        return None
    if "://" not in text:
        return str(Path(text).expanduser().absolute())
    files_and_path(text)
    return text.rstrip("/")


def files_and_path(storage: str) -> tuple[Any, str]:
    """Return the pyarrow file system of the storage and the path in it. Raises UserError."""
    import pyarrow as pa
    from pyarrow import fs

    if "://" not in storage:
        return fs.LocalFileSystem(), storage
    try:
        files, path = fs.FileSystem.from_uri(storage)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"STORAGE={storage}: {reason}. Name a folder that every node sees, or an s3:// URI.") from None
    return files, path


def place_of(storage: str, study_name: str, part: str) -> str:
    """Return the URI or folder of a study's part in the storage; a URI's query stays at its end."""
    address, mark, query = storage.partition("?")
    return f"{address.rstrip('/')}/{study_name}/{part}{mark}{query}".rstrip("/")


@dataclass
class TableMirror:
    """Copies a study's tables to the storage now and then."""

    study: Study
    storage: str
    _copied_at: float = field(default_factory=time.monotonic)
    _known: dict[Path, float] = field(default_factory=dict)

    def copy_if_due(self) -> None:
        """Copy what has changed, if the last copy is long enough ago. Raises OSError."""
        if time.monotonic() - self._copied_at >= INTERVAL_S:
            self.copy()

    def copy(self) -> None:
        """Copy what has changed since the last copy. Raises OSError."""
        files, root = files_and_path(place_of(self.storage, self.study.name, ""))
        for path in (path for pattern in MIRRORED for path in sorted(self.study.path.glob(pattern))):
            changed_at = path.stat().st_mtime
            if self._known.get(path) == changed_at:
                continue
            target = f"{root}/{path.relative_to(self.study.path)}"
            files.create_dir(target.rpartition("/")[0], recursive=True)
            with files.open_output_stream(target) as stream:
                stream.write(path.read_bytes())
            self._known[path] = changed_at
        self._copied_at = time.monotonic()


def fetch_study(name: str, storage: str) -> None:
    """Bring a study that is not here from the storage; its checkpoints stay there. Raises UserError, OSError."""
    from pyarrow import fs

    check_study_name(name)
    study = Study(studies_dir() / name)
    if study.study_json.exists():
        return
    files, root = files_and_path(place_of(storage, name, ""))
    selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
    found = [one for one in files.get_file_info(selector) if one.type == fs.FileType.File]
    tables = [one for one in found if not one.path.startswith((f"{root}/checkpoints/", f"{root}/inputs/"))]
    if not any(one.base_name == "study.json" for one in tables):
        raise UserError(f"no study named '{name}' in {studies_dir()} or in STORAGE={storage}.")
    # study.json last: without it the folder is no study yet.
    for one in sorted(tables, key=lambda one: one.base_name == "study.json"):
        target = study.path / one.path.removeprefix(f"{root}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        with files.open_input_stream(one.path) as stream:
            target.write_bytes(stream.read())
    (study.path / "steps").mkdir(exist_ok=True)
