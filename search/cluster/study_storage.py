"""STORAGE: whether it can be written, a study's checkpoints in it, and the copy of a study that is fetched from it."""

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from stat import S_IFDIR
from typing import TYPE_CHECKING
from zipfile import is_zipfile

from results.model_card import model_row
from results.study.folder import LATEST, Study, check_study_name, open_study, studies_dir
from results.study.lock import check_own_files
from results.study.paths import shown
from search.options import Options
from trainable.checkpoint.checkpoint_path import checkpoint_name, saved_steps
from trainable.data.remote_files import below, blocks_of, files_at, local_folder, names_in, write_whole
from trainable.errors import UserError, as_user_error, reason
from trainable.regular_files import file_type

if TYPE_CHECKING:
    from results.study.planned_run import Row
    from trainable.checkpoint.checkpoint import Checkpoint

CHECKPOINTS = "checkpoints"


class NoCheckpointError(UserError):
    """A trial's last checkpoint was deleted, or is damaged."""


def checkpoint_root(study: Study, storage: str | None) -> str:
    """Return the folder or URI of the study's checkpoints."""
    return below(storage, study.name, CHECKPOINTS) if storage else str(study.path / CHECKPOINTS)


def model_checkpoint(study: Study, storage: str | None, trial: "Row") -> "Checkpoint":
    """Return the checkpoint of a completed trial's model. Raises NoCheckpointError, and UserError."""
    from trainable.checkpoint.checkpoint_store import CheckpointStore

    step = model_row(study, trial)["optimizer_steps"]
    damaged: list[str] = []
    # A run of train keeps its checkpoints in its own folder, and STORAGE may have been set later than the study ran.
    for root in dict.fromkeys(checkpoint_root(study, place) for place in (storage, None)):
        with as_user_error(OSError, f"checkpoints in {root} cannot be read", "Set STORAGE to where they are."):
            checkpoint, notes = CheckpointStore(root=root, trial_id=trial["trial_id"]).newest(at_most=step)
        if checkpoint is not None and checkpoint.optimizer_steps == step:
            return checkpoint
        damaged += notes
    what = "its checkpoint is damaged" if damaged else f"no checkpoint of its step {step} was kept"
    raise NoCheckpointError(f"trial {trial['trial_id']} of study {study.name}: {what}.")


def lies_in(study: Study, storage: str) -> bool:
    """Return whether the storage is the folder of the studies, and the study's own folder its place there."""
    folder = local_folder(storage)
    return folder is not None and (folder / study.name).resolve() == study.path.resolve()


def written(storage: str) -> AbstractContextManager[None]:
    """Turn an OSError into the UserError that the storage cannot be written."""
    return as_user_error(OSError, f"STORAGE={storage} cannot be written", "Name another place.")


@contextmanager
def probed(storage: str) -> Iterator[tuple[str, str]]:
    """Have a small file in the storage while inside; yield its path and its content.

    Raises UserError when it cannot be written or deleted: no such bucket, no permission, no answer.
    """
    files, root = files_at(storage)
    path, word = f"{root}/.probe-{secrets.token_hex(4)}", secrets.token_hex(8)
    with written(storage):
        write_whole(files, path, [word.encode()])
    try:
        yield path, word
    finally:
        with written(storage):
            files.delete_file(path)


def read_probe(storage: str, path: str) -> str:
    """Return the small file's content; empty if this machine does not see it."""
    try:
        return b"".join(blocks_of(files_at(storage)[0], path)).decode()
    except OSError:
        return ""


def open_or_fetch_study(options: Options) -> tuple[Study, Options]:
    """Return STUDY, fetched from STORAGE if it is not here, or the latest one; and the options with its own STORAGE.

    Raises UserError when there is none, it cannot be read, or its STORAGE must be named.
    """
    if options.study is not None and options.study != LATEST and options.storage is not None:
        fetch_study(options.study, options.storage)
    study = open_study(options.study or LATEST)
    own = study.document().get("storage")
    if options.storage is not None or own is None:
        return study, options
    folder = local_folder(own)
    why = "whose password is not kept" if "***" in own else None
    try:
        if folder is not None and file_type(folder / study.name) != S_IFDIR:
            why = f"which has no {study.name} now"
    except OSError as error:
        why = f"which cannot be reached ({reason(error)})"
    if why is not None:
        raise UserError(
            f"study {study.name} has its checkpoints in STORAGE={own}, {why}. Set STORAGE to where they are, or to "
            f"{shown(studies_dir())} to go on without them."
        )
    fetch_study(study.name, own)  # refuses one that has gone on elsewhere
    return study, options.model_copy(update={"storage": own})


def fetch_study(name: str, storage: str) -> None:
    """Fetch a study that is not here from the storage; its checkpoints stay there.

    Raises UserError when it does not exist, or the local one was continued elsewhere.
    """
    check_study_name(name)
    study = Study(studies_dir() / name)
    if not study.study_json.exists():
        fetch_tables(name, storage)
        return
    try:
        here = _tokens_of(study)
    except UserError:
        # Damaged; the ledger has an earlier copy.
        return
    there = _mirrored_tokens(name, storage)
    if there > here:
        raise UserError(
            f"study {name} has gone on elsewhere: STORAGE={storage} holds {there:,} trained tokens of it, {study.path} "
            f"{here:,}. Move that folder away and run the command again with STORAGE: it is then fetched."
        )


def _mirrored_tokens(name: str, storage: str) -> int:
    files, root = files_at(below(storage, name))
    with tempfile.TemporaryDirectory() as folder:
        copy = Study(Path(folder))
        try:
            copy.trials_path.write_bytes(b"".join(blocks_of(files, f"{root}/{copy.trials_path.name}")))
            return _tokens_of(copy)
        except (OSError, UserError):
            # Missing or damaged there: the local study counts.
            return 0


def _tokens_of(study: Study) -> int:
    return sum(row["tokens_seen"] for row in study.trials())


def fetch_checkpoint(study: Study, storage: str, trial_id: int) -> Path | None:
    """Copy a trial's newest whole checkpoint from the storage into the study and return it, None where there is none.

    Raises UserError.
    """
    files, root = files_at(below(checkpoint_root(study, storage), f"{trial_id}"))
    what = f"STORAGE={storage}: the checkpoint of trial {trial_id} of study {study.name} cannot be fetched"
    with as_user_error(OSError, what, "Run the command again once it can be read."):
        for step in reversed(saved_steps(names_in(files, root))):
            name = checkpoint_name(step)
            path = study.checkpoint_dir(trial_id) / name
            write_whole(*files_at(str(path)), blocks_of(files, f"{root}/{name}"))
            # An object store shows a file too whose writer was killed; the end of an archive is its last block.
            if is_zipfile(path):
                return path
            path.unlink()
    return None


def fetch_tables(name: str, storage: str) -> None:
    """Fetch a study's tables from the storage over the local ones. Raises UserError."""
    from pyarrow import fs

    study = Study(studies_dir() / name)
    with as_user_error(OSError, f"study {name} cannot be fetched from STORAGE={storage}"):
        files, root = files_at(below(storage, name))
        if isinstance(files, fs.LocalFileSystem):
            check_own_files(Path(root))  # whoever else writes there must not have our other files fetched and mirrored
        selector = fs.FileSelector(root, recursive=True, allow_not_found=True)
        found = [one for one in files.get_file_info(selector) if one.type == fs.FileType.File]
        tables = [one for one in found if not one.path.startswith(f"{root}/{CHECKPOINTS}/") and one.base_name[0] != "."]
        if not any(one.base_name == "study.json" for one in tables):
            raise UserError(f"no study named '{name}' in {studies_dir()} or in STORAGE={storage}.")
        if any(".." in one.path.split("/") for one in tables):
            raise UserError(f"STORAGE={storage}: study {name} has a file with .. in its path. It is not fetched.")
        if study.path.exists():
            check_own_files(study.path)
        # study.json last: without it the folder is no study yet.
        for one in sorted(tables, key=lambda one: one.base_name == "study.json"):
            target = study.path / one.path.removeprefix(f"{root}/")
            write_whole(*files_at(str(target)), blocks_of(files, one.path))
    (study.path / "steps").mkdir(exist_ok=True)
