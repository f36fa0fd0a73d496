"""The checks that a study's largest step fits into memory, on the real loop where that is safe and quick, and that
its checkpoints fit on the disk that is to hold them."""

import logging
import shutil
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedModel

from trainable.config import TrialConfig
from trainable.data.tokens import Corpus
from trainable.device.cpu_kernels.attention import as_on_mps
from trainable.device.device import autocast
from trainable.device.device_memory import GIB, is_out_of_memory, release_memory, run_memory_bytes
from trainable.evaluation import EvalProtocol
from trainable.loop import train
from trainable.loss import next_token_loss
from trainable.preflight.check_result import Check, judged, skipped
from trainable.state import new_state

MEMORY, DISK = "memory", "disk for checkpoints"
PROCESS_FACTOR = 1.35
PROCESS_BYTES = 128 << 20
"""What kernels and the allocator add to a step's tensors on a CPU. Eight steps of tiny and gpt2-scratch, 89 to 3,358 MB
of tensors, took 1.0 to 1.6 times as much and never more than this."""
CROWDED_FRAC = 0.8
MAX_PROBE_S = 3.0
"""On a CPU a longer step, or one in a precision that it may have to imitate, shows no more than the estimate."""
MEASURED_TOKENS = 4096


def check_memory(
    model: PreTrainedModel,
    corpus: Corpus,
    largest: TrialConfig,
    protocol: EvalProtocol,
    *,
    available_bytes: int | None,
    s_per_token: float,
) -> Check:
    """Return whether a step of `largest` fits. It is made for real unless the estimate says that it would not fit.

    available_bytes: None asks the device. The model is trained by that step; its weights do not matter afterwards.
    """
    device = next(model.parameters()).device
    if available_bytes is None:
        available_bytes = run_memory_bytes(device)
    needed, how = None if device.type == "cuda" else _estimate(model, largest), "estimated"
    quick = largest.precision == "fp32" and s_per_token * largest.batch_size * largest.block_size <= MAX_PROBE_S
    ran_out = False
    if needed is not None and needed > available_bytes:
        how = "estimated, not tried"
    elif device.type != "cpu" or quick:
        try:
            peak = _peak_bytes_of_a_step(model, corpus, largest, protocol, device)
            needed, how = peak or needed, "a real step was run"  # a GPU's checkpoints are copied to the host
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            ran_out, needed, how = True, None, "a real step ran out of memory"
        finally:
            # After the step's own frame is gone, and with it the optimizer: its moments are most of what is freed.
            model.zero_grad(set_to_none=True)
            release_memory(device)
    elif needed is None:
        return skipped(MEMORY, "the model cannot be run on shapes alone, and a real step would take too long")
    used_frac = (needed or 0) / max(1, available_bytes)
    measured = how if needed is None else f"about {_gib_words(needed)} needed ({how})"
    check = judged(
        MEMORY,
        failed=ran_out or used_frac > 1,
        warned=used_frac > CROWDED_FRAC,
        measured=f"batch_size={largest.batch_size} x block_size={largest.block_size}: {measured}",
        expected=f"at most {_gib_words(available_bytes)} available",
        advice="Lower BATCH_SIZE and raise GRAD_ACCUM_STEPS as much, lower BLOCK_SIZE, or run fewer trials at once.",
    )
    return replace(check, needed_bytes=needed)


def _estimate(model: PreTrainedModel, config: TrialConfig) -> int | None:
    complaints = logging.getLogger("torch._subclasses.fake_tensor")
    was_disabled, complaints.disabled = complaints.disabled, True
    try:
        # While a checkpoint is written training goes on: what is written is a copy of the run's state.
        return round(PROCESS_FACTOR * estimate_step_bytes(model, config)) + PROCESS_BYTES + checkpoint_bytes(model)
    except (RuntimeError, NotImplementedError):
        # A model whose code asks for values, which tensors without data do not have, or for a kernel without shapes.
        return None
    finally:
        complaints.disabled = was_disabled


def _peak_bytes_of_a_step(
    model: PreTrainedModel, corpus: Corpus, config: TrialConfig, protocol: EvalProtocol, device: torch.device
) -> int | None:
    # The second step begins with AdamW's moments, its second micro-batch with gradients. On a CPU that is estimated.
    steps = 1 if device.type == "cpu" else 2
    accumulated = min(steps, config.grad_accum_steps)
    few = replace(config, training_steps=steps, grad_accum_steps=accumulated, lr_schedule="constant", warmup_steps=0)
    state = new_state(few, model, device=device, unigram_entropy=float("nan"), from_scratch=False)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in train(state, corpus, protocol, eval_steps=(), stop_on=()):
        pass
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


@dataclass(frozen=True, kw_only=True)
class CheckpointRoom:
    """Where checkpoints are kept, and how many at a time at most."""

    folder: Path | None
    """Not necessarily there yet; None for a store that does not say how much is free, S3 for one."""
    count: int

    @property
    def existing(self) -> Path:
        """The folder, or the nearest one above it that is there already."""
        assert self.folder is not None
        own = self.folder.absolute()
        return next(one for one in (own, *own.parents) if one.exists())

    @property
    def free_bytes(self) -> int:
        """What is free there."""
        return shutil.disk_usage(self.existing).free


def _gib_words(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB" if size_bytes >= 0.1 * GIB else f"{1024 * size_bytes / GIB:.1f} MiB"


def checkpoint_bytes(model: torch.nn.Module) -> int:
    """Return the size of a checkpoint of a run: weights, buffers, and AdamW's two moments of what is trained."""
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return weights + moments_bytes(model)


def check_disk(model: torch.nn.Module, room: CheckpointRoom) -> Check:
    """Return whether the checkpoints that are kept at a time fit into what is free."""
    if room.folder is None:
        return skipped(DISK, "the store does not say how much room it has")
    size, free = checkpoint_bytes(model), room.free_bytes
    check = judged(
        DISK,
        failed=size * room.count > free,
        measured=f"{room.count} checkpoints of {_gib_words(size)} at a time: {_gib_words(size * room.count)}",
        expected=f"at most the {_gib_words(free)} that are free in {room.existing}",
        advice="Make room there, name another place (STORAGE, STUDIES_DIR), or run fewer trials at once.",
    )
    return replace(check, needed_bytes=size)


def estimate_step_bytes(model: PreTrainedModel, config: TrialConfig) -> int:
    """Return the peak memory of a step with AdamW's states: tensors alone, without what the allocator loses.

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
            # Of several micro-batches the second finds the gradients of the first.
            count = min(2, config.grad_accum_steps)
            torch.func.functional_call(_Step(model), tensors, (tokens, count), tie_weights=True)
    return int(live.peak)


class _Step(torch.nn.Module):
    """The project's loss and its gradients, so many times: a module, so that its weights can be given from outside."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, count: int) -> None:
        for _ in range(count):
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
