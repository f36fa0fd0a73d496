"""How much memory a training step takes, found without taking it."""

import weakref
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from trainable.config import TrialConfig
from trainable.device.cpu_kernels.attention import as_on_mps
from trainable.device.device import autocast
from trainable.loss import next_token_loss

MEASURED_TOKENS = 4096


def estimate_step_bytes(model: PreTrainedModel, config: TrialConfig) -> int:
    """Return the peak memory of one micro-batch and AdamW's states: tensors alone, without what the allocator loses.

    The real loss runs forward and backward on tensors that have shapes and no data, as on a CPU (a model on MPS: with
    its attention), which takes a second; a large batch is extrapolated from two smaller ones, as memory grows by the
    sequence.
    """
    most = max(2, MEASURED_TOKENS // config.block_size)
    if config.batch_size <= most:
        return _peak_bytes(model, config) + moments_bytes(model)
    less, more = (_peak_bytes(model, replace(config, batch_size=batch_size)) for batch_size in (most // 2, most))
    per_sequence = (more - less) / (most - most // 2)
    return int(more + per_sequence * (config.batch_size - most)) + moments_bytes(model)


def moments_bytes(model: torch.nn.Module) -> int:
    """Return the size of AdamW's two moments of what is trained."""
    return 2 * sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)


def _peak_bytes(model: PreTrainedModel, config: TrialConfig) -> int:
    # Once with data: the loss asks the model's values a question and keeps the answer.
    with torch.no_grad():
        next_token_loss(model, torch.zeros(1, 3, dtype=torch.long, device=next(model.parameters()).device))
    fake = FakeTensorMode()
    weights = {
        name: fake.from_tensor(weight.detach().cpu()).requires_grad_(weight.requires_grad)
        for name, weight in model.named_parameters()
    }
    buffers = {name: fake.from_tensor(buffer.cpu()) for name, buffer in model.named_buffers()}
    is_mps = next(model.parameters()).device.type == "mps"
    with fake, as_on_mps() if is_mps else nullcontext():
        tokens = torch.zeros(config.batch_size, config.block_size + 1, dtype=torch.long)
        live = _LiveBytes()
        with live, autocast(torch.device("cpu"), config.precision):
            for tensor in (*weights.values(), *buffers.values()):
                live.add(tensor)
            tensors = {f"model.{name}": tensor for name, tensor in (*weights.items(), *buffers.items())}
            torch.func.functional_call(_Step(model), tensors, (tokens,), tie_weights=True)
    return int(live.peak)


class _Step(torch.nn.Module):
    """The project's loss and its gradients as a module, so that its weights can be given from outside."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> None:
        # Gradient checkpointing runs the layers again in the backward pass, with the weights that they then have.
        next_token_loss(self.model, tokens).backward()  # type: ignore[no-untyped-call]


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of the storages alive, and the most that ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self.add(value)
        return out

    def add(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._alive:
            return
        self._alive.add(storage._cdata)
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, key: int, size_bytes: int) -> None:
        self._alive.discard(key)
        self._now -= size_bytes
