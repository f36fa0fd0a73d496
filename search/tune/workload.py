"""Workload: which trials run, and the protocol that they share; all that the engine needs of a space or a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from search.tune.history import NO_HISTORY, History, KnownTrial
from search.tune.optuna_searcher import SpaceSearcher, TrialSearcher
from search.tune.trial_log import TrialLog
from spaces.space import SearchSpace
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Trials to run into one study."""

    searcher: TrialSearcher
    """Its log holds what is known of the trials, and is carried on as they run."""
    trials_count: int
    milestones_tokens: tuple[int, ...]
    """Every trial is evaluated at each; the last is the budget."""
    baseline: TrialConfig
    """A run of it, on whatever seed, is ended by nothing but a non-finite loss."""


def space_workload(space: SearchSpace, history: History = NO_HISTORY) -> Workload:
    """Return what is left of the search of a space: all of it where there is no history."""
    baseline = space.baseline
    log = TrialLog(
        history.trials,
        rung_tokens=space.rung_tokens(),
        reduction_factor=space.scheduler.reduction_factor,
        is_baseline=lambda config: replace(config, seed=baseline.seed) == baseline,
    )
    return Workload(
        searcher=SpaceSearcher(space, log, seed=baseline.seed, history=history),
        trials_count=space.trials - sum(trial.ended for trial in log.trials),
        milestones_tokens=space.evaluation_tokens(),
        baseline=baseline,
    )


def list_workload(
    configs: Mapping[int, TrialConfig], *, baseline: TrialConfig, milestones_tokens: tuple[int, ...]
) -> Workload:
    """Return the full-length run of configurations that are already decided, by trial_id."""
    trials = [
        KnownTrial(trial_id=trial_id, status="interrupted", config=config, point=None)
        for trial_id, config in configs.items()
    ]
    return Workload(
        searcher=TrialSearcher(TrialLog(trials)),
        trials_count=len(configs),
        milestones_tokens=milestones_tokens,
        baseline=baseline,
    )
