"""Others' checkpoint files: where in them the weights and the step are, and their tensors by transformers' names."""

from collections.abc import Mapping
from typing import Any

import torch

from trainable.errors import UserError, first_of

WEIGHTS_KEYS = ("model_state_dict", "state_dict", "model", "module")
"""Of training.py and training_resume.py; Lightning; nanoGPT; DeepSpeed."""
STEP_KEYS = ("step", "global_step", "iter_num", "global_steps")
SETTINGS_KEYS = ("hyperparameters", "hyper_parameters", "config", "model_args")
OPTIMIZER_KEYS = ("optimizer_state_dict", "optimizer")
OLD_BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")
"""Causal masks and the like that older transformers versions saved and newer ones compute."""
RENAMED = {"embed_out.weight": "lm_head.weight"}
"""GPT-NeoX's head, in files and in the model."""
CONV1D_WEIGHTS = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")
KEYS_SHOWN = 8


def weights_in(where: str, payload: Any) -> Mapping[str, torch.Tensor]:
    """Return the weights of a file's content: of a known key, or all of it.

    Raises UserError naming what was found instead.
    """
    if is_state_dict(payload):
        return dict(payload)
    if isinstance(payload, Mapping):
        for key in WEIGHTS_KEYS:
            if is_state_dict(payload.get(key)):
                weights: Mapping[str, torch.Tensor] = payload[key]
                return weights
    found = f"a {type(payload).__name__}"
    if isinstance(payload, Mapping):
        found = first_of([f"{key!r} ({_kind(value)})" for key, value in payload.items()], KEYS_SHOWN) or "an empty dict"
    raise UserError(
        f"{where} has no weights where this program looks for them: it holds {found}. It reads a dict of tensors by "
        f"name, alone or under {', '.join(map(repr, WEIGHTS_KEYS[:-1]))} or {WEIGHTS_KEYS[-1]!r}. Save one of these."
    )


def step_in(payload: Mapping[str, Any]) -> int | None:
    """Return the optimizer steps that a file says were done, or None where it does not say it as a whole number."""
    for key in STEP_KEYS:
        step = payload.get(key)
        if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
            return step
    return None


def settings_in(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a file records, by the names of whoever wrote it; nested values are left out."""
    found: dict[str, Any] = {}
    for key in SETTINGS_KEYS:
        values = payload.get(key)
        if isinstance(values, Mapping):
            found |= {
                str(name): value
                for name, value in values.items()
                if value is None or isinstance(value, str | int | float)
            }
    return found


def optimizer_in(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the optimizer's state in a file, empty where there is none."""
    return next((payload[key] for key in OPTIMIZER_KEYS if isinstance(payload.get(key), Mapping)), {})


def is_state_dict(value: Any) -> bool:
    """Return whether `value` is tensors by name, at least one of them not empty, as all are in a shard of ZeRO-3."""
    return (
        isinstance(value, Mapping)
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())
        and any(tensor.numel() for tensor in value.values())
    )


def fitted(weights: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the weights by the names and in the layout of a model's own state dict, as far as they can be told."""
    named = _without_prefix(weights, expected)
    named = {name: tensor for name, tensor in named.items() if not name.endswith(OLD_BUFFERS) or name in expected}
    named = {name if name in expected else RENAMED.get(name, name): tensor for name, tensor in named.items()}
    return _as_conv1d(named, expected)


def misfit(given: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> str | None:
    """Return the first tensor that a checkpoint and a model do not share in the same shape; None where they share all.

    given, expected: by name, the checkpoint's and the model's.
    """
    shapes = [{name: tuple(tensor.shape) for name, tensor in tensors.items()} for tensors in (given, expected)]
    # The file's order first: a vocabulary of another size shows in the embedding.
    differ = [name for name in dict.fromkeys((*given, *expected)) if shapes[0].get(name) != shapes[1].get(name)]
    if not differ:
        return None
    theirs, own = (by_name.get(differ[0], "missing") for by_name in shapes)
    return f"tensor '{differ[0]}' is {theirs} in the checkpoint and {own} in the model ({len(differ)} in all)"


def _without_prefix(weights: Mapping[str, torch.Tensor], expected: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    # Wrappers (module., _orig_mod., whatever a LightningModule calls its model) stand before all names. Some models'
    # own names begin with "model." too, so a prefix goes only if no fewer names fit without it.
    named = dict(weights)
    while len({name.partition(".")[0] for name in named}) == 1:
        shorter = {name.partition(".")[2]: tensor for name, tensor in named.items()}
        if "" in shorter or len(shorter.keys() & expected.keys()) < len(named.keys() & expected.keys()):
            break
        named = shorter
    if not named.keys() & expected.keys():
        # A folder of the base model alone, as the hub's GPT-2: its head is the tied embedding.
        for prefix in sorted({name.partition(".")[0] + "." for name in expected}):
            if all(prefix + name in expected for name in named if not name.endswith(OLD_BUFFERS)):
                return {prefix + name: tensor for name, tensor in named.items()}
    return named


def _as_conv1d(named: dict[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    # nanoGPT keeps GPT-2's projections as nn.Linear does, (out, in), transformers (in, out). A square one does not
    # show which it is, so all go by c_attn, which is three times as long as wide.
    fused = [name for name in named if name.endswith(CONV1D_WEIGHTS[0]) and name in expected]
    turned = [named[name].dim() == 2 and named[name].shape[::-1] == expected[name].shape for name in fused]
    if not fused or not all(turned) or any(named[name].shape == expected[name].shape for name in fused):
        return named
    named = {name: tensor.T if name.endswith(CONV1D_WEIGHTS) else tensor for name, tensor in named.items()}
    if not any(name.endswith(".bias") for name in named):
        # Trained with bias=False, which is a bias of zero.
        named |= {name: torch.zeros_like(one) for name, one in expected.items() if name.endswith(".bias")}
    return named


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a dict of {len(value)}"
    return "a tensor" if isinstance(value, torch.Tensor) else type(value).__name__
