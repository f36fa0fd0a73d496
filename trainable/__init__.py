"""The training of one GPT-2-class model: a generator over steps. No Ray (but in ray_trainable), no printing."""
