"""Gradient checkpointing (Chen et al. 2016): each layer's activations are computed again in the backward pass."""

from transformers import PreTrainedModel

from trainable.errors import UserError


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Let every layer of `model` keep its input alone, in training; its losses and gradients stay the same bits.

    Raises UserError when transformers cannot do it for this model.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"GRADIENT_CHECKPOINTING=1: transformers cannot do it for a {model.config.model_type} model. Unset it."
        )
    # Not the reentrant kind: it loses the gradient below adapters on frozen embeddings, whose outputs need none.
    model.activation_checkpointing_enable({"use_reentrant": False})
    # Needed by the reentrant kind alone; here it would take the gradient down to embeddings that are frozen.
    model.disable_input_require_grads()
