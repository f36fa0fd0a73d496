"""Workload: which trials run, and the protocol that they share; all that the engine needs of a space or a plan."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from search.tune.history import NO_HISTORY, History, KnownTrial, TrialLog
from search.tune.optuna_searcher import SpaceSearcher, TrialSearcher
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
    rung_tokens: tuple[int, ...] = ()
    """Where the scheduler may stop a trial; nowhere by default."""
    reduction_factor: int = 3

    def is_baseline(self, config: TrialConfig) -> bool:
        """Return whether a configuration is the baseline, on whatever seed."""
        return replace(config, seed=self.baseline.seed) == self.baseline


def space_workload(space: SearchSpace, history: History = NO_HISTORY) -> Workload:
    """Return what is left of the search of a space: all of it where there is no history."""
    return Workload(
        searcher=SpaceSearcher(space, TrialLog(history.trials), seed=space.baseline.seed, history=history),
        trials_count=space.trials - sum(trial.ended for trial in history.trials),
        milestones_tokens=space.evaluation_tokens(),
        baseline=space.baseline,
        rung_tokens=space.rung_tokens(),
        reduction_factor=space.scheduler.reduction_factor,
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
