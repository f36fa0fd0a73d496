"""Numbers and configurations as words for a person."""

from collections.abc import Mapping
from typing import Any

_STYLES = {"completed": "green", "stopped": "yellow", "unstable": "red", "out_of_memory": "red", "failed": "red"}


def status_style(status: str) -> str:
    """Return the colour of an ending."""
    return _STYLES.get(status, "")


def loss_words(loss: float | None) -> str:
    """Return a loss in nats/token, or a dash where there is none."""
    return "-" if loss is None else f"{loss:.4f}"


def duration_words(seconds: float) -> str:
    """Return seconds as 42s, 3m05s or 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def token_words(tokens: float) -> str:
    """Return a number of tokens as 950, 40.5k, 8.2M."""
    for scale, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # What three digits round to a thousand belongs to the next unit.
        if tokens >= 0.9995 * scale:
            return f"{tokens / scale:.3g}{unit}" if tokens < 999.5 * scale else f"{tokens / scale:.0f}{unit}"
    return f"{tokens:.0f}"


def shape_words(row: Mapping[str, Any]) -> str:
    """Return batch x block, such as 32 x 128, or 8x4 x 256 with 4 micro-batches a step."""
    accumulated = f"x{row['grad_accum_steps']}" if row["grad_accum_steps"] > 1 else ""
    return f"{row['batch_size']}{accumulated} x {row['block_size']}"


def schedule_words(row: Mapping[str, Any]) -> str:
    """Return the schedule's name and its warm-up steps, if any."""
    return f"{row['lr_schedule']}" + (f" {row['warmup_steps']}" if row["warmup_steps"] else "")


def config_words(row: Mapping[str, Any]) -> str:
    """Return the searched part of a configuration: batch x block, LR, schedule, LoRA."""
    accumulated = f"x{row['grad_accum_steps']}" if row["grad_accum_steps"] > 1 else ""
    schedule = row["lr_schedule"] + (f" after {row['warmup_steps']} steps" if row["warmup_steps"] else "")
    return (
        f"batch {row['batch_size']}{accumulated} x block {row['block_size']}, LR {row['learning_rate']:.2e}, {schedule}"
        + (f", LoRA rank {row['lora_rank']}, alpha {row['lora_alpha']}" if row["use_lora"] else "")
    )
