"""Checks of LoRA: adapters are there and alone trained, they move, and merged they predict the same."""

import copy
from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from trainable.device.device import without_tf32
from trainable.model.lora import PART, adapter_parameters, merge_adapters
from trainable.model.modes import in_mode
from trainable.preflight.check_result import Check, judged
from trainable.preflight.configuration import listed

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
        measured += f"; frozen: {listed(frozen)}"
        advice = "These adapters are frozen and stay as they are. Set requires_grad on them."
    elif others:
        measured += f"; trained beside them: {listed(others)}"
        advice = "The base is trained too, and a checkpoint of adapters would lose that. Freeze it."
    return judged(
        "LoRA adapters",
        failed=bool(advice),
        measured=measured,
        expected="adapters, all of them trained, on a frozen base",
        advice=advice,
    )


def adapter_copies(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return copies of the adapters, for check_adapters_move to compare with."""
    return {name: weight.detach().clone() for name, weight in adapter_parameters(model)}


def check_adapters_move(model: torch.nn.Module, before: Mapping[str, torch.Tensor]) -> Check:
    """Return whether two steps of the loop have moved every adapter; before: adapter_copies.

    The gradients must be the last step's: A's is 0 at the first step, where B is 0.
    """
    unmoved = {name: weight for name, weight in adapter_parameters(model) if torch.equal(weight, before[name])}
    still = list(unmoved)
    left_out = [name for name, weight in unmoved.items() if weight.grad is not None and bool(weight.grad.any())]
    measured = f"{len(still)} of {len(before)} adapter tensors as they were after two steps"
    advice = "Look in their layers for no_grad, detach() or an adapter whose output is not added."
    if left_out:
        measured += f": {listed(left_out)}, though a gradient reaches them"
        advice = "These adapters are not in the optimizer. Make the optimizer once they are in the model."
    elif still:
        measured += f": {listed(still)}, which get no gradient"
    return judged(
        "LoRA training",
        failed=bool(still),
        measured=measured,
        expected="none: every adapter is trained",
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
