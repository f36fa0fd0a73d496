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
    needed_bytes: int | None = None
    """Of memory for a step, or of disk for one checkpoint, by the check that looked at it."""

    def raise_if_failed(self) -> None:
        """Raise UserError with all that the check says, if it failed."""
        if self.status == "fail":
            raise UserError(f"{self.name}: {self.measured}; expected: {self.expected}. {self.advice}")


def judged(
    name: str, *, measured: str, expected: str, advice: str, failed: bool = False, warned: bool = False
) -> Check:
    """Return the check as failed or as a warning, with the advice, or else as passed, without."""
    status: CheckStatus = "fail" if failed else "warn" if warned else "pass"
    advice = advice if failed or warned else ""
    return Check(name=name, status=status, measured=measured, expected=expected, advice=advice)


def skipped(name: str, reason: str) -> Check:
    """Return a check that was not made, with the reason."""
    return Check(name=name, status="skipped", measured=reason, expected="", advice="")
