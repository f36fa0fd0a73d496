"""Who proposes trials: an Optuna sampler, asked through study.ask, a grid, or a list. It learns from the log alone."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search.tune.history import NO_HISTORY, History, KnownTrial, TrialLog
from spaces.domains import Choice, IntRange, SearchParameter, points
from spaces.optuna_domains import distribution_of, suggest
from spaces.space import SearchSpace
from trainable.config import TrialConfig
from trainable.fidelity import PENALTY_NATS, objective

OBJECTIVE = "objective"
MAX_REFUSED = 200
"""Draws in a row that would run out of memory, or were run before, until the search counts as exhausted."""


class TrialSearcher(Searcher):  # type: ignore[misc]
    """Hands out the trials of a log that have not ended, each under its own number, and then what is proposed."""

    exhausted = False
    """Whether nothing is left to propose, though more trials were asked for."""

    def __init__(self, log: TrialLog) -> None:
        super().__init__(metric=OBJECTIVE, mode="min")
        self.log = log
        self._left = [trial for trial in log.trials if not trial.ended]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return {"trial_id", "trial", "point", "refusal"}: a number, the hyperparameters, the point they come from.

        refusal: why the trial is not to be run but noted as out of memory; None for any other.
        """
        trial = self._left.pop(0) if self._left else self._propose()
        if trial is None:
            return str(Searcher.FINISHED)
        return {
            "trial_id": trial.trial_id,
            "trial": asdict(trial.config),
            "point": trial.point,
            "refusal": self._refusal(trial),
        }

    def _propose(self) -> KnownTrial | None:
        """Return the next trial, noted in the log; None when there is none."""
        return None

    def _refusal(self, trial: KnownTrial) -> str | None:
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn nothing: the log knows more than Ray tells a searcher, a worker killed for want of memory for one."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study's own files are the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: studies are resumed from their own files."""


class SpaceSearcher(TrialSearcher):
    """Proposes points of a SearchSpace, the baseline first, and numbers them.

    A proposal depends on the seed, its place in the order and what the log knows, on nothing else: a search that was
    killed and resumed proposes what it would have proposed. No configuration is proposed twice.
    """

    def __init__(self, space: SearchSpace, log: TrialLog, *, seed: int, history: History = NO_HISTORY) -> None:
        super().__init__(log)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._seed = seed
        warm_start = history.warm_start
        self._warm_start_trials = warm_start.told if warm_start else ()
        self._next_trial_id = history.next_trial_id
        self._is_grid = space.searcher.name == "grid"
        first_points = warm_start.first_points if warm_start else ()
        self._decided = space.grid_points() if self._is_grid else [space.baseline_params(), *first_points]

    def _propose(self) -> KnownTrial | None:
        trials = self.log.trials
        point = self._next_decided(trials) if self._is_grid or len(trials) < len(self._decided) else self._draw(trials)
        if point is None:
            self.exhausted = len(trials) < self._space.trials
            return None
        trial = KnownTrial(
            trial_id=self._next_trial_id, status="running", config=self._space.config_for(point), point=point
        )
        self._next_trial_id += 1
        self.log.begin(trial)
        return trial

    def _next_decided(self, trials: list[KnownTrial]) -> Mapping[str, Any] | None:
        # A grid goes by its cells and not by their number: an older study may have left some out.
        if self._is_grid:
            run = [trial.point for trial in trials]
            return next((cell for cell in self._decided if cell not in run), None)
        return self._decided[len(trials)]

    def _draw(self, trials: list[KnownTrial]) -> Mapping[str, Any] | None:
        """Return a new point from the sampler; None where none is left."""
        study = optuna.create_study(sampler=make_sampler(self._space, _seed_of(self._seed, len(trials))))
        told = (told_as(trial, self._space) for trial in (*self._warm_start_trials, *trials))
        study.add_trials([trial for trial in told if trial is not None])
        run = {trial.config for trial in trials}

        def is_new(point: Mapping[str, Any]) -> bool:
            config = self._space.config_for(point)
            return config not in run and _too_large(config, trials) is None

        for _ in range(MAX_REFUSED):
            # A refused draw stays open: to the sampler it is a trial under way, away from which it draws the next.
            trial = study.ask()
            point = suggest(trial, self._space.parameters)
            if is_new(point):
                return point
        if any(_members(parameter) is None for parameter in self._space.parameters):
            return None
        # A sampler that has settled may not find the last few points of a small space.
        return next(filter(is_new, points(self._space.parameters, lambda parameter: _members(parameter) or ())), None)

    def _refusal(self, trial: KnownTrial) -> str | None:
        # A grid keeps a row for every cell; running into each large one would cost a killed worker a time.
        has_run = trial.val_loss is not None
        earlier = [one for one in self.log.trials if one.trial_id < trial.trial_id]
        known = _too_large(trial.config, earlier) if self._is_grid and not has_run else None
        return f"not run: as large as trial {known.trial_id}, which ran out of memory" if known else None


def make_sampler(space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler that the space names; a grid needs none."""
    if space.searcher.name == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Groups make conditional parameters proper; the liar keeps parallel trials apart.
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=max(4, space.trials // 3)
            )
    return optuna.samplers.RandomSampler(seed=seed)


def told_as(trial: KnownTrial, space: SearchSpace) -> FrozenTrial | None:
    """Return what Optuna's sampler is told of a trial, live and after a resume; None where it is told nothing.

    TPE ranks COMPLETE trials by value, then PRUNED ones: those that got furthest first, by their last loss there.
    """
    losses: dict[int, float] = {}
    match trial.status:
        case "completed" if objective(trial.val_loss) < PENALTY_NATS:
            state = TrialState.COMPLETE
        case "stopped":
            # Its loss is of less training than a completed one's: only its rung's own losses compare with it.
            state, losses = TrialState.PRUNED, dict(trial.losses[-1:])
        case "completed" | "unstable" | "out_of_memory":
            # It has no loss to show, and without one it ranks behind every stopped trial. As COMPLETE it would rank
            # before them all, whatever the penalty; the losses of before it broke say nothing for it either.
            state = TrialState.PRUNED
        case "failed":
            # A lost worker or a bug says nothing of the hyperparameters.
            return None
        case _:
            state = TrialState.RUNNING
    domains = {parameter.name: parameter.domain for parameter in space.parameters}
    point = trial.point or {}
    return optuna.trial.create_trial(
        state=state,
        value=trial.val_loss if state == TrialState.COMPLETE else None,
        params=dict(point),
        distributions={name: distribution_of(domains[name]) for name in point},
        intermediate_values=losses,
    )


def _members(parameter: SearchParameter) -> Sequence[Any] | None:
    domain = parameter.domain
    if isinstance(domain, IntRange):
        return range(domain.low, domain.high + 1, domain.step)
    return domain.values if isinstance(domain, Choice) else None


def _seed_of(seed: int, place: int) -> int:
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0])


def _too_large(config: TrialConfig, trials: Iterable[KnownTrial]) -> KnownTrial | None:
    """Return the trial that ran out of memory at the same shape or a smaller one, if any."""
    for trial in trials:
        known = trial.config
        as_large = config.batch_size >= known.batch_size and config.block_size >= known.block_size
        if trial.status == "out_of_memory" and as_large:
            return trial
    return None
