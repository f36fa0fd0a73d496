"""StabilityRules: every constant by which a run is judged, with its source; the judging is in trainable.stability."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from trainable.config import checked_field
from trainable.errors import UserError, did_you_mean


def _rule(default: float, *, low: float, high: float, unit: str) -> Any:
    return field(default=default, metadata={"low": low, "high": high, "unit": unit})


@dataclass(frozen=True, kw_only=True)
class StabilityRules:
    """The table of constants.

    Rates are of the 71 recorded runs (600 steps each, 45 of them good) that tests/benchmarks/stability_rates.py judges.
    Raises UserError for a value of the wrong type or out of bounds, naming its key in a space file.
    """

    median_steps: int = _rule(20, low=3, high=1000, unit="steps")
    """Divergence, floor and plateau look at the median loss of so many steps: a bad batch hardly moves it."""

    divergence_margin: float = _rule(0.5, low=0.05, high=100, unit="nats/token")
    """Divergence: the median is so far above its best. Good runs without a planted fault come to 0.22."""
    divergence_noise: float = _rule(7.0, low=0, high=100, unit="standard deviations of the median")
    """... and by so many, as they were at the best: more than the margin where one step's loss scatters by 0.25."""
    divergence_steps: int = _rule(20, low=1, high=10_000, unit="steps")
    """... for so many steps in a row, and not falling. 8 of 8 diverging runs are stopped, 58 steps after their best at
    most; no good run is. Stopping at a spike would end 16 of them."""
    divergence_patience_steps: int = _rule(15, low=1, high=10_000, unit="steps")
    """The median counts as falling while it has reached a new low since its peak within so many steps. Without this a
    run with 40 steps of foreign text, which heals, is stopped."""
    divergence_falling: float = _rule(0.02, low=0, high=100, unit="nats/token")
    """A new low is so much lower. Training itself falls by 0.01 to 0.02 in 15 steps."""
    initial_margin: float = _rule(0.2, low=0.05, high=100, unit="nats/token")
    """From scratch, the median so far above an initial loss that was above the unigram entropy is divergence as well,
    falling or not. A run that begins lower has learned something, and may rise when a fresh optimizer starts."""

    floor_margin: float = _rule(0.1, low=-10, high=10, unit="nats/token")
    """Floor, from scratch only: the median is not below the unigram entropy less this."""
    floor_steps: int = _rule(60, low=1, high=100_000, unit="steps")
    """... for so many steps in a row. 6 of 6 collapsed runs are stopped; good runs get below it by step 167."""
    floor_after_frac: float = _rule(1 / 3, low=0, high=1, unit="share of the budget")
    """... once so much is spent."""
    floor_falling: float = _rule(0.1, low=0, high=10, unit="nats/token over a sixth of the budget")
    """... and a run that still falls by more is passing through. Where it is 0.5 above the entropy, any fall of 3
    standard errors counts: at LR 1e-5 a run is slow, not collapsed. Without this 4 of 4 such runs are stopped; with it
    the 2 in pure bf16, once they stand still."""

    spike_window_steps: int = _rule(128, low=8, high=10_000, unit="steps")
    """Spike: the loss or the gradient norm is above mean + spike_sigma deviations of so many steps, as in OLMo-core's
    SkipStepOptimizer. What is above enters the window as the bound, so that one spike does not hide the next."""
    spike_min_steps: int = _rule(64, low=2, high=10_000, unit="steps")
    """With fewer steps in the window no spike is reported. With 32: 0.7 false ones per 1,000 steps."""
    spike_sigma: float = _rule(6.0, low=1, high=100, unit="standard deviations")
    """16 of 16 planted spikes found, 0.2 others per 1,000 steps of good runs."""
    spike_min_rise: float = _rule(0.1, low=0, high=100, unit="nats/token")
    """A loss nearer to the mean is no spike. Six deviations of a run at LR 1e-5 are 0.05."""
    spike_min_grad_ratio: float = _rule(2.0, low=1, high=1000, unit="times the mean")
    """A gradient norm below is no spike. Without this 0.4 false ones per 1,000 steps."""
    spike_quiet_steps: int = _rule(25, low=1, high=10_000, unit="steps")
    """What comes so soon after a spike belongs to it."""

    plateau_decline: float = _rule(0.05, low=0, high=10, unit="nats/token over a third of the budget")
    """Plateau, flat: the fall over the last third of the budget is less, by 2 standard errors. With LR 0 it is -0.04 to
    0.02 (error 0.02), in good runs 0.15 and more."""
    plateau_decline_pretrained: float = _rule(0.02, low=0, high=10, unit="nats/token over a third of the budget")
    """The same for a run that is not from scratch and has less to learn. Not measured: none is recorded."""
    plateau_until_frac: float = _rule(0.8, low=0, high=1, unit="share of the budget")
    """... no later than this: a decaying schedule ends flat."""
    plateau_margin: float = _rule(0.45, low=-10, high=10, unit="nats/token")
    """Plateau, high: the median is not below the unigram entropy less this, for floor_steps in a row. With doubly
    shifted labels it is 0.36 to 0.40 below, in good runs 0.59 and more."""
    plateau_after_frac: float = _rule(2 / 3, low=0, high=1, unit="share of the budget")
    """... once so much is spent."""
    plateau_min_steps: int = _rule(200, low=1, high=1_000_000, unit="steps")
    """No plateau is called earlier. Good runs cut to 200 steps are called high in 6 of 45 cases: they are."""

    slow_window_steps: int = _rule(25, low=3, high=1000, unit="steps")
    """Slow: the median time of so many steps, which compilation, an evaluation or a checkpoint does not
    move, ..."""
    slow_ratio: float = _rule(1.5, low=1.05, high=1000, unit="times the fastest window")
    """... is so much above the run's own fastest. The plateau run's slow-down was 1.7."""
    slow_end_ratio: float = _rule(1.25, low=1, high=1000, unit="times the fastest window")
    """It is over, and can be reported again, below this ..."""
    slow_quiet_steps: int = _rule(100, low=1, high=1_000_000, unit="steps")
    """... for so many steps in a row."""
    stall_ratio: float = _rule(20.0, low=2, high=1_000_000, unit="times the window's median")
    """Stall: one step takes so much longer."""
    stall_quiet_steps: int = _rule(25, low=1, high=1_000_000, unit="steps")
    """What comes so soon after a stall belongs to it."""

    poison_after_steps: int = _rule(100, low=20, high=100_000, unit="steps")
    """poisoned_optimizer: a spike's aftermath is watched for so long."""
    poison_margin: float = _rule(0.25, low=0.01, high=100, unit="nats/token")
    """At the end the median is so far above that of before a spike which built up over 5 steps and more. Stale momentum
    acts for 1/(1-beta1) steps; bad text costs most at once. Reported in 2 of 2 such runs and in no other."""

    max_skipped_steps: int = _rule(40, low=1, high=100_000, unit="steps")
    """nonfinite: a loss scaler that halves so many times in a row finds no scale: the weights are non-finite."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            given, label = getattr(self, spec.name), f"[stability] {spec.name}"
            object.__setattr__(self, spec.name, checked_field(spec, given, label=label, default="the default"))
        for lower, upper in (("spike_min_steps", "spike_window_steps"), ("slow_end_ratio", "slow_ratio")):
            if getattr(self, lower) > getattr(self, upper):
                values = f"{lower}={getattr(self, lower)} is more than {upper}={getattr(self, upper)}"
                raise UserError(f"[stability] {values}. Lower {lower}.")


def make_rules(values: Mapping[str, Any]) -> StabilityRules:
    """Return the default rules with the named values replaced. Raises UserError for an unknown key or a bad value."""
    known = [spec.name for spec in fields(StabilityRules)]
    for name in values:
        if name not in known:
            raise UserError(f"[stability] has an unknown key '{name}'.{did_you_mean(name, known)}")
    return StabilityRules(**values)
