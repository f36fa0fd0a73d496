"""GuardedTracker: when a tracker fails, the study goes on without it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from ray.tune import Callback

HOOKS = [name for name in vars(Callback) if name == "setup" or name.startswith("on_")]


class GuardedTracker(Callback):  # type: ignore[misc]
    """Passes every hook to the callback that `make` returns, until one raises, which is printed once."""

    def __init__(self, name: str, make: Callable[[], Callback], say: Callable[[str], None]) -> None:
        self._name = name
        self._say = say
        self._callback: Callback | None = None
        with self._guarded():
            self._callback = make()

    def _pass_on(self, hook: str, *args: Any, **info: Any) -> None:
        if self._callback is not None:
            with self._guarded():
                getattr(self._callback, hook)(*args, **info)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        # Ray would fail the trial for an error in a callback, and it is only the tracker's server or disk.
        except Exception as error:
            self._callback = None
            reason = str(error).partition("\n")[0] or type(error).__name__
            self._say(f"{self._name} failed ({reason}); the study goes on without it")


for _hook in HOOKS:
    setattr(GuardedTracker, _hook, partialmethod(GuardedTracker._pass_on, _hook))
