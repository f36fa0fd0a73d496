"""What a run needs from outside its process, on a node that may lack it: fetched once per node from a shared place."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from trainable.corpus import cache_dir
from trainable.model_names import PRESETS
from trainable.run import RunSpec

LOCK_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class SharedInputs:
    """Copies of a study's tokens, model folder and checkpoint at a URI that every node reaches."""

    uri: str

    def put(self, spec: RunSpec) -> None:
        """Copy what the spec names by a local path, unless it is there. Raises OSError."""
        for path in _paths(spec):
            _copy(path, self._at(path))

    def localized(self, spec: RunSpec) -> RunSpec:
        """Return the spec with paths that exist on this node; what is missing is fetched, once. Raises OSError."""
        found = {path: path if path.exists() else self._fetched(path) for path in _paths(spec)}
        model = Path(spec.model_name)
        return replace(
            spec,
            corpus=replace(spec.corpus, path=found[spec.corpus.path]),
            init_from=found[spec.init_from] if spec.init_from else None,
            model_name=str(found[model]) if model in found else spec.model_name,
        )

    def _fetched(self, path: Path) -> Path:
        key = hashlib.sha256(self._at(path).encode()).hexdigest()[:16]
        local = cache_dir() / f"fetched-{key}" / path.name
        # Several workers of a node ask at once; one fetches.
        local.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(local.parent / ".lock", timeout=LOCK_TIMEOUT_S):
            if not local.exists():
                partial = local.with_name(f".{local.name}.tmp")
                _copy(self._at(path), partial)
                partial.replace(local)
        return local

    def _at(self, path: Path) -> str:
        address, mark, query = self.uri.partition("?")
        return f"{address.rstrip('/')}/{path.name}{mark}{query}"


def _paths(spec: RunSpec) -> list[Path]:
    model = [] if spec.model_name in PRESETS or not Path(spec.model_name).is_absolute() else [Path(spec.model_name)]
    return [spec.corpus.path, *([spec.init_from] if spec.init_from else []), *model]


def _copy(source: str | Path, target: str | Path) -> None:
    from pyarrow import fs

    (source_files, source_path), (target_files, target_path) = (_located(place) for place in (source, target))
    info = source_files.get_file_info(source_path)
    if info.type == fs.FileType.NotFound:
        raise FileNotFoundError(2, "no such file in the shared place", source_path)
    there = target_files.get_file_info(target_path)
    if there.type == fs.FileType.Directory or (there.type == fs.FileType.File and there.size == info.size):
        return
    target_files.create_dir(target_path if info.type == fs.FileType.Directory else _parent(target_path), recursive=True)
    fs.copy_files(source_path, target_path, source_filesystem=source_files, destination_filesystem=target_files)


def _parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def _located(place: str | Path) -> tuple[Any, str]:
    """Return the pyarrow file system and the path in it of a local path or a URI."""
    from pyarrow import fs

    if "://" not in str(place):
        return fs.LocalFileSystem(), str(Path(place).absolute())
    files, path = fs.FileSystem.from_uri(str(place))
    return files, path
