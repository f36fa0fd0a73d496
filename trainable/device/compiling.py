"""torch.compile of a model's layers, where the run is long enough to repay it. An evaluation is never compiled."""

import copy
import hashlib
import importlib.util
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from trainable.config import TrialConfig, shape_of
from trainable.data.corpus import cache_dir
from trainable.device.device import autocast, device_info, untouched_rng
from trainable.device.device_memory import is_out_of_memory, release_memory
from trainable.loss import next_token_loss
from trainable.model.models import text_weights
from trainable.model.modes import dropout_fields
from trainable.regular_files import whole_file

CompileMode = Literal["auto", "on", "off"]
MIN_RUN_S = {"cuda": 60.0}
"""Until something was measured, a shorter run is not worth the measurement: compiling takes tens of seconds. No CPU:
compiled layers take 1.6 times as long there without AMX, and a tenth less with it."""
MEASURED_PASSES = 5
KERNELS = "kernels"
SHAPES_IN_A_PROCESS = 64
"""Dynamo gives up on a layer after 8 shapes; the trials of a search have more."""


@dataclass(frozen=True, kw_only=True)
class CompileCost:
    """What compiling costs and saves, measured on this machine for one model and shape of micro-batch."""

    compile_s: float
    eager_pass_s: float
    """Forward and backward of a micro-batch."""
    compiled_pass_s: float


def is_repaid(cost: CompileCost, *, passes: int) -> bool:
    """Return whether so many passes save more seconds than compiling took."""
    return passes * (cost.eager_pass_s - cost.compiled_pass_s) > cost.compile_s


def compile_where_repaid(mode: CompileMode, model: PreTrainedModel, config: TrialConfig) -> str:
    """Compile the layers of a model on its device where that saves time; return a note for people, or "".

    auto: where this run's passes repay what was measured; the first run of a shape that is long enough measures it.
    Either way a copy of the model is compiled first: a compiler that fails, in the backward pass too, costs a note.
    """
    device = next(model.parameters()).device
    if not may_compile(mode, device.type):
        return ""
    if (reason := why_not(device.type)) is not None:
        return f"not compiled: {reason}"
    passes = config.training_steps * config.grad_accum_steps
    recorded = _recorded(model, config) if mode == "auto" else None
    if recorded is not None and not is_repaid(recorded, passes=passes):
        return _note(recorded, passes=passes, compiled=False)
    try:
        least_s = MIN_RUN_S[device.type] / passes if mode == "auto" and recorded is None else 0.0
        cost = _measured(model, config, if_eager_takes_s=least_s)
    except Exception as error:
        if is_out_of_memory(error):
            # The probe is a second model beside the run's own, which may have room enough alone.
            return "not compiled: there is no memory to measure what it would gain"
        # A process that was killed while it compiled leaves half a file, which torch never writes again.
        shutil.rmtree(_folder() / KERNELS, ignore_errors=True)
        return f"not compiled: {' '.join(str(error).split())[:200]}"
    if cost is None:
        return ""
    # Of several processes that measured at once the first counts for all: the run then decides alike when run again.
    cost = _recorded(model, config) or cost
    compiled = mode == "on" or is_repaid(cost, passes=passes)
    if compiled:
        compile_layers(model)
    return _note(cost, passes=passes, compiled=compiled)


def _note(cost: CompileCost, *, passes: int, compiled: bool) -> str:
    return (
        f"{'compiled' if compiled else 'not compiled'}: {cost.compile_s:.0f} s to compile, and a pass takes "
        f"{1e3 * cost.compiled_pass_s:.1f} ms instead of {1e3 * cost.eager_pass_s:.1f}, {passes:,} times"
    )


def may_compile(mode: CompileMode, device_type: str) -> bool:
    """Return whether there is something to decide."""
    return mode == "on" or (mode == "auto" and device_type in MIN_RUN_S)


def why_not(device_type: str) -> str | None:
    """Return why nothing can be compiled for such a device, or None."""
    if device_type == "mps":
        return "MPS has no compiler worth the wait"
    if device_type == "cuda" and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "g++", "clang++", "c++")):
        return "there is no C++ compiler here; g++ or clang++ is needed"
    return None


def compile_layers(model: PreTrainedModel) -> None:
    """Have every layer of the model compiled when it is first trained; what cannot be compiled runs as it is."""
    torch._dynamo.config.suppress_errors = True
    torch._dynamo.config.recompile_limit = max(SHAPES_IN_A_PROCESS, torch._dynamo.config.recompile_limit)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_folder() / KERNELS))
    for layer in layers_of(model):
        # One graph a shape, as measured; the next trial of that shape takes it from the cache.
        layer.compile(dynamic=False)


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """Return what is compiled: one graph a layer kind, where a whole model would be compiled again for each depth."""
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    text = set(text_weights(model).values())
    # By size and not by number: a layer may hold a longer list, of experts. A part that sees images is not trained.
    sizes = {one: sum(weight.numel() for weight in one.parameters() if weight in text) for one in lists}
    return max(sizes, key=lambda one: sizes[one], default=nn.ModuleList())


def _measured(model: PreTrainedModel, config: TrialConfig, *, if_eager_takes_s: float) -> CompileCost | None:
    """Return the cost, or None where an eager pass takes less than so many seconds."""
    device = next(model.parameters()).device
    # A copy, dropped afterwards, and the random numbers put back: the run is the same whether it measures or reads.
    probe = copy.deepcopy(model)
    try:
        with untouched_rng(device):
            _seconds_a_pass(probe, config, count=1)
            eager_pass_s = _seconds_a_pass(probe, config, count=MEASURED_PASSES)
            if eager_pass_s < if_eager_takes_s:
                return None
            compile_layers(probe)
            compile_s = _seconds_a_pass(probe, config, count=1)
            compiled_pass_s = _seconds_a_pass(probe, config, count=MEASURED_PASSES)
    finally:
        del probe
        release_memory(device)
    cost = CompileCost(compile_s=compile_s, eager_pass_s=eager_pass_s, compiled_pass_s=compiled_pass_s)
    if _recorded(model, config) is None:  # the first alone knows what it takes with nothing in the cache
        with whole_file(_record_path(model, config)) as file:
            file.write(json.dumps(asdict(cost)).encode())
    return cost


def _seconds_a_pass(model: PreTrainedModel, config: TrialConfig, *, count: int) -> float:
    device = next(model.parameters()).device
    tokens = torch.zeros(config.batch_size, config.block_size + 1, dtype=torch.int64, device=device)
    started = time.perf_counter()
    for _ in range(count):
        with autocast(device, config.precision):
            loss = next_token_loss(model, tokens)
        loss.backward()  # type: ignore[no-untyped-call]
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / count


def _recorded(model: PreTrainedModel, config: TrialConfig) -> CompileCost | None:
    try:
        return CompileCost(**json.loads(_record_path(model, config).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _record_path(model: PreTrainedModel, config: TrialConfig) -> Path:
    device = device_info(next(model.parameters()).device)
    shape = f"{shape_of(replace(config, grad_accum_steps=1))}"
    if model.is_activation_checkpointing:
        shape += " checkpointed"
    fixed = {**model.config.to_dict(), **dict.fromkeys(dropout_fields(model.config))}
    text = f"{device.name} {torch.__version__} {shape} {json.dumps(fixed, sort_keys=True, default=str)}"
    return _folder() / f"cost-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"


def _folder() -> Path:
    folder = cache_dir() / "compiled"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
