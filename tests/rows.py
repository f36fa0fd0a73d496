"""Rows of a run with plain numbers, for tests that train nothing."""

from dataclasses import asdict, replace
from typing import Any

from trainable.config import DOCUMENTED
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


def trial_row(
    trial_id: int, status: str = "completed", val_loss: float | None = None, **changes: Any
) -> dict[str, Any]:
    """Return a search trial's row of trials.parquet with the documented configuration, with changes to any column."""
    row = {
        "trial_id": trial_id,
        "purpose": "search",
        "is_baseline": trial_id == 0,
        "of_trial": None,
        "attempt": None,
        "combination": None,
        "status": status,
        "verdict": None,
        "point": None,
        **asdict(DOCUMENTED),
        "val_loss": val_loss,
        "best_val_loss": val_loss,
        "end_loss": None,
        "tokens_seen": 0,
        "optimizer_steps": 0,
        "active_s": 0.0,
        "tokens_per_s": None,
        "rung": None,
        "started_at": None,
        "ended_at": None,
    }
    return {**row, **changes}
