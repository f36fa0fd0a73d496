"""A model as a folder: what AutoModelForCausalLM.from_pretrained, mlx-lm and llama.cpp's converter read."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig, PreTrainedModel

from trainable.data.tokens import END_OF_TEXT
from trainable.errors import UserError, reason
from trainable.model.lora import AdapterBase, save_adapters
from trainable.model.model_names import PRESETS, RECORD, files_folder
from trainable.model.models import context_limit, preset_config
from trainable.regular_files import read_regular

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
COPIED = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "tekken.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja",
    "generation_config.json", "LICENSE", "LICENSE.md", "LICENSE.txt",
)  # fmt: skip
"""The base's own files, byte for byte: written again by this transformers, an older one might not read them."""
ONE_FILE = "1000GB"


def save_model_folder(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    model_name: str,
    dtype: str | None,
    card: str,
    record: Mapping[str, Any],
) -> str:
    """Write `model`, a run's, to `folder`, whole or not at all; return the dtype it is saved in.

    model_name: the base, whose tokenizer and configuration go with it. dtype: fp32, bf16, fp16, or None for the base's
    own. What was at `folder` before is replaced: check_model_target() comes first. Raises UserError.
    """
    config = base_config(model_name, tokenizer)
    own_dtype = next((name for name, one in DTYPES.items() if one == config.dtype), "fp32")
    saved_dtype = dtype or own_dtype
    with _replacing(folder, card, {**record, "dtype": saved_dtype}) as unfinished:
        _write_weights(model, config, DTYPES[saved_dtype], unfinished)
        base = files_folder(model_name)
        for file in (base / name for name in COPIED) if base else ():
            if file.is_file():
                (unfinished / file.name).write_bytes(read_regular(file))
        _write_tokenizer(tokenizer, config, unfinished)
        _finish_config(unfinished / "config.json", base)
    return saved_dtype


def save_adapter_folder(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    model_name: str,
    base: str,
    card: str,
    record: Mapping[str, Any],
) -> None:
    """Write the adapters of `model` to `folder` in peft's layout, whole or not at all. Raises UserError.

    base: adapters_base_name()'s, what peft is to put them on.
    """
    with _replacing(folder, card, {**record, "dtype": None}) as unfinished:
        save_adapters(model, unfinished, base_model=base)
        _write_tokenizer(tokenizer, base_config(model_name, tokenizer), unfinished)


def adapters_base_name(base: AdapterBase) -> str:
    """Return the folder or hub name of the model that adapters were trained on, as peft is to load it.

    Raises UserError where nothing that peft reads holds those weights.
    """
    remedy = "so nobody could load the adapters alone. MERGE=1 writes a whole model."
    if base.init_from is not None:
        if not (Path(base.init_from) / "config.json").is_file():
            raise UserError(f"the base's weights are those of {base.init_from}, which is no model folder, {remedy}")
        return base.init_from
    if base.model_name in PRESETS:
        raise UserError(f"the base, {base.model_name}, has random weights, which no file holds, {remedy}")
    return str(files_folder(base.model_name) or base.model_name)


def base_license(model_name: str) -> str | None:
    """Return the licence that the base's own README names in its front matter, where it does."""
    base = files_folder(model_name)
    try:
        text = (base / "README.md").read_text(encoding="utf-8") if base else ""
    except (OSError, UnicodeDecodeError):
        return None
    head = text.split("\n---", 1)[0] if text.startswith("---") else ""
    lines = [line.partition(":")[2].strip() for line in head.splitlines() if line.startswith("license:")]
    return lines[0] if lines and lines[0].isprintable() else None


def base_config(model_name: str, tokenizer: Tokenizer) -> PreTrainedConfig:
    """Return the base's configuration: its own dropout and activation, not what a run trained with."""
    if model_name not in PRESETS:
        # The run has loaded it before, so it is here.
        name = str(files_folder(model_name) or model_name)
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        config._attn_implementation, config.output_attentions = None, False
        return config
    return preset_config(model_name, tokenizer.token_to_id(END_OF_TEXT))


def _write_weights(model: PreTrainedModel, config: PreTrainedConfig, dtype: torch.dtype, folder: Path) -> None:
    # A shell of the plain class, without the run's own layers and dropout, around the same tensors.
    with torch.device("meta"):
        plain = type(model)(config)
    plain.load_state_dict({name: tensor.detach() for name, tensor in model.state_dict().items()}, assign=True)
    plain.tie_weights()
    plain = plain.to(dtype)
    plain.generation_config = GenerationConfig.from_model_config(config)
    weights = None
    if config.model_type == "gpt2" and config.tie_word_embeddings:
        # As on the hub. mlx-lm knows these names alone; transformers and llama.cpp know both.
        body = {name: one for name, one in plain.state_dict().items() if name.startswith("transformer.")}
        weights = {name.removeprefix("transformer."): tensor for name, tensor in body.items()}
    plain.save_pretrained(folder, max_shard_size=ONE_FILE, state_dict=weights)


def _write_tokenizer(tokenizer: Tokenizer, config: PreTrainedConfig, folder: Path) -> None:
    if not (folder / "tokenizer.json").exists():
        tokenizer.save(str(folder / "tokenizer.json"))
    if (folder / "tokenizer_config.json").exists():
        return
    config = config.get_text_config()
    end = tokenizer.id_to_token(config.eos_token_id) if isinstance(config.eos_token_id, int) else None
    special = {"bos_token": end, "eos_token": end, "unk_token": end} if end else {}
    limit = context_limit(config)
    document = {
        # By this name every version of transformers, and mlx-lm, finds tokenizer.json.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        **({"model_max_length": limit} if limit else {}),
        **special,
    }
    _write_json(folder / "tokenizer_config.json", document)
    _write_json(folder / "special_tokens_map.json", special)


def _write_json(path: Path, document: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _finish_config(path: Path, base: Path | None) -> None:
    """Add the names that transformers 5 does not write any more and other programs ask for."""
    document = json.loads(path.read_bytes())
    rope = document.get("rope_parameters")
    theta = rope.get("rope_theta") if isinstance(rope, dict) else None
    older: dict[str, Any] = {"torch_dtype": document.get("dtype")}
    if document["model_type"] == "gpt2":
        older["n_ctx"] = document["n_positions"]
    elif document["model_type"] == "gpt_neox" and theta is not None:
        older |= {"rotary_emb_base": theta, "rotary_pct": rope.get("partial_rotary_factor", 1.0)}
    elif theta is not None:
        older["rope_theta"] = theta
    if base is not None:
        own = json.loads((base / "config.json").read_bytes())
        older = {**own, **older}
    document = {**{name: value for name, value in older.items() if value is not None}, **document}
    # The code that it names is not in this folder, the kernel may not be where that is read, and no loop reads tuples.
    for name in ("auto_map", "_attn_implementation", "attn_implementation", "return_dict"):
        document.pop(name, None)
    _write_json(path, dict(sorted(document.items())))


@contextmanager
def _replacing(folder: Path, card: str, record: Mapping[str, Any]) -> Iterator[Path]:
    unfinished, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished.mkdir()
        yield unfinished
        (unfinished / "README.md").write_text(card, encoding="utf-8")
        _write_json(unfinished / RECORD, record)
        for path in unfinished.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        if folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
    except (OSError, SafetensorError) as error:  # that library's own of a full disk
        raise UserError(f"{folder} cannot be written: {reason(error)}. Make room, or name another folder.") from None
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        for left in (unfinished, old):
            shutil.rmtree(left, ignore_errors=True)
