"""Checkpoints: ours, whole and exact, and the weights of others' .pt and .safetensors files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from trainable.checkpoint.checkpoint_file import read_payload, read_safetensors, write_payload
from trainable.checkpoint.checkpoint_path import check_checkpoint_path, is_safetensors
from trainable.config import TrialConfig, make_config
from trainable.errors import UserError
from trainable.model.lora import (
    AdapterBase,
    add_adapters,
    base_fingerprint,
    check_base,
    copy_adapters,
    merge_adapters,
    saved_weights,
)
from trainable.state import TrainState

FORMAT = "gpt2-search checkpoint"
VERSION = 1
WRAPPER_PREFIXES = ("model.", "module.", "_orig_mod.")
OLD_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Causal masks and the like that older transformers versions saved and newer ones compute."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint file, read and validated."""

    path: Path
    optimizer_steps: int
    weights: Mapping[str, torch.Tensor]
    config: TrialConfig | None
    """None for a file of others: its hyperparameters were another script's."""
    model_name: str | None
    ours: Mapping[str, Any] | None
    """The whole payload where the file is ours."""
    base: AdapterBase | None = None
    """What the weights, which are adapters alone, were trained on; None where they are a whole model's."""


def checkpoint_payload(state: TrainState, *, model_name: str, corpus_fingerprint: str) -> dict[str, Any]:
    """Return what a checkpoint of `state` holds; its tensors are the state's own and change with the next step."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model_name": model_name,
        "corpus_fingerprint": corpus_fingerprint,
        "config": asdict(state.config),
        "optimizer_steps": state.optimizer_steps,
        "tokens_seen": state.tokens_seen,
        "active_s": state.active_s,
        "base": asdict(state.adapter_base) if state.adapter_base else None,
        "model_state_dict": saved_weights(state.model),
        "optimizer_state_dict": state.optimizer.state_dict(),
        "scaler_state_dict": state.scaler.state_dict(),
        "monitor": state.monitor.state_dict(),
        "rng": {"batches": state.batches.get_state(), "torch": torch.get_rng_state(), **_device_rng(state.device)},
    }


def save_checkpoint(state: TrainState, path: Path, *, model_name: str, corpus_fingerprint: str) -> None:
    """Write `state` to `path` so that a reader sees all of it or nothing. Raises OSError, leaving no temporary file."""
    write_payload(checkpoint_payload(state, model_name=model_name, corpus_fingerprint=corpus_fingerprint), path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, ours, an owner's or the weights of a safetensors file, on the CPU.

    Raises UserError for a file that is missing, of none of these kinds, or holds more than tensors and plain values;
    DamagedCheckpointError, which is one, for a file that is not as it was written.
    """
    where = f"CHECKPOINT_PATH={path}"
    check_checkpoint_path(path)
    if is_safetensors(path):
        return _weights_alone(path)
    payload = read_payload(path)
    if not isinstance(payload, dict) or not _is_state_dict(payload.get("model_state_dict")):
        raise UserError(
            f"{where} has no 'model_state_dict' of tensors: it is neither our checkpoint nor an owner's .pt."
        )
    if payload.get("format") != FORMAT:
        return _owners(path, payload)
    version = payload.get("version")
    if not isinstance(version, int) or version != VERSION:
        other = version if isinstance(version, int) else "of no number"
        raise UserError(f"{where} has version {other}; this program reads {VERSION}. Update it.")
    try:
        _check_plain_values(payload)
        return Checkpoint(
            path=path,
            optimizer_steps=_whole_step(path, payload, "optimizer_steps"),
            weights=payload["model_state_dict"],
            config=make_config(TrialConfig(), payload["config"]),
            model_name=payload["model_name"],
            ours=payload,
            base=_base(payload),
        )
    except (KeyError, TypeError, UserError) as error:
        raise UserError(f"{where} is one of ours but incomplete ({error}). Use another checkpoint.") from None


def load_weights(
    model: PreTrainedModel, checkpoint: Checkpoint, *, model_name: str, seen: frozenset[Path] = frozenset()
) -> None:
    """Copy the checkpoint's weights into `model`; adapters are put into it first, on the base that they name.

    A wrapper's prefix is stripped. Raises UserError naming the first tensor that is missing, unknown or misshapen, or
    the base of adapters that `model` is not. seen: the files whose base this one is.
    """
    if checkpoint.base is not None:
        _load_adapters(model, checkpoint, checkpoint.base, model_name, seen)
        return
    where = f"CHECKPOINT_PATH={checkpoint.path} does not fit GPT2_MODEL_NAME={model_name}"
    expected = model.state_dict()
    given = _without_prefix(checkpoint.weights, expected)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    for name, tensor in given.items():
        if name not in expected:
            raise UserError(
                f"{where}: the checkpoint has a tensor '{name}' that the model lacks. Name the model it was made from."
            )
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{where}: tensor '{name}' is {tuple(tensor.shape)} in the checkpoint and "
                f"{tuple(expected[name].shape)} in the model. Name the model it was made from."
            )
    missing = sorted(expected.keys() - given.keys() - tied)
    if missing:
        raise UserError(
            f"{where}: the checkpoint lacks '{missing[0]}' ({len(missing)} in all). Name the model it was made from."
        )
    model.load_state_dict(given, strict=False)


def load_merged(model: PreTrainedModel, path: Path, *, model_name: str, seen: frozenset[Path] = frozenset()) -> None:
    """Copy the weights of the checkpoint at `path` into `model`, adapters merged. Raises UserError as load_weights."""
    load_weights(model, read_checkpoint(path), model_name=model_name, seen=seen)
    merge_adapters(model)


def _load_adapters(
    model: PreTrainedModel, checkpoint: Checkpoint, base: AdapterBase, model_name: str, seen: frozenset[Path]
) -> None:
    where = f"CHECKPOINT_PATH={checkpoint.path}"
    assert checkpoint.config is not None, "adapters are read from files of ours alone"
    # A study's run has those weights already, and on another machine under another path.
    if base.init_from is not None and base_fingerprint(model) != base.fingerprint:
        path = Path(base.init_from)
        if path in seen:
            raise UserError(f"{where} names itself as the weights below its adapters. Use another checkpoint.")
        try:
            load_merged(model, path, model_name=model_name, seen=seen | {path})
        except UserError as error:
            raise UserError(f"{where} holds LoRA adapters for the weights of {path}: {error}") from None
    check_base(model, base, where=where, model_name=model_name)
    add_adapters(model, checkpoint.config)
    copy_adapters(model, checkpoint.weights, where=where)


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Bring `state`, whose model already has the weights, to exactly where our checkpoint left off.

    Raises UserError when the optimizer's state does not belong to this model.
    """
    ours = checkpoint.ours
    assert ours is not None, "an owner's checkpoint carries weights alone"
    try:
        state.optimizer.load_state_dict(ours["optimizer_state_dict"])
        for group in state.optimizer.param_groups:
            group["weight_decay"] = state.config.weight_decay  # the file's would win over one set for this resumption
        state.scaler.load_state_dict(ours["scaler_state_dict"])
        state.monitor.load_state_dict(ours["monitor"])
        state.batches.set_state(ours["rng"]["batches"])
        torch.set_rng_state(ours["rng"]["torch"])
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(
            f"CHECKPOINT_PATH={checkpoint.path} is one of ours but incomplete ({error}). Use another."
        ) from None
    if state.device.type == "cuda" and "cuda" in ours["rng"]:
        torch.cuda.set_rng_state(ours["rng"]["cuda"], state.device)
    if state.device.type == "mps" and "mps" in ours["rng"]:
        torch.mps.set_rng_state(ours["rng"]["mps"])
    state.optimizer_steps = ours["optimizer_steps"]
    state.tokens_seen = ours["tokens_seen"]
    state.active_s = ours["active_s"]


def _weights_alone(path: Path) -> Checkpoint:
    weights = read_safetensors(path)
    if not weights:
        raise UserError(f"CHECKPOINT_PATH={path} holds no tensors. Use another checkpoint.")
    return Checkpoint(path=path, optimizer_steps=0, weights=weights, config=None, model_name=None, ours=None)


def _owners(path: Path, payload: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        path=path,
        optimizer_steps=_whole_step(path, payload, "step"),
        weights=payload["model_state_dict"],
        config=None,
        model_name=None,
        ours=None,
    )


def _whole_step(path: Path, payload: Mapping[str, Any], key: str) -> int:
    step = payload.get(key)
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise UserError(f"CHECKPOINT_PATH={path} has no whole number '{key}' and so cannot be continued.")
    return step


def _check_plain_values(payload: Mapping[str, Any]) -> None:
    for key, kind in (("model_name", str), ("corpus_fingerprint", str), ("tokens_seen", int), ("active_s", float)):
        if not isinstance(payload[key], kind):
            raise TypeError(f"'{key}' is of type {type(payload[key]).__name__}, not {kind.__name__}")


def _base(payload: Mapping[str, Any]) -> AdapterBase | None:
    values = payload.get("base")  # absent in files from before there were adapters
    if values is None:
        return None
    base = AdapterBase(**values)
    if not all(isinstance(text, str) for text in (base.model_name, base.init_from or "", base.fingerprint)):
        raise TypeError("'base' holds something other than names")
    return base


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())
    )


def _without_prefix(weights: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    # Some models' own names begin with "model.", so a prefix goes only if more names fit without it.
    named = dict(weights)
    while True:
        shorter = [
            {name.removeprefix(prefix): tensor for name, tensor in named.items()}
            for prefix in WRAPPER_PREFIXES
            if all(name.startswith(prefix) for name in named)
        ]
        if not shorter or len(shorter[0].keys() & expected.keys()) < len(named.keys() & expected.keys()):
            break
        named = shorter[0]
    return {name: tensor for name, tensor in named.items() if not name.endswith(OLD_BUFFERS) or name in expected}


def _device_rng(device: torch.device) -> dict[str, torch.Tensor]:
    if device.type == "cuda":
        return {"cuda": torch.cuda.get_rng_state(device)}
    if device.type == "mps":
        return {"mps": torch.mps.get_rng_state()}
    return {}
