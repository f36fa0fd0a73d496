"""Logs in the owner's line format, written from tables: for the tests of reading, diagnosing and drawing them."""

import gzip
import json
import math
import random
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from results.diagnosis.trace import RunTrace

Row = tuple[int, float, float, float]
"""Step, training loss, validation loss, learning rate."""

STORY: tuple[Row, ...] = (
    (0, 9.2270, 9.2680, 2.00e-6),
    (500, 6.9544, 7.1291, 2.00e-5),
    (1000, 6.5811, 6.7096, 1.95e-5),
    (1500, 6.6511, 6.7427, 1.80e-5),
    (2000, 9.5846, 9.6169, 1.55e-5),
    (2500, 6.6424, 6.7105, 1.29e-5),
)
FAST_S, SLOW_S = 1 / 1.05, 1 / 0.62
EVALUATION_S = 17.5


def story_step_s(step: int) -> float:
    return FAST_S if step <= 1500 else SLOW_S


def owner_log(
    rows: Sequence[Row],
    total_steps: int,
    *,
    step_s: Callable[[int], float] = lambda step: FAST_S,
    pauses: dict[int, float] | None = None,
    progress_steps: int = 25,
    header: str = "",
) -> str:
    """Return the log of a run: its speed is a mean since its first row, as the owner's scripts print it."""
    lines = [header] if header else []
    by_step = {row[0]: row for row in rows}
    first, last = rows[0][0], rows[-1][0]
    seconds = 0.0
    for step in range(first, last + 1):
        seconds += step_s(step) if step > first else 0.0
        seconds += (pauses or {}).get(step, 0.0)
        seconds += EVALUATION_S if step in by_step else 0.0
        speed = (step - first) / seconds
        at = f"step {step}/{total_steps} ({100 * step / total_steps:.1f}%)"
        if step in by_step:
            _, train, val, rate = by_step[step]
            losses = f"train loss {train:.4f}, val loss {val:.4f}"
            lines.append(f"{at}: {losses} | LR: {rate:.2e} | {seconds:.1f}s ({speed:.2f} steps/sec)")
        elif step % progress_steps == 0:
            eta_m = (total_steps - step) / speed / 60
            lines.append(f"{at} | {speed:.2f} steps/sec | ETA: {eta_m:.1f}m")
    return "\n".join(lines) + "\n"


def falling(
    start: float,
    end: float,
    *,
    total_steps: int = 5000,
    evaluations: int = 10,
    rate: float = 2e-5,
    noise: float = 0.01,
    gap: float = 0.08,
    first_step: int = 0,
    seed: int = 0,
) -> list[Row]:
    """Return a healthy run's rows: an exponential fall over a seventh of it, noise, validation above training."""
    gauss = random.Random(seed).gauss
    rows = []
    for index in range(evaluations + 1):
        step = first_step + index * total_steps // evaluations
        level = end + (start - end) * math.exp(-7 * (step - first_step) / total_steps)
        rows.append((step, level + gauss(0, noise), level + gap + gauss(0, noise), rate))
    return rows


@cache
def recorded_traces() -> dict[str, dict[str, Any]]:
    """Return the recorded runs by name."""
    path = Path(__file__).parent.parent / "data" / "traces.json.gz"
    with gzip.open(path) as file:
        return {trace["name"]: trace for trace in json.load(file)}


def recorded_run(name: str) -> RunTrace:
    """Return a recorded run as the trial's tables would give it: 600 steps, an evaluation every 50."""
    trace = recorded_traces()[name]
    evaluations = {step: float(loss) for step, loss in trace["eval"]}
    steps = range(len(trace["loss"]) + 1)

    def column(values: list[Any]) -> tuple[float | None, ...]:
        return (None, *(None if value is None else float(value) for value in values))

    return RunTrace(
        source=name,
        origin="trial",
        steps=tuple(steps),
        train_loss=column(trace["loss"]),
        val_loss=tuple(evaluations.get(step) for step in steps),
        grad_norm=column(trace["gn"]),
        learning_rate=column(trace["lr"]),
        step_time_s=column(trace["dt"]),
        total_steps=600,
    )
