"""What came of an example: a result, a refusal in one line, or a failure; counted by property."""

import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from hypothesis import settings

from trainable.errors import UserError

Value = TypeVar("Value")

HANG_S = 60
"""No example takes a hundredth of it; the clock is there for a hang alone."""

EXAMPLES = settings().max_examples
"""Of the profile that was asked for."""

TALLY: dict[str, Counter[str]] = defaultdict(Counter)
"""By property: tried, refused, accepted; the rest failed."""

CASES: dict[str, set[str]] = defaultdict(set)
"""By kind of input: a digest of each that was tried, so that one drawn twice counts once."""


def attempt(name: str, make: Callable[[], Value]) -> Value | None:
    """Return what `make` returns, or None where it refuses in one line; anything else it raises is a failure."""
    count = TALLY[name]
    count["tried"] += 1
    try:
        with clocked():
            value = make()
    except UserError as error:
        check_line(str(error))
        count["refused"] += 1
        return None
    except KeyboardInterrupt:
        count["tried"] -= 1
        raise
    count["accepted"] += 1
    return value


def check_line(text: str) -> None:
    """Assert that a refusal is one line as the command line prints it, and says more than a word."""
    line = " ".join(text.split())
    assert len(line.split()) > 3, text
    assert line[-1] in ".?)]'" or ": " in line, text


@contextmanager
def clocked(seconds: int = HANG_S) -> Iterator[None]:
    """Fail what computes for longer, by the process's own clock: TimeoutError from where it hangs."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
