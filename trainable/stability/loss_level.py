"""LevelWatch: divergence, floor and plateau, recognized by the median of the last losses and its trend."""

import math
from collections import deque
from statistics import median

from trainable.stability.rules import StabilityRules
from trainable.stability.watches import Finding, StopKind

LOSS_LIMIT = 1e9
INITIAL_STEPS = 5
MEMORY_STEPS = 128
BINS_PER_BUDGET = 24
SIXTH, THIRD = 4, 8  # of the budget, in bins
MIN_BIN_STEPS = 10
MIN_TREND_STEPS = 80
NOT_YET_DOWN = 0.5  # nats above the unigram entropy

# Of independent draws a, b from one normal distribution, in standard deviations: the means of |a-b| and of max(0, a-b).
MEAN_CHANGE = 2 / math.sqrt(math.pi)
MEAN_RISE = 1 / math.sqrt(math.pi)
SHARED_RUN = 1.5
MEDIAN_ERROR = math.sqrt(math.pi / 2)  # against that of a mean


class LevelWatch:
    """Judges the median of the last losses. Arguments are those of StabilityMonitor."""

    def __init__(self, rules: StabilityRules, *, budget_steps: int, unigram_entropy: float, from_scratch: bool) -> None:
        self._rules = rules
        self._budget_steps = budget_steps
        self._entropy = unigram_entropy
        self._from_scratch = from_scratch
        self._bin_size = max(math.ceil(budget_steps / BINS_PER_BUDGET), MIN_BIN_STEPS)
        fewest = math.ceil(MIN_TREND_STEPS / self._bin_size)
        self._floor_bins, self._plateau_bins = max(SIXTH, fewest), max(THIRD, fewest)
        self.losses: deque[float] = deque(maxlen=rules.median_steps)
        self.median: float | None = None
        self.first: list[float] = []
        self.initial = LOSS_LIMIT
        self.best = LOSS_LIMIT
        self.spread_at_best = 0.0
        self.last_loss: float | None = None
        self.noise = 0.0
        self.noise_steps = 0
        self.medians: deque[float] = deque(maxlen=rules.median_steps)
        self.mean_rise = 0.0
        self.rise_steps = 0
        self.bins: deque[float] = deque(maxlen=max(self._floor_bins, self._plateau_bins))
        self.bin_steps = 0
        self.bin_sum = 0.0
        self.high_steps = 0
        self.peak = 0.0
        self.low = 0.0
        self.steps_since_low = 0
        self.floor_steps = 0
        self.plateau_steps = 0
        self.on_plateau = False
        self.stopped: list[str] = []

    def update(self, found: list[Finding], step: int, loss: float, clipped: float) -> None:
        """Append what this loss newly shows to `found`. clipped: the loss, or the spike bound that it is above."""
        r = self._rules
        self.losses.append(loss)
        self._learn_noise(clipped)
        bin_ended = self._fill_bin(clipped)
        if len(self.first) < INITIAL_STEPS:
            self.first.append(loss)
            # The first batch may be an easy one, and the fall may be fast: the higher of the two is the safe bound.
            self.initial = max(self.first[0], median(self.first))
        if len(self.losses) < r.median_steps:
            return
        level = self.median = median(self.losses)
        self._learn_rises(level)
        if level < self.best:
            self.best, self.spread_at_best = level, self._spread()
        self._check_divergence(found, step, level)
        # An unknown entropy is NaN, and nothing is above NaN.
        self.floor_steps = self.floor_steps + 1 if level > self._entropy - r.floor_margin else 0
        self.plateau_steps = self.plateau_steps + 1 if level > self._entropy - r.plateau_margin else 0
        if self.floor_steps >= r.floor_steps:
            self._check_floor(found, step, level)
        if bin_ended:
            self._check_plateau(found, step, level)

    def _learn_noise(self, clipped: float) -> None:
        if self.last_loss is not None:
            if self.noise_steps < MEMORY_STEPS:
                self.noise_steps += 1
            self.noise += (abs(clipped - self.last_loss) / MEAN_CHANGE - self.noise) / self.noise_steps
        self.last_loss = clipped

    def _learn_rises(self, level: float) -> None:
        if len(self.medians) == self._rules.median_steps:
            if self.rise_steps < MEMORY_STEPS:
                self.rise_steps += 1
            rise = level - self.medians[0]
            self.mean_rise += ((rise if rise > 0 else 0.0) - self.mean_rise) / self.rise_steps
        self.medians.append(level)

    def _spread(self) -> float:
        """Return the standard deviation of the median, the larger of two estimates.

        One is from the noise of single steps. The other is from the median's own rises (falls are what training is for)
        and also sees batches that come in runs of easy and hard ones. It is scaled up while there are few, and because
        neighbouring windows share such a run.
        """
        few = 1 + 2 * self._rules.median_steps / max(self.rise_steps, self._rules.median_steps)
        from_steps = self.noise * MEDIAN_ERROR / math.sqrt(self._rules.median_steps)
        return max(from_steps, SHARED_RUN * self.mean_rise / MEAN_RISE * few)

    def _fill_bin(self, clipped: float) -> bool:
        self.bin_steps += 1
        self.bin_sum += clipped
        if self.bin_steps < self._bin_size:
            return False
        self.bins.append(self.bin_sum / self.bin_steps)
        self.bin_steps, self.bin_sum = 0, 0.0
        return True

    def _stop(self, found: list[Finding], kind: StopKind, step: int, evidence: str) -> None:
        if kind not in self.stopped:
            self.stopped.append(kind)
            found.append(Finding(kind, step, "stop", evidence))

    def _check_divergence(self, found: list[Finding], step: int, level: float) -> None:
        r = self._rules
        # Every batch costs a random model the same: no noise to allow for, and nothing learned that could come back.
        began_blank = self._from_scratch and not self.initial <= self._entropy
        lost = level > self.initial + r.initial_margin and began_blank
        if not lost and level <= self.best + max(r.divergence_margin, r.divergence_noise * self.spread_at_best):
            self.high_steps = 0
            return
        if not self.high_steps or level > self.peak:
            self.peak = self.low = level
            self.steps_since_low = r.divergence_patience_steps
        elif level < self.low - r.divergence_falling:
            self.low, self.steps_since_low = level, 0
        else:
            self.steps_since_low += 1
        self.high_steps += 1
        if self.high_steps < r.divergence_steps or (not lost and self.steps_since_low < r.divergence_patience_steps):
            return
        bound, name = (self.initial, "the initial loss") if lost else (self.best, "its best")
        evidence = (
            f"median loss of {r.median_steps} steps {level:.3f}, {level - bound:.3f} above {name} of {bound:.3f}, "
            f"too high for {self.high_steps} steps" + ("" if lost else " and not falling")
        )
        self._stop(found, "divergence", step, evidence)

    def _check_floor(self, found: list[Finding], step: int, level: float) -> None:
        r = self._rules
        # A run that is above its own best by a divergence has been below the floor, or never was at it.
        if not self._from_scratch or self.high_steps or step < r.floor_after_frac * self._budget_steps:
            return
        if "floor" in self.stopped or len(self.bins) < self._floor_bins:
            return
        fall = self._fall(self._floor_bins)
        # Only the noise counts as its error here: a run that has just begun to fall fits no line.
        enough = 3 * self._noise_error(self._floor_bins) if level > self._entropy + NOT_YET_DOWN else r.floor_falling
        if fall > enough:
            return
        evidence = (
            f"after {step} of {self._budget_steps} steps from scratch the median loss of {r.median_steps} steps is "
            f"{level:.3f}, for {self.floor_steps} steps not below the corpus's unigram entropy of {self._entropy:.3f} "
            f"less {r.floor_margin:g}; it {_fall_words(fall)} in the last {self._floor_bins * self._bin_size} steps"
        )
        self._stop(found, "floor", step, evidence)

    def _check_plateau(self, found: list[Finding], step: int, level: float) -> None:
        r = self._rules
        if len(self.bins) < self._plateau_bins or step < r.plateau_min_steps:
            return
        fall, error = self._fall(self._plateau_bins), self._fall_error(self._plateau_bins)
        limit = r.plateau_decline if self._from_scratch else r.plateau_decline_pretrained
        flat = -3 * limit < fall < limit - 2 * error and step <= r.plateau_until_frac * self._budget_steps
        high = self.plateau_steps >= r.floor_steps and step >= r.plateau_after_frac * self._budget_steps
        if self.on_plateau or not (flat or high):
            self.on_plateau = self.on_plateau and (flat or high or fall < limit + 2 * error)
            return
        self.on_plateau = True
        evidence = f"it {_fall_words(fall)} +- {error:.3f} in the last {self._plateau_bins * self._bin_size} steps"
        if high:
            evidence = f"hardly below the corpus's unigram entropy of {self._entropy:.3f}; {evidence}"
        found.append(Finding("plateau", step, "flag", f"the loss is {level:.3f}; {evidence}"))

    def _fall(self, count: int) -> float:
        """Return the fall over the last `count` bins by least squares."""
        middle = (count - 1) / 2
        values = list(self.bins)[-count:]
        return -sum([(at - middle) * value for at, value in enumerate(values)]) / _line_spread(count) * count

    def _noise_error(self, count: int) -> float:
        """Return the standard error of _fall if steps scatter by their noise alone."""
        return self.noise / math.sqrt(self._bin_size * _line_spread(count)) * count

    def _fall_error(self, count: int) -> float:
        """Return the standard error of _fall from the bins' scatter about the line, or the noise's if that is more."""
        values = list(self.bins)[-count:]
        middle, mean, slope = (count - 1) / 2, sum(values) / count, -self._fall(count) / count
        scatter = sum([(value - mean - slope * (at - middle)) ** 2 for at, value in enumerate(values)])
        return max(math.sqrt(scatter / (count - 2) / _line_spread(count)) * count, self._noise_error(count))


def _fall_words(fall: float) -> str:
    return f"{'fell' if fall >= 0 else 'rose'} by {abs(fall):.3f}"


def _line_spread(count: int) -> float:
    return (count**3 - count) / 12
