"""Checkpoints: ours, whole and exact, and the weights of others' files and folders."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from trainable.checkpoint.checkpoint_file import read_payload, read_safetensors, write_payload
from trainable.checkpoint.checkpoint_path import check_checkpoint_path, is_safetensors, trainer_state, weight_files
from trainable.checkpoint.foreign import fitted, is_state_dict, misfit, step_in, weights_in
from trainable.config import TrialConfig, make_config
from trainable.device.device import rng_state, set_rng_state
from trainable.errors import UserError
from trainable.model import lora
from trainable.model.model_names import model_of_folder
from trainable.model.models import folder_weights
from trainable.state import SinceEvaluation, TrainState

FORMAT = "gpt2-search checkpoint"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint file or folder, read and validated."""

    path: Path
    optimizer_steps: int | None
    """0 for weights alone; None where a file of others should say it and does not."""
    weights: Mapping[str, torch.Tensor]
    payload: Mapping[str, Any]
    """What the file holds; empty for weights alone."""
    config: TrialConfig | None = None
    """None for a file of others: its hyperparameters were another script's."""
    model_name: str | None = None
    base: lora.AdapterBase | None = None
    """What the weights, which are adapters alone, were trained on; None where they are a whole model's."""

    @property
    def ours(self) -> Mapping[str, Any] | None:
        """The whole payload where the file is ours."""
        return self.payload if self.config is not None else None

    @property
    def step_to_continue_from(self) -> int:
        """The optimizer steps that were done. Raises UserError for a file that does not say."""
        if self.optimizer_steps is None:
            raise UserError(
                f"checkpoint {self.path} has no whole number 'step' and so cannot be continued. "
                "WEIGHTS_ONLY=True starts at step 0 from its weights."
            )
        return self.optimizer_steps


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
        "since_evaluation": asdict(state.since_evaluation),
        "base": asdict(state.adapter_base) if state.adapter_base else None,
        "model_state_dict": lora.saved_weights(state.model),
        "optimizer_state_dict": state.optimizer.state_dict(),
        "scaler_state_dict": state.scaler.state_dict(),
        "monitor": state.monitor.state_dict(),
        "rng": {"batches": state.batches.get_state(), **rng_state(state.device)},
    }


def save_checkpoint(state: TrainState, path: Path, *, model_name: str, corpus_fingerprint: str) -> None:
    """Write `state` to `path` so that a reader sees all of it or nothing. Raises OSError, leaving no temporary file."""
    write_payload(checkpoint_payload(state, model_name=model_name, corpus_fingerprint=corpus_fingerprint), path)


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint at `path`, ours or another's file, or a model folder, on the CPU.

    Raises UserError for a path that is missing, of no known kind, or holds more than tensors and plain values;
    DamagedCheckpointError, which is one, for a file that is not as it was written.
    """
    where = f"checkpoint {path}"
    check_checkpoint_path(path, before="checkpoint ")
    if path.is_dir():
        return _folder(path)
    if is_safetensors(path):
        return Checkpoint(path=path, optimizer_steps=0, weights=_tensors(path), payload={})
    payload = read_payload(path)
    if not isinstance(payload, Mapping) or payload.get("format") != FORMAT:
        weights = weights_in(where, payload)
        if is_state_dict(payload):
            return Checkpoint(path=path, optimizer_steps=0, weights=weights, payload={})
        return Checkpoint(path=path, optimizer_steps=step_in(payload), weights=weights, payload=payload)
    version = payload.get("version")
    if not isinstance(version, int) or version != VERSION:
        other = f"version {version}" if isinstance(version, int) else "a version that is not a number"
        raise UserError(f"{where} has {other}; this program reads {VERSION}. Update it.")
    try:
        _check_plain_values(payload)
        return Checkpoint(
            path=path,
            optimizer_steps=payload["optimizer_steps"],
            weights=weights_in(where, payload),
            payload=payload,
            config=make_config(TrialConfig(), payload["config"]),
            model_name=payload["model_name"],
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
    where = f"checkpoint {checkpoint.path} does not fit GPT2_MODEL_NAME={model_name}"
    expected = model.state_dict()
    given = fitted(checkpoint.weights, expected)
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    # safetensors' save_model keeps the first of two tied names, which is the head's.
    spared = {*tied, *(other for name, other in tied.items() if name in given)} - given.keys()
    if (fault := misfit(given, {name: expected[name] for name in expected if name not in spared})) is not None:
        raise UserError(f"{where}: {fault}. Name the model it was made from.")
    for name, other in tied.items():
        # One of the two would be lost without a word.
        if {name, other} <= given.keys() and not torch.equal(given[name].nan_to_num(), given[other].nan_to_num()):
            raise UserError(
                f"{where}: '{name}' and '{other}' differ in the checkpoint and are one tensor in the model. Name a "
                "model whose config.json has tie_word_embeddings false."
            )
    model.load_state_dict(given, strict=False)


def load_merged(model: PreTrainedModel, path: Path, *, model_name: str, seen: frozenset[Path] = frozenset()) -> None:
    """Copy the weights of the checkpoint at `path` into `model`, adapters merged. Raises UserError as load_weights."""
    load_weights(model, read_checkpoint(path), model_name=model_name, seen=seen)
    lora.merge_adapters(model)


def _load_adapters(
    model: PreTrainedModel, checkpoint: Checkpoint, base: lora.AdapterBase, model_name: str, seen: frozenset[Path]
) -> None:
    where = f"checkpoint {checkpoint.path}"
    assert checkpoint.config is not None, "adapters are read from files of ours alone"
    # A study's run has those weights already, and on another machine under another path.
    if base.init_from is not None and lora.base_fingerprint(model) != base.fingerprint:
        path = Path(base.init_from)
        if path in seen:
            raise UserError(f"{where} names itself as the weights below its adapters. Use another checkpoint.")
        try:
            load_merged(model, path, model_name=model_name, seen=seen | {path})
        except UserError as error:
            raise UserError(f"{where} holds LoRA adapters for the weights of {path}: {error}") from None
    lora.check_base(model, base, where=where, model_name=model_name)
    lora.add_adapters(model, checkpoint.config)
    lora.copy_adapters(model, checkpoint.weights, where=where)


def restore(state: TrainState, checkpoint: Checkpoint) -> None:
    """Bring `state`, whose model already has the weights, to exactly where our checkpoint left off.

    Raises UserError when the optimizer's state does not belong to this model.
    """
    ours = checkpoint.ours
    assert ours is not None, "another script's checkpoint has weights only"
    try:
        saved, own = ours["optimizer_state_dict"], state.optimizer.state_dict()["param_groups"]
        # The settings are this run's, which may be of another weight decay, precision or device than the file's.
        groups = [{**new, "params": old["params"]} for new, old in zip(own, saved["param_groups"], strict=True)]
        state.optimizer.load_state_dict({**saved, "param_groups": groups})
        if ours["scaler_state_dict"]:  # empty from a run without: a scaler that begins here finds its own scale
            state.scaler.load_state_dict(ours["scaler_state_dict"])
        state.monitor.load_state_dict(ours["monitor"])
        state.since_evaluation = SinceEvaluation(**ours["since_evaluation"])
        state.batches.set_state(ours["rng"]["batches"])
        set_rng_state(state.device, ours["rng"])
    except (KeyError, ValueError, RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"checkpoint {checkpoint.path} is one of ours but incomplete ({error}). Use another.") from None
    state.optimizer_steps = ours["optimizer_steps"]
    state.tokens_seen = ours["tokens_seen"]
    state.active_s = ours["active_s"]


def _folder(folder: Path) -> Checkpoint:
    if (folder / "config.json").is_file():
        weights = folder_weights(folder)
    else:
        weights = {name: tensor for file in weight_files(folder) for name, tensor in _tensors(file).items()}
    state = trainer_state(folder)
    return Checkpoint(
        path=folder,
        optimizer_steps=0 if state is None else step_in(state),
        weights=weights,
        payload=state or {},
        model_name=model_of_folder(folder),
    )


def _tensors(path: Path) -> Mapping[str, torch.Tensor]:
    where = f"checkpoint {path}"
    weights = read_safetensors(path) if is_safetensors(path) else weights_in(where, read_payload(path))
    if not weights:
        raise UserError(f"{where} holds no tensors. Use another checkpoint.")
    return weights


def _check_plain_values(payload: Mapping[str, Any]) -> None:
    for key, kind in (
        ("model_name", str),
        ("corpus_fingerprint", str),
        ("optimizer_steps", int),
        ("tokens_seen", int),
        ("active_s", float),
    ):
        if not isinstance(payload[key], kind):
            raise TypeError(f"'{key}' is of type {type(payload[key]).__name__}, not {kind.__name__}")
    if payload["optimizer_steps"] < 0:
        raise TypeError(f"'optimizer_steps' is {payload['optimizer_steps']}")


def _base(payload: Mapping[str, Any]) -> lora.AdapterBase | None:
    if payload["base"] is None:
        return None
    base = lora.AdapterBase(**payload["base"])
    if not all(isinstance(text, str) for text in (base.model_name, base.init_from or "", base.fingerprint)):
        raise TypeError("'base' holds something other than names")
    return base
