"""Configurations as points of a space, and a space's domains as Optuna's distributions."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from spaces.domains import Choice, Domain, IntRange, SearchParameter, near_point
from spaces.space import SearchSpace
from spaces.warmup import WARMUP_FRAC
from trainable.config import TrialConfig

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial


def point_of(space: SearchSpace, config: TrialConfig) -> dict[str, Any]:
    """Return a configuration as a point of the space: its active parameters, a warm-up share rounded to steps."""
    values = {**asdict(config), WARMUP_FRAC: config.warmup_steps / config.training_steps}
    return near_point(space.parameters, values)


def distribution_of(domain: Domain) -> "BaseDistribution":
    """Return the domain as an Optuna distribution."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(domain, Choice):
        return CategoricalDistribution(domain.values)
    if isinstance(domain, IntRange):
        return IntDistribution(domain.low, domain.high, log=domain.log, step=domain.step)
    return FloatDistribution(domain.low, domain.high, log=domain.log)


def suggest(trial: "Trial", parameters: Sequence[SearchParameter]) -> dict[str, Any]:
    """Return the point that an Optuna trial gives: every parameter that is active under the values before it."""
    point: dict[str, Any] = {}
    for parameter in parameters:
        if not parameter.is_active(point):
            continue
        name, domain = parameter.name, parameter.domain
        if isinstance(domain, Choice):
            point[name] = trial.suggest_categorical(name, domain.values)
        elif isinstance(domain, IntRange):
            point[name] = trial.suggest_int(name, domain.low, domain.high, step=domain.step, log=domain.log)
        else:
            point[name] = trial.suggest_float(name, domain.low, domain.high, log=domain.log)
    return point
