"""ASHA on training tokens, as Ray calls a scheduler. The rule is the log's; here its verdicts reach Ray."""

import math
from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.tune.trial_log import TrialLog


class TokenASHA(FIFOScheduler):  # type: ignore[misc]
    """Stops the trials that the log does not find among the best at a rung. It never touches a learning rate.

    Ray's own judges by arrival, lets NaN trials pass every rung, is switched off by a misspelt attribute, and would
    stop the baseline. Here a trial is judged once at the highest rung it reached; the baseline goes on.
    """

    def __init__(self, log: TrialLog) -> None:
        super().__init__()
        self._log = log

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return whether the trial goes on."""
        keep = self.goes_on(trial.config["trial_id"], result["fidelity_tokens"], result["objective"])
        return str(TrialScheduler.CONTINUE if keep else TrialScheduler.STOP)

    def goes_on(self, trial_id: int, fidelity_tokens: int, objective: float) -> bool:
        """Note the trial's objective and return whether no verdict so far ends it."""
        # ASHA compares with <, which is False for NaN: a NaN trial would pass every rung.
        if not math.isfinite(objective):
            return self._log.is_baseline(trial_id)
        self._log.evaluate(trial_id, fidelity_tokens, objective)
        rung = self._log.stopped_at(trial_id)
        # A trial that lost its worker evaluates again what its row has lost, up to the rung.
        return rung is None or fidelity_tokens < self._log.rung_tokens[rung]

    def debug_string(self) -> str:
        """Return the rungs in a line."""
        rungs = zip(self._log.rung_tokens, self._log.recorded, strict=True)
        return "ASHA on tokens: " + ", ".join(f"{tokens:,}: {len(recorded)}" for tokens, recorded in rungs)
