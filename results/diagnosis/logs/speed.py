"""How long a step took at each stretch of a log, whatever it prints of time. A mean since the start is undone."""

from collections.abc import Sequence
from itertools import pairwise

from results.diagnosis.logs.lines import LogRow

MAX_WINDOW_ERROR = 0.1
"""A window of steps is made so long that what rounding took from its ends is at most this share of it."""
MAX_SAMPLES = 4000
_PRINT_ERROR = 0.005
_CLOCK_ERROR_S = 0.05
_ETA_ERROR_S = 3.0
_SAME_SPEED = 0.03

Samples = list[tuple[int, float]]
"""(step at the window's end, mean seconds of its steps)."""


def step_times(rows: Sequence[LogRow]) -> tuple[Samples, str]:
    """Return the windows of one segment of a log, and what its printed speed is.

    That is "mean", since the start, "own", of the single step that is printed, or "momentary".

    rows: with steps, rising. In this order: seconds since the start, a printed mean since the start (t = steps / mean),
    a step's own time, a printed momentary speed, a bar's clock, time stamps.
    """
    first_step = next((row.step for row in rows if row.step is not None), 0)
    # The clock comes first: a mean since the start hides every pause, and printed times are rounded most.
    clock = _clock(rows)
    counted_from = _mean_counts_from(rows, dict(clock), first_step)
    points = [(step, seconds, _CLOCK_ERROR_S) for step, seconds in clock]
    if counted_from is not None:
        known = {step for step, _ in clock}
        points += [
            point for row in rows if row.step not in known and (point := _point_of_mean(row, counted_from, first_step))
        ]
        points.sort()
    if len(points) >= 2:
        return _windows(points), "momentary" if counted_from is None else "mean"
    own = _own_times(rows)
    if own:
        is_own = any(row.step_time_s for row in rows)
        return own[:: max(1, len(own) // MAX_SAMPLES)], "own" if is_own else "momentary"
    # Both are printed in whole seconds.
    for stamped in (_column(rows, "bar_s"), _column(rows, "stamp_s")):
        if len(stamped) >= 2:
            return _windows([(step, seconds, 0.5) for step, seconds in stamped]), "momentary"
    return [], "momentary"


def _column(rows: Sequence[LogRow], name: str) -> Samples:
    """The (step, value) of the rows that have both."""
    return [(row.step, value) for row in rows if row.step is not None and (value := getattr(row, name)) is not None]


def _clock(rows: Sequence[LogRow]) -> list[tuple[int, float]]:
    said = _column(rows, "elapsed_s")
    if said:
        return _rising(said)
    bare = _column(rows, "bare_s")
    seconds = [value for _, value in bare]
    # Seconds without a word are a clock when they only ever rise, and by more than a step's time could.
    rises = all(a <= b for a, b in pairwise(seconds))
    return bare if len(bare) >= 2 and rises and seconds[-1] > 1.5 * seconds[0] else []


def _rising(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    kept = points[:1]
    for step, seconds in points[1:]:
        if step > kept[-1][0] and seconds >= kept[-1][1]:
            kept.append((step, seconds))
    return kept


def _mean_counts_from(rows: Sequence[LogRow], clock: dict[int, float], first_step: int) -> int | None:
    """Return the step from which the printed speed is a mean, or None when it is the speed of the moment."""
    printed = [(step, speed) for step, speed in _column(rows, "steps_per_s") if speed]
    both = [(step, speed, clock[step]) for step, speed in printed if clock.get(step, 0) > 0 and step > first_step]
    for start in (first_step, 0):
        agree = [abs((step - start) / s - speed) <= _PRINT_ERROR + _SAME_SPEED * speed for step, speed, s in both]
        if both and sum(agree) >= 0.8 * len(both):
            return start
    points = [point for row in rows if (point := _point_of_mean(row, first_step, first_step))]
    if both or len(points) < 3 or any(row.bar_s is not None for row in rows):
        return None
    # Undone, a mean gives a clock that never goes back; a momentary speed does not.
    backward = sum(b[1] + b[2] < a[1] - a[2] for a, b in pairwise(points))
    return first_step if backward <= 0.01 * len(points) and not _stays_after_jump(printed) else None


def _stays_after_jump(printed: list[tuple[int, float]]) -> bool:
    """A mean that jumps moves on afterwards; the speed of the moment may stay."""
    speeds = [speed for _, speed in printed]
    jumps = [abs(b / a - 1) for a, b in pairwise(speeds[1:])]
    if not jumps or max(jumps) < 0.2:
        return False
    after = jumps.index(max(jumps)) + 2
    rest = speeds[after:]
    return printed[-1][0] > 1.5 * printed[after][0] and max(rest) < (1 + _SAME_SPEED) * min(rest)


def _point_of_mean(row: LogRow, counted_from: int, first_step: int) -> tuple[int, float, float] | None:
    """Return (step, seconds since the start, their error) from a printed mean, or from the more exact ETA beside it."""
    if row.step is None or not row.steps_per_s or row.step <= first_step:
        return None
    done = row.step - counted_from
    seconds = done / row.steps_per_s
    error_s = seconds * _PRINT_ERROR / row.steps_per_s
    if row.eta_s and row.total_steps and row.total_steps > row.step:
        by_eta_s = done * row.eta_s / (row.total_steps - row.step)
        by_eta_error_s = done * _ETA_ERROR_S / (row.total_steps - row.step)
        if by_eta_error_s < error_s and abs(by_eta_s - seconds) <= 2 * error_s + by_eta_error_s:
            return row.step, by_eta_s, by_eta_error_s
    return row.step, seconds, error_s


def _windows(points: list[tuple[int, float, float]]) -> Samples:
    samples: Samples = []
    step, seconds, error_s = points[0]
    stride = max(1, len(points) // MAX_SAMPLES)
    for next_step, next_s, next_error_s in points[stride::stride]:
        if next_step <= step:
            continue
        if next_s - seconds >= (error_s + next_error_s) / MAX_WINDOW_ERROR:
            samples.append((next_step, (next_s - seconds) / (next_step - step)))
            step, seconds, error_s = next_step, next_s, next_error_s
    return samples


def _own_times(rows: Sequence[LogRow]) -> Samples:
    times = [(step, time_s) for step, time_s in _column(rows, "step_time_s") if time_s]
    if len(times) >= 2:
        return times
    speeds = [(step, 1 / speed) for step, speed in _column(rows, "steps_per_s") if speed]
    return speeds if len(speeds) >= 2 else [(step, bare_s) for step, bare_s in _column(rows, "bare_s") if bare_s]
