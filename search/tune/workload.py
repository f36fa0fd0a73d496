"""Workload: which trials run, and the protocol that they share; all that the engine needs of a space or a plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from results.study.planned_run import PlannedRun
from search.tune.history import NO_HISTORY, History, KnownTrial
from search.tune.optuna_searcher import SpaceSearcher, TrialSearcher
from search.tune.trial_log import TrialLog
from spaces.budget import Milestones
from spaces.space import SearchSpace
from trainable.config import TrialConfig
from trainable.rows import RANKED_PURPOSES


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Trials to run into one study."""

    searcher: TrialSearcher
    """Its log holds what is known of the trials, and is carried on as they run."""
    trials_count: int
    baseline: TrialConfig
    """A run of it, on whatever seed, is ended by nothing but a non-finite loss."""
    runs: Mapping[int, PlannedRun] = field(default_factory=dict)
    """Those that are decided already, by trial_id; none where the searcher proposes."""
    baseline_trial_id: int | None = None
    """Of the search's baseline, which is the first that the searcher ever proposes."""

    def planned_run(self, handed_out: Mapping[str, Any]) -> PlannedRun:
        """Return what the searcher handed out ("trial_id", "trial", "point") as a run with its purpose."""
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

    @property
    def is_ranked(self) -> bool:
        """Whether these are a study's trials, and not runs that confirm or attribute one of them."""
        return all(run.purpose in RANKED_PURPOSES for run in self.runs.values())

    def includes(self, row: Mapping[str, Any]) -> bool:
        """Return whether a row of the study's table is one of these runs."""
        return row["trial_id"] in self.runs if self.runs else row["purpose"] == "search"


def space_workload(space: SearchSpace, history: History = NO_HISTORY) -> Workload:
    """Return what is left of the search of a space: all of it where there is no history."""
    baseline = space.baseline
    log = TrialLog(
        history.trials,
        rung_tokens=space.rung_tokens(),
        reduction_factor=space.scheduler.reduction_factor,
        is_baseline=lambda config: replace(config, seed=baseline.seed) == baseline,
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
    """Return the full-length run of configurations that are already decided; milestones: where each is evaluated."""
    trials = [KnownTrial(trial_id=run.trial_id, status="interrupted", config=run.config, point=None) for run in runs]
    return Workload(
        searcher=TrialSearcher(TrialLog(trials), milestones),
        runs={run.trial_id: run for run in runs},
        trials_count=len(runs),
        baseline=baseline,
    )
