"""The check that the largest step of a study fits into memory, on the real loop where that is safe and quick."""

import logging
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from trainable.config import TrialConfig
from trainable.data.tokens import Corpus
from trainable.device.device_memory import GIB, is_out_of_memory, release_memory, run_memory_bytes
from trainable.evaluation import EvalProtocol
from trainable.loop import train
from trainable.preflight.check_result import Check, CheckStatus, judged, skipped
from trainable.preflight.disk import checkpoint_bytes
from trainable.preflight.memory_probe import estimate_step_bytes
from trainable.state import new_state

NAME = "memory"
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
    needed = None if device.type == "cuda" else _estimate(model, largest)
    if needed is not None and needed > available_bytes:
        return _check("fail", largest, f"about {needed / GIB:.2f} GiB needed (estimated, not tried)", available_bytes)
    how = "estimated"
    quick = largest.precision == "fp32" and s_per_token * largest.batch_size * largest.block_size <= MAX_PROBE_S
    if device.type != "cpu" or quick:
        try:
            try:
                peak = _peak_bytes_of_a_step(model, corpus, largest, protocol, device)
            finally:
                # After the step's own frame is gone, and with it the optimizer: its moments are most of what is freed.
                model.zero_grad(set_to_none=True)
                release_memory(device)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return _check("fail", largest, "a real step ran out of memory", available_bytes)
        needed = peak or needed  # a GPU's checkpoints are copied to the host
        how = "a real step was run"
    elif needed is None:
        return skipped(NAME, "the model cannot be run on shapes alone, and a real step would take too long")
    if needed is None:
        return _check("pass", largest, how, available_bytes)
    used_frac = needed / max(1, available_bytes)
    status: CheckStatus = "fail" if used_frac > 1 else "warn" if used_frac > CROWDED_FRAC else "pass"
    return _check(status, largest, f"about {needed / GIB:.2f} GiB needed ({how})", available_bytes)


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


def _check(status: CheckStatus, config: TrialConfig, measured: str, available_bytes: int) -> Check:
    shape = f"batch_size={config.batch_size} x block_size={config.block_size}"
    return judged(
        NAME,
        failed=status == "fail",
        warned=status == "warn",
        measured=f"{shape}: {measured}",
        expected=f"at most {available_bytes / GIB:.2f} GiB available",
        advice="Lower BATCH_SIZE and raise GRAD_ACCUM_STEPS as much, lower BLOCK_SIZE, or run fewer trials at once.",
    )
