"""Who proposes trials: Optuna through Ray's OptunaSearch, told what to learn from every ending, or a list."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import optuna
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from spaces.domains import Choice, IntRange, LogUniform, SearchParameter, Uniform
from spaces.space import SearchSpace
from trainable.config import TrialConfig

OBJECTIVE = "objective"


class SpaceSearcher(OptunaSearch):  # type: ignore[misc]
    """Proposes points of a SearchSpace, the baseline first, and hands each out as a numbered, whole configuration.

    completed: told its loss. stopped: told as pruned, with its losses by tokens, so that the sampler ranks it below the
    completed ones. unstable and out_of_memory: told their finite penalty. failed: told as failed, nothing is learned.
    """

    def __init__(self, space: SearchSpace, *, seed: int) -> None:
        points = space.grid_points() if space.searcher.name == "grid" else [space.baseline_params()]
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        super().__init__(
            lambda trial: suggest(trial, space.parameters),
            metric=OBJECTIVE,
            mode="min",
            points_to_evaluate=points,
            sampler=make_sampler(space, seed),
        )
        self._space_file = space
        self._trial_count = 0
        self._tokens_of_trial: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Return {"trial_id", "trial"}: a number counted from 0, which is the baseline, and its hyperparameters."""
        params = super().suggest(trial_id)
        if params is None:
            return None
        number, self._trial_count = self._trial_count, self._trial_count + 1
        return {"trial_id": number, "trial": asdict(self._space_file.config_for(params))}

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
            case Uniform():
                values[parameter.name] = trial.suggest_float(parameter.name, domain.low, domain.high)
            case LogUniform():
                values[parameter.name] = trial.suggest_float(parameter.name, domain.low, domain.high, log=True)
            case IntRange():
                values[parameter.name] = trial.suggest_int(
                    parameter.name, domain.low, domain.high, step=domain.step, log=domain.log
                )


class ListSearcher(Searcher):  # type: ignore[misc]
    """Hands out configurations that are already decided, numbered from `first_trial_id`."""

    def __init__(self, configs: Sequence[TrialConfig], *, first_trial_id: int = 0) -> None:
        super().__init__(metric=OBJECTIVE, mode="min")
        self._left = [
            {"trial_id": first_trial_id + index, "trial": asdict(config)} for index, config in enumerate(configs)
        ]

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next configuration, or that there is none left."""
        return self._left.pop(0) if self._left else str(Searcher.FINISHED)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Learn nothing: everything was decided before."""

    def save(self, checkpoint_path: str) -> None:
        """Write nothing, as SpaceSearcher does."""

    def restore(self, checkpoint_path: str) -> None:
        """Never called: studies are resumed from their own files."""
