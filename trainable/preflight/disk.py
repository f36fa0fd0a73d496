"""The check that a study's checkpoints fit on the disk that is to hold them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from trainable.device.device_memory import GIB
from trainable.preflight.check_result import Check, judged, skipped
from trainable.preflight.memory_probe import moments_bytes

NAME = "disk for checkpoints"


@dataclass(frozen=True, kw_only=True)
class CheckpointRoom:
    """Where checkpoints are kept, and how many at a time at most."""

    folder: Path | None
    """Not necessarily there yet; None for a store that does not say how much is free, S3 for one."""
    count: int


def checkpoint_bytes(model: torch.nn.Module) -> int:
    """Return the size of a checkpoint of a run: weights, buffers, and AdamW's two moments of what is trained."""
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return weights + moments_bytes(model)


def check_disk(model: torch.nn.Module, room: CheckpointRoom) -> Check:
    """Return whether the checkpoints that are kept at a time fit into what is free."""
    if room.folder is None:
        return skipped(NAME, "the store does not say how much room it has")
    folder = room.folder.absolute()
    while not folder.exists():
        folder = folder.parent
    size, free = checkpoint_bytes(model), shutil.disk_usage(folder).free
    return judged(
        NAME,
        failed=size * room.count > free,
        measured=f"{room.count} checkpoints of {size / GIB:.2f} GiB at a time: {size * room.count / GIB:.2f} GiB",
        expected=f"at most the {free / GIB:.2f} GiB that are free in {folder}",
        advice="Make room there, name another place (STORAGE, STUDIES_DIR), or run fewer trials at once.",
    )
