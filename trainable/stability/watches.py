"""Finding, and the watches over spikes and speed; the watch over the loss level is in trainable.stability.loss_level.

A watch keeps its state in public attributes (numbers, lists, rings); private ones are set once.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal, get_args

from trainable.stability.rules import StabilityRules

StopKind = Literal["nonfinite", "divergence", "floor"]
STOP_KINDS: tuple[StopKind, ...] = get_args(StopKind)
FlagKind = Literal["spike", "plateau", "slow", "stall", "poisoned_optimizer"]

LONG_AGO = 1_000_000_000
NEVER_S = 1e9
BUILD_UP_STEPS = 5


@dataclass(frozen=True, slots=True)
class Finding:
    """Something seen in a run."""

    kind: StopKind | FlagKind
    step: int
    """Optimizer steps done when it was seen; the first step is 1."""
    severity: Literal["stop", "flag"]
    evidence: str
    """One line with the numbers, for a person."""


class Window:
    """The last `size` values and their sums, at constant cost."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.values: deque[float] = deque(maxlen=size)
        self.total = 0.0
        self.total_squared = 0.0
        self.until_exact = size

    def append(self, value: float) -> None:
        """Take in a value in place of the oldest."""
        values = self.values
        old = values[0] if len(values) == self._size else 0.0
        values.append(value)
        self.total += value - old
        self.total_squared += value * value - old * old
        self.until_exact -= 1
        if not self.until_exact:  # the sums keep a rounding error of the largest value that ever went through
            self.until_exact = self._size
            self.total = sum(values)
            self.total_squared = sum([v * v for v in values])

    def mean_and_deviation(self) -> tuple[float, float]:
        """Return the mean and the standard deviation of at least one value."""
        count = len(self.values)
        mean = self.total / count
        variance = self.total_squared / count - mean * mean
        return mean, math.sqrt(variance) if variance > 0 else 0.0


class SpikeWatch:
    """Spikes of the loss and the gradient norm, and whether the run recovers from them."""

    def __init__(self, rules: StabilityRules) -> None:
        self._rules = rules
        self.losses = Window(rules.spike_window_steps)
        self.grad_norms = Window(rules.spike_window_steps)
        self.quiet_steps = LONG_AGO
        self.onset: int | None = None
        self.level_before = 0.0
        self.first_rise = 0.0
        self.peak_rise = 0.0
        self.peak_step = 0

    def update(
        self, found: list[Finding], step: int, loss: float, grad_norm: float | None, level: float | None
    ) -> float:
        """Append what this step newly shows to `found`; return the loss, or the spike bound that it is above.

        level: median loss before this step; None while there is none.
        """
        r = self._rules
        causes = []
        clipped = loss
        if len(self.losses.values) >= r.spike_min_steps:
            mean, deviation = self.losses.mean_and_deviation()
            bound = mean + max(r.spike_sigma * deviation, r.spike_min_rise)
            if loss > bound:
                causes.append(f"loss {loss:.3f} against {mean:.3f} +- {deviation:.3f}")
                clipped = bound
        self.losses.append(clipped)
        if grad_norm is not None:
            if len(self.grad_norms.values) >= r.spike_min_steps:
                mean, deviation = self.grad_norms.mean_and_deviation()
                bound = max(mean + r.spike_sigma * deviation, r.spike_min_grad_ratio * mean)
                if grad_norm > bound:
                    causes.append(f"gradient norm {grad_norm:.3g} against {mean:.3g} +- {deviation:.2g}")
                    grad_norm = bound
            self.grad_norms.append(grad_norm)
        if causes:
            self._report(found, step, loss, level, causes)
        else:
            self.quiet_steps += 1
        if self.onset is not None and level is not None:
            self._check_recovery(found, step, self.onset, loss, level)
        return clipped

    def _report(self, found: list[Finding], step: int, loss: float, level: float | None, causes: list[str]) -> None:
        if self.quiet_steps >= self._rules.spike_quiet_steps:
            before = f"{', '.join(causes)} over the {len(self.losses.values)} steps before"
            found.append(Finding("spike", step, "flag", before))
            if self.onset is None and level is not None:
                self.onset, self.level_before = step, level
                self.first_rise = self.peak_rise = loss - level
                self.peak_step = step
        self.quiet_steps = 0

    def _check_recovery(self, found: list[Finding], step: int, onset: int, loss: float, level: float) -> None:
        r = self._rules
        since = step - onset
        if loss - self.level_before > self.peak_rise:
            self.peak_rise, self.peak_step = loss - self.level_before, step
        if since < r.poison_after_steps:
            return
        # Bad data costs most at its first step; stale momentum walks the weights away over several.
        built_up = self.first_rise < 0.5 * self.peak_rise and self.peak_step - onset >= BUILD_UP_STEPS
        if built_up and level > self.level_before + r.poison_margin:
            evidence = (
                f"{since} steps after the spike at step {onset} the loss of {level:.3f} is still "
                f"{level - self.level_before:.3f} above that of before: Adam's second moment may be corrupted"
            )
            found.append(Finding("poisoned_optimizer", step, "flag", evidence))
        self.onset = None


class SpeedWatch:
    """Slow steps, against the run's own fastest window, and stalls."""

    def __init__(self, rules: StabilityRules) -> None:
        self._rules = rules
        self.times_s: deque[float] = deque(maxlen=rules.slow_window_steps)
        self.median_s = NEVER_S
        self.fastest_s = NEVER_S
        self.slow = False
        self.fast_steps = 0
        self.quiet_steps = LONG_AGO

    def update(self, found: list[Finding], step: int, step_time_s: float) -> None:
        """Append what this step's time newly shows to `found`."""
        r = self._rules
        if step_time_s > r.stall_ratio * self.median_s:
            if self.quiet_steps >= r.stall_quiet_steps:
                evidence = (
                    f"a step of {step_time_s:.3g} s; the median of {r.slow_window_steps} is {self.median_s:.3g} s"
                )
                found.append(Finding("stall", step, "flag", evidence))
            self.quiet_steps = 0
        else:
            self.quiet_steps += 1
        self.times_s.append(step_time_s)
        if len(self.times_s) < r.slow_window_steps:
            return
        self.median_s = median(self.times_s)
        if self.median_s < self.fastest_s:
            self.fastest_s = self.median_s
        if self.slow:
            # A machine that is shared for an hour is one finding, though its speed comes and goes.
            self.fast_steps = self.fast_steps + 1 if self.median_s < r.slow_end_ratio * self.fastest_s else 0
            self.slow = self.fast_steps < r.slow_quiet_steps
        elif self.median_s > r.slow_ratio * self.fastest_s:
            self.slow, self.fast_steps = True, 0
            evidence = (
                f"a step takes {self.median_s:.3g} s (median of {r.slow_window_steps}), "
                f"{self.median_s / self.fastest_s:.2f} times the {self.fastest_s:.3g} s of the run's fastest"
            )
            found.append(Finding("slow", step, "flag", evidence))


def dump(watch: object) -> dict[str, Any]:
    """Return a watch's state: dicts, lists, numbers and None."""
    state = {name: value for name, value in vars(watch).items() if not name.startswith("_")}
    for name, value in state.items():
        if isinstance(value, Window):
            state[name] = dump(value)
        elif isinstance(value, (deque, list)):
            state[name] = list(value)
    return state


def restore(watch: object, state: dict[str, Any]) -> None:
    """Put back what `dump` returned. Raises KeyError for a missing or an unknown name."""
    if unknown := set(state) - set(vars(watch)):
        raise KeyError(sorted(unknown)[0])
    for name, value in dump(watch).items():
        own, value = getattr(watch, name), state[name]
        if isinstance(own, Window):
            restore(own, value)
        elif isinstance(own, deque):
            own.clear()
            own.extend(value)
        else:
            setattr(watch, name, list(value) if isinstance(own, list) else value)
