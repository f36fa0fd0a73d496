"""torch.compile of a model's layers, where the run is long enough to repay it. An evaluation is never compiled."""

import os
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from trainable.corpus import cache_dir

CompileMode = Literal["auto", "on", "off"]
REPAID_AFTER_STEPS = 2000
"""Chosen, not measured: no GPU was at hand. A minute of compiling against steps of a tenth of a second."""


def is_compiled(mode: CompileMode, *, device_type: str, training_steps: int) -> bool:
    """Return whether a run of so many steps is compiled.

    auto: on CUDA alone, and only long runs. On a CPU inductor's code was slower than trainable.cpu's kernels (tiny,
    32 x 128: 0.94 of the speed, after 13 s), and MPS has no compiler worth the wait.
    """
    if mode == "auto":
        return device_type == "cuda" and training_steps >= REPAID_AFTER_STEPS
    return mode == "on" and device_type != "mps"


def compile_layers(model: PreTrainedModel) -> None:
    """Have every layer of the model compiled when it is first trained; where no compiler is found it runs as it is."""
    # One graph a layer kind: a whole model would be compiled anew for each depth, and take as many times longer.
    torch._dynamo.config.suppress_errors = True
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
    layers = max(
        (module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len, default=nn.ModuleList()
    )
    for layer in layers:
        layer.compile()
