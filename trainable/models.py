"""Models and their tokenizers by name: a preset, a local folder, or a hub name."""

import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)
from transformers import logging as transformers_logging

from trainable.errors import UserError
from trainable.model_names import PRESETS, check_model_name
from trainable.tokens import Progress, _silent, train_tokenizer

DROPOUT_FIELDS = (
    "resid_pdrop",
    "embd_pdrop",
    "attn_pdrop",
    "attention_dropout",
    "hidden_dropout",
    "dropout",
    "resid_dropout",
    "embed_dropout",
    "embedding_dropout",
)
SAME_GELU = MappingProxyType({"gelu_new": "gelu_pytorch_tanh"})
"""The same formula (Hendrycks & Gimpel 2016, tanh form) in one kernel instead of eight."""
HUB_TIMEOUT_S = 10.0


def load_tokenizer(name: str, files: list[Path], *, progress: Progress = _silent) -> Tokenizer:
    """Return the model's own tokenizer, or for a preset a byte-level BPE trained once on the corpus.

    Raises UserError when the folder or hub name has none that can be used.
    """
    if name in PRESETS:
        return train_tokenizer(files, PRESETS[name]["vocab_size"], progress=progress)
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


def load_model(name: str, *, dropout: float, seed: int) -> PreTrainedModel:
    """Return the named causal LM in fp32 on the CPU, in train mode, with its dropout set.

    Presets get random weights drawn from `seed`; it seeds torch's global generator too, as dropout draws from it.
    Raises UserError when it cannot be loaded.
    """
    torch.manual_seed(seed)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if name in PRESETS:
        model: PreTrainedModel = GPT2LMHeadModel(_tuned(GPT2Config(**PRESETS[name]), dropout))
    else:
        config = _from_pretrained(AutoConfig, name)
        model = _from_pretrained(AutoModelForCausalLM, name, config=_tuned(config, dropout), dtype=torch.float32)
    model.train()
    torch.manual_seed(seed)
    return model


def context_limit(model: PreTrainedModel) -> int | None:
    """Return the most tokens the model's positions reach, or None where it has no limit of its own."""
    for field in ("n_positions", "max_position_embeddings", "n_ctx", "max_seq_len"):
        limit = getattr(model.config, field, None)
        if isinstance(limit, int) and limit > 0:
            return limit
    return None


def check_model(model: PreTrainedModel, name: str, *, block_size: int, vocab_size: int) -> None:
    """Raise UserError when the block is longer than the model's positions or the tokenizer has ids it lacks."""
    limit = context_limit(model)
    if limit is not None and block_size > limit:
        raise UserError(
            f"block_size={block_size} is longer than the {limit} positions of GPT2_MODEL_NAME={name}. "
            f"Set BLOCK_SIZE to {limit} or less."
        )
    rows = model.get_input_embeddings().weight.shape[0]
    if vocab_size > rows:
        raise UserError(
            f"GPT2_MODEL_NAME={name}: its tokenizer has {vocab_size} ids and the model embeds {rows}. "
            "The two do not belong together; save the tokenizer that the model was trained with."
        )


def _tuned(config: Any, dropout: float) -> Any:
    for field in DROPOUT_FIELDS:
        if isinstance(getattr(config, field, None), float):
            setattr(config, field, dropout)
    activation = getattr(config, "activation_function", None)
    if isinstance(activation, str) and activation in SAME_GELU:
        config.activation_function = SAME_GELU[activation]
    return config


def _from_pretrained(loader: Any, name: str, **kwargs: Any) -> Any:
    check_model_name(name)
    is_folder = Path(name).expanduser().is_dir()
    target = str(Path(name).expanduser().absolute()) if is_folder else name
    try:
        return loader.from_pretrained(target, local_files_only=is_folder, **kwargs)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, json.JSONDecodeError) as error:
        first_line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise UserError(f"GPT2_MODEL_NAME={name} cannot be loaded by transformers: {first_line.strip()}") from error
