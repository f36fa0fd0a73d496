"""Workload: the trials to run, from a space's searcher or a list, as the engine needs them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from results.study.planned_run import PlannedRun
from search.tune.history import NO_HISTORY, History, KnownTrial
from search.tune.optuna_searcher import SpaceSearcher, TrialSearcher
from search.tune.trial_log import TrialLog
from spaces.budget import Milestones
from spaces.space import SearchSpace
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Trials to run into one study."""

    searcher: TrialSearcher
    """Its log knows the trials so far, and learns of each result."""
    trials_count: int
    baseline: TrialConfig
    """Runs of it, on any seed, are ended by a non-finite loss alone."""
    runs: Mapping[int, PlannedRun] = field(default_factory=dict)
    """Planned runs by trial_id; none where the searcher proposes."""
    baseline_trial_id: int | None = None
    """The search's baseline, which is the searcher's first proposal."""

    def planned_run(self, handed_out: Mapping[str, Any]) -> PlannedRun:
        """Return a suggestion of the searcher ("trial_id", "trial", "point") as a run with its purpose."""
        trial_id: int = handed_out["trial_id"]
        if trial_id in self.runs:
            return self.runs[trial_id]
        return PlannedRun(
            trial_id=trial_id,
            config=TrialConfig(**handed_out["trial"]),
            purpose="search",
            is_baseline=trial_id == self.baseline_trial_id,
            point=handed_out.get("point"),
        )

    def includes(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of the study's table is one of these runs."""
        return row["trial_id"] in self.runs if self.runs else row["purpose"] == "search"


def space_workload(space: SearchSpace, history: History = NO_HISTORY) -> Workload:
    """Return the trials that a search of the space has left to run after its history."""
    baseline = space.baseline
    log = TrialLog(
        history.trials,
        rung_tokens=space.rung_tokens(),
        reduction_factor=space.scheduler.reduction_factor,
        baseline=baseline,
        ends_early=space.ends_early,
    )
    return Workload(
        searcher=SpaceSearcher(space, log, seed=baseline.seed, history=history),
        trials_count=space.trials - sum(trial.ended for trial in log.trials),
        baseline=baseline,
        baseline_trial_id=next(number for number in count() if number not in history.other_ids),
    )


def list_workload(
    runs: Sequence[PlannedRun], *, baseline: TrialConfig, milestones: Callable[[TrialConfig], Milestones]
) -> Workload:
    """Return planned runs, each in full; milestones: where a configuration is evaluated."""
    trials = [KnownTrial(trial_id=run.trial_id, status="interrupted", config=run.config, point=None) for run in runs]
    return Workload(
        searcher=TrialSearcher(TrialLog(trials), milestones),
        runs={run.trial_id: run for run in runs},
        trials_count=len(runs),
        baseline=baseline,
    )
