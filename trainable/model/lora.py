"""LoRA by peft (Hu et al. 2021): adapters put into a model, loaded, saved, merged. Nothing is trained here."""

import copy
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from trainable.checkpoint.foreign import misfit
from trainable.config import TrialConfig
from trainable.device.cpu_kernels.dropout import replace_dropout
from trainable.errors import UserError
from trainable.model.models import text_weights, unfreeze

ALL_LINEAR = "all-linear"
AUTO = "auto"
ADAPTER_NAME = "default"  # peft's own: it is part of every adapter tensor's name in the model
PART = ".lora_"
"""In the names of adapter tensors and in no others."""
WEIGHTS_FILE = "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."


@dataclass(frozen=True, kw_only=True)
class AdapterBase:
    """The model that adapters were trained on; on any other they mean nothing."""

    model_name: str
    init_from: str | None
    """The checkpoint whose weights the model was given before the adapters; None for its own."""
    fingerprint: str
    """SHA-256 (hex) of the frozen weights, by name."""


def add_adapters(model: PreTrainedModel, config: TrialConfig) -> None:
    """Freeze `model` and put adapters, drawn from config's seed, into the layers that config.lora_targets names.

    They add nothing before the first step (B = 0). torch's global generator is seeded again, as load_model leaves it.
    Raises UserError for a target that names no layer, or one that peft does not adapt.
    """
    targets = find_targets(model, config.lora_targets)
    # Imported late: it takes seconds, and most runs have no adapters.
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    settings = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
        fan_in_fan_out=any(isinstance(model.get_submodule(name), Conv1D) for name in targets),
        task_type="CAUSAL_LM",
    )
    others = {_last(name) for name in _linear_layers(model)}
    torch.manual_seed(config.seed)
    # Of Mamba peft refuses out_proj; in a mixture it takes gate_proj, of any layer, for the experts', which are fused.
    with suppress(ValueError):
        inject_adapter_in_model(settings, model, ADAPTER_NAME)
    adapted = {name for name in targets if isinstance(model.get_submodule(name), BaseTunerLayer)}
    if left := {_last(name) for name in targets if name not in adapted} - {_last(name) for name in adapted}:
        raise UserError(
            f"LORA_TARGETS={config.lora_targets}: peft does not adapt {', '.join(sorted(left))} of a "
            f"{model.config.model_type} model. Name others, of {', '.join(sorted(others - left))}."
        )
    replace_dropout(model)
    model.train()
    torch.manual_seed(config.seed)


def find_targets(model: PreTrainedModel, wanted: str) -> list[str]:
    """Return the full names of the layers that LORA_TARGETS=`wanted` means: linear ones, and never the output head.

    Raises UserError for a name that no layer has, with the names there are.
    """
    layers = _linear_layers(model)
    known = sorted({_last(name) for name in layers})
    if wanted == ALL_LINEAR:
        return layers
    names = _default_targets(model, known) if wanted == AUTO else wanted.split(",")
    found = {name: [layer for layer in layers if layer == name or layer.endswith(f".{name}")] for name in names}
    for name, matched in found.items():
        if not matched:
            raise UserError(
                f"LORA_TARGETS={wanted}: no linear layer of this {model.config.model_type} model is named '{name}'; "
                f"there are {', '.join(known)}."
            )
    return sorted({layer for matched in found.values() for layer in matched}, key=layers.index)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _linear_layers(model: PreTrainedModel) -> list[str]:
    # An adapter on the head would have to be merged into the embedding that is tied to it, a router's output is
    # scores with choices, to which nothing can be added, and a part that sees images gets no gradient.
    head, text = model.get_output_embeddings(), text_weights(model)
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head and PART not in name
        if f"{name}.weight" in text and not type(module).__name__.endswith("Router")
    ]


def _default_targets(model: PreTrainedModel, known: list[str]) -> list[str]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

    names = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.get_text_config().model_type)
    if names is None:
        raise UserError(
            f"LORA_TARGETS=auto: peft has no default for a {model.config.model_type} model. "
            f"Name layers: {', '.join(known)}; or set LORA_TARGETS={ALL_LINEAR}."
        )
    return list(names)


def has_adapters(model: torch.nn.Module) -> bool:
    """Return whether adapters are in the model."""
    return next(adapter_parameters(model), None) is not None


def adapter_parameters(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Yield the adapters' tensors by name."""
    return ((name, weight) for name, weight in model.named_parameters() if PART in name)


def saved_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """Return the tensors of `model` that a checkpoint holds: the adapters alone where there are any, else all."""
    weights: dict[str, torch.Tensor] = model.state_dict()
    adapters = {name: tensor for name, tensor in weights.items() if PART in name}
    return adapters or weights


def base_fingerprint(model: PreTrainedModel) -> str:
    """Return the SHA-256 (hex) of the names and bytes of the model's weights; the model has no adapters yet.

    Of the weights and not of their files: a hub model, a folder and a checkpoint are told apart by what they hold.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(memoryview(weight.detach().cpu().contiguous().view(torch.uint8).flatten().numpy()))
    return digest.hexdigest()


def check_base(model: PreTrainedModel, base: AdapterBase, *, where: str, model_name: str) -> None:
    """Raise UserError, one line that begins with `where`, when adapters of `base` are not for `model`."""
    found = base_fingerprint(model)
    if found != base.fingerprint:
        weights = f" with the weights of {base.init_from}" if base.init_from else ""
        raise UserError(
            f"{where} holds LoRA adapters of {base.model_name}{weights} (weights {base.fingerprint[:12]}), and "
            f"GPT2_MODEL_NAME={model_name} has other weights ({found[:12]}). Name the model that they were trained on."
        )


def copy_adapters(model: PreTrainedModel, weights: Mapping[str, torch.Tensor], *, where: str) -> None:
    """Copy adapters into those of `model`. Raises UserError naming the first that is missing, unknown or misshapen."""
    expected = dict(adapter_parameters(model))
    if (fault := misfit(weights, expected)) is not None:
        raise UserError(f"{where}: {fault}. LORA_RANK and LORA_TARGETS must be those that it was trained with.")
    with torch.no_grad():
        for name, weight in expected.items():
            weight.copy_(weights[name])


def merge_adapters(model: PreTrainedModel) -> None:
    """Add the adapters to the weights they adapt and take them out; all weights can be trained again.

    A model without adapters stays as it is.
    """
    if not has_adapters(model):
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            model.set_submodule(name, module.get_base_layer())
    del model.peft_config
    unfreeze(model)


def merged_model(model: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of `model` with its adapters merged: the plain transformers model, in the mode that `model` is in.

    Its logits are those of `model` in eval mode within fp32 rounding.
    """
    merged = copy.deepcopy(model)
    merge_adapters(merged)
    return merged


def save_adapters(model: PreTrainedModel, folder: Path, *, base_model: str) -> None:
    """Write adapter_config.json and adapter_model.safetensors, as peft's save_pretrained does. Raises OSError.

    base_model: the folder or hub name that PeftModel.from_pretrained is to be given; it is only noted.
    """
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    # Left to itself, peft asks the hub whether the base's vocabulary has changed.
    weights = get_peft_model_state_dict(model, adapter_name=ADAPTER_NAME, save_embedding_layers=False)
    tensors = {f"{PEFT_PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    settings = copy.copy(model.peft_config[ADAPTER_NAME])
    settings.base_model_name_or_path, settings.inference_mode = base_model, True
    settings.save_pretrained(str(folder))
