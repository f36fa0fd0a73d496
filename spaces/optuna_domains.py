"""Configurations as points of a space, and a space's domains in Optuna's terms."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from spaces.domains import Choice, Domain, IntRange
from spaces.space import SearchSpace
from spaces.warmup import WARMUP_FRAC
from trainable.config import TrialConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


def point_of(space: SearchSpace, config: TrialConfig) -> dict[str, Any]:
    """Return a configuration as a point of the space: its active parameters, a warm-up share rounded to steps."""
    # A share that was rounded to whole steps may lie a hair outside its domain, which Optuna would refuse.
    values = {**asdict(config), WARMUP_FRAC: config.warmup_steps / config.training_steps}
    point: dict[str, Any] = {}
    for parameter in space.parameters:
        if parameter.is_active(point):
            point[parameter.name] = parameter.domain.nearest(values[parameter.name])
    return point


def distribution_of(domain: Domain) -> "BaseDistribution":
    """Return the domain in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if isinstance(domain, IntRange):
        return IntDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
    return FloatDistribution(domain.low, domain.high, log=domain.log)
