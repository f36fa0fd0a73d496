"""Rules about time: a lasting slow-down, a pause, a record that ends early. None looks at a mean since the start."""

import math
import statistics
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, pairwise

from results.diagnosis.findings import Diagnosis
from results.diagnosis.run_view import RunView, evenly
from results.words import duration_words, value_words
from trainable.stability import DEFAULT_RULES

SLOW_FRAC = 0.15
"""A slow stretch shorter than this share of the record is a pause, not the run's new speed."""
SLOW_S = 60.0
"""A shorter slow stretch is other work on the machine."""
STALL_S = 60.0
LOST_FRAC = 0.05
"""Rows at the end without a loss have lost it where they are an interval between losses, and this share, and more."""
SMOOTH_PLACES = 50
"""In half a smoothing window, at most."""


@dataclass(frozen=True, kw_only=True)
class _Windows:
    ends: list[int]
    times_s: list[float]
    start: int

    def span(self, first: int, last: int) -> int:
        return self.ends[last] - (self.ends[first - 1] if first else self.start)


def time_findings(run: RunView) -> Iterator[Diagnosis]:
    """Yield what happened to the speed."""
    ends, times_s = run.trace.series("step_time_s")
    windows = _Windows(ends=ends, times_s=times_s, start=run.trace.steps[0])
    if len(ends) >= 4:
        yield from _speed(run, _without_evaluations(run, windows))


def _speed(run: RunView, windows: _Windows) -> Iterator[Diagnosis]:
    smooth = _smooth(windows.times_s)
    usual = _weighted_median(windows, range(1, len(smooth)))
    region = _slow_region(windows, smooth)
    if region:
        yield _slow(run, windows, *region)
    costs = [
        (excess_s, index)
        for index in range(1, len(windows.times_s))
        if not (region and region[0] <= index <= region[1])
        and (excess_s := (windows.times_s[index] - usual) * windows.span(index, index)) > 0
        and windows.times_s[index] > DEFAULT_RULES.slow_ratio * usual
    ]
    whole_s = sum(time_s * windows.span(index, index) for index, time_s in enumerate(windows.times_s))
    if costs and max(costs)[0] > max(STALL_S, 0.05 * whole_s):
        yield _stall(run, windows, costs, usual)


def _without_evaluations(run: RunView, windows: _Windows) -> _Windows:
    """Return the windows less what an evaluation usually takes, down to the usual time of a step.

    Of fewer than three to compare, each may have taken any time.
    """
    counts = [0, *(len(run.val.between(first + 1, last)) for first, last in pairwise(windows.ends))]
    quiet = [index for index, count in enumerate(counts) if index and not count]
    if len(quiet) == len(counts) - 1 or not quiet:
        return windows
    usual = _weighted_median(windows, quiet)
    costs = [
        (windows.times_s[index] - usual) * windows.span(index, index) / count
        for index, count in enumerate(counts)
        if count
    ]
    evaluation_s = max(0.0, statistics.median(costs)) if len(costs) >= 3 else math.inf
    times_s = [
        time_s if not count else min(time_s, max(usual, time_s - count * evaluation_s / windows.span(index, index)))
        for index, (time_s, count) in enumerate(zip(windows.times_s, counts, strict=True))
    ]
    return replace(windows, times_s=times_s)


def _smooth(times_s: list[float]) -> list[float]:
    # Of five windows; a long record gets a wider median, for evaluations recur in it.
    half = max(min(5, len(times_s) // 2) // 2, len(times_s) // 40)
    # So wide a median hardly changes from one window to the next: of a million each would take minutes.
    stride = max(1, half // SMOOTH_PLACES)
    centres = (min(first + stride // 2, len(times_s) - 1) for first in range(0, len(times_s), stride))
    smooth = [statistics.median(evenly(times_s[max(0, at - half) : at + half + 1])) for at in centres]
    return [smooth[index // stride] for index in range(len(times_s))]


def _weighted_median(windows: _Windows, indices: Iterable[int]) -> float:
    pairs = sorted((windows.times_s[index], windows.span(index, index)) for index in indices)
    steps = list(accumulate(span for _, span in pairs))
    return pairs[bisect_left(steps, steps[-1] / 2)][0]


def _slow_region(windows: _Windows, smooth: list[float]) -> tuple[int, int, float, float] | None:
    """Return the longest slow stretch (first, last window, seconds before, seconds in it), if it lasts.

    The first window is left out: compilation, caches, an evaluation before the first step.
    """
    fast = sorted(smooth[1:])[len(smooth) // 5]
    limit = (DEFAULT_RULES.slow_ratio + DEFAULT_RULES.slow_end_ratio) / 2 * fast
    runs = (list(run) for slow, run in groupby(range(1, len(smooth)), lambda index: smooth[index] > limit) if slow)
    # What is slow from the start has nothing to be slower than.
    stretches = [(run[0], run[-1]) for run in runs if run[0] > 1 or len(smooth) < 6]
    if not stretches:
        return None
    first, last = max(stretches, key=lambda stretch: windows.span(*stretch))
    inside = _weighted_median(windows, range(first, last + 1))
    before = _weighted_median(windows, range(1, first)) if first > 1 else fast
    share = windows.span(first, last) / windows.span(0, len(smooth) - 1)
    lasts = share >= SLOW_FRAC and last > first and windows.span(first, last) * inside >= SLOW_S
    return (first, last, before, inside) if lasts and inside > 1.3 * before else None


def _slow(run: RunView, windows: _Windows, first: int, last: int, before_s: float, inside_s: float) -> Diagnosis:
    step = windows.ends[first - 1]
    to_end = last >= len(windows.ends) - 2
    end = run.last_step if to_end else windows.ends[last]
    until = ", and stays so" if to_end else f", until step {end}"
    printed = _printed(run)
    return Diagnosis(
        kind="slow",
        confidence=0.9 if to_end else 0.8,
        summary=f"training slows {_speeds_words(1 / before_s, 1 / inside_s)} at about step {step}{until}",
        evidence=f"{value_words(before_s)} s a step before, {value_words(inside_s)} s after, in windows between logged "
        f"times{printed}",
        next_step="check what changed on the machine at that step: memory pressure and swap, heat, another process, a "
        "growing list of logged tensors, longer sequences; compare memory in use before and after",
        steps=(step, end),
    )


def _stall(run: RunView, windows: _Windows, costs: list[tuple[float, int]], usual_s: float) -> Diagnosis:
    excess_s, index = max(costs)
    first = windows.ends[index - 1]
    alike = sum(cost_s > max(STALL_S, excess_s / 4) for cost_s, _ in costs)
    said = "one pause" if alike == 1 else f"{alike} pauses, the longest"
    # What is left of a window beside the usual steps is known to two digits at best.
    least = ""
    if run.trace.announced.get("printed_speed") == "own":
        # Of the steps between two rows nothing is said.
        excess_s, least = excess_s / windows.span(index, index), "at least "
    about = duration_words(float(f"{excess_s:.2g}"))
    return Diagnosis(
        kind="stall",
        confidence=0.8,
        summary=f"{said} of {least}about {about} between step {first} and {windows.ends[index]}; "
        "before and after the speed is the same",
        evidence=f"{value_words(usual_s)} s a step elsewhere, {value_words(windows.times_s[index])} s in that window"
        f"{_printed(run)}",
        next_step="nothing is wrong with the training: the machine slept, was busy or wrote a checkpoint. "
        "Do not read the mean speed since the start",
        steps=(first, windows.ends[index]),
    )


def _speeds_words(*steps_per_s: float) -> str:
    before, after = (f"{speed:.2f}" if speed >= 0.1 else f"{speed:.2g}" for speed in steps_per_s)
    return f"from {before} to {after} steps/s"


def _printed(run: RunView) -> str:
    _, printed = run.trace.series("printed_steps_per_s")
    if len(printed) < 2 or run.trace.announced.get("printed_speed") != "mean":
        return ""
    return f"; the printed means since the start, {_speeds_words(max(printed[1:]), printed[-1])}, include every pause"


def missing_rows(run: RunView) -> str | None:
    """Return what is missing at the end of a log, or None: an evaluation may lie an interval before the last step."""
    total, error = run.trace.total_steps, run.trace.announced.get("error")
    if error:
        return f"the log ends at {run.unit} {run.last_step} with an error: {error}"
    losses = sorted({step for column in ("train_loss", "val_loss") for step in run.trace.series(column)[0]})
    if not losses:
        return "no loss was read from it: only what its lines say of time, rates and norms"
    if (
        run.last_step - losses[-1]
        > max([b - a for a, b in pairwise(losses)], default=math.inf) + LOST_FRAC * losses[-1]
    ):
        return (
            f"the losses end at {run.unit} {losses[-1]}, and the rows go on to {run.last_step}: a loss that is not "
            "finite may be written as nothing"
        )
    if run.trace.origin != "log" or total is None:
        return None
    steps, evaluations = run.trace.steps[-20:], run.val.steps[-20:]
    intervals = [b - a for a, b in pairwise(steps)]
    if run.val.steps and run.val.steps[-1] == run.last_step:
        intervals += [b - a for a, b in pairwise(evaluations)]
    if total - run.last_step <= max([*intervals, round(0.01 * total), 1]):
        return None
    return (
        f"the log ends at step {run.last_step} of {total} ({100 * run.last_step / total:.0f} %): stopped, cut off or "
        "still running. If the run is not under way any more, see its error output, the system's out-of-memory "
        "messages, or the end of the allotted time"
    )
