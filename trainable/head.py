"""What a model does between its last hidden state and its logits, found by asking the model itself. No loss here."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812
from transformers import PreTrainedModel

from trainable.model.modes import in_mode

PROBE_SCALE = 1e4
FITS_FRAC = 1e-3
"""Of the largest logit: rounding of fp32 products."""
_HEADS: "WeakKeyDictionary[PreTrainedModel, Head | None]" = WeakKeyDictionary()


@dataclass(frozen=True, kw_only=True)
class Head:
    """logits = cap(scale * (hidden W^T + bias)), where cap(x) is softcap * tanh(x / softcap), or x without one."""

    scale: float = 1.0
    softcap: float | None = None

    def logits_(self, products: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden W^T + bias, whose memory they take."""
        if self.scale != 1.0:
            products.mul_(self.scale)
        return products if self.softcap is None else products.div_(self.softcap).tanh_().mul_(self.softcap)

    def slope(self, logits: torch.Tensor) -> torch.Tensor | None:
        """Return d logits / d (hidden W^T + bias), or None where it is 1 everywhere."""
        if self.softcap is not None:
            return (logits / self.softcap).square_().neg_().add_(1.0).mul_(self.scale)
        return None if self.scale == 1.0 else torch.tensor(self.scale, device=logits.device)


def hidden_states(model: PreTrainedModel, inputs: torch.Tensor) -> torch.Tensor:
    """Return the last hidden states (B, T, C) of ids (B, T)."""
    hidden: torch.Tensor = model.base_model(input_ids=inputs, use_cache=False).last_hidden_state
    return hidden


def find_head(model: PreTrainedModel) -> Head | None:
    """Return the model's head, or None where its logits come about in another way."""
    if model not in _HEADS:
        _HEADS[model] = _found(model)
    return _HEADS[model]


def _found(model: PreTrainedModel) -> Head | None:
    embeddings = model.get_output_embeddings()
    if not isinstance(embeddings, torch.nn.Linear) or model.base_model is model:
        return None
    probe = torch.arange(2, device=embeddings.weight.device).unsqueeze(0)  # (1, 2)
    with in_mode(model, training=False), torch.no_grad(), torch.autocast(probe.device.type, enabled=False):
        products = F.linear(hidden_states(model, probe), embeddings.weight, embeddings.bias)
        quiet = model(input_ids=probe, use_cache=False).logits
        # A cap bends large logits alone, so those of the probe are made large where the head hands them over.
        with embeddings.register_forward_hook(lambda _module, _inputs, logits: logits * PROBE_SCALE):
            loud = model(input_ids=probe, use_cache=False).logits
    return next((head for head in _candidates(model) if _fits(head, products, quiet, loud)), None)


def _candidates(model: PreTrainedModel) -> Iterator[Head]:
    """Yield the plain head, then those of the numbers that the configuration has for logits, whatever their names."""
    numbers = {
        float(value)
        for name, value in vars(model.config.get_text_config()).items()
        if ("logit" in name or "lm_head" in name) and type(value) in (int, float) and value > 0
    }
    scales = [1.0, *numbers, *(1 / number for number in numbers)]
    return (Head(scale=scale, softcap=softcap) for softcap, scale in product([None, *numbers], scales))


def _fits(head: Head, products: torch.Tensor, quiet: torch.Tensor, loud: torch.Tensor) -> bool:
    for factor, logits in ((1.0, quiet), (PROBE_SCALE, loud)):
        expected = head.logits_(products * factor)
        # Written so that it is False for NaN.
        if not float((logits - expected).abs().max()) <= FITS_FRAC * float(expected.abs().max()):
            return False
    return True
