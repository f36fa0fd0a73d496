"""Measures a checkpoint: which token it predicts, its numbers, what moved since the one before. Judges nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trainable.checkpoint.checkpoint import Checkpoint, read_checkpoint
from trainable.checkpoint.checkpoint_path import WEIGHTS, checkpoint_folders
from trainable.checkpoint.exam import exam_weights
from trainable.checkpoint.exam.exam_facts import CheckpointFacts, Scalar
from trainable.checkpoint.exam.profile import Losses, checkpoint_profile
from trainable.checkpoint.foreign import optimizer_in, settings_in
from trainable.data.tokens import Tokens
from trainable.errors import UserError

LARGEST_SHOWN = 10**15
"""Of the whole numbers that a checkpoint records."""


def checkpoint_files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder: itself where it holds a model, a Trainer's checkpoint-N, or .pt files.

    Raises UserError when there is none.
    """
    if any(path.name.startswith(WEIGHTS) for path in folder.iterdir()) or (folder / "adapter_config.json").exists():
        return [folder]
    files = sorted(path for path in folder.iterdir() if path.suffix == ".pt" and path.is_file())
    found = checkpoint_folders(folder) or files
    if not found:
        raise UserError(
            f"TARGET={folder}: the folder holds no checkpoint (.pt files, {' or '.join(WEIGHTS)}, a Trainer's "
            "checkpoint-N). Name a checkpoint, a study, a trial or a text log."
        )
    return found


def examine_checkpoints(
    paths: Sequence[Path], *, tokens: Tokens | None, model_name: str | None = None
) -> list[CheckpointFacts]:
    """Return the facts of each checkpoint in the order of their steps, compared with the one before.

    tokens: held-out ids of the text it was trained on, 1-D; None leaves the offset losses out. model_name: what
    another script's files are of; without it GPT-2 of the weights' own shape. Two checkpoints are in memory at a time.
    Raises UserError for a file that cannot be read.
    """
    # One alone needs no order and is not read twice.
    steps = {path: read_checkpoint(path).optimizer_steps or 0 if len(paths) > 1 else 0 for path in paths}
    found: list[CheckpointFacts] = []
    before: Checkpoint | None = None
    bases: dict[str, Losses] = {}
    for path in sorted(paths, key=lambda path: (steps[path], path.name)):
        checkpoint = read_checkpoint(path)
        found.append(_examine(checkpoint, before, tokens=tokens, model_name=model_name, bases=bases))
        before = checkpoint
    return found


def _examine(
    checkpoint: Checkpoint,
    before: Checkpoint | None,
    *,
    tokens: Tokens | None,
    model_name: str | None,
    bases: dict[str, Losses],
) -> CheckpointFacts:
    exam_weights.check_weights(f"checkpoint {checkpoint.path}", checkpoint.weights)
    weights = exam_weights.trained_weights(checkpoint.weights)
    hyperparameters = _scalars(settings_in(checkpoint.payload))
    state = exam_weights.OptimizerFacts(optimizer_in(checkpoint.payload), weights)
    learning_rate = state.learning_rate or exam_weights.positive_number(hyperparameters.get("learning_rate"))
    embedding = next((one for name, one in weights.items() if name.endswith("wte.weight") and one.dim() == 2), None)
    profile = checkpoint_profile(
        checkpoint, weights, tokens, model_name or checkpoint.model_name, hyperparameters, bases
    )
    shared = _comparable(before, weights)
    return CheckpointFacts(
        name=checkpoint.path.name,
        optimizer_steps=checkpoint.optimizer_steps or 0,
        is_ours=checkpoint.ours is not None,
        vocab_size=embedding.shape[0] if embedding is not None else None,
        dtypes=exam_weights.dtypes(weights),
        bf16_valued_frac=exam_weights.bf16_valued_frac(weights),
        unmovable_frac=exam_weights.unmovable_frac(weights.values(), learning_rate) if learning_rate else None,
        nonfinite_tensors=tuple(name for name, tensor in weights.items() if not bool(torch.isfinite(tensor).all())),
        learning_rate=learning_rate,
        hyperparameters=hyperparameters,
        optimizer_tensors=state.tensors,
        without_gradient=state.without_gradient,
        nonfinite_optimizer=state.nonfinite,
        zero_adapters=tuple(
            name for name, tensor in weights.items() if "lora_b" in name.lower() and not bool(tensor.any())
        ),
        **vars(profile),
        compared_with=before.path.name if before and shared else "",
        unchanged_tensors=tuple(name for name, (old, new) in shared.items() if torch.equal(old, new)),
        compared_tensors=len(shared),
    )


def _scalars(values: Mapping[str, Any]) -> dict[str, Scalar]:
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, str | float) or (isinstance(value, int) and abs(value) <= LARGEST_SHOWN)
    }


def _comparable(
    before: Checkpoint | None, weights: Mapping[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    if before is None:
        return {}
    return {
        name: (before.weights[name], tensor)
        for name, tensor in weights.items()
        if name in before.weights and before.weights[name].shape == tensor.shape
    }
