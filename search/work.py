"""Work: which trials run, and the protocol that all of them share; all that the engine needs of a space or a plan."""

from collections.abc import Sequence
from dataclasses import dataclass

from ray.tune.search import Searcher

from search.searcher import ListSearcher, SpaceSearcher
from spaces.space import SearchSpace
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Work:
    """Trials to run into one study."""

    searcher: Searcher
    trials_count: int
    milestones_tokens: tuple[int, ...]
    """Every trial is evaluated at each; the last is the budget."""
    baseline: TrialConfig
    """A run of it, on whatever seed, is ended by nothing but a loss that is no number."""
    rung_tokens: tuple[int, ...] = ()
    """Where the scheduler may stop a trial; nowhere by default."""
    reduction_factor: int = 3


def space_work(space: SearchSpace) -> Work:
    """Return the search of a space."""
    return Work(
        searcher=SpaceSearcher(space, seed=space.baseline.seed),
        trials_count=space.trials,
        milestones_tokens=space.evaluation_tokens(),
        baseline=space.baseline,
        rung_tokens=space.rung_tokens(),
        reduction_factor=space.scheduler.reduction_factor,
    )


def list_work(
    configs: Sequence[TrialConfig],
    *,
    baseline: TrialConfig,
    milestones_tokens: tuple[int, ...],
    first_trial_id: int = 0,
) -> Work:
    """Return the full-length run of configurations that are already decided."""
    return Work(
        searcher=ListSearcher(configs, first_trial_id=first_trial_id),
        trials_count=len(configs),
        milestones_tokens=milestones_tokens,
        baseline=baseline,
    )
