"""Checks of LoRA: adapters are there and alone trained, and merged they predict the same.

That they get a gradient and that the optimizer moves them is asked of every trainable weight, and so of them.
"""

import copy

import torch
from transformers import PreTrainedModel

from trainable.device.device import without_tf32
from trainable.errors import first_of
from trainable.model.lora import PART, adapter_parameters, merge_adapters
from trainable.model.modes import in_mode
from trainable.preflight.check_result import Check, judged

MERGED_FRAC = 1e-2
"""Of what the adapters change: fp32 rounding is 1e-5 of it, a missing scale or a transposed product all of it."""
PROBE_DEVIATION = 0.1
"""Of B times the adapters' scale, for the merge to be seen: adapters of two steps change less than rounding does."""


def check_adapters(model: torch.nn.Module) -> Check:
    """Return whether there are adapters and they, and nothing else, can be trained."""
    adapters = dict(adapter_parameters(model))
    frozen = [name for name, weight in adapters.items() if not weight.requires_grad]
    others = [name for name, weight in model.named_parameters() if weight.requires_grad and name not in adapters]
    trained = sum(weight.numel() for weight in adapters.values() if weight.requires_grad)
    total = sum(weight.numel() for weight in model.parameters())
    measured = f"{len(adapters)} adapter tensors, {trained:,} of {total:,} weights trained"
    advice = ""
    if not adapters:
        advice = "No adapter is in the model: the target names match no layer. Set LORA_TARGETS to names that it has."
    elif frozen:
        measured += f"; frozen: {first_of(frozen)}"
        advice = "These adapters are frozen and stay as they are. Set requires_grad on them."
    elif others:
        measured += f"; trained beside them: {first_of(others)}"
        advice = "The base is trained too, and a checkpoint of adapters would lose that. Freeze it."
    return judged(
        "LoRA adapters",
        failed=bool(advice),
        measured=measured,
        expected="adapters, all of them trained, on a frozen base",
        advice=advice,
    )


def check_merge(model: PreTrainedModel, windows: torch.Tensor) -> Check:
    """Return whether the model with its adapters merged predicts what it predicts with them; windows: (N, T + 1).

    The adapters are drawn large for this, in a copy that shares all weights but the adapted ones.
    """
    ids = windows[:1, :-1].to(next(model.parameters()).device)
    own = (".base_layer.", PART)
    shared = {id(weight): weight for name, weight in model.named_parameters() if not any(part in name for part in own)}
    probe = copy.deepcopy(model, shared)
    with in_mode(model, training=False), in_mode(probe, training=False), torch.no_grad(), without_tf32():
        plain = model(input_ids=ids, use_cache=False).logits.float()
        _draw_adapters(probe)
        apart = probe(input_ids=ids, use_cache=False).logits.float()
        merge_adapters(probe)
        merged = probe(input_ids=ids, use_cache=False).logits.float()
    made, off = float((apart - plain).abs().max()), float((merged - apart).abs().max())
    return judged(
        "LoRA merge",
        failed=not off <= MERGED_FRAC * made,
        measured=f"merged adapters move logits by {off:.1e} where the adapters themselves move them by {made:.1e}",
        expected=f"at most {MERGED_FRAC:.0e} of it",
        advice="The merged model does not predict what the trained one does. Save the adapters, or mend how the layer "
        "merges (its scale, its transposed weight).",
    )


def _draw_adapters(model: torch.nn.Module) -> None:
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, layer in module.lora_B.items():
                torch.nn.init.normal_(layer.weight, std=PROBE_DEVIATION / abs(module.scaling[name]))
