"""Gradient checkpointing (Chen et al. 2016): each layer's activations are computed again in the backward pass."""

from transformers import PreTrainedModel

from trainable.errors import UserError


def checkpoint_layers(model: PreTrainedModel) -> None:
    """Have every layer of `model` keep only its input in training; losses and gradients stay the same to the bit.

    Raises UserError when transformers cannot do it for this model.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"GRADIENT_CHECKPOINTING=1: transformers cannot do it for a {model.config.model_type} model. Unset it."
        )
    # Not the reentrant kind: it loses the gradient below adapters on frozen embeddings, whose outputs need none.
    model.activation_checkpointing_enable({"use_reentrant": False})
    # Only the reentrant kind needs it; here it would compute gradients down to embeddings that are frozen.
    model.disable_input_require_grads()
