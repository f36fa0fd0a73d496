"""Contexts that leave a model and the random numbers as they were found, whatever happens inside."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from trainable.model.models import dropout_fields


@contextmanager
def untouched_rng(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators of the CPU and of `device` at the end."""
    state = torch.get_rng_state()
    device_state = None
    if device.type == "cuda":
        device_state = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        device_state = torch.mps.get_rng_state()
    try:
        yield
    finally:
        torch.set_rng_state(state)
        if device_state is not None and device.type == "cuda":
            torch.cuda.set_rng_state(device_state, device)
        elif device_state is not None:
            torch.mps.set_rng_state(device_state)


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
def without_dropout(model: torch.nn.Module) -> Iterator[None]:
    """Set every dropout probability of the model to 0, and back at the end; the mode stays as it is."""
    # Some models ask their config at every forward pass.
    holders = [*model.modules(), *([model.config] if hasattr(model, "config") else [])]
    before = [(holder, field, getattr(holder, field)) for holder in holders for field in dropout_fields(holder)]
    for holder, field, _ in before:
        setattr(holder, field, 0.0)
    try:
        yield
    finally:
        for holder, field, value in before:
            setattr(holder, field, value)
