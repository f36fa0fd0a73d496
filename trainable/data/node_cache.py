"""What a run needs from a disk, on a node that lacks it: fetched once per node from a shared place, and checked."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from filelock import FileLock

from trainable.data.corpus import cache_dir
from trainable.data.remote_files import below, blocks_of, files_at, write_whole
from trainable.errors import InputChangedError
from trainable.model.fingerprint import file_fingerprint
from trainable.model.hub_models import fetch
from trainable.model.model_names import SHIPPED, is_to_fetch, model_folder
from trainable.run import RunSpec

INPUTS = ".inputs"
"""The folder in the storage, beside the studies. No study can have this name."""

LOCK_TIMEOUT_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class SharedFile:
    """One file of a shared copy."""

    path: str
    """The path below the copy's own name; empty where the copy is a single file."""
    size_bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class SharedCopy:
    """A file or a folder as it lies in the storage, named after its content: two studies share it."""

    storage: str = field(repr=False)
    """The storage's URI. It may hold a password."""
    name: str
    files: tuple[SharedFile, ...]

    @property
    def place(self) -> str:
        """The copy's folder or URI."""
        listing = "\n".join(f"{file.path} {file.sha256}" for file in self.files)
        key = hashlib.sha256(f"{self.name}\n{listing}".encode()).hexdigest()[:16]
        return below(self.storage, INPUTS, key, self.name)

    def local(self, own: Path) -> Path:
        """Return `own` where this node has the same there, else the copy in the node's cache, where it is fetched once.

        Raises InputChangedError when the copy is gone or damaged, OSError when the storage does not answer.
        """
        if all(_is_same(own / file.path, file) for file in self.files):
            return own
        files, place = files_at(self.place)
        folder = cache_dir() / f"shared-{place.split('/')[-2]}"
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / self.name
        # All workers of a node ask at once; one of them fetches.
        with FileLock(folder / ".lock", timeout=LOCK_TIMEOUT_S):
            for left_by_a_killed_process in folder.rglob(".*.tmp"):
                left_by_a_killed_process.unlink(missing_ok=True)
            for file in self.files:
                path, remote = target / file.path, f"{place}/{file.path}".rstrip("/")
                if not _is_same(path, file):
                    damaged = f"the copy of the input in the storage is damaged, delete it: {remote}"
                    try:
                        write_whole(*files_at(str(path)), _checked(blocks_of(files, remote), file, damaged))
                    except FileNotFoundError:
                        raise InputChangedError(f"the input is gone: {remote} in the storage") from None
        return target


def share(path: Path, storage: str) -> SharedCopy:
    """Return the copy in the storage of a local file or a model's folder; what is not there yet is copied.

    Of a folder only its own files: a run's checkpoints below it are of no use to another. Raises OSError.
    """
    found = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file())
    shared = SharedCopy(
        storage=storage,
        name=path.name,
        files=tuple(
            SharedFile(
                path="" if one == path else one.relative_to(path).as_posix(),
                size_bytes=one.stat().st_size,
                sha256=file_fingerprint(one),
            )
            for one in found
        ),
    )
    files, place = files_at(shared.place)
    here, _ = files_at(str(path))
    for file, source in zip(shared.files, found, strict=True):
        remote = f"{place}/{file.path}".rstrip("/")
        # A copy that was cut short has another size.
        if files.get_file_info([remote])[0].size != file.size_bytes:
            changed = f"the input has changed since it was first read: {source}"
            write_whole(files, remote, _checked(blocks_of(here, str(source)), file, changed))
    return shared


@dataclass(frozen=True, kw_only=True)
class SharedInputs:
    """Copies of all that a study's RunSpec names by a path of the driver's machine."""

    copies: Mapping[str, SharedCopy]
    """By that path."""

    def localized(self, spec: RunSpec) -> RunSpec:
        """Return the spec with paths of this node; what is missing, or another file, is fetched.

        Raises OSError, and UserError where the hub has to be asked and does not answer.
        """
        found = {path: copy.local(Path(path)) for path, copy in self.copies.items()}
        if spec.model_name not in found and is_to_fetch(spec.model_name):
            fetch(spec.model_name)
        held_out = spec.corpus.validation
        return replace(
            spec,
            corpus=replace(
                spec.corpus,
                path=found[str(spec.corpus.path)],
                validation=replace(held_out, path=found[str(held_out.path)]) if held_out else None,
            ),
            init_from=found[str(spec.init_from)] if spec.init_from else None,
            model_name=str(found.get(spec.model_name, spec.model_name)),
        )


def share_inputs(spec: RunSpec, storage: str) -> SharedInputs:
    """Return the copies in the storage of tokens, checkpoint and model folder. Raises OSError.

    A model of the hub is fetched from there by each node.
    """
    held_out = spec.corpus.validation
    paths = [spec.corpus.path, *([held_out.path] if held_out else []), *([spec.init_from] if spec.init_from else [])]
    # Every node has the shipped model with its package.
    if spec.model_name not in SHIPPED and model_folder(spec.model_name):
        paths.append(Path(spec.model_name))
    return SharedInputs(copies={str(path): share(path, storage) for path in paths})


def _is_same(path: Path, file: SharedFile) -> bool:
    try:
        return path.stat().st_size == file.size_bytes and file_fingerprint(path) == file.sha256
    except OSError:
        return False


def _checked(blocks: Iterator[bytes], file: SharedFile, fault: str) -> Iterator[bytes]:
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
        yield block
    if digest.hexdigest() != file.sha256:
        raise InputChangedError(fault)
