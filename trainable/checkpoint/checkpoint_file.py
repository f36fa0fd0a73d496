"""A checkpoint's bytes: written whole or not at all, checked when they are read. What they mean is not known here."""

import errno
import os
import pickle
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils._pytree import tree_leaves

from trainable.checkpoint.checkpoint_path import DamagedCheckpointError
from trainable.device.device_memory import is_out_of_memory
from trainable.errors import UserError, reason
from trainable.regular_files import sync_folder, whole_file

FOLDER_BIT = 0x10
"""Of a zip record's external attributes."""
LEFT_FREE_BYTES = 1 << 20
"""For a study's tables."""


def write_payload(payload: Any, path: Path) -> None:
    """Put `payload` at `path`, on disk when this returns.

    Raises OSError (a full disk, say) with the old file untouched and nothing left beside it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # One that does not fit would take the last bytes for a moment, and what is written meanwhile would fail for it.
    disk = shutil.disk_usage(path.parent)
    # Tensors by their place, for tied ones are written once.
    sizes = {leaf.data_ptr(): leaf.nbytes for leaf in tree_leaves(payload) if isinstance(leaf, torch.Tensor)}
    if disk.total and disk.free < sum(sizes.values()) + LEFT_FREE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    try:
        with whole_file(path) as file:
            torch.save(payload, file)
    except RuntimeError as error:
        # torch's archive, which is closed even so, covers a full disk with an error of its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    # A rename that a power cut undoes would leave nothing, once the predecessor is deleted.
    sync_folder(path.parent)


def read_payload(path: Path) -> Any:
    """Return what torch.save wrote to `path`, on the CPU; nothing in it is executed.

    Raises UserError when it holds more than tensors and plain values, DamagedCheckpointError when it is not whole.
    """
    checked = _check_sums(path)
    try:
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"checkpoint {path} was refused and nothing of it ran: it holds Python objects besides tensors and plain "
            "values, which could run code, or is damaged. Save it again with tensors, numbers, texts, lists and dicts."
        ) from None
    except Exception as error:
        # With the bytes known to be right it is the machine that is at fault; wrong ones can ask for any size.
        if checked and is_out_of_memory(error):
            raise
        # A damaged pickle raises whatever its bytes happen to lead to: a dozen types were seen.
        raise _damaged(path) from None


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file, on the CPU. Raises UserError when its header and its length disagree.

    The format has no checksums: a changed number is not noticed.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _damaged(path, f" or not a whole safetensors file ({reason(error)})") from None


def _check_sums(path: Path) -> bool:
    # torch.save writes a CRC-32 of every record, and torch.load does not compare them.
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return False  # torch before 1.6 wrote no archive
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            # torch.save compresses nothing: what unpacks to more than the file is a bomb, of hours and of all memory.
            if sum(record.file_size for record in records) > path.stat().st_size:
                raise zipfile.BadZipFile
            if not any(record.CRC for record in records):
                return False  # the writer had them switched off
            # torch reads nothing of what is marked as a folder, and leaves its tensor uninitialised.
            folders = [one.filename for one in records if one.external_attr & FOLDER_BIT and not one.is_dir()]
            wrong = folders[0] if folders else archive.testzip()
    except Exception:
        # As with pickles, a dozen types.
        raise _damaged(path) from None
    if wrong is not None:
        raise _damaged(path, f": {wrong} is not as it was written")
    return True


def _damaged(path: Path, how: str = " or not a file of torch.save") -> DamagedCheckpointError:
    return DamagedCheckpointError(f"checkpoint {path} is damaged{how}. Use another checkpoint.")
