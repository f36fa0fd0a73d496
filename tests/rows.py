"""Rows of a run with plain numbers, for tests that train nothing."""

from dataclasses import replace
from typing import Any

from trainable.rows import MetricsRow


def evaluation(optimizer_steps: int, val_loss: float, **changes: Any) -> MetricsRow:
    """Return an evaluation after steps of 10 tokens, with changes to any of its columns."""
    row = MetricsRow(
        tokens_seen=optimizer_steps * 10,
        optimizer_steps=optimizer_steps,
        val_loss=val_loss,
        train_loss=5.5,
        grad_norm=1.0,
        learning_rate=1e-5,
        tokens_per_s=100.0,
        active_s=1.0,
    )
    return replace(row, **changes)
