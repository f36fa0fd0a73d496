"""A model's mode and its dropout, read, changed for a while, and put back as they were; its gradient checkpointing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.dropout import _DropoutNd
from transformers import PreTrainedModel

from trainable.device.device import without_tf32
from trainable.errors import UserError

OTHER_HEADS = ("classifier", "summary")
"""Of classification, whose dropout a language model never runs."""


@contextmanager
def in_mode(model: torch.nn.Module, *, training: bool) -> Iterator[None]:
    """Put the whole model into one mode and every module back into its own at the end."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def exact_inference(model: torch.nn.Module) -> Iterator[None]:
    """Run forward passes in fp32 without dropout, gradients, TF32, autocast or compiled layers."""
    device = next(model.parameters()).device
    # Eager for every trial: compiled layers would be compiled once more, and measured by other arithmetic.
    eager = torch.compiler.set_stance("force_eager")
    no_autocast = torch.autocast(device.type, enabled=False)
    with in_mode(model, training=False), eager, without_tf32(), torch.inference_mode(), no_autocast:
        yield


def dropout_fields(holder: Any) -> list[str]:
    """Return the attributes of a configuration or a module that are dropout probabilities, in any model family.

    Layer drop and stochastic depth are not among them.
    """
    if isinstance(holder, _DropoutNd):
        return ["p"]
    return [
        name
        for name, value in vars(holder).items()
        # JSON may say 0 for 0.0; None and False switch something else off.
        if type(value) in (int, float) and re.search("pdrop$|dropout", name) and not name.startswith(OTHER_HEADS)
    ]


@contextmanager
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Set every dropout probability of the model to 0, and back at the end; the mode stays as it is."""
    # Some models read the probability from their config at every forward pass.
    holders = [*model.modules(), *([model.config] if hasattr(model, "config") else [])]
    before = [(holder, field, getattr(holder, field)) for holder in holders for field in dropout_fields(holder)]
    for holder, field, _ in before:
        setattr(holder, field, 0.0)
    try:
        yield
    finally:
        for holder, field, value in before:
            setattr(holder, field, value)


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Have every layer keep only its input in training; losses and gradients stay the same to the bit.

    Its activations are computed again in the backward pass (Chen et al. 2016). Raises UserError when transformers
    cannot do it for this model.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(f"GRADIENT_CHECKPOINTING=1: transformers has none for {model.config.model_type}. Unset it.")
    # Not the reentrant kind: it loses the gradient below adapters on frozen embeddings, whose outputs need none.
    model.activation_checkpointing_enable({"use_reentrant": False})
    # Only the reentrant kind needs it; here it would compute gradients down to embeddings that are frozen.
    model.disable_input_require_grads()
