"""Models of the hub: fetched once into its local cache, and loaded from there alone."""

import re
from contextlib import suppress
from pathlib import Path

from trainable.checkpoint.checkpoint_path import weight_files
from trainable.errors import UserError, full_reason

TIMEOUT_S = 1.5
_WEIGHTS = re.compile(r"(?:model|pytorch_model)(?:-\d+-of-\d+)?\.(safetensors|bin)")
_BESIDE = re.compile(r".*\.(?:json|txt|model|jinja|md)|LICENSE")


def hub_folder(name: str) -> Path | None:
    """Return the folder of a hub model's files in the local cache, None where they are not all there."""
    # Imported late: most models are folders.
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    # Loading or inspecting a model may have fetched single files.
    with suppress(HFValidationError, OSError, UserError):
        config = try_to_load_from_cache(name, "config.json")
        if isinstance(config, str) and weight_files(Path(config).parent):
            return Path(config).parent
    return None


def check_hub_name(name: str, *, others: str) -> None:
    """Raise UserError when the name is no model in the local cache or, where it answers, of the hub.

    others: what else the name could have been.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    where = f"GPT2_MODEL_NAME={name}"
    try:
        if hub_folder(name) is None:
            HfApi().model_info(name, timeout=TIMEOUT_S)
    except (HFValidationError, RepositoryNotFoundError):
        raise UserError(f"{where} is no preset, no folder, and no model that the hub shows ({others}).") from None
    except Exception as error:
        # Offline by choice, no route, a proxy, a timeout, a rate limit: the types change, the remedy does not.
        raise UserError(
            f"{where} is not cached here and the hub does not answer. Go online once, or use {others}."
        ) from error


def fetch(name: str) -> Path:
    """Return the folder of a hub model's files in the local cache; what is missing is fetched. Raises UserError."""
    if (folder := hub_folder(name)) is not None:
        return folder
    from huggingface_hub import HfApi, snapshot_download

    try:
        names = [one.rfilename for one in HfApi().model_info(name).siblings or ()]
        weights = [(found[0], found[1]) for found in map(_WEIGHTS.fullmatch, names) if found]
        # Many repositories hold the same weights in both formats.
        format_ = "safetensors" if any(kind == "safetensors" for _, kind in weights) else "bin"
        wanted = [one for one in names if _BESIDE.fullmatch(one) and "/" not in one]
        snapshot_download(name, allow_patterns=[*wanted, *(one for one, kind in weights if kind == format_)])
    except Exception as error:
        raise UserError(f"GPT2_MODEL_NAME={name} cannot be fetched from the hub: {full_reason(error)}.") from error
    folder = hub_folder(name)
    if folder is None:
        raise UserError(f"GPT2_MODEL_NAME={name}: the hub has no weights of it that transformers loads. Name another.")
    return folder
