"""Workload: which trials run, and the protocol that they share; all that the engine needs of a space or a plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.tune.history import NO_HISTORY, History, KnownTrial
from search.tune.optuna_searcher import ListSearcher, SpaceSearcher
from spaces.space import SearchSpace
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Trials to run into one study."""

    searcher: SpaceSearcher | ListSearcher
    trials_count: int
    milestones_tokens: tuple[int, ...]
    """Every trial is evaluated at each; the last is the budget."""
    baseline: TrialConfig
    """A run of it, on whatever seed, is ended by nothing but a loss that is no number."""
    rung_tokens: tuple[int, ...] = ()
    """Where the scheduler may stop a trial; nowhere by default."""
    reduction_factor: int = 3
    known: Sequence[KnownTrial] = ()
    """What the rungs know already."""


def space_workload(space: SearchSpace, past: History = NO_HISTORY) -> Workload:
    """Return what is left of the search of a space: all of it where there is no past."""
    return Workload(
        searcher=SpaceSearcher(space, seed=space.baseline.seed, past=past),
        trials_count=space.trials - sum(trial.ended for trial in past.trials),
        milestones_tokens=space.evaluation_tokens(),
        baseline=space.baseline,
        rung_tokens=space.rung_tokens(),
        reduction_factor=space.scheduler.reduction_factor,
        known=(*past.lessons, *past.trials),
    )


def list_workload(
    configs: Mapping[int, TrialConfig], *, baseline: TrialConfig, milestones_tokens: tuple[int, ...]
) -> Workload:
    """Return the full-length run of configurations that are already decided, by trial_id."""
    return Workload(
        searcher=ListSearcher(configs),
        trials_count=len(configs),
        milestones_tokens=milestones_tokens,
        baseline=baseline,
    )
