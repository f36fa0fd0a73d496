"""Asynchronous successive halving on training tokens. It stops trials; it never touches a learning rate."""

import math
from collections.abc import Callable
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.tune.history import TrialLog
from trainable.config import TrialConfig


class TokenASHA(FIFOScheduler):  # type: ignore[misc]
    """Stops a trial that is not among the best 1/reduction_factor of those that reached its rung (Li et al. 2020).

    Ray's own lets NaN trials pass every rung, is switched off by a misspelt attribute, and would stop the baseline.
    Here a trial is judged at the highest rung it reached, once; non-finite means stop; the baseline goes on.
    """

    def __init__(
        self,
        log: TrialLog,
        *,
        rung_tokens: tuple[int, ...],
        reduction_factor: int,
        is_baseline: Callable[[TrialConfig], bool],
    ) -> None:
        super().__init__()
        self._log = log
        self._is_baseline = is_baseline
        self.rung_tokens = rung_tokens
        self.reduction_factor = reduction_factor
        self.recorded: list[dict[int, float]] = [{} for _ in rung_tokens]
        """Objective by trial_id, for each rung: of this study's own trials alone. What another study's reached at its
        own budget would stop its best trials here."""
        for trial in log.trials:
            for tokens, loss in trial.losses:
                rung = self.rung_of(tokens)
                if rung is not None:
                    self.recorded[rung].setdefault(trial.trial_id, loss)

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return whether the trial goes on."""
        keep = self.goes_on(trial.config["trial_id"], result["fidelity_tokens"], result["objective"])
        return str(TrialScheduler.CONTINUE if keep else TrialScheduler.STOP)

    def goes_on(self, trial_id: int, fidelity_tokens: int, objective: float) -> bool:
        """Note the trial's objective at the rung it reached and return whether it is among the best there."""
        self._log.evaluate(trial_id, fidelity_tokens, objective)
        is_baseline = self._is_baseline(self._log[trial_id].config)
        if not math.isfinite(objective):
            return is_baseline
        rung = self.rung_of(fidelity_tokens)
        if rung is None or trial_id in self.recorded[rung]:
            return True
        self.recorded[rung][trial_id] = objective
        kept = max(1, len(self.recorded[rung]) // self.reduction_factor)
        return is_baseline or sum(other < objective for other in self.recorded[rung].values()) < kept

    def rung_of(self, fidelity_tokens: int) -> int | None:
        """Return the index of the highest rung at or below `fidelity_tokens`, or None."""
        return max((index for index, tokens in enumerate(self.rung_tokens) if fidelity_tokens >= tokens), default=None)

    def debug_string(self) -> str:
        """Return the rungs in a line."""
        rungs = zip(self.rung_tokens, self.recorded, strict=True)
        return "ASHA on tokens: " + ", ".join(f"{tokens:,}: {len(recorded)}" for tokens, recorded in rungs)
