"""ASHA on training tokens as a Ray scheduler. The rule is in TrialLog; this passes its verdicts to Ray."""

from typing import Any

from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from search.tune.trial_log import TrialLog


class TokenASHA(FIFOScheduler):  # type: ignore[misc]
    """Stops the trials that are not among the best at a rung; the baseline always goes on.

    Ray's own ASHA judges by arrival, lets a NaN pass every rung, is silently disabled by a misspelt time_attr, and
    would stop the baseline.
    """

    def __init__(self, log: TrialLog) -> None:
        super().__init__()
        self._log = log

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Return whether the trial goes on."""
        keep = self._log.evaluate(trial.config["trial_id"], result["fidelity_tokens"], result["objective"])
        return str(TrialScheduler.CONTINUE if keep else TrialScheduler.STOP)
