"""Checks of how a model predicts, whatever its weights: which tokens it sees, whether an evaluation repeats exactly."""

import torch
from transformers import PreTrainedModel

from trainable.evaluation import evaluate
from trainable.model.modes import in_mode
from trainable.preflight.check_result import Check, judged, skipped

MOVED_FRAC = 1e-3


def causal_model(model: torch.nn.Module) -> PreTrainedModel | None:
    """Return the model of transformers with a head that this is, or holds; None where there is none.

    An encoder-decoder is none: it sees the whole input, and its labels are another text.
    """
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None:
            return None if module.config.is_encoder_decoder else module
    return None


def check_causality(model: PreTrainedModel, windows: torch.Tensor) -> Check:
    """Return whether predictions stay as they are when only later tokens change; windows: (N >= 2, T)."""
    device = next(model.parameters()).device
    windows = windows.to(device)
    half = windows.shape[1] // 2
    changed = windows.clone()
    changed[:, half:] = windows.roll(1, 0)[:, half:]
    if torch.equal(changed, windows):
        return skipped("causality", "all sampled windows end in the same tokens")
    with in_mode(model, training=False), torch.no_grad():
        before, after = (model(input_ids=ids, use_cache=False).logits[:, :half].float() for ids in (windows, changed))
    moved = float((before - after).abs().max() / before.std())
    return judged(
        "causality",
        failed=not moved <= MOVED_FRAC,
        measured=f"logits before the changed tokens moved by {moved:.1e} of their deviation",
        expected=f"at most {MOVED_FRAC:.0e}",
        advice="The model sees the tokens it is to predict. Give its attention a causal mask (is_decoder, is_causal).",
    )


def check_evaluation_repeats(model: PreTrainedModel, windows: torch.Tensor) -> Check:
    """Return whether evaluating twice, from training mode, gives exactly the same number."""
    with in_mode(model, training=True):
        first, second = evaluate(model, windows), evaluate(model, windows)
    return judged(
        "evaluation repeats",
        failed=first != second,
        measured=f"{first!r} and {second!r}" if first != second else f"twice {first:.4f}",
        expected="the same bits twice",
        advice="Something random is left on in evaluation, most often dropout. Make it follow model.eval().",
    )
