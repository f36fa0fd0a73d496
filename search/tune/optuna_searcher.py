"""Who proposes trials: Optuna through Ray's OptunaSearch, told what to learn from every ending, or a list."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from search.tune.history import NO_HISTORY, History, KnownTrial
from spaces.domains import Choice, FloatRange, IntRange, SearchParameter
from spaces.optuna_domains import distribution_of
from spaces.space import SearchSpace
from trainable.config import TrialConfig
from trainable.fidelity import PENALTY_NATS, objective

OBJECTIVE = "objective"
MAX_REFUSED = 200
"""Proposals in a row that would run out of memory before the search counts as exhausted."""


class SpaceSearcher(OptunaSearch):  # type: ignore[misc]
    """Proposes points of a SearchSpace, the baseline first, and hands each out as a numbered, whole configuration.

    completed: told its loss. stopped: told as pruned, with its losses by tokens, so that the sampler ranks it below the
    completed ones. unstable and out_of_memory: told their finite penalty. failed: told as failed, nothing is learned.

    `known` trials were proposed before: ended ones are told, the others are handed out again, each with its own number.
    A proposal depends on the seed, its place in the order and what was told, on nothing else: a search that was killed
    and resumed proposes what it would have proposed.
    """

    def __init__(self, space: SearchSpace, *, seed: int, past: History = NO_HISTORY) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        super().__init__(
            lambda trial: suggest(trial, space.parameters),
            metric=OBJECTIVE,
            mode="min",
            sampler=make_sampler(space, seed),
        )
        self._space_file = space
        self._seed_of_search = seed
        self._interrupted = [trial for trial in past.trials if not trial.ended]
        self._proposals_count = len(past.trials)
        self._next_trial_id = past.next_trial_id
        self._too_large = [trial.config for trial in past.trials if trial.status == "out_of_memory"]
        self._tokens_of_trial: dict[str, int] = {}
        for trial in (*past.lessons, *past.trials):
            frozen = _as_optunas(trial, space) if trial.ended else None
            if frozen is not None:
                self._ot_study.add_trial(frozen)
        decided = (
            space.grid_points() if space.searcher.name == "grid" else [space.baseline_params(), *past.first_points]
        )
        self._decided_left = len(decided[self._proposals_count :])
        for point in (*(trial.point for trial in self._interrupted), *decided[self._proposals_count :]):
            self._ot_study.enqueue_trial(dict(point))

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return {"trial_id", "trial", "point"}: a number, 0 for the baseline, the hyperparameters, the point."""
        if self._interrupted:
            return self._again(trial_id, self._interrupted.pop(0))
        self._ot_study.sampler = make_sampler(self._space_file, _seed_of(self._seed_of_search, self._proposals_count))
        for _ in range(MAX_REFUSED):
            if self._space_file.searcher.name == "grid" and not self._decided_left:
                break
            point = super().suggest(trial_id)
            self._decided_left = max(0, self._decided_left - 1)
            config = self._space_file.config_for(point)
            if self._proposals_count > 0 and any(_is_as_large(config, known) for known in self._too_large):
                # It would run out of memory too; told as failed, it teaches the sampler nothing.
                self._ot_study.tell(self._ot_trials.pop(trial_id), state=TrialState.FAIL)
                continue
            number, self._next_trial_id = self._next_trial_id, self._next_trial_id + 1
            self._proposals_count += 1
            return {"trial_id": number, "trial": asdict(config), "point": point}
        return str(Searcher.FINISHED)

    def _again(self, trial_id: str, trial: KnownTrial) -> dict[str, Any]:
        point = super().suggest(trial_id)
        for tokens, loss in trial.losses:
            self.on_trial_result(trial_id, {OBJECTIVE: loss, "fidelity_tokens": tokens})
        return {"trial_id": trial.trial_id, "trial": asdict(trial.config), "point": point}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Note an evaluation by the tokens it came after."""
        # Ray reports by iteration; trials of large batches skip milestones, so only tokens compare.
        tokens = result["fidelity_tokens"]
        # A worker that died goes back to its checkpoint and passes there again.
        if tokens > self._tokens_of_trial.get(trial_id, -1):
            self._tokens_of_trial[trial_id] = tokens
            self._ot_trials[trial_id].report(result[OBJECTIVE], tokens)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how the trial ended."""
        if result is not None and result.get("status") == "running":
            # Stopped: Ray keeps from the searcher the very result that the trial was stopped at.
            self.on_trial_result(trial_id, result)
            result = None
        super().on_trial_complete(trial_id, result, error)

    def avoid(self, config: TrialConfig) -> None:
        """Propose no batch x block as large as this one's again: it ran out of memory."""
        self._too_large.append(config)

    def save(self, checkpoint_path: str) -> None:
        """Write nothing: the study's own files are the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: studies are resumed from their own files."""


def make_sampler(space: SearchSpace, seed: int) -> optuna.samplers.BaseSampler:
    """Return the sampler that the space names; a grid's points are all handed out before it is asked."""
    if space.searcher.name == "tpe":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # Groups make conditional parameters proper; the liar keeps parallel trials apart.
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=max(4, space.trials // 3)
            )
    return optuna.samplers.RandomSampler(seed=seed)


def suggest(trial: Any, parameters: tuple[SearchParameter, ...]) -> None:
    """Ask an Optuna trial for every parameter that is active under the values it gave before."""
    values: dict[str, Any] = {}
    for parameter in parameters:
        if not parameter.is_active(values):
            continue
        domain = parameter.domain
        match domain:
            case Choice():
                values[parameter.name] = trial.suggest_categorical(parameter.name, list(domain.values))
            case FloatRange():
                values[parameter.name] = trial.suggest_float(parameter.name, domain.low, domain.high, log=domain.log)
            case IntRange():
                values[parameter.name] = trial.suggest_int(
                    parameter.name, domain.low, domain.high, step=domain.step, log=domain.log
                )


def _seed_of(seed: int, proposals_count: int) -> int:
    return int(np.random.SeedSequence([seed, proposals_count]).generate_state(1)[0])


def _is_as_large(config: TrialConfig, known: TrialConfig) -> bool:
    return config.batch_size >= known.batch_size and config.block_size >= known.block_size


def _as_optunas(trial: KnownTrial, space: SearchSpace) -> optuna.trial.FrozenTrial | None:
    """Return the trial as Optuna's study would hold it had it been told of it as it ran; None for one that failed."""
    if trial.status == "failed":
        return None
    losses: dict[int, float] = {}
    for tokens, loss in trial.losses:
        if tokens > max(losses, default=-1):
            losses[tokens] = loss
    domains = {parameter.name: parameter.domain for parameter in space.parameters}
    stopped = trial.status == "stopped"
    value = losses[max(losses)] if stopped else objective(trial.val_loss)
    return optuna.trial.create_trial(
        state=TrialState.PRUNED if stopped else TrialState.COMPLETE,
        value=value if trial.status in ("completed", "stopped") else PENALTY_NATS,
        params=dict(trial.point),
        distributions={name: distribution_of(domains[name]) for name in trial.point},
        intermediate_values=losses,
    )


class ListSearcher(Searcher):  # type: ignore[misc]
    """Hands out configurations that are already decided, by trial_id."""

    def __init__(self, configs: Mapping[int, TrialConfig]) -> None:
        super().__init__(metric=OBJECTIVE, mode="min")
        self._left = [{"trial_id": trial_id, "trial": asdict(config)} for trial_id, config in configs.items()]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next configuration, or that there is none left."""
        return self._left.pop(0) if self._left else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn nothing: everything was decided before."""

    def avoid(self, config: TrialConfig) -> None:
        """Avoid nothing: everything was decided before."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing, as SpaceSearcher does."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: studies are resumed from their own files."""
