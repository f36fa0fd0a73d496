"""Measures a checkpoint: which token it predicts, its numbers, what moved since the one before. Judges nothing."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from trainable.checkpoint.checkpoint import Checkpoint, load_weights, read_checkpoint
from trainable.checkpoint.exam import exam_weights
from trainable.checkpoint.exam.exam_facts import CheckpointFacts, Profile, Scalar
from trainable.checkpoint.foreign import optimizer_in, settings_in
from trainable.data.tokens import Tokens
from trainable.errors import LARGEST_SHOWN, UserError
from trainable.model.model_names import PRESETS
from trainable.model.models import context_limit, load_model
from trainable.model.modes import in_mode
from trainable.preflight.offset_profile import everywhere, mean_losses, offset_gains, offset_losses

PROFILE_WINDOWS = 16
PROFILE_BLOCK = 128
"""2,048 tokens; 1,024 already give a standard error of 0.13, and differences between offsets are paired."""
GPT2_HEAD_SIZE = 64
SMALL_HEADS = (4, 2, 1, 8, 12, 16)


Losses = Mapping[int, torch.Tensor]
"""By offset, (N, T) of the same windows."""


def _profile(
    tokens: Tokens | None,
    model_name: str | None,
    bases: dict[str, Losses],
    is_base: bool,
    checkpoint: Checkpoint,
    weights: Mapping[str, torch.Tensor],
    hyperparameters: Mapping[str, Scalar],
) -> Profile:
    """Return the profile of the checkpoint's weights. bases: what was measured of bases so far, added to.

    is_base: whether the model's name is that of what the weights began as.
    """
    if tokens is None:
        return Profile(no_profile="no text was read as it was trained on: set GPT2_MODEL_NAME to the model it began as")
    try:
        named = _named_model(checkpoint, weights, tokens, model_name, bases)
        models = [named] if named is not None else _models(checkpoint, weights, hyperparameters)
        windows = _windows(tokens, models[0])
        measured = [_losses(model, windows) for model in models]
        # Of models that differ in what the weights do not tell, the right one predicts best.
        means = [mean_losses(losses, windows) for losses in measured]
        best = min(range(len(means)), key=lambda one: min(nats for nats in means[one].values() if not math.isnan(nats)))
    except UserError as error:
        return Profile(no_profile=str(error))
    except ValueError:
        return Profile(no_profile="its losses are not finite")
    base = bases.get(model_name) if named is not None and model_name is not None and is_base else None
    width = windows.shape[1]
    return Profile(
        offset_losses=means[best],
        offset_tokens=windows.shape[0] * (width - 1),
        base_name=model_name or "" if base is not None else "",
        base_gains={} if base is None else offset_gains(base, everywhere(measured[best], width)),
        no_base="" if base is not None else "set GPT2_MODEL_NAME to the pretrained model it began as",
    )


def _losses(model: PreTrainedModel, windows: torch.Tensor) -> Losses:
    with in_mode(model, training=False):
        return offset_losses(lambda some: model(**some).logits, {"input_ids": windows[:, :-1]}, windows)


def _windows(tokens: Tokens, model: PreTrainedModel) -> torch.Tensor:
    rows = model.get_input_embeddings().weight.shape[0]
    block = min(PROFILE_BLOCK, context_limit(model.config) or PROFILE_BLOCK, len(tokens) - 1)
    if block < 8:
        raise UserError(f"the text has {len(tokens)} held-out tokens, which are too few to measure on")
    starts = np.unique(np.linspace(0, len(tokens) - block - 1, PROFILE_WINDOWS).astype(np.int64))
    windows = tokens[starts[:, None] + np.arange(block + 1)].astype(np.int64)  # (N, T + 1)
    if int(windows.max()) >= rows:
        raise UserError(f"token ids reach {int(windows.max())} and the checkpoint embeds {rows}: another tokenizer's")
    return torch.from_numpy(windows)


def _named_model(
    checkpoint: Checkpoint,
    weights: Mapping[str, torch.Tensor],
    tokens: Tokens,
    model_name: str | None,
    bases: dict[str, Losses],
) -> PreTrainedModel | None:
    """Return the named model with the checkpoint's weights, its own measured before; None where it is of no use."""
    if model_name is None:
        return None
    try:
        named = load_model(model_name, dropout=0.0, seed=0)
        if model_name not in PRESETS and model_name not in bases:
            windows = _windows(tokens, named)
            bases[model_name] = everywhere(_losses(named, windows), windows.shape[1])
        load_weights(named, checkpoint, model_name=model_name)
    except UserError:
        # The folder is gone, the hub is far, or it is another model: the weights still tell GPT-2's shape.
        if not _gpt2_shape(weights):
            raise
        return None
    return named


def _models(
    checkpoint: Checkpoint, weights: Mapping[str, torch.Tensor], hyperparameters: Mapping[str, Scalar]
) -> list[PreTrainedModel]:
    shape = _gpt2_shape(weights)
    if not shape:
        raise UserError("its weights are not GPT-2's and no GPT2_MODEL_NAME says what they are")
    models: list[PreTrainedModel] = []
    for heads in _head_counts(shape["n_embd"], hyperparameters):
        model = GPT2LMHeadModel(GPT2Config(**shape, n_head=heads, bos_token_id=None, eos_token_id=None))
        load_weights(model, checkpoint, model_name="GPT-2 of its own shape")
        models.append(model)
    return models


def _gpt2_shape(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    embedding, positions = (
        next((tensor for name, tensor in weights.items() if name.endswith(ending) and tensor.dim() == 2), None)
        for ending in ("wte.weight", "wpe.weight")
    )
    layers = {match[1] for name in weights if (match := re.search(r"\bh\.(\d+)\.attn\.c_attn\.weight$", name))}
    # Counted: a model of as many layers as the largest number says might never be built.
    if embedding is None or positions is None or not layers or layers != {str(one) for one in range(len(layers))}:
        return {}
    return {
        "vocab_size": embedding.shape[0],
        "n_embd": embedding.shape[1],
        "n_positions": positions.shape[0],
        "n_layer": len(layers),
    }


def _head_counts(width: int, hyperparameters: Mapping[str, Scalar]) -> list[int]:
    recorded = hyperparameters.get("n_head")
    if isinstance(recorded, int) and recorded > 0 and width % recorded == 0:
        return [recorded]
    # GPT-2's heads are 64 wide in all its sizes; a smaller model's number of heads is found by trying.
    if width % GPT2_HEAD_SIZE == 0 and width >= 8 * GPT2_HEAD_SIZE:
        return [width // GPT2_HEAD_SIZE]
    return [heads for heads in SMALL_HEADS if width % heads == 0 and heads <= width]


def in_order_of_steps(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Return the checkpoints that can be read, in the order of their steps, and why each other one cannot.

    A crash leaves half a file beside whole ones. Raises UserError where none can be read.
    """
    if len(paths) == 1:
        return [*paths], []  # not read twice
    steps, unread = dict[Path, int](), list[UserError]()
    for path in paths:
        try:
            steps[path] = read_checkpoint(path).optimizer_steps or 0
        except UserError as error:
            unread.append(error)
    if not steps:
        raise unread[0]
    return sorted(steps, key=lambda path: (steps[path], path.name)), [str(error) for error in unread]


def examine_checkpoints(
    paths: Sequence[Path], *, tokens: Tokens | None, model_name: str | None = None
) -> list[CheckpointFacts]:
    """Return the facts of each checkpoint, compared with the one before it in `paths`.

    tokens: held-out ids of the text it was trained on, 1-D; None leaves the offset losses out. model_name: what
    another script's files are of; without it GPT-2 of the weights' own shape. Two checkpoints are in memory at a time.
    Raises UserError for a file that cannot be read.
    """
    examined = {path.absolute() for path in paths}
    found: list[CheckpointFacts] = []
    before: Checkpoint | None = None
    bases: dict[str, Losses] = {}
    for path in paths:
        checkpoint = read_checkpoint(path)
        name = model_name or checkpoint.model_name
        # A folder with its tokenizer is its own model's name.
        is_base = name is None or Path(name).expanduser().absolute() not in examined
        found.append(_examine(checkpoint, before, partial(_profile, tokens, name, bases, is_base)))
        before = checkpoint
    return found


def _examine(checkpoint: Checkpoint, before: Checkpoint | None, profile_of: Callable[..., Profile]) -> CheckpointFacts:
    exam_weights.check_weights(f"checkpoint {checkpoint.path}", checkpoint.weights)
    weights = exam_weights.trained_weights(checkpoint.weights)
    hyperparameters = {
        name: value
        for name, value in settings_in(checkpoint.payload).items()
        if value is not None and not (isinstance(value, int) and abs(value) > LARGEST_SHOWN)
    }
    optimizer, recorded = optimizer_in(checkpoint.payload), hyperparameters.get("learning_rate")
    learning_rate = exam_weights.learning_rate_in(optimizer) or exam_weights.positive_number(recorded)
    embedding = next((one for name, one in weights.items() if name.endswith("wte.weight") and one.dim() == 2), None)
    shared = _comparable(before, weights, checkpoint.optimizer_steps)
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
        zero_adapters=tuple(
            name for name, tensor in weights.items() if "lora_b" in name.lower() and not bool(tensor.any())
        ),
        **exam_weights.gradient_facts(optimizer, weights),
        **vars(profile_of(checkpoint, weights, hyperparameters)),
        compared_with=before.path.name if before and shared else "",
        unchanged_tensors=tuple(name for name, (old, new) in shared.items() if torch.equal(old, new)),
        compared_tensors=len(shared),
    )


def _comparable(
    before: Checkpoint | None, weights: Mapping[str, torch.Tensor], optimizer_steps: int | None
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    # What is saved as the last, or as the best, is a copy of another.
    if before is None or 0 < (before.optimizer_steps or 0) == optimizer_steps:
        return {}
    return {
        name: (before.weights[name], tensor)
        for name, tensor in weights.items()
        if name in before.weights and before.weights[name].shape == tensor.shape
    }
