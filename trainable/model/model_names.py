"""What a model name can be, checked without loading torch or a model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainable.checkpoint.checkpoint_path import check_checkpoint_path, check_links
from trainable.errors import UserError, as_user_error
from trainable.model.hub_models import check_hub_name, hub_folder
from trainable.regular_files import MAX_FILE_BYTES, cannot_make, file_type, json_object, whole_path

PRESETS: Mapping[str, Mapping[str, int]] = {
    "tiny-scratch": {"n_layer": 4, "n_head": 4, "n_embd": 128, "vocab_size": 2048, "n_positions": 1024},
    "gpt2-scratch": {"n_layer": 12, "n_head": 12, "n_embd": 768, "vocab_size": 50_257, "n_positions": 1024},
}
"""Shapes with random weights: the shipped model's, and GPT-2's own (Radford et al. 2019, 124M)."""
SHIPPED: Mapping[str, Path] = {"tiny": Path(__file__).parent / "tiny"}
"""Pretrained models that come with the package, as save_pretrained wrote them."""
DEFAULT_MODEL = "tiny"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
DOCUMENTS = (".json", ".txt", ".model", ".jinja")
POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len")
"""What a config calls the most tokens that the model reads."""
RECORD = "gpt2_search.json"
"""In a model folder that this program wrote: what it is of."""


def model_folder(name: str) -> Path | None:
    """Return the absolute folder of a shipped or saved model, or None where `name` is a preset's or the hub's.

    Raises OSError, RuntimeError or ValueError for what cannot be a path.
    """
    # A folder of the same name in the working directory is not meant: ./tiny is.
    if name in PRESETS:
        return None
    folder = SHIPPED.get(name) or whole_path(name)
    return folder if folder.is_dir() else None


def files_folder(name: str) -> Path | None:
    """Return the folder of a model's own files, a hub name's in the local cache; None for a preset, and where not here.

    Raises as model_folder() does.
    """
    return None if name in PRESETS else model_folder(name) or hub_folder(name)


def vocab_size_of(name: str) -> int | None:
    """Return the vocabulary's size of a preset, or as a model's config says it; None where that is not here."""
    return _in_config(name, "vocab_size")


def positions_of(name: str) -> int | None:
    """Return the most tokens that a model's positions reach, likewise; None too where it has no limit of its own."""
    return _in_config(name, *POSITIONS)


def _in_config(name: str, *fields: str) -> int | None:
    try:
        folder = files_folder(name)
    except (OSError, RuntimeError, ValueError):
        return None
    config: Mapping[str, Any] = PRESETS.get(name) or (folder and json_object(folder / "config.json")) or {}
    parts = [part for part in (config, config.get("text_config")) if isinstance(part, Mapping)]
    found = (part.get(field) for part in parts for field in fields)
    return next((number for number in found if isinstance(number, int) and number > 0), None)


def is_to_fetch(name: str) -> bool:
    """Return whether it is a hub name whose files are not here. Raises as model_folder() does."""
    return name not in PRESETS and files_folder(name) is None


def model_of_folder(path: Path | None) -> str | None:
    """Return the name under which a checkpoint's folder is a whole model with its tokenizer, or None."""
    if path is None or not (path / "config.json").is_file():
        return None
    return str(path) if any((path / name).is_file() for name in TOKENIZER_FILES) else None


def check_model_target(folder: Path, same: Mapping[str, Any] | None = None) -> None:
    """Raise UserError where `folder` cannot be made, or holds anything but an earlier save of the same model.

    same: what its record says if it is that.
    """
    with as_user_error(OSError, f"{folder} cannot be written", "Name another folder."):
        is_new = file_type(folder) is None or (folder.is_dir() and not any(folder.iterdir()))
        refused = cannot_make(folder) if is_new else None
    if refused is not None:
        raise UserError(f"{folder} cannot be written: {refused[0]} {refused[1]}. Name another folder.")
    record = json_object(folder / RECORD)
    if not is_new and not (record and same and all(record.get(name) == value for name, value in same.items())):
        raise UserError(f"{folder} exists and is not this model. Remove it, or name another folder.")


def check_model_name(name: str) -> None:
    """Raise UserError when `name` is no preset, no model folder, and no model of the hub or its local cache."""
    if name in PRESETS:
        return
    what = f"GPT2_MODEL_NAME={name} cannot be used"
    with as_user_error((OSError, RuntimeError, ValueError), what, "Name a preset or a folder."):
        path = SHIPPED.get(name) or Path(name).expanduser()
        exists = file_type(path) is not None
    if exists or name.startswith((".", "/", "~")) or name.count("/") > 1 or "\\" in name:
        _check_folder(name, path)
    else:
        known = f"presets: {', '.join((*SHIPPED, *PRESETS))}; or a folder made by save_pretrained"
        check_hub_name(name, others=known)


def _check_folder(name: str, path: Path) -> None:
    where = f"GPT2_MODEL_NAME={name}"
    if not path.exists():
        raise UserError(f"{where}: no such folder. Name a folder made by save_pretrained, a preset or a hub model.")
    if not path.is_dir():
        raise UserError(f"{where} is a file, not a model folder. To start from a checkpoint file, set CHECKPOINT_PATH.")
    # With one, transformers would look for its base, on the hub too.
    if (path / "adapter_config.json").exists():
        raise UserError(f"{where} holds an adapter (adapter_config.json), not a model. Name the merged model's folder.")
    check_links(path, where)
    config = json_object(path / "config.json")
    if config is None:
        raise UserError(f"{where}: the folder has no config.json that can be read. Save the model by save_pretrained.")
    named = config.get("transformers_weights")
    # transformers would load these, and nobody would notice that they change.
    if named is not None and Path(str(named)).name != named:
        raise UserError(f"{where}: its config.json names weights outside of the folder ({named}). Put them into it.")
    # Read whole by transformers, whatever their size.
    for document in path.iterdir():
        if document.suffix in DOCUMENTS and document.is_file() and document.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{where}: {document.name} is larger than the {MAX_FILE_BYTES >> 20} MiB that are read.")
    if named is None:
        check_checkpoint_path(path, before="GPT2_MODEL_NAME=")
