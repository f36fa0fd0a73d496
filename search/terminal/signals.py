"""Ctrl-C, SIGTERM and SIGHUP as a flag that a loop reads between two steps, so that what it saves is whole."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

INTERRUPTED, TERMINATED = (128 + number for number in (signal.SIGINT, signal.SIGTERM))
"""Exit codes."""
HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """A context manager: inside, the first signal only sets `code`, and a second one acts as usual.

    It can be entered again inside itself, after a library has replaced the handlers.
    """

    def __init__(self) -> None:
        self.code: int | None = None
        """The exit code to end with: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP; None while nobody interrupted."""
        self._before: list[dict[signal.Signals, Any]] = []

    def __enter__(self) -> "Interrupts":
        # Noted before the first one is replaced: a signal may come between any two.
        self._before.append({number: signal.getsignal(number) for number in HEARD})
        for number, handler in self._before[-1].items():
            # Under nohup SIGHUP is ignored and stays so.
            if number != signal.SIGHUP or handler != signal.SIG_IGN:
                signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # After a signal restore the outermost handlers: a library's would end the process with another code.
        for number, handler in self._before[-1 if self.code is None else 0].items():
            signal.signal(number, handler)
        self._before.pop()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.code = 128 + number
        # The shell and its terminal both send SIGHUP at their end: the second one is not a user's second signal.
        is_hangup = number == signal.SIGHUP
        signal.signal(number, signal.SIG_IGN if is_hangup else self._before[0][signal.Signals(number)])


class Terminated(SystemExit):
    """SIGTERM or SIGHUP, with the exit code that it ends a command with."""


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Have SIGTERM and SIGHUP raise Terminated inside, so that `finally` blocks run."""
    unheard = [number for number in HEARD if signal.getsignal(number) == signal.SIG_DFL]
    for number in unheard:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in unheard:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, _: FrameType | None) -> None:
    raise Terminated(128 + number)
