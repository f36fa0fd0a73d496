"""Searchers: an Optuna sampler asked through study.ask, a grid, or a list. They learn from their TrialLog alone."""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from results.study.planned_run import PlannedRun
from search.tune.early_end import LAG, early_end, is_early
from search.tune.history import KnownTrial, WarmStart
from search.tune.rate_ladder import RATE, SIZES, ladder_points, narrowed, size_ends, sizes
from search.tune.trial_log import TrialLog
from spaces.budget import Milestones
from spaces.domains import Choice, IntRange, SearchParameter, points
from spaces.optuna_domains import distribution_of, suggest
from spaces.space import SearchSpace
from trainable.config import TrialConfig, without_seed
from trainable.rows import PENALTY_NATS, objective

OBJECTIVE = "objective"
MAX_REFUSED = 200
"""Draws in a row that were run before, or would run out of memory, until the search counts as exhausted."""
MOST_STARTUP_TRIALS = 10
"""Optuna's own default. A search of 100 trials with 33 at random is 0.004 nats/token behind after the tokens of 12."""
FIRST_RUNG_LAG = 8
"""A proposal knows the first rung of exactly the trials numbered at least this many before it, so that the sampler
learns the same on any number of slots. A smaller lag teaches it sooner and makes slots wait more often."""
LADDER_END_LAG = 4
"""A proposal this many after the ladder knows how the whole ladder ended: all later rates lie around its best. With
a smaller lag the same trials find more, and slots wait for the ladder."""
END_LAG = 24
"""A proposal knows the ending of all trials numbered this many before it. While one trial runs in full, two slots stop
about 18 others at the first rung, so slots hardly ever wait for this."""


class TrialSearcher(Searcher):  # type: ignore[misc]
    """Suggests the trials of a log that have not ended, each under its own number, and then new proposals."""

    exhausted = False
    """Whether nothing is left to propose, though more trials were asked for."""

    def __init__(self, log: TrialLog, milestones: Callable[[TrialConfig], Milestones], *, trials_left: int) -> None:
        super().__init__(metric=OBJECTIVE, mode="min")
        self.log = log
        """It knows the trials so far, and learns of each result."""
        self.trials_left = trials_left
        """Trials to run, at most, those that it is made with and that have not ended included."""
        self._milestones = milestones
        self._left = [trial for trial in log.trials if not trial.ended]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return {"trial_id", "trial", "milestones", "point", "refusal"}; None while the next proposal must wait.

        trial: the hyperparameters. milestones: where it is evaluated. refusal: why the trial is recorded as out of
        memory without being run; None for any other.
        """
        # On fewer slots than before, the verdict on one may come before its turn.
        self._left = [trial for trial in self._left if not self.log[trial.trial_id].ended]
        if not self._left and not self._is_ready():
            return None
        trial = self._left.pop(0) if self._left else self._propose()
        if trial is None:
            return str(Searcher.FINISHED)
        return {
            "trial_id": trial.trial_id,
            "trial": asdict(trial.config),
            "milestones": self._milestones(trial.config),
            "point": trial.point,
            "refusal": self._refusal(trial),
        }

    def planned_run(self, trial_id: int) -> PlannedRun:
        """Return a suggested trial as a run with its purpose."""
        raise NotImplementedError

    def _is_ready(self) -> bool:
        """Return whether the results that the next proposal needs are in."""
        return True

    def _propose(self) -> KnownTrial | None:
        """Return the next trial, added to the log; None when there is none."""
        return None

    def _refusal(self, trial: KnownTrial) -> str | None:
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing: the log learns more from the recorder than Ray passes here, such as an out-of-memory kill."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: a study is resumed from its own files."""


class ListSearcher(TrialSearcher):
    """Hands out planned runs, each in full; milestones: where a configuration is evaluated."""

    def __init__(self, runs: Sequence[PlannedRun], milestones: Callable[[TrialConfig], Milestones]) -> None:
        known = partial(KnownTrial, status="interrupted", point=None)
        trials = [known(trial_id=run.trial_id, config=run.config) for run in runs]
        super().__init__(TrialLog(trials), milestones, trials_left=len(runs))
        self._runs = {run.trial_id: run for run in runs}

    def planned_run(self, trial_id: int) -> PlannedRun:
        """Return the run."""
        return self._runs[trial_id]


class SpaceSearcher(TrialSearcher):
    """Proposes points of a SearchSpace, the baseline first, and numbers them. No configuration comes twice.

    A proposal depends on the seed, its place in the order, and results of the trials before it at fixed lags: it is the
    same on any number of slots, and after any kill and resume.

    trials: the search's own so far. other_ids: the numbers of the study's other runs, such as confirmations.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        trials: Sequence[KnownTrial] = (),
        other_ids: Collection[int] = (),
        warm_start: WarmStart | None = None,
    ) -> None:
        log = TrialLog(
            trials,
            rung_tokens=space.rung_tokens(),
            reduction_factor=space.scheduler.reduction_factor,
            baseline=space.baseline,
            ends_early=space.ends_early,
        )
        self._is_grid = space.searcher == "grid"
        run = [trial.config for trial in log.trials]
        self._cells = space.grid_points(run) if self._is_grid else []
        # A study of an older version may have run a cell of a grid twice; those that are left run nevertheless.
        self._most_trials = space.planned_trials(run)
        ended = sum(trial.ended for trial in log.trials)
        super().__init__(log, space.milestones, trials_left=self._most_trials - ended)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space = space
        self._other_ids = other_ids
        self._baseline_id = next(number for number in count() if number not in other_ids)
        self._warm_start = warm_start
        baseline = space.baseline_params()
        # Another study has shown already where the good rates are.
        has_ladder = space.searcher == "tpe" and warm_start is None
        ladder = ladder_points(space.parameters, baseline, most=space.trials // 4) if has_ladder else []
        self._ladder_count = 1 + len(ladder) if ladder else 0
        """The baseline and the ladder; without a ladder none of these trials is a start of its own."""
        self._start_count = self._ladder_count + (2 if ladder and sizes(space.parameters) else 0)
        """These, and the ladder's best rate at both ends of the sizes."""
        first_points = warm_start.first_points if warm_start else ()
        self._decided = [] if self._is_grid else [baseline, *ladder, *first_points]
        # In a small study the sampler must learn before half of it is over.
        self._first_rung_lag = min(FIRST_RUNG_LAG, startup_trials(space))

    def planned_run(self, trial_id: int) -> PlannedRun:
        """Return the trial as a run of the search; its first one is the baseline."""
        trial, is_baseline = self.log[trial_id], trial_id == self._baseline_id
        return PlannedRun(
            trial_id=trial_id, config=trial.config, purpose="search", is_baseline=is_baseline, point=trial.point
        )

    def _before(self) -> tuple[int, list[KnownTrial]]:
        """Return the number of the next proposal, and the search's trials numbered before it.

        It is the lowest free number: a killed process may have proposed a trial and not started it.
        """
        trials = self.log.trials
        taken = {*self._other_ids, *(trial.trial_id for trial in trials)}
        number = next(number for number in count() if number not in taken)
        return number, [trial for trial in trials if trial.trial_id < number]

    def _sees_start_end(self, place: int) -> bool:
        return place >= self._start_count + LADDER_END_LAG

    def _start_before(self, place: int) -> int:
        """Return how many trials of the start a proposal knows at their first rung."""
        # An end of the sizes does not know the other one, whose first rung may or may not be in.
        return self._start_count if place >= self._start_count else self._ladder_count

    def _is_of_start(self, trial: KnownTrial) -> bool:
        # In a study that was extended, other trials may come first.
        point = trial.point or {}
        others = {name: value for name, value in self._space.baseline_params().items() if name not in (RATE, *SIZES)}
        # An end of the sizes may leave out what the baseline's own size made active.
        return all(point.get(name, value) == value for name, value in others.items())

    def _known_at(self, trial: KnownTrial, *, place: int, lag: int) -> KnownTrial | None:
        """Return the trial as a proposal `lag` places later knows it; None if that is not in yet."""
        if lag >= END_LAG:
            return trial if self.log.is_settled(trial.trial_id) else None
        if lag >= self._first_rung_lag or place < self._start_before(place + lag):
            return self.log.at_first_rung(trial.trial_id)
        return replace(trial, status="running", losses=(), val_loss=None)

    def _known(self, before: Sequence[KnownTrial]) -> list[KnownTrial | None]:
        lags = ((trial, place, len(before) - place) for place, trial in enumerate(before))
        return [self._known_at(trial, place=place, lag=lag) for trial, place, lag in lags]

    def _is_ready(self) -> bool:
        before = self._before()[1]
        may_end = self._space.ends_early and not is_early(len(before), self._space.trials)
        # All slots wait for the slowest trial then; a trial saved is worth more.
        ended = before[:-LAG] if may_end else []
        ended = ended or (before[: self._start_count] if self._sees_start_end(len(before)) else [])
        if not all(self.log.is_settled(trial.trial_id) for trial in ended):
            return False
        # Whether a grid's cell is refused depends on the cells before it.
        return len(before) < len(self._decided) or None not in self._known(before)

    def _propose(self) -> KnownTrial | None:
        number, before = self._before()
        if len(before) >= self._most_trials:
            return None
        if self._space.ends_early:
            self.log.early_end = early_end(before[:-LAG], trials=len(before), most_trials=self._space.trials)
            if self.log.early_end is not None:
                return None
        point: Mapping[str, Any] | None
        if self._is_grid:
            point = self._cells.pop(0) if self._cells else None
        elif len(before) < len(self._decided):
            point = self._decided[len(before)]
        else:
            point = self._draw([trial for trial in self._known(before) if trial is not None])
        if point is None:
            self.exhausted = True
            return None
        trial = KnownTrial(trial_id=number, status="running", config=self._space.config_for(point), point=point)
        self.log.begin(trial)
        return trial

    def _draw(self, known: Sequence[KnownTrial]) -> Mapping[str, Any] | None:
        """Return a new point: an end of the sizes after the ladder, then the sampler's; None where none is left."""
        run = {without_seed(trial.config) for trial in known}

        def is_new(point: Mapping[str, Any]) -> bool:
            config = self._space.config_for(point)
            return without_seed(config) not in run and _too_large(config, known) is None

        start = self._start_known(known)
        if len(known) < self._start_count:
            ends = size_ends(self._space, start)
            end = ends[len(known) - len(self._decided)] if ends else None
            if end is not None and is_new(end):
                return end
        parameters = narrowed(self._space.parameters, start)
        view = SamplerView(parameters)
        warm = self._warm_start.told if self._warm_start else ()
        # After the source's own draws, which a random search of its space would only repeat.
        seed = int(np.random.SeedSequence([self._space.baseline.seed, len(warm) + len(known)]).generate_state(1)[0])
        study = optuna.create_study(sampler=make_sampler(self._space, seed))
        told = (told_as(trial, view) for trial in (*warm, *known))
        study.add_trials([trial for trial in told if trial is not None])
        for _ in range(MAX_REFUSED):
            # A refused draw stays a running trial to the sampler, whose constant liar then draws elsewhere.
            trial = study.ask()
            point = view.decoded(suggest(trial, view.parameters))
            if is_new(point):
                return point
        if any(_members(parameter) is None for parameter in self._space.parameters):
            return None
        # A converged sampler may not find the last few points of a small space.
        return next(filter(is_new, points(self._space.parameters, lambda parameter: _members(parameter) or ())), None)

    def _start_known(self, known: Sequence[KnownTrial]) -> list[KnownTrial]:
        """Return the trials of the start as the next proposal knows them; without a ladder none."""
        start = [trial for trial in known[: self._start_before(len(known))] if self._is_of_start(trial)]
        sees_ends = self._sees_start_end(len(known))
        # Before that all at their first rung, where their losses compare.
        now = [self.log[one.trial_id] if sees_ends else self.log.at_first_rung(one.trial_id) for one in start]
        return [trial for trial in now if trial is not None]

    def _refusal(self, trial: KnownTrial) -> str | None:
        # A grid has a row for every cell; running each one that is too large would cost a worker each time.
        has_run = trial.val_loss is not None
        if not self._is_grid or has_run:
            return None
        before = [one for one in self.log.trials if one.trial_id < trial.trial_id]
        known = _too_large(trial.config, [one for one in self._known(before) if one is not None])
        return f"not run: as large as trial {known.trial_id}, which ran out of memory" if known else None


def startup_trials(space: SearchSpace) -> int:
    """Return how many trials are drawn at random before TPE learns from them."""
    return min(max(4, space.trials // 3), MOST_STARTUP_TRIALS)


def make_sampler(space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler that the space names; a grid needs none."""
    if space.searcher == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Groups make conditional parameters proper; the liar keeps parallel trials apart.
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=startup_trials(space)
            )
    return optuna.samplers.RandomSampler(seed=seed)


class SamplerView:
    """The parameters as the sampler sees them: a choice of numbers is an ordered range of indices."""

    def __init__(self, parameters: Sequence[SearchParameter]) -> None:
        self._domains = {one.name: one.domain for one in parameters}
        # A choice that a condition refers to keeps its values.
        parents = {one.condition.parent for one in parameters if one.condition is not None}
        self._places = {
            one.name: sorted(one.domain.values)
            for one in parameters
            if isinstance(one.domain, Choice) and one.name not in parents and _are_numbers(one.domain.values)
        }
        self.parameters = tuple(
            replace(one, domain=IntRange(0, len(self._places[one.name]) - 1)) if one.name in self._places else one
            for one in parameters
        )

    def decoded(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return the sampler's point as one of the space."""
        return {name: self._places[name][value] if name in self._places else value for name, value in point.items()}

    def encoded(self, point: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return a point of the space as the sampler's; None if it lies outside the searched ranges."""
        if not all(name in self._domains and self._domains[name].contains(value) for name, value in point.items()):
            return None
        return {
            name: self._places[name].index(value) if name in self._places else value for name, value in point.items()
        }


def _are_numbers(values: Sequence[Any]) -> bool:
    return len(values) > 1 and all(type(value) in (int, float) for value in values)


def told_as(trial: KnownTrial, view: SamplerView) -> FrozenTrial | None:
    """Return a trial for Optuna's sampler, live and after a resume; None for a failed one.

    TPE ranks COMPLETE trials by value, then PRUNED ones: those that got furthest first, by their last loss there.
    """
    losses: dict[int, float] = {}
    match trial.status:
        case "completed" if objective(trial.val_loss) < PENALTY_NATS:
            state = TrialState.COMPLETE
        case "stopped":
            # Its loss is of less training than a completed trial's and compares only within its rung.
            state, losses = TrialState.PRUNED, dict(trial.losses[-1:])
        case "completed" | "unstable" | "out_of_memory":
            # PRUNED without a loss ranks behind every stopped trial. COMPLETE would rank before them all, whatever the
            # penalty, and the losses from before it broke are not to its credit.
            state = TrialState.PRUNED
        case "failed":
            # A lost worker or a bug says nothing about the hyperparameters.
            return None
        case _:
            state = TrialState.RUNNING
    domains = {parameter.name: parameter.domain for parameter in view.parameters}
    point = view.encoded(trial.point or {})
    if point is None:
        return None
    return optuna.trial.create_trial(
        state=state,
        value=trial.val_loss if state == TrialState.COMPLETE else None,
        params=point,
        distributions={name: distribution_of(domains[name]) for name in point},
        intermediate_values=losses,
    )


def _members(parameter: SearchParameter) -> Sequence[Any] | None:
    domain = parameter.domain
    if isinstance(domain, IntRange):
        return range(domain.low, domain.high + 1, domain.step)
    return domain.values if isinstance(domain, Choice) else None


def _too_large(config: TrialConfig, trials: Iterable[KnownTrial]) -> KnownTrial | None:
    """Return the trial that ran out of memory at the same shape or a smaller one, if any.

    Adapters need less than all weights, and half precision less than fp32: of those it tells nothing.
    """
    for trial in trials:
        known = trial.config
        as_large = config.batch_size >= known.batch_size and config.block_size >= known.block_size
        as_wide = config.use_lora <= known.use_lora and config.precision in (known.precision, "fp32")
        if trial.status == "out_of_memory" and as_large and as_wide:
            return trial
    return None
