"""Names of checkpoint files and folders, and whether there is one; nothing here needs torch."""

import os
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from trainable.errors import UserError, first_of, reason
from trainable.regular_files import json_object, leads_out

TORCH_SAVE_STARTS = ZIP_START, PICKLE_START = b"PK\x03\x04", b"\x80"
"""An archive, or what torch wrote before 1.6."""
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"
"""Of the list of the shards, where the weights are spread over several files."""
_ANY = "a .pt, .bin or .safetensors file, or a folder made by save_pretrained or by a Trainer"
KINDS = {"CHECKPOINT_PATH=": _ANY, "checkpoint ": _ANY, "GPT2_MODEL_NAME=": "a folder made by save_pretrained"}
"""What there should have been, by what stands before the path in an error: the option that named it, if one did."""
SHOWN = 6
_BLOB = re.compile(r"/models--[^/]+/blobs/[^/]+$")
"""A file in the hub's cache."""


class DamagedCheckpointError(UserError):
    """A checkpoint file that does not hold what was written."""


def checkpoint_name(optimizer_steps: int) -> str:
    """Return the file name of a checkpoint."""
    return f"step_{optimizer_steps:08d}.pt"


def saved_steps(names: Iterable[str]) -> list[int]:
    """Return the steps of the checkpoints among file names, in order: from 10^8 on the names do not sort by step."""
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d{8}|[1-9]\d{8,})\.pt", name)))


def check_checkpoint_path(path: Path, *, before: str = "CHECKPOINT_PATH=") -> None:
    """Raise UserError when there is no file at `path` that looks like a whole one of torch.save or safetensors.

    In a folder it is the files of its weights that are looked at. before: a key of KINDS.
    """
    where = f"{before}{path}"
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{where} is neither a file nor a folder. Name {KINDS[before]}.")
        if path.name.endswith(INDEX_SUFFIX):
            raise UserError(f"{where} lists the files of a folder's weights. Name the folder: {path.parent}")
        check_links(path, where)
        for file in weight_files(path, before=before) if path.is_dir() else [path]:
            _check_file(file, f"{before}{file}")
    except FileNotFoundError:
        raise UserError(f"{where} does not exist. Name {KINDS[before]}.") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {reason(error)}. Name {KINDS[before]}.") from None


def check_links(folder: Path, where: str) -> None:
    """Raise UserError for a link in a folder of somebody's to anything outside it: a private file would be copied.

    Links into the hub's cache, of which its client makes such folders, are left. Raises OSError.
    """
    root = folder.resolve()
    for entry in root.iterdir() if root.is_dir() else ():
        if leads_out(entry, root) and not _BLOB.search(os.path.realpath(entry)):
            raise UserError(
                f"{where}: {entry.name} is a link to something outside of the folder, which is not read. "
                "Put the file itself there: cp -rL makes such a copy of the folder."
            )


def weight_files(folder: Path, *, before: str = "checkpoint ") -> list[Path]:
    """Return the files of a model folder's weights: one, or its shards. Raises UserError where there are none."""
    where = f"{before}{folder}"
    if (folder / "adapter_config.json").is_file():
        raise UserError(
            f"{where} holds a LoRA adapter (adapter_config.json), not a whole model. "
            "Name the folder of the merged model: `make model MERGE=1` writes it, as does peft's merge_and_unload."
        )
    for name in WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / (name + INDEX_SUFFIX)).is_file():
            return _shards(folder / (name + INDEX_SUFFIX), where)
    inside = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    steps = checkpoint_folders(folder)
    # Another program may write a step without zeros before it.
    named = {int(match[1]): match[0] for name in inside if (match := re.fullmatch(r"step_(\d+)\.pt", name))}
    if steps or named:
        newest = steps[-1] if steps else folder / named[max(named)]
        raise UserError(f"{where} holds several checkpoints. Name one of them, such as {newest}.")
    held = first_of(inside, SHOWN) or "nothing"
    raise UserError(f"{where} has none of {', '.join(WEIGHTS)}; it holds {held}. Name {KINDS[before]}.")


def checkpoint_folders(folder: Path) -> list[Path]:
    """Return the checkpoint-N folders of a Trainer's output folder, by N."""
    numbered = {
        int(match[1]): path
        for path in folder.iterdir()
        if (match := re.fullmatch(r"checkpoint-(\d{1,15})", path.name)) and path.is_dir()
    }
    return [numbered[number] for number in sorted(numbered)]


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder: itself where it holds a model, a Trainer's checkpoint-N, or files of them.

    Raises UserError when there is none.
    """
    if any(path.name.startswith(WEIGHTS) for path in folder.iterdir()) or (folder / "adapter_config.json").exists():
        return [folder]
    files = sorted(path for path in folder.iterdir() if path.suffix in CHECKPOINT_SUFFIXES and path.is_file())
    found = checkpoint_folders(folder) or files
    if not found:
        raise UserError(
            f"TARGET={folder}: the folder holds no checkpoint ({', '.join(CHECKPOINT_SUFFIXES)} or a Trainer's "
            "checkpoint-N). Name a checkpoint, a study, a trial or a text log."
        )
    return found


def trainer_state(folder: Path) -> dict[str, Any] | None:
    """Return what a Trainer's trainer_state.json holds; None where there is none. Raises UserError for a broken one."""
    path = folder / "trainer_state.json"
    return _json_object(path) if path.is_file() else None


def is_safetensors(path: Path) -> bool:
    """Return whether the file at `path` begins as a safetensors file does. Raises OSError."""
    return _starts_as_safetensors(_start(path))


def _shards(index: Path, where: str) -> list[Path]:
    named = _json_object(index).get("weight_map")
    names = set(named.values()) if isinstance(named, dict) else set()
    # An index from elsewhere must not make this program read a file outside its folder.
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise DamagedCheckpointError(f"{where}: {index.name} does not name files of its folder. Use another.")
    shards = [index.parent / name for name in sorted(names)]
    missing = [shard.name for shard in shards if not shard.is_file()]
    if missing:
        raise DamagedCheckpointError(
            f"{where} lacks {missing[0]} ({len(missing)} of {len(shards)} shards). Use another."
        )
    return shards


def _json_object(path: Path) -> dict[str, Any]:
    document = json_object(path)
    if document is None:
        raise DamagedCheckpointError(f"{path} holds no JSON object. Use another checkpoint.")
    return document


def _check_file(path: Path, where: str) -> None:
    start = _start(path)
    try:
        if _starts_as_safetensors(start):
            # Asks for the length as well: a sparse file of a terabyte would be hashed for hours before it is loaded.
            with safe_open(path, framework="numpy"):
                return
        if start.startswith(PICKLE_START) or (start.startswith(ZIP_START) and zipfile.is_zipfile(path)):
            return
    except SafetensorError:
        pass
    raise DamagedCheckpointError(
        f"{where} is {'damaged' if start else 'empty'} or not a file of torch.save or safetensors. Use another."
    )


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _starts_as_safetensors(start: bytes) -> bool:
    # The header's length in eight bytes, then its JSON.
    return start[8:9] == b"{" and not start.startswith(TORCH_SAVE_STARTS)
