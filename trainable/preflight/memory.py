"""The checks that a study's largest step fits into memory, on the real loop where that is safe and quick, and that
its checkpoints fit on the disk that is to hold them."""

import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from trainable.config import TrialConfig
from trainable.data.tokens import Corpus
from trainable.device.device_memory import GIB, is_out_of_memory, release_memory, run_memory_bytes
from trainable.evaluation import EvalProtocol
from trainable.loop import train
from trainable.preflight.check_result import Check, judged, skipped
from trainable.preflight.memory_probe import estimate_step_bytes, moments_bytes
from trainable.state import new_state

MEMORY, DISK = "memory", "disk for checkpoints"
PROCESS_FACTOR = 1.35
PROCESS_BYTES = 128 << 20
"""What kernels and the allocator add to a step's tensors on a CPU. Eight steps of tiny and gpt2-scratch, 89 to 3,358 MB
of tensors, took 1.0 to 1.6 times as much and never more than this."""
CROWDED_FRAC = 0.8
MAX_PROBE_S = 3.0
"""On a CPU a longer step, or one in a precision that it may have to imitate, shows no more than the estimate."""


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
    measured = how if needed is None else f"about {needed / GIB:.2f} GiB needed ({how})"
    return judged(
        MEMORY,
        failed=ran_out or used_frac > 1,
        warned=used_frac > CROWDED_FRAC,
        measured=f"batch_size={largest.batch_size} x block_size={largest.block_size}: {measured}",
        expected=f"at most {available_bytes / GIB:.2f} GiB available",
        advice="Lower BATCH_SIZE and raise GRAD_ACCUM_STEPS as much, lower BLOCK_SIZE, or run fewer trials at once.",
    )


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
    once = replace(config, training_steps=1, grad_accum_steps=1, lr_schedule="constant", warmup_steps=0)
    state = new_state(once, model, device=device, unigram_entropy=float("nan"), from_scratch=False)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in train(state, corpus, protocol, eval_steps=()):
        pass
    return torch.cuda.max_memory_reserved(device) if device.type == "cuda" else None


@dataclass(frozen=True, kw_only=True)
class CheckpointRoom:
    """Where checkpoints are kept, and how many at a time at most."""

    folder: Path | None
    """Not necessarily there yet; None for a store that does not say how much is free, S3 for one."""
    count: int


def checkpoint_bytes(model: torch.nn.Module) -> int:
    """Return the size of a checkpoint of a run: weights, buffers, and AdamW's two moments of what is trained."""
    weights = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return weights + moments_bytes(model)


def check_disk(model: torch.nn.Module, room: CheckpointRoom) -> Check:
    """Return whether the checkpoints that are kept at a time fit into what is free."""
    if room.folder is None:
        return skipped(DISK, "the store does not say how much room it has")
    folder = room.folder.absolute()
    while not folder.exists():
        folder = folder.parent
    size, free = checkpoint_bytes(model), shutil.disk_usage(folder).free
    return judged(
        DISK,
        failed=size * room.count > free,
        measured=f"{room.count} checkpoints of {size / GIB:.2f} GiB at a time: {size * room.count / GIB:.2f} GiB",
        expected=f"at most the {free / GIB:.2f} GiB that are free in {folder}",
        advice="Make room there, name another place (STORAGE, STUDIES_DIR), or run fewer trials at once.",
    )
