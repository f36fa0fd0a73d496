"""Check: the result of one check before training. It measures nothing itself."""

from dataclasses import dataclass
from typing import Literal

from trainable.errors import UserError

CheckStatus = Literal["pass", "fail", "warn", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one check of the preflight found."""

    name: str
    status: CheckStatus
    """fail: training would be a waste. warn: look, then decide. skipped: does not apply here; `measured` says why."""
    measured: str
    expected: str
    advice: str
    """What to do next; empty where there is nothing to do."""

    def raise_if_failed(self) -> None:
        """Raise UserError with all that the check says, if it failed."""
        if self.status == "fail":
            raise UserError(f"{self.name}: {self.measured}; expected: {self.expected}. {self.advice}")


def skipped(name: str, reason: str) -> Check:
    """Return the check that was not made, with the reason."""
    return Check(name=name, status="skipped", measured=reason, expected="", advice="")
