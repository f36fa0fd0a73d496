"""Whether the weights that runs start from are still the same: a fingerprint of a preset, a folder or a file."""

import hashlib
import json
from pathlib import Path

from trainable.checkpoint.checkpoint_path import weight_files
from trainable.model.model_names import PRESETS, model_folder

_WEIGHTS = ("config.json", "*.safetensors", "*.bin")


def model_fingerprint(name: str) -> str | None:
    """Return a SHA-256 (hex) over a preset's shape or a folder's configuration and weights; None for a hub name."""
    if name in PRESETS:
        return hashlib.sha256(json.dumps([name, dict(PRESETS[name])], sort_keys=True).encode()).hexdigest()
    folder = model_folder(name)
    if folder is None:
        return None
    parts = [f"{path.name} {file_fingerprint(path)}" for pattern in _WEIGHTS for path in sorted(folder.glob(pattern))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def checkpoint_fingerprint(path: Path) -> str:
    """Return a SHA-256 (hex) over a checkpoint's file, or over the weights in its folder. Raises OSError, UserError."""
    if path.is_file():
        return file_fingerprint(path)
    parts = [f"{file.name} {file_fingerprint(file)}" for file in weight_files(path)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def file_fingerprint(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
