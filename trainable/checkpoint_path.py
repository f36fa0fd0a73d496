"""Names of checkpoint files, and whether there is one; nothing here needs torch."""

from pathlib import Path

from trainable.errors import UserError

TORCH_SAVE_STARTS = (b"PK\x03\x04", b"\x80")
"""A zip archive, or the pickle of torch before 1.6."""


def checkpoint_name(optimizer_steps: int) -> str:
    """Return the file name of a checkpoint; names sort by step."""
    return f"step_{optimizer_steps:08d}.pt"


def check_checkpoint_path(path: Path) -> None:
    """Raise UserError when there is no file at `path` that looks like one of torch.save."""
    where = f"CHECKPOINT_PATH={path}"
    try:
        if path.is_dir():
            raise UserError(f"{where} is a folder, not a checkpoint file. Name a .pt file.")
        with path.open("rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        raise UserError(f"{where} does not exist. Name a .pt file.") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}. Name a .pt file.") from None
    if not start:
        raise UserError(f"{where} is empty. Use another checkpoint.")
    if start[8:9] == b"{":  # a length of eight bytes, then JSON
        raise UserError(f"{where} is a safetensors file, not one of torch.save. Set GPT2_MODEL_NAME to its folder.")
    if not start.startswith(TORCH_SAVE_STARTS):
        raise UserError(f"{where} is damaged or not a file of torch.save. Use another checkpoint.")
