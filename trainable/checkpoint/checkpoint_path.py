"""Names of checkpoint files, and whether there is one; nothing here needs torch."""

from pathlib import Path

from trainable.errors import UserError

TORCH_SAVE_STARTS = (b"PK\x03\x04", b"\x80")
"""A zip archive, or the pickle of torch before 1.6."""


class DamagedCheckpointError(UserError):
    """A checkpoint file that does not hold what was written."""


def checkpoint_name(optimizer_steps: int) -> str:
    """Return the file name of a checkpoint; names sort by step."""
    return f"step_{optimizer_steps:08d}.pt"


def check_checkpoint_path(path: Path) -> None:
    """Raise UserError when there is no file at `path` that looks like one of torch.save or safetensors."""
    where = f"CHECKPOINT_PATH={path}"
    try:
        if path.is_dir():
            raise UserError(f"{where} is a folder, not a checkpoint file. Name a .pt or .safetensors file.")
        start = _start(path)
    except FileNotFoundError:
        raise UserError(f"{where} does not exist. Name a .pt or .safetensors file.") from None
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror}. Name a .pt or .safetensors file.") from None
    if not start:
        raise DamagedCheckpointError(f"{where} is empty. Use another checkpoint.")
    if not start.startswith(TORCH_SAVE_STARTS) and not _starts_as_safetensors(start):
        raise DamagedCheckpointError(
            f"{where} is damaged or not a file of torch.save or safetensors. Use another checkpoint."
        )


def is_safetensors(path: Path) -> bool:
    """Return whether the file at `path` begins as a safetensors file does. Raises OSError."""
    return _starts_as_safetensors(_start(path))


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(16)


def _starts_as_safetensors(start: bytes) -> bool:
    # The header's length in eight bytes, then its JSON.
    return start[8:9] == b"{" and not start.startswith(TORCH_SAVE_STARTS)
