"""The steps of every trial, thinned so that a report stays small and no spike is lost. For pictures, not for facts."""

import math
from typing import Any

from results.study.folder import Study
from trainable.errors import UserError

MAX_VALUES, MIN_VALUES, ALL_VALUES = 400, 60, 40_000
"""Values of a trial's loss or gradient norm: the most, the fewest, and about how many of all trials together."""


def trial_traces(study: Study, trial_ids: list[int]) -> dict[str, dict[str, Any]]:
    """Return by trial_id {"at", "pairs", "loss", "grad", "lr", "nonfinite_at"} for every trial with readable steps.

    at: the first optimizer step of each bucket of consecutive steps. With pairs a bucket has two values of loss and
    grad, its lowest and highest in order of time, else one; it has one of lr. Non-finite values are None; nonfinite_at
    is the first step with such a loss or gradient norm.
    """
    values = max(MIN_VALUES, min(MAX_VALUES, ALL_VALUES // max(1, len(trial_ids))))
    found = {}
    for trial_id in trial_ids:
        trace = _trace(study, trial_id, values)
        if trace is not None:
            found[str(trial_id)] = trace
    return found


def _trace(study: Study, trial_id: int, values: int) -> dict[str, Any] | None:
    import numpy as np

    from results.study.tables import STEPS, read_table

    path = study.steps_path(trial_id)
    if not path.exists():
        return None
    try:
        table = read_table(path, STEPS)
    except UserError:
        # A damaged trace is no reason to withhold the report, whose numbers come from other tables.
        return None
    names = ("optimizer_steps", "train_loss", "grad_norm", "learning_rate")
    steps, loss, grad, rate = (table.column(name).to_numpy() for name in names)
    if not len(steps):
        return None
    bad = ~(np.isfinite(loss) & np.isfinite(grad))
    buckets = np.array_split(np.arange(len(steps)), values // 2) if len(steps) > values else None
    starts = [int(bucket[0]) for bucket in buckets] if buckets else range(len(steps))
    return {
        "at": [int(steps[start]) for start in starts],
        "pairs": buckets is not None,
        "loss": _extremes(loss, buckets),
        "grad": _extremes(grad, buckets),
        "lr": [short(rate[start]) for start in starts],
        "nonfinite_at": int(steps[bad.argmax()]) if bad.any() else None,
    }


def _extremes(series: Any, buckets: Any) -> list[float | None]:
    import numpy as np

    if buckets is None:
        return [short(value) for value in series]
    found: list[float | None] = []
    for bucket in buckets:
        inside = series[bucket]
        finite = inside[np.isfinite(inside)]
        if not len(finite):
            found += [None, None]
            continue
        low, high = finite.argmin(), finite.argmax()
        found += [short(finite[min(low, high)]), short(finite[max(low, high)])]
    return found


def short(value: Any, digits: int = 5) -> float | None:
    """Return a number rounded to so many digits, None when it is not finite."""
    number = float(f"{float(value):.{digits - 1}e}")
    if not math.isfinite(number):
        return None
    # 7.0 is shorter as 7 in JSON.
    return int(number) if number.is_integer() and abs(number) < 1e15 else number
