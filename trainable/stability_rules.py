"""StabilityRules: every constant by which a run is judged, once, with its source; the judging is in trainable.stability."""

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from types import MappingProxyType
from typing import Any

from trainable.errors import UserError, did_you_mean


def _rule(default: float, *, low: float, high: float, unit: str) -> Any:
    return field(default=default, metadata=MappingProxyType({"low": low, "high": high, "unit": unit}))


def _checked(spec: Field[Any], value: Any) -> int | float:
    low, high, unit = spec.metadata["low"], spec.metadata["high"], spec.metadata["unit"]
    wanted = (int,) if spec.type is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, wanted):
        kind = "a whole number" if spec.type is int else "a number"
        raise UserError(f"[stability] {spec.name} must be {kind}, not {value!r}; the default is {spec.default}.")
    if not math.isfinite(value) or not low <= value <= high:
        raise UserError(
            f"[stability] {spec.name} is {value:g}; it must be at least {low:g} and at most {high:g} ({unit}); "
            f"the default is {spec.default}."
        )
    return value if spec.type is int else float(value)


@dataclass(frozen=True, kw_only=True)
class StabilityRules:
    """The table of constants. Measured rates are of the 71 recorded runs (600 steps each) that
    tests/benchmarks/stability_rates.py judges.

    Raises UserError for a value of the wrong type or out of bounds, naming its key in a space file.
    """

    median_steps: int = _rule(20, low=3, high=1000, unit="steps")
    """The loss that divergence, floor and plateau look at is the median of so many steps: one bad batch moves it little."""
    divergence_margin: float = _rule(0.5, low=0.05, high=100, unit="nats/token")
    """Divergence: the median is so far above its best. Healthy medians came at most 0.22 above their best."""
    initial_margin: float = _rule(0.2, low=0.05, high=100, unit="nats/token")
    """... or so far above the initial loss, where that was above the unigram entropy: nothing had been learned that could
    be lost. A run that starts lower (pretrained, resumed) may rise by divergence_margin: a fresh optimizer costs as much."""
    divergence_noise: float = _rule(7.0, low=0, high=100, unit="standard deviations of one step's loss")
    """Both margins are at least so many: medians of 20 steps wander by 0.85 deviations either way in a long run."""
    divergence_steps: int = _rule(20, low=1, high=10_000, unit="steps")
    """... for so many steps on end, the loss of the newer half of them and their windows' not being below the older half's.
    8 of 8 diverging runs are stopped, 29 to 35 steps after the onset; 40 steps of a foreign domain and a poisoned optimizer
    that heals (4 runs) are not. Comparing the median with that of 20 steps before stops those 4."""
    divergence_patience_steps: int = _rule(15, low=1, high=10_000, unit="steps")
    """The median is falling as long as it came to a new low since its peak in so many steps."""
    divergence_falling: float = _rule(0.02, low=0, high=100, unit="nats/token")
    """A new low is lower by so much: ten times the pace at which training itself still falls."""
    floor_margin: float = _rule(0.1, low=-10, high=10, unit="nats/token")
    """Floor (from scratch): the median is above the unigram entropy less this, for floor_steps on end."""
    floor_steps: int = _rule(60, low=1, high=100_000, unit="steps")
    """12 of 12 collapsed runs (LR 0.1 and more) stay so long; runs that learn leave within 150 steps."""
    floor_after_frac: float = _rule(1 / 3, low=0, high=1, unit="share of the budget")
    """No floor is called earlier."""
    floor_falling: float = _rule(0.1, low=0, high=10, unit="nats/token over a sixth of the budget")
    """A run that still falls so much is on its way through the floor, not on it. One that has not yet come down to 0.5
    above the entropy is slow as long as it falls at all (3 standard errors): 4 of 4 runs at LR 1e-5 from scratch."""
    spike_window_steps: int = _rule(128, low=8, high=10_000, unit="steps")
    """Spike: loss or gradient norm above mean + spike_sigma deviations of so many steps; the rule of OLMo-core's
    SkipStepOptimizer. Values above the bound enter the window as the bound, so that one spike does not hide the next."""
    spike_min_steps: int = _rule(64, low=2, high=10_000, unit="steps")
    """Steps before the first spike can be told; half the window, as in OLMo-core."""
    spike_sigma: float = _rule(6.0, low=1, high=100, unit="standard deviations")
    """16 of 16 planted spikes found."""
    spike_min_rise: float = _rule(0.1, low=0, high=100, unit="nats/token")
    """A loss nearer to the mean is no spike however quiet the run (LR 1e-5 from scratch: one deviation is 0.009)."""
    spike_min_grad_ratio: float = _rule(2.0, low=1, high=1000, unit="times the mean")
    """A gradient norm below is no spike; halves the false ones. Planted spikes reach 3 and more."""
    spike_quiet_steps: int = _rule(25, low=1, high=10_000, unit="steps")
    """A spike (or stall) so soon after the last step of another belongs to it."""
    plateau_decline: float = _rule(0.05, low=0, high=10, unit="nats/token over a third of the budget")
    """Plateau, flat: the fall over the last third of the budget is less, by 2 standard errors, and the run is from scratch.
    With LR 0: -0.05 to 0.04 (error 0.02); healthy runs fall by 0.12 and more until four fifths of the budget."""
    plateau_decline_pretrained: float = _rule(0.02, low=0, high=10, unit="nats/token over a third of the budget")
    """The same for a pretrained or resumed model, which has less to learn."""
    plateau_until_frac: float = _rule(0.8, low=0, high=1, unit="share of the budget")
    """A flat loss later is how a decaying schedule ends."""
    plateau_margin: float = _rule(0.45, low=-10, high=10, unit="nats/token")
    """Plateau, high: the median is above the unigram entropy less this, for floor_steps on end, ..."""
    plateau_after_frac: float = _rule(2 / 3, low=0, high=1, unit="share of the budget")
    """... once so much is spent. Doubly shifted labels sit 0.35 to 0.40 below the entropy then, the slowest healthy run 0.57."""
    plateau_min_steps: int = _rule(200, low=1, high=1_000_000, unit="steps")
    """No plateau is called earlier: a run of 100 steps has no time for one."""
    slow_window_steps: int = _rule(25, low=3, high=1000, unit="steps")
    """Slow: the median time of so many steps, which one evaluation or checkpoint does not move."""
    slow_ratio: float = _rule(1.5, low=1.05, high=1000, unit="times the fastest window")
    """The story's run fell from 1.05 to 0.62 steps/s: 1.7."""
    slow_end_ratio: float = _rule(1.25, low=1, high=1000, unit="times the fastest window")
    """Slow steps are over, and can be reported again, below this."""
    slow_quiet_steps: int = _rule(100, low=1, high=1_000_000, unit="steps")
    """... for so many steps on end."""
    slow_skip_steps: int = _rule(10, low=0, high=10_000, unit="steps")
    """First steps left out: compilation, caches, and a queue that an accelerator has not filled yet."""
    stall_ratio: float = _rule(20.0, low=2, high=1_000_000, unit="times the window's median")
    """Stall: one step takes so much longer (a laptop's sleep, a checkpoint on a slow disk)."""
    poison_after_steps: int = _rule(100, low=20, high=100_000, unit="steps")
    """poisoned_optimizer: how long after a spike the loss, or the update ratio, is looked at."""
    poison_margin: float = _rule(0.25, low=0.01, high=100, unit="nats/token")
    """Without update ratios: the median is then still so far above its level before a spike whose loss had built up over
    steps. Momentum walking on a stale second moment takes about 1/(1-beta1) steps; bad data shows in full at once. 2 of 2
    that heal, no other run; where the damage stays, divergence stops the run first."""
    poison_update_ratio: float = _rule(3.0, low=1.1, high=1000, unit="times")
    """With update ratios: their median has fallen so much since before the spike. Falls of 4 to 60 were measured."""
    max_skipped_steps: int = _rule(40, low=1, high=100_000, unit="steps")
    """A loss scaler that skips so many steps on end has no scale left to find: the weights are non-finite."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            object.__setattr__(self, spec.name, _checked(spec, getattr(self, spec.name)))
        for lower, upper in (("spike_min_steps", "spike_window_steps"), ("slow_end_ratio", "slow_ratio")):
            if getattr(self, lower) > getattr(self, upper):
                raise UserError(
                    f"[stability] {lower}={getattr(self, lower)} is more than {upper}={getattr(self, upper)}. Lower {lower}."
                )


def make_rules(values: Mapping[str, Any]) -> StabilityRules:
    """Return the default rules with the named values replaced. Raises UserError for an unknown key or a bad value."""
    known = [spec.name for spec in fields(StabilityRules)]
    for name in values:
        if name not in known:
            raise UserError(f"[stability] has an unknown key '{name}'.{did_you_mean(name, known)}")
    return StabilityRules(**values)
