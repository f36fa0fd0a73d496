"""The types of the fixtures that make models and runs, and a checkpoint as the owner's scripts write it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from trainable.config import TrialConfig
from trainable.run import RunSpec

MakeModel = Callable[..., PreTrainedModel]
SaveModel = Callable[[PreTrainedModel, Path], Path]
MakeSpec = Callable[..., RunSpec]
MakeTrial = Callable[..., TrialConfig]


def owners(weights: dict[str, torch.Tensor], **changes: Any) -> dict[str, Any]:
    """The layout of the owner's scripts, as the story gives it."""
    hyperparameters = {"batch_size": 8, "block_size": 256, "learning_rate": 2e-5, "lr_schedule": None, "device": "mps"}
    return {
        "step": 1500,
        "model_state_dict": weights,
        "optimizer_state_dict": {"state": {0: {"step": torch.tensor(1500.0)}}, "param_groups": [{"lr": 2e-5}]},
        "hyperparameters": hyperparameters,
        "vocab_size": 300,
        "block_size": 256,
        "batch_size": 8,
        **changes,
    }


def owners_file(folder: Path, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    """The file, of whichever weights."""
    path = folder / "checkpoint_gpt2_answers_step001500_11252025_031000.pt"
    torch.save(owners(weights, **changes), path)
    return path
