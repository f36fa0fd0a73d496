"""How every trial of a study is evaluated, stopped early and proposed: the tables of a space file beside [search]."""

from dataclasses import dataclass
from typing import Literal

AUTO = "auto"
"""In place of a number of trials: the search ends itself once more trials would gain too little."""
AUTO_TRIALS = 24
"""The most trials of AUTO in a space file."""


@dataclass(frozen=True)
class Evaluation:
    """One protocol for every trial of a study."""

    block_size: int
    """Context length in tokens."""
    tokens: int
    """Held-out tokens scored per evaluation."""
    count: int
    """Approximate number of evaluations per trial."""
    follows_baseline: bool = False
    """Whether the file names no block_size, so that it is the baseline's."""


@dataclass(frozen=True)
class Scheduler:
    """How trials are stopped early."""

    name: Literal["asha", "none"]
    grace_tokens: int
    reduction_factor: int
    grace_frac: float | None = None
    """grace_tokens as a share of the budget, where the file gives a share; grace_tokens then follow the budget."""

    def rung_tokens(self, budget_tokens: int) -> tuple[int, ...]:
        """Return the token counts at which a trial may be stopped, increasing."""
        rungs: list[int] = []
        tokens = self.grace_tokens
        # No rung in the last twentieth of the budget: it would count a trial as stopped that had all but ended.
        while self.name == "asha" and 20 * tokens <= 19 * budget_tokens:
            rungs.append(tokens)
            tokens *= self.reduction_factor
        return tuple(rungs)


Searcher = Literal["tpe", "random", "grid"]
"""What proposes the trials."""
