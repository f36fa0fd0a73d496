"""The searches that are compared, each by its own classes and none by a model of them, as the replay sees them."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from spaces.space import SearchSpace
from tests.benchmarks.search_table.replay import Proposal, Search

NINTHS = 9
"""The peers count in ninths of the budget: rungs at 1/9 and 1/3 for a reduction factor of 3."""
BROKEN_LOSS = 10.0
"""What a peer is told of an unstable trial; its user's objective has no better way."""
TRIALS = 40
"""Asked of this project's search: enough for the tokens of twelve full trials."""


class Ours:
    """This project's searcher and scheduler, as the engine drives them."""

    def __init__(self, space: SearchSpace, seed: int, trials: int = TRIALS) -> None:
        from search.tune.optuna_searcher import SpaceSearcher

        space = replace(space, trials=trials, baseline=replace(space.baseline, seed=seed))
        self._searcher = SpaceSearcher(space)
        self.log = self._searcher.log
        self.mark_tokens = space.evaluation_tokens()[:-1]
        self._left = trials
        self._space = space

    def ask(self) -> Proposal | None:
        """Return the searcher's next."""
        handed_out = self._searcher.suggest("") if self._left else "FINISHED"
        if handed_out is None:
            return None
        if isinstance(handed_out, str):
            raise StopIteration
        self._left -= 1
        return Proposal(key=handed_out["trial_id"], point={**self._space.baseline_params(), **handed_out["point"]})

    def goes_on(self, key: int, mark_tokens: int, loss: float) -> bool:
        """Tell the log, which judges."""
        goes_on = self.log.evaluate(key, mark_tokens, loss)
        if not goes_on:
            self.log.end(key, "stopped", loss)
        return goes_on

    def end(self, key: int, loss: float | None) -> None:
        """Tell the log."""
        self.log.end(key, "unstable" if loss is None else "completed", loss)

    def counts(self, key: int) -> bool:
        """Leave out those that a late verdict ends at a rung."""
        return bool(self.log.stopped_at(key) is None)


def in_plain_space(trial: Any, space: SearchSpace) -> dict[str, Any]:
    """Return a point by Optuna's own calls, conditions as its documentation writes them."""
    from spaces.optuna_domains import suggest

    return suggest(trial, space.parameters)


class Peer:
    """What is alike for all other searches."""

    mark_tokens: list[int]

    def counts(self, key: Any) -> bool:
        """Count every trial."""
        return True


class OptunaPeer(Peer):
    """Optuna's own sampler and pruner in its ask-and-tell interface."""

    def __init__(self, space: SearchSpace, sampler: Any, pruner: Any) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._study = optuna.create_study(sampler=sampler, pruner=pruner)
        self._space = space
        self._trials: dict[int, Any] = {}
        self.mark_tokens = ninths(space)

    def ask(self) -> Proposal:
        """Ask the study."""
        trial = self._study.ask()
        self._trials[trial.number] = trial
        return Proposal(key=trial.number, point=in_plain_space(trial, self._space))

    def goes_on(self, key: int, mark_tokens: int, loss: float) -> bool:
        """Report, and prune where the pruner says so."""
        from optuna.trial import TrialState

        trial = self._trials[key]
        trial.report(loss, 1 + self.mark_tokens.index(mark_tokens))
        if trial.should_prune():
            self._study.tell(trial, state=TrialState.PRUNED)
            return False
        return True

    def end(self, key: int, loss: float | None) -> None:
        """Tell the value; an unstable trial counts as pruned."""
        from optuna.trial import TrialState

        if loss is None:
            self._study.tell(self._trials[key], state=TrialState.PRUNED)
        else:
            self._study.tell(self._trials[key], loss)


class RayPeer(Peer):
    """Ray Tune's ASHA and OptunaSearch with the arguments of its documentation, called as its controller does."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        import optuna
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._scheduler = ASHAScheduler(metric="loss", mode="min", max_t=NINTHS, grace_period=1, reduction_factor=3)
        # It takes whatever the function returns as constants.
        self._searcher = OptunaSearch(
            lambda trial: in_plain_space(trial, space) and None, metric="loss", mode="min", seed=seed
        )
        self.mark_tokens = ninths(space)
        self._count = 0

    def ask(self) -> Proposal:
        """Ask the searcher; the scheduler hears of it."""
        key = str(self._count)
        self._count += 1
        point = self._searcher.suggest(key)
        self._scheduler.on_trial_add(None, _RayTrial(key))
        return Proposal(key=key, point=point)

    def goes_on(self, key: str, mark_tokens: int, loss: float) -> bool:
        """Give the result to both."""
        result = {"loss": loss, "training_iteration": 1 + self.mark_tokens.index(mark_tokens)}
        decision = self._scheduler.on_trial_result(None, _RayTrial(key), result)
        self._searcher.on_trial_result(key, result)
        if decision == "STOP":
            self._scheduler.on_trial_complete(None, _RayTrial(key), result)
            self._searcher.on_trial_complete(key, result)
            return False
        return True

    def end(self, key: str, loss: float | None) -> None:
        """Give the last result to both."""
        result = {"loss": BROKEN_LOSS if loss is None else loss, "training_iteration": NINTHS}
        self._scheduler.on_trial_complete(None, _RayTrial(key), result)
        self._searcher.on_trial_complete(key, result)


class _RayTrial:
    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class SyneTunePeer(Peer):
    """Syne Tune's asynchronous successive halving with its conformal quantile regression."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        from syne_tune.config_space import choice, loguniform, uniform
        from syne_tune.optimizer.schedulers.asha import AsynchronousSuccessiveHalving

        make = {"choice": choice, "log_uniform": loguniform, "uniform": uniform}
        self._scheduler = AsynchronousSuccessiveHalving(
            {name: make[kind](*arguments) for name, kind, arguments in plain_domains(space)},
            metric="loss",
            time_attr="epoch",
            max_t=NINTHS,
            grace_period=1,
            reduction_factor=3,
            searcher="cqr",
            random_seed=seed,
        )
        self.mark_tokens = ninths(space)
        self._trials: dict[int, Any] = {}

    def ask(self) -> Proposal:
        """Ask the scheduler, which has the searcher."""
        from datetime import UTC, datetime

        from syne_tune.backend.trial_status import Trial

        suggestion = self._scheduler.suggest()
        key = len(self._trials)
        self._trials[key] = Trial(trial_id=key, config=suggestion.config, creation_time=datetime.now(UTC))
        self._scheduler.on_trial_add(self._trials[key])
        return Proposal(key=key, point=suggestion.config)

    def goes_on(self, key: int, mark_tokens: int, loss: float) -> bool:
        """Give the result to the scheduler."""
        result = {"loss": loss, "epoch": 1 + self.mark_tokens.index(mark_tokens)}
        return bool(self._scheduler.on_trial_result(self._trials[key], result) != "STOP")

    def end(self, key: int, loss: float | None) -> None:
        """Give the last result to the scheduler."""
        result = {"loss": BROKEN_LOSS if loss is None else loss, "epoch": NINTHS}
        self._scheduler.on_trial_complete(self._trials[key], result)


class NePSPeer(Peer):
    """NePS PriorBand around the documented baseline, in its ask-and-tell interface."""

    def __init__(self, space: SearchSpace, seed: int) -> None:
        import random

        import neps
        import numpy as np
        import torch

        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        prior = {**space.baseline_params(), "warmup_frac": 0.1}
        known: Any = {"prior_confidence": "medium"}
        parameters: dict[str, Any] = {"ninths": neps.HPOInteger(1, NINTHS, is_fidelity=True)}
        for name, kind, arguments in plain_domains(space):
            if kind == "choice":
                parameters[name] = neps.HPOCategorical(*arguments, prior=prior[name], **known)
            else:
                log = kind == "log_uniform"
                parameters[name] = neps.HPOFloat(*arguments, log=log, prior=prior[name], **known)
        self._optimizer = neps.AskAndTell(neps.algorithms.priorband(neps.SearchSpace(parameters)))
        self._ninth_tokens = space.budget.tokens / NINTHS
        self.mark_tokens = []

    def ask(self) -> Proposal:
        """Ask the optimizer; what it goes on from was trained before."""
        trial = self._optimizer.ask()
        config = dict(trial.config)
        to_ninths, before = config.pop("ninths"), trial.metadata.previous_trial_id
        from_ninths = self._optimizer.trials[before].config["ninths"] if before else 0
        return Proposal(
            key=trial.metadata.id,
            point=config,
            from_tokens=round(from_ninths * self._ninth_tokens),
            to_tokens=round(to_ninths * self._ninth_tokens),
        )

    def goes_on(self, key: str, mark_tokens: int, loss: float) -> bool:
        """It stops nothing: it asks for more of what is good."""
        return True

    def end(self, key: str, loss: float | None) -> None:
        """Tell the loss."""
        self._optimizer.tell(key, BROKEN_LOSS if loss is None else loss)


def ninths(space: SearchSpace) -> list[int]:
    """Return the token counts of eight ninths of the budget."""
    return [space.budget.tokens * k // NINTHS for k in range(1, NINTHS)]


def plain_domains(space: SearchSpace) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """Yield each parameter's name, kind and arguments, without conditions, for libraries that know none."""
    from spaces.domains import Choice, FloatRange

    for parameter in space.parameters:
        domain = parameter.domain
        if isinstance(domain, Choice):
            yield parameter.name, "choice", (list(domain.values),)
        else:
            assert isinstance(domain, FloatRange)
            yield parameter.name, "log_uniform" if domain.log else "uniform", (domain.low, domain.high)


def optuna_peer(sampler_name: str, pruner: Callable[[], Any]) -> Callable[[SearchSpace, int], Search]:
    """Return a maker of an Optuna search."""

    def make(space: SearchSpace, seed: int) -> Search:
        import optuna

        return OptunaPeer(space, getattr(optuna.samplers, sampler_name)(seed=seed), pruner())

    return make


def _halving() -> Any:
    import optuna

    return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3)


def _hyperband() -> Any:
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=NINTHS, reduction_factor=3)


def _nothing() -> Any:
    import optuna

    return optuna.pruners.NopPruner()


OURS: Mapping[str, Callable[[SearchSpace, int], Search]] = {"this search": Ours}
PEERS: Mapping[str, Callable[[SearchSpace, int], Search]] = {
    "Ray Tune ASHA + OptunaSearch": RayPeer,
    "Optuna TPE + successive halving": optuna_peer("TPESampler", _halving),
    "Optuna TPE + Hyperband": optuna_peer("TPESampler", _hyperband),
    "Syne Tune ASHA + CQR": SyneTunePeer,
    "NePS PriorBand": NePSPeer,
    "random search in full": optuna_peer("RandomSampler", _nothing),
}
