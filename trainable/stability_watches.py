"""Three watches over a run's steps: loss level, spikes, speed. Each keeps what it needs in public attributes, which are its
state: plain numbers, lists and rings; private attributes are set once.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from trainable.stability_rules import StabilityRules

StopKind = Literal["nonfinite", "divergence", "floor"]
FlagKind = Literal["spike", "plateau", "slow", "stall", "poisoned_optimizer"]

INITIAL_STEPS = 5
NOISE_MEMORY_STEPS = 64
RISE_MEMORY_STEPS = 128
BINS_PER_BUDGET = 24
SIXTH, THIRD = 4, 8  # of the budget, in bins
MIN_BIN_STEPS = 10
MIN_TREND_STEPS = 80
NOT_YET_DOWN = 0.5  # nats above the unigram entropy
LONG_AGO = 1_000_000_000
# E|a-b| of two draws from one normal distribution is 2/sqrt(pi) deviations.
DEVIATION_PER_STEP_CHANGE = math.sqrt(math.pi) / 2
MEDIAN_ERROR = math.sqrt(math.pi / 2)  # of a mean's
MEAN_RISE = 1 / math.sqrt(math.pi)  # of max(0, a-b)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something seen in a run."""

    kind: StopKind | FlagKind
    step: int
    """Optimizer steps done when it was seen; the first step is 1."""
    severity: Literal["stop", "flag"]
    evidence: str
    """One line with the numbers, for a person."""


def median(values: Sequence[float]) -> float:
    """Return the median of at least one value."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


class LevelWatch:
    """Divergence, floor and plateau, from the median of the last losses and its trend."""

    def __init__(self, rules: StabilityRules, *, budget_steps: int, unigram_entropy: float, from_scratch: bool) -> None:
        self._rules = rules
        self._budget_steps = budget_steps
        self._entropy = unigram_entropy
        self._from_scratch = from_scratch
        self._bin_size = max(math.ceil(budget_steps / BINS_PER_BUDGET), MIN_BIN_STEPS)
        fewest = math.ceil(MIN_TREND_STEPS / self._bin_size)
        self._floor_bins, self._plateau_bins = max(SIXTH, fewest), max(THIRD, fewest)
        self.losses: deque[float] = deque(maxlen=rules.median_steps)
        self.first: list[float] = []
        self.median: float | None = None
        self.initial = math.inf
        self.best = math.inf
        self.noise = 0.0
        self.medians: deque[float] = deque(maxlen=rules.median_steps)
        self.mean_rise = 0.0
        self.spread_at_best = 0.0
        self.rise_steps = 0
        self.noise_steps = 0
        self.last_loss: float | None = None
        self.high_steps = 0
        self.peak = 0.0
        self.low = 0.0
        self.since_low = 0
        self.floor_steps = 0
        self.plateau_steps = 0
        self.plateaued = False
        self.stopped: list[str] = []
        self.bin_steps = 0
        self.bin_sum = 0.0
        self.bins: deque[float] = deque(maxlen=max(self._floor_bins, self._plateau_bins))

    def update(self, found: list[Finding], step: int, loss: float, clipped: float) -> None:
        """Append what this loss newly shows to `found`. clipped: the loss, or the spike bound it is above."""
        self.losses.append(loss)
        self._learn_noise(clipped)
        if len(self.first) < INITIAL_STEPS:
            self.first.append(loss)
            # The first batch may be an easy one and the fall may be fast: the higher of the two is the safe bound.
            self.initial = max(self.first[0], median(self.first))
        bin_ended = self._fill_bin(clipped)
        if len(self.losses) < self._rules.median_steps:
            return
        self.median = median(self.losses)
        self._learn_rises(self.median)
        if self.median < self.best:
            self.best, self.spread_at_best = self.median, self._spread()
        self._check_divergence(found, step, self.median)
        self._count_high(self.median)
        if self.floor_steps >= self._rules.floor_steps:
            self._check_floor(found, step, self.median)
        if bin_ended:
            self._check_plateau(found, step, self.median)

    def _learn_noise(self, clipped: float) -> None:
        if self.last_loss is not None:
            self.noise_steps = min(self.noise_steps + 1, NOISE_MEMORY_STEPS)
            change = abs(clipped - self.last_loss) * DEVIATION_PER_STEP_CHANGE
            self.noise += (change - self.noise) / self.noise_steps
        self.last_loss = clipped

    def _learn_rises(self, level: float) -> None:
        # Only rises count: a fall is what training is for.
        if len(self.medians) == self._rules.median_steps:
            self.rise_steps = min(self.rise_steps + 1, RISE_MEMORY_STEPS)
            self.mean_rise += (max(0.0, level - self.medians[0]) - self.mean_rise) / self.rise_steps
        self.medians.append(level)

    def _spread(self) -> float:
        """Return the standard deviation of the median, the larger of two estimates.

        From the noise of single steps, and from the median's own rises, which also see batches that come in runs of easy and
        hard ones; those are few at first.
        """
        from_steps = self.noise * MEDIAN_ERROR / math.sqrt(self._rules.median_steps)
        few = 1 + 2 * self._rules.median_steps / max(self.rise_steps, self._rules.median_steps)
        return max(from_steps, self.mean_rise / MEAN_RISE * few)

    def _fill_bin(self, clipped: float) -> bool:
        self.bin_steps += 1
        self.bin_sum += clipped
        if self.bin_steps < self._bin_size:
            return False
        self.bins.append(self.bin_sum / self.bin_steps)
        self.bin_steps, self.bin_sum = 0, 0.0
        return True

    def _decline(self, bins: int) -> tuple[float, float] | None:
        """Return the fall over the last `bins` bins by least squares and its standard error; None before there are any."""
        if len(self.bins) < bins:
            return None
        means = list(self.bins)[-bins:]
        middle, mean = (bins - 1) / 2, sum(means) / bins
        spread = (bins**3 - bins) / 12
        slope = sum((at - middle) * value for at, value in enumerate(means)) / spread
        residuals = sum((value - mean - slope * (at - middle)) ** 2 for at, value in enumerate(means))
        error = math.sqrt(residuals / (bins - 2) / spread) * bins
        return -slope * bins, max(error, self._line_error(bins))

    def _line_error(self, bins: int) -> float:
        return self.noise * math.sqrt(12 / (bins * self._bin_size))

    def _stop(self, found: list[Finding], kind: StopKind, step: int, evidence: str) -> None:
        if kind not in self.stopped:
            self.stopped.append(kind)
            found.append(Finding(kind, step, "stop", evidence))

    def _check_divergence(self, found: list[Finding], step: int, level: float) -> None:
        r = self._rules
        margin = max(r.divergence_margin, r.divergence_noise * self.spread_at_best)
        # At the initial loss of a random model every batch costs the same: no noise to allow for, nothing to come back to.
        lost = self._began_blank() and level > self.initial + r.initial_margin
        if not lost and level <= self.best + margin:
            self.high_steps = 0
            return
        if self.high_steps == 0 or level > self.peak:
            self.peak = self.low = level
            self.since_low = r.divergence_patience_steps
        elif level < self.low - r.divergence_falling:
            self.low, self.since_low = level, 0
        else:
            self.since_low += 1
        self.high_steps += 1
        if self.high_steps < r.divergence_steps or (not lost and self.since_low < r.divergence_patience_steps):
            return
        above, name = (self.initial, "the initial loss") if lost else (self.best, "its best")
        self._stop(
            found,
            "divergence",
            step,
            f"the median loss of {r.median_steps} steps is {level:.3f}, {level - above:.3f} above {name} of {above:.3f}; "
            f"it has been too high for {self.high_steps} steps",
        )

    def _began_blank(self) -> bool:
        return self._from_scratch and not self.initial <= self._entropy

    def _count_high(self, level: float) -> None:
        # Comparisons with an unknown (NaN) entropy are False, so nothing is counted.
        self.floor_steps = self.floor_steps + 1 if level > self._entropy - self._rules.floor_margin else 0
        self.plateau_steps = self.plateau_steps + 1 if level > self._entropy - self._rules.plateau_margin else 0

    def _check_floor(self, found: list[Finding], step: int, level: float) -> None:
        r = self._rules
        if not self._from_scratch or step < r.floor_after_frac * self._budget_steps or "floor" in self.stopped:
            return
        if self.high_steps:  # it had been lower: that is for divergence to judge
            return
        decline = self._decline(self._floor_bins)
        if decline is None:
            return
        # A run that has just set out to fall fits no line: only the noise is its error here, not the residuals.
        fall, error = decline[0], self._line_error(self._floor_bins)
        if fall > (3 * error if level > self._entropy + NOT_YET_DOWN else r.floor_falling):
            return
        self._stop(
            found,
            "floor",
            step,
            f"from scratch, and the median loss of {r.median_steps} steps has been at the corpus's unigram entropy of "
            f"{self._entropy:.3f} or above for {self.floor_steps} steps: now {level:.3f}, after {step} of {self._budget_steps}",
        )

    def _check_plateau(self, found: list[Finding], step: int, level: float) -> None:
        r = self._rules
        decline = self._decline(self._plateau_bins)
        if decline is None or step < r.plateau_min_steps:
            return
        fall, error = decline
        limit = r.plateau_decline if self._from_scratch else r.plateau_decline_pretrained
        flat = -3 * limit < fall < limit - 2 * error and step <= r.plateau_until_frac * self._budget_steps
        high = self.plateau_steps >= r.floor_steps and step >= r.plateau_after_frac * self._budget_steps
        if self.plateaued or not (flat or high):
            self.plateaued = self.plateaued and (flat or high or fall - 2 * error < limit)
            return
        self.plateaued = True
        evidence = f"the loss fell by {fall:.3f} (standard error {error:.3f}) in the last {self._plateau_bins * self._bin_size} steps"
        if high:
            evidence = f"the loss of {level:.3f} is hardly below the corpus's unigram entropy of {self._entropy:.3f}; {evidence}"
        found.append(Finding("plateau", step, "flag", evidence))


class SpikeWatch:
    """Spikes of the loss and the gradient norm, and whether the optimizer recovers from them."""

    def __init__(self, rules: StabilityRules) -> None:
        self._rules = rules
        self.losses: deque[float] = deque(maxlen=rules.spike_window_steps)
        self.losses_squared: deque[float] = deque(maxlen=rules.spike_window_steps)
        self.grads: deque[float] = deque(maxlen=rules.spike_window_steps)
        self.grads_squared: deque[float] = deque(maxlen=rules.spike_window_steps)
        self.quiet_steps = LONG_AGO
        self.onset: int | None = None
        self.level_before = 0.0
        self.first_rise = 0.0
        self.peak_rise = 0.0
        self.peak_step = 0
        self.update_fracs: deque[float] = deque(maxlen=rules.median_steps)
        self.update_frac_before: float | None = None

    def update(
        self,
        found: list[Finding],
        step: int,
        loss: float,
        grad_norm: float | None,
        level: float | None,
        update_frac: float | None,
    ) -> float:
        """Append what this step newly shows to `found`; return the loss, or the spike bound it is above.

        level: median loss before this step, None when there is none yet.
        """
        r = self._rules
        mean, sigma = _mean_and_sigma(self.losses, self.losses_squared)
        bound = mean + max(r.spike_sigma * sigma, r.spike_min_rise)
        clipped, causes = loss, []
        if loss > bound and len(self.losses) >= r.spike_min_steps:
            causes.append(f"loss {loss:.3f} against {mean:.3f} (deviation {sigma:.3f}) over {len(self.losses)} steps")
            clipped = bound
        self.losses.append(clipped)
        self.losses_squared.append(clipped * clipped)
        if grad_norm is not None:
            mean, sigma = _mean_and_sigma(self.grads, self.grads_squared)
            bound = max(mean + r.spike_sigma * sigma, r.spike_min_grad_ratio * mean)
            if grad_norm > bound and len(self.grads) >= r.spike_min_steps:
                causes.append(f"gradient norm {grad_norm:.3g} against {mean:.3g} (deviation {sigma:.2g})")
                grad_norm = bound
            self.grads.append(grad_norm)
            self.grads_squared.append(grad_norm * grad_norm)
        if causes:
            if self.quiet_steps >= r.spike_quiet_steps:
                found.append(Finding("spike", step, "flag", ", ".join(causes)))
                if self.onset is None and level is not None:
                    self._start_recovery(step, loss, level)
            self.quiet_steps = 0
        else:
            self.quiet_steps += 1
        if update_frac is not None and math.isfinite(update_frac):
            self.update_fracs.append(update_frac)
        if self.onset is not None:
            self._check_recovery(found, step, loss, level)
        return clipped

    def _start_recovery(self, step: int, loss: float, level: float) -> None:
        self.onset, self.level_before, self.first_rise = step, level, loss - level
        self.peak_rise, self.peak_step = self.first_rise, step
        full = len(self.update_fracs) == self._rules.median_steps
        self.update_frac_before = median(self.update_fracs) if full else None

    def _check_recovery(self, found: list[Finding], step: int, loss: float, level: float | None) -> None:
        r = self._rules
        assert self.onset is not None
        assert level is not None
        since = step - self.onset
        if loss - self.level_before > self.peak_rise:
            self.peak_rise, self.peak_step = loss - self.level_before, step
        evidence = None
        if self.update_frac_before is not None and since >= r.median_steps:
            now = median(self.update_fracs)
            if now * r.poison_update_ratio < self.update_frac_before:
                evidence = f"the update/weight ratio is {now:.2g}, it was {self.update_frac_before:.2g} before the spike at step {self.onset}"
        elif self.update_frac_before is None and since >= r.poison_after_steps and self._built_up():
            rise = level - self.level_before
            if rise > r.poison_margin:
                evidence = (
                    f"{since} steps after the spike at step {self.onset}, which built up over "
                    f"{self.peak_step - self.onset} steps, the loss of {level:.3f} is still {rise:.3f} above the {self.level_before:.3f} before it"
                )
        if evidence is not None:
            found.append(Finding("poisoned_optimizer", step, "flag", evidence))
        if evidence is not None or since >= r.poison_after_steps:
            self.onset = None

    def _built_up(self) -> bool:
        assert self.onset is not None
        return self.first_rise < 0.5 * self.peak_rise and self.peak_step - self.onset >= INITIAL_STEPS


class SpeedWatch:
    """Slow steps against the run's own fastest window, and stalls."""

    def __init__(self, rules: StabilityRules) -> None:
        self._rules = rules
        self.steps = 0
        self.times_s: deque[float] = deque(maxlen=rules.slow_window_steps)
        self.median_s: float | None = None
        self.fastest_s = math.inf
        self.slow = False
        self.fast_steps = 0
        self.quiet_steps = LONG_AGO

    def update(self, found: list[Finding], step: int, step_time_s: float) -> None:
        """Append what this step's time newly shows to `found`."""
        r = self._rules
        self.steps += 1
        if self.steps <= r.slow_skip_steps:
            return
        self.quiet_steps += 1
        if self.median_s is not None and step_time_s > r.stall_ratio * self.median_s:
            if self.quiet_steps > r.spike_quiet_steps:
                evidence = f"this step took {step_time_s:.3g} s, the median of {r.slow_window_steps} is {self.median_s:.3g} s"
                found.append(Finding("stall", step, "flag", evidence))
            self.quiet_steps = 0
        self.times_s.append(step_time_s)
        if len(self.times_s) < r.slow_window_steps:
            return
        self.median_s = median(self.times_s)
        self.fastest_s = min(self.fastest_s, self.median_s)
        if self.median_s > r.slow_ratio * self.fastest_s and not self.slow:
            self.slow = True
            evidence = (
                f"a step takes {self.median_s:.3g} s (median of {r.slow_window_steps}), "
                f"{self.median_s / self.fastest_s:.2f} times the run's fastest {self.fastest_s:.3g} s"
            )
            found.append(Finding("slow", step, "flag", evidence))
        # One busy hour on a shared machine is one finding, though the speed comes and goes in it.
        self.fast_steps = self.fast_steps + 1 if self.median_s < r.slow_end_ratio * self.fastest_s else 0
        if self.fast_steps >= r.slow_quiet_steps:
            self.slow = False


def _mean_and_sigma(values: deque[float], squared: deque[float]) -> tuple[float, float]:
    if not values:
        return 0.0, 0.0
    mean = sum(values) / len(values)
    return mean, math.sqrt(max(0.0, sum(squared) / len(values) - mean * mean))


def dump(watch: object) -> dict[str, Any]:
    """Return a watch's state as plain values."""
    state = {name: value for name, value in vars(watch).items() if not name.startswith("_")}
    return {name: list(value) if isinstance(value, (deque, list)) else value for name, value in state.items()}


def restore(watch: object, state: dict[str, Any]) -> None:
    """Put what `dump` returned back into a watch with the same rules."""
    for name, value in state.items():
        ring = getattr(watch, name)
        restored = deque(value, maxlen=ring.maxlen) if isinstance(ring, deque) else value
        setattr(watch, name, list(restored) if isinstance(ring, list) else restored)
