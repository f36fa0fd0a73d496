"""Models and their tokenizers by name: a preset, the shipped model, a local folder, or a hub name."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers import logging as transformers_logging

from trainable.data.text_documents import WHOLE_FILES, Documents
from trainable.data.tokens import END_OF_TEXT, Progress, silent, train_tokenizer
from trainable.device.cpu_kernels import tune_for_cpu
from trainable.device.device_memory import is_out_of_memory
from trainable.errors import UserError, full_reason
from trainable.model.model_names import POSITIONS, PRESETS, TOKENIZER_FILES, check_model_name, files_folder
from trainable.model.modes import dropout_fields

MOST_NUMBERS_PER_BYTE = 2
"""No number of a file is smaller than four bits."""
_REASONS = {
    "trust_remote_code": "it needs code of its own, which is never run. Use a model that transformers itself knows",
    "weights_only": "its weights hold Python objects besides tensors, which could run code, and nothing of them ran. "
    "Save the model again with save_pretrained",
    "does not recognize this architecture": "the installed version does not know its model_type. Use another model",
    "Unrecognized configuration class": "it is no causal language model. Use another, or the text model that it holds",
}
"""By what transformers' own message holds, which is long or advises what is not safe."""
SAME_GELU = {"gelu_new": "gelu_pytorch_tanh"}
"""The same formula (Hendrycks & Gimpel 2016, tanh form) in one kernel instead of eight."""


def load_tokenizer(
    name: str, files: list[Path], *, documents: Documents = WHOLE_FILES, progress: Progress = silent
) -> Tokenizer:
    """Return the model's own tokenizer, or for a preset a byte-level BPE trained once on the corpus.

    Raises UserError when the folder or hub name has none that can be used.
    """
    if name in PRESETS:
        return train_tokenizer(files, PRESETS[name]["vocab_size"], documents=documents, progress=progress)
    folder = files_folder(name)
    if folder is not None and not any((folder / file).is_file() for file in TOKENIZER_FILES):
        # transformers would make up a tokenizer of a few special tokens.
        raise UserError(f"GPT2_MODEL_NAME={name}: the folder has no tokenizer. Add the model's own by save_pretrained.")
    loaded = _from_pretrained(AutoTokenizer, name)
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise UserError(
            f"GPT2_MODEL_NAME={name}: its tokenizer is not a fast one (tokenizer.json). Convert it with "
            "AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...)."
        )
    backend.no_truncation()
    backend.no_padding()
    return backend


def separator_id(name: str, tokenizer: Tokenizer) -> int | None:
    """Return the id of the tokenizer's end-of-text token, which stands between documents; None where it has none."""
    if name in PRESETS:
        return tokenizer.token_to_id(END_OF_TEXT)
    found = _from_pretrained(AutoTokenizer, name).eos_token_id
    # A tokenizer may name an end that its vocabulary lacks.
    return found if isinstance(found, int) and tokenizer.id_to_token(found) is not None else None


def preset_config(name: str, end_of_text: int | None = None) -> GPT2Config:
    """Return the shape of a preset, its documents ended by `end_of_text`.

    GPT-2's own 50256 is no id of a smaller vocabulary, of which transformers would warn.
    """
    return GPT2Config(**PRESETS[name], bos_token_id=end_of_text, eos_token_id=end_of_text)


def load_model(name: str, *, dropout: float, seed: int) -> PreTrainedModel:
    """Return the named causal LM in fp32 on the CPU, in train mode, with its dropout set.

    Presets get random weights drawn from `seed`; it seeds torch's global generator too, as dropout draws from it.
    Raises UserError when it cannot be loaded.
    """
    torch.manual_seed(seed)
    if name in PRESETS:
        model: PreTrainedModel = GPT2LMHeadModel(_tuned(preset_config(name), dropout))
    else:
        where = f"GPT2_MODEL_NAME={name}"
        config = _tuned(_checked_config(where, name), dropout)
        model = _loaded(where, name, config, dtype=torch.float32)
    unfreeze(model)
    tune_for_cpu(model)
    model.train()
    torch.manual_seed(seed)
    return model


def folder_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a model folder as they were saved, by the names of the model's own state dict.

    Some families are saved under other names than they train under, which transformers alone knows. Raises UserError.
    """
    where = f"checkpoint {folder}"
    config = _checked_config(where, str(folder))
    weights: dict[str, torch.Tensor] = _loaded(where, str(folder), config, dtype="auto").state_dict()
    return weights


def text_weights(model: Any) -> dict[str, torch.nn.Parameter]:
    """Return by name the weights that text trains: all, or of a model that sees images too those of its text's part."""
    weights = dict(model.named_parameters())
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config") or config.get_text_config() is config:
        return weights
    parts = [part for part in (model.get_decoder(), model.get_output_embeddings()) if part is not None]
    text = {weight for part in parts for weight in part.parameters()}
    return {name: weight for name, weight in weights.items() if weight in text}


def unfreeze(model: PreTrainedModel) -> None:
    """Have the weights that text trains trained and no others, which would have no gradient."""
    model.requires_grad_(False)
    for weight in text_weights(model).values():
        weight.requires_grad_(True)


def context_limit(config: Any) -> int | None:
    """Return the most tokens that a model's positions reach, or None where it has no limit of its own."""
    for field in POSITIONS:
        limit = getattr(config.get_text_config(), field, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def check_model(model: PreTrainedModel, name: str, *, block_size: int, eval_block_size: int, vocab_size: int) -> None:
    """Raise UserError when a block is longer than the model's positions or the tokenizer has ids it lacks."""
    limit = context_limit(model.config)
    for field, tokens, setting in (
        ("block_size", block_size, "BLOCK_SIZE, or the space's block_size,"),
        ("eval_block_size", eval_block_size, "EVAL_BLOCK_SIZE, or the space's [evaluation] block_size,"),
    ):
        if limit is not None and tokens > limit:
            raise UserError(
                f"{field}={tokens} is longer than the {limit} positions of GPT2_MODEL_NAME={name}. "
                f"Set {setting} to {limit} or less, or name a model that reads as much."
            )
    rows = model.get_input_embeddings().weight.shape[0]
    if vocab_size > rows:
        raise UserError(
            f"GPT2_MODEL_NAME={name}: its tokenizer has {vocab_size} ids and the model embeds {rows}. "
            "The two do not belong together; save the tokenizer that the model was trained with."
        )


def has_lost_its_tie(model: PreTrainedModel) -> bool:
    """Return whether the head and the input embedding are two tensors although the configuration ties them."""
    own, head = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False) and type(model)._tied_weights_keys
    return bool(is_tied) and head is not None and head.weight is not own.weight


def _tuned(config: Any, dropout: float) -> Any:
    for field in dropout_fields(text := config.get_text_config()):
        setattr(text, field, dropout)
    config.return_dict = True
    activation = getattr(config, "activation_function", None)
    if isinstance(activation, str) and activation in SAME_GELU:
        config.activation_function = SAME_GELU[activation]
    return config


def _checked_config(where: str, name: str) -> Any:
    config = _from_pretrained(AutoConfig, name, where=where)
    # Quantized weights bring a library or a kernel of their own, and none of them is trained here.
    if getattr(config, "quantization_config", None) is not None:
        raise UserError(f"{where}: its config.json says that the weights are quantized. Use the whole model.")
    return config


def _loaded(where: str, name: str, config: Any, *, dtype: Any) -> PreTrainedModel:
    model, loading = _from_pretrained(
        AutoModelForCausalLM,
        name,
        where=where,
        config=config,
        # A config may name an attention kernel of the hub, which transformers would download and run.
        attn_implementation=None,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    _check_loading(where, model, loading)
    return model


def _check_loading(what: str, model: PreTrainedModel, loading: Mapping[str, Any]) -> None:
    # transformers gives such tensors random values and only warns: a "pretrained" model that knows nothing.
    where = f"{what}: its weights do not fit its config.json"
    faults = [
        f"'{name}' is {tuple(given)} in the file and {tuple(wanted)} in the model"
        for name, given, wanted in sorted(loading["mismatched_keys"])
    ]
    faults += [f"'{name}' is missing" for name in sorted(loading["missing_keys"])]
    # Files often hold more than the model reads, a buffer or another head; a further layer belongs to the model.
    known = {numberless(name) for name in model.state_dict()}
    for name in sorted(loading["unexpected_keys"]):
        if any(f".{own}".endswith(f".{numberless(name)}") for own in known):
            faults.append(f"'{name}' is in the file and not in the model")
    if faults:
        raise UserError(f"{where}: {faults[0]} ({len(faults)} in all). Save the model again with save_pretrained.")
    # transformers goes on with two tensors then, and a model saved from them has one again.
    if has_lost_its_tie(model):
        raise UserError(
            f"{where}, which ties the head to the input embedding: the file has another tensor for each. "
            "Set tie_word_embeddings to false there."
        )


def _check_size(what: str, folder: Path | None, config: Any) -> None:
    """Raise UserError where it is the configuration that asks for the memory, and not the weights."""
    if folder is None or config is None:
        return
    stored_bytes = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".bin"))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False, attn_implementation=None)
    asked = sum(parameter.numel() for parameter in model.parameters())
    if asked > stored_bytes * MOST_NUMBERS_PER_BYTE:
        raise UserError(
            f"{what}: its weights do not fit its config.json, which asks for {asked:,} numbers; the files hold "
            f"{stored_bytes:,} bytes. Save the model again with save_pretrained."
        )


def numberless(name: str) -> str:
    """Return a tensor's name with # for the numbers of layers: what the same tensor is called in all of them."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "#", name)


def _from_pretrained(loader: Any, name: str, *, where: str = "", **kwargs: Any) -> Any:
    check_model_name(name)
    where = where or f"GPT2_MODEL_NAME={name}"
    folder = files_folder(name)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        # Left unset, transformers would ask on the terminal, and wait, whether to run code that came with the model.
        return loader.from_pretrained(
            name if folder is None else str(folder),
            local_files_only=folder is not None,
            trust_remote_code=False,
            **kwargs,
        )
    except Exception as error:
        # A broken file surfaces as whatever the parser of the day raises; only running out of memory is no user's.
        if is_out_of_memory(error):
            _check_size(where, folder, kwargs.get("config"))
            raise
        words = f"{error} is not known to it" if isinstance(error, KeyError) else full_reason(error)
        words = next((plain for said, plain in _REASONS.items() if said in str(error)), words)
        raise UserError(f"{where} cannot be loaded by transformers: {words}.") from error
