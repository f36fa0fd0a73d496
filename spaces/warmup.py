"""The warm-up as a share of the run, and a configuration sized to a budget that keeps its share."""

from dataclasses import replace

from spaces.budget import Budget
from spaces.domains import Domain
from trainable.config import TrialConfig

WARMUP_FRAC = "warmup_frac"
"""The one searchable name that is no field of TrialConfig: the warm-up as a share of training_steps. At an equal
token budget the number of steps differs by batch size, so a number of steps would be another warm-up in each trial."""


def warmup_share(config: TrialConfig, domain: Domain | None) -> float:
    """Return the share of the run that `config` warms up.

    Several shares round to the same number of steps; one in `domain` is preferred.
    """
    share = min(config.warmup_steps / config.training_steps, 1.0)
    if domain is not None and not domain.contains(share):
        near = domain.nearest(share)
        if round(near * config.training_steps) == config.warmup_steps:
            return float(near)
    return share


def searched_steps(config: TrialConfig, domain: Domain | None) -> int | None:
    """Return the warm-up's steps where `domain`, in which steps are searched, has them: then they are no share."""
    return config.warmup_steps if domain is not None and domain.contains(config.warmup_steps) else None


def with_warmup(config: TrialConfig, budget: Budget, *, frac: float, steps: int | None) -> TrialConfig:
    """Return `config` with as many whole steps as fit into the budget and its warm-up, 0 if its schedule has none.

    The warm-up is `steps`, or `frac` of the run. Raises UserError when not even one step fits.
    """
    sized = budget.sized(replace(config, warmup_steps=0))
    if not sized.has_warmup:
        return sized
    return replace(sized, warmup_steps=round(frac * sized.training_steps) if steps is None else steps)
