"""Names of checkpoint files, and whether there is one; nothing here needs torch."""

from pathlib import Path

from trainable.errors import UserError


def checkpoint_name(optimizer_steps: int) -> str:
    """Return the file name of a checkpoint; names sort by step."""
    return f"step_{optimizer_steps:08d}.pt"


def check_checkpoint_path(path: Path) -> None:
    """Raise UserError when there is no non-empty file at `path`."""
    if not path.is_file():
        what = "is a folder, not a checkpoint file" if path.is_dir() else "does not exist"
        raise UserError(f"CHECKPOINT_PATH={path} {what}. Name a .pt file.")
    if path.stat().st_size == 0:
        raise UserError(f"CHECKPOINT_PATH={path} is empty. Use another checkpoint.")
