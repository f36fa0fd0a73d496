"""How much memory a training step takes, found without taking it, and how much there is."""

import os
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from trainable.config import TrialConfig
from trainable.device.device import autocast
from trainable.loss import next_token_loss

ADAM_STATES = 2
GIB = 1 << 30
MEASURED_TOKENS = 4096
CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Limit and use of a container, version 2 and 1."""


def estimate_step_bytes(model: PreTrainedModel, config: TrialConfig) -> int:
    """Return the peak memory of one micro-batch and AdamW's states: tensors alone, without what the allocator loses.

    The real loss runs forward and backward on tensors that have shapes and no data, as on a CPU, which takes a second;
    a large batch is extrapolated from two smaller ones, as memory grows by the sequence.
    """
    trained: int = sum(weight.numel() * weight.element_size() for weight in model.parameters() if weight.requires_grad)
    most = max(2, MEASURED_TOKENS // config.block_size)
    if config.batch_size <= most:
        return _peak_bytes(model, config) + ADAM_STATES * trained
    less, more = (_peak_bytes(model, replace(config, batch_size=batch_size)) for batch_size in (most // 2, most))
    per_sequence = (more - less) / (most - most // 2)
    return int(more + per_sequence * (config.batch_size - most)) + ADAM_STATES * trained


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
    with fake:
        tokens = torch.zeros(config.batch_size, config.block_size + 1, dtype=torch.long)
        live = _LiveBytes()
        with live, autocast(torch.device("cpu"), config.precision):
            for tensor in (*weights.values(), *buffers.values()):
                live.add(tensor)
            tensors = {f"model.{name}": tensor for name, tensor in (*weights.items(), *buffers.items())}
            torch.func.functional_call(_Step(model), tensors, (tokens,), tie_weights=True)
    return int(live.peak)


def available_memory_bytes(device: torch.device) -> int | None:
    """Return the memory that a run on `device` may still take, or None where it cannot be told.

    On a CPU that of all runs together: divide it by those that run at once.
    """
    if device.type == "cuda":
        free_bytes: int = torch.cuda.mem_get_info(device)[0]
        return free_bytes + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.current_allocated_memory())
    found = [left for left in (_meminfo_bytes(), *_cgroup_bytes()) if left is not None]
    if found:
        return min(found)
    try:
        # macOS tells no more than this without a further library; it compresses and swaps rather than kill.
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


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


def _meminfo_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_bytes() -> list[int | None]:
    left: list[int | None] = []
    for limit_path, used_path, stat_path in CGROUP_FILES:
        try:
            limit, used, stat = (
                Path("/sys/fs/cgroup", path).read_text() for path in (limit_path, used_path, stat_path)
            )
        except OSError:
            continue
        # Cached files count as used and are given up when memory is wanted.
        cached = next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("inactive_file ")), 0)
        left.append(int(limit) - int(used) + cached if limit.strip().isdigit() else None)
    return left
