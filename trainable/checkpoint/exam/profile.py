"""Which token a checkpoint's weights predict, with a model built for them where none is at hand."""

import math
import re
from collections.abc import Mapping

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from trainable.checkpoint.checkpoint import Checkpoint, load_weights
from trainable.checkpoint.exam.exam_facts import Scalar
from trainable.data.tokens import Tokens
from trainable.errors import UserError
from trainable.model.models import context_limit, load_model
from trainable.preflight.offset_profile import offset_profile
from trainable.preflight.untouched import in_mode

PROFILE_WINDOWS = 16
PROFILE_BLOCK = 128
"""2,048 tokens; 1,024 already give a standard error of 0.13, and differences between offsets are paired."""
GPT2_HEAD_SIZE = 64
SMALL_HEADS = (4, 2, 1, 8, 12, 16)


def checkpoint_profile(
    checkpoint: Checkpoint,
    weights: Mapping[str, torch.Tensor],
    tokens: Tokens | None,
    model_name: str | None,
    hyperparameters: Mapping[str, Scalar],
) -> tuple[dict[int, float], int, str]:
    """Return the offset losses and the tokens they were measured on, or none and the reason."""
    if tokens is None:
        return {}, 0, "no text was given"
    try:
        models = _models(checkpoint, weights, model_name, hyperparameters)
        profiles = []
        for model in models:
            windows = _windows(tokens, model)
            with in_mode(model, training=False):
                profiles.append(offset_profile(model, windows))
        # Of models that differ in what the weights do not tell, the right one predicts best.
        best = min(profiles, key=lambda profile: min(value for value in profile.values() if not math.isnan(value)))
    except UserError as error:
        return {}, 0, str(error)
    except ValueError:
        return {}, 0, "its losses are not finite"
    return best, windows.shape[0] * (windows.shape[1] - 1), ""


def _windows(tokens: Tokens, model: PreTrainedModel) -> torch.Tensor:
    rows = model.get_input_embeddings().weight.shape[0]
    block = min(PROFILE_BLOCK, context_limit(model) or PROFILE_BLOCK, len(tokens) - 1)
    if block < 8:
        raise UserError(f"the text has {len(tokens)} held-out tokens, which are too few to measure on")
    starts = np.unique(np.linspace(0, len(tokens) - block - 1, PROFILE_WINDOWS).astype(np.int64))
    windows = tokens[starts[:, None] + np.arange(block + 1)].astype(np.int64)  # (N, T + 1)
    if int(windows.max()) >= rows:
        raise UserError(
            f"the text's token ids reach {int(windows.max())} and the checkpoint embeds {rows}: another tokenizer's"
        )
    return torch.from_numpy(windows)


def _models(
    checkpoint: Checkpoint,
    weights: Mapping[str, torch.Tensor],
    model_name: str | None,
    hyperparameters: Mapping[str, Scalar],
) -> list[PreTrainedModel]:
    if model_name is not None:
        try:
            named = load_model(model_name, dropout=0.0, seed=0)
            load_weights(named, checkpoint, model_name=model_name)
        except UserError:
            # The folder is gone, the hub is far, or it is another model: the weights still tell GPT-2's shape.
            if not _gpt2_shape(weights):
                raise
        else:
            return [named]
    shape = _gpt2_shape(weights)
    if not shape:
        raise UserError("its weights are not GPT-2's and no GPT2_MODEL_NAME says what they are")
    models: list[PreTrainedModel] = []
    for heads in _head_counts(shape["n_embd"], hyperparameters):
        model = GPT2LMHeadModel(GPT2Config(**shape, n_head=heads))
        load_weights(model, checkpoint, model_name="GPT-2 of its own shape")
        models.append(model)
    return models


def _gpt2_shape(weights: Mapping[str, torch.Tensor]) -> dict[str, int]:
    tensors = {
        name: tensor
        for name, tensor in weights.items()
        if name.endswith(("wte.weight", "wpe.weight")) and tensor.dim() == 2
    }
    embedding = next((tensor for name, tensor in tensors.items() if name.endswith("wte.weight")), None)
    positions = next((tensor for name, tensor in tensors.items() if name.endswith("wpe.weight")), None)
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
