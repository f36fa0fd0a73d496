"""How every trial of a study is evaluated, stopped early and proposed: the tables of a space file beside [search]."""

from dataclasses import dataclass
from typing import Literal

AUTO = "auto"
"""As a number of trials: the search itself finds when it has had enough of them."""
AUTO_TRIALS = 24
"""At most, where a space file says no number."""


@dataclass(frozen=True)
class Evaluation:
    """One protocol for every trial of a study."""

    block_size: int
    """Context length in tokens."""
    tokens: int
    """Held-out tokens scored per evaluation."""
    count: int
    """Evaluations per trial, about."""
    follows_baseline: bool = False
    """Whether block_size is the baseline's because the file does not name one."""


@dataclass(frozen=True)
class Scheduler:
    """Which trials are stopped early, and when the first one can be."""

    name: Literal["asha", "none"]
    grace_tokens: int
    reduction_factor: int
    grace_frac: float | None = None
    """grace_tokens as a share of the budget, when the file gives it so: it then follows the budget."""

    def rung_tokens(self, budget_tokens: int) -> tuple[int, ...]:
        """Return the token counts at which a trial may be stopped, increasing."""
        rungs: list[int] = []
        tokens = self.grace_tokens
        # No rung in the budget's last twentieth: a trial that has as good as ended would count as stopped.
        while self.name == "asha" and 20 * tokens <= 19 * budget_tokens:
            rungs.append(tokens)
            tokens *= self.reduction_factor
        return tuple(rungs)


@dataclass(frozen=True)
class Searcher:
    """Who proposes the trials."""

    name: Literal["tpe", "random", "grid"]
