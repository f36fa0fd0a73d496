"""Whether the files that runs are made from are still the same: fingerprints of a preset, a folder or a file."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from trainable.checkpoint.checkpoint_path import weight_files
from trainable.errors import InputChangedError, UserError, reason
from trainable.model.model_names import PRESETS, files_folder
from trainable.regular_files import state_of

_WEIGHTS = ("config.json", "*.safetensors", "*.bin")


def model_fingerprint(name: str) -> str:
    """Return a SHA-256 (hex) over a preset's shape or a folder's configuration and weights.

    A hub name's folder is the one in the local cache. Raises InputChangedError where it is gone.
    """
    if name in PRESETS:
        return hashlib.sha256(json.dumps([name, dict(PRESETS[name])], sort_keys=True).encode()).hexdigest()
    folder = files_folder(name)
    if folder is None:
        raise InputChangedError(f"the input is gone: {name}")
    return _over(_model_files(folder))


def checkpoint_fingerprint(path: Path) -> str:
    """Return a SHA-256 (hex) over a checkpoint's file, or over the weights in its folder. Raises OSError, UserError."""
    return file_fingerprint(path) if path.is_file() else _over(weight_files(path))


def file_fingerprint(path: Path) -> str:
    """Return the SHA-256 (hex) of a file's bytes, read once a process and after every change. Raises OSError."""
    with path.open("rb") as file:
        state = state_of(path, os.fstat(file.fileno()))
        if state not in _fingerprints:
            _fingerprints[state] = hashlib.file_digest(file, "sha256").hexdigest()
    return _fingerprints[state]


_fingerprints: dict[tuple[Path, int, int, int, int, int], str] = {}


def weight_sums(model_name: str, init_from: Path | None) -> dict[str, str]:
    """Return the SHA-256 (hex) of every file that a run's weights are read from; none for a preset.

    By what the file is for and its name, as a node of a cluster has it at another path. Raises OSError, UserError.
    """
    return {name: file_fingerprint(path) for name, path in _weight_files(model_name, init_from).items()}


def check_weights(model_name: str, init_from: Path | None, sums: Mapping[str, str]) -> None:
    """Raise InputChangedError, naming the file, when the weights' files are not those that weight_sums() saw.

    Without sums nothing is compared.
    """
    if not sums:
        return
    try:
        files = _weight_files(model_name, init_from)
    except (OSError, UserError):
        files = _weight_files(model_name, None)  # the checkpoint's are told below
    for name, path in files.items():
        try:
            if sums.get(name) != file_fingerprint(path):
                raise InputChangedError(f"the input has changed since it was first read: {path}")
        except FileNotFoundError:
            raise InputChangedError(f"the input is gone: {path}") from None
        except OSError as error:
            raise InputChangedError(f"the input can no longer be read: {path}: {reason(error)}") from None
    for name in sorted(sums.keys() - files.keys()):
        kind, _, file = name.partition("/")
        raise InputChangedError(f"the input is gone: {file} of {model_name if kind == 'model' else init_from}")


def _weight_files(model_name: str, init_from: Path | None) -> dict[str, Path]:
    folder = files_folder(model_name)
    files = {f"model/{path.name}": path for path in (_model_files(folder) if folder else ())}
    if init_from is not None:
        own = weight_files(init_from) if init_from.is_dir() else [init_from]
        files |= {f"checkpoint/{path.name}": path for path in own}
    return files


def _model_files(folder: Path) -> list[Path]:
    return [path for pattern in _WEIGHTS for path in sorted(folder.glob(pattern)) if path.is_file()]


def _over(files: list[Path]) -> str:
    return hashlib.sha256("\n".join(f"{path.name} {file_fingerprint(path)}" for path in files).encode()).hexdigest()
