"""Device work in a process of its own: only its end gives a driver's memory back, contexts and caches included."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from trainable.errors import MachineError

Row = TypeVar("Row")
APART = ("cuda", "mps")
END_TIMEOUT_S = 10.0


@contextmanager
def unheard(*numbers: signal.Signals) -> Iterator[None]:
    """Block signals in the processes started inside, which inherit it; this one gets its own afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def in_own_process(device_type: str, work: Callable[..., Iterator[Row]], *args: Any, **kwargs: Any) -> Iterator[Row]:
    """Yield what work(*args, **kwargs) yields, from a process of its own on CUDA and MPS, and from this one on a CPU.

    work, its arguments and what it yields and raises are pickled. Raises MachineError when the process dies.
    """
    if device_type not in APART:
        yield from work(*args, **kwargs)
        return
    # Forked, it would have this process's half of a CUDA context.
    context = multiprocessing.get_context("spawn")
    results, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, work, args, kwargs), daemon=True)
    process.start()
    theirs.close()
    try:
        while True:
            try:
                row, error, is_over = results.recv()
            except EOFError:
                process.join(END_TIMEOUT_S)
                raise MachineError(
                    f"a process that used the {device_type} device ended at once (exit code {process.exitcode}). Look "
                    "at the machine's memory and the driver's log, then run the command again."
                ) from None
            if error is not None:
                raise error
            if is_over:
                return
            yield row
    finally:
        results.close()
        process.join(END_TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()


def _send(results: Connection, work: Callable[..., Iterator[Any]], args: Any, kwargs: Any) -> None:
    try:
        for row in work(*args, **kwargs):
            results.send((row, None, False))
        results.send((None, None, True))
    except BrokenPipeError:
        return  # nobody wants the rest
    except Exception as error:
        # Where it was raised does not survive the way.
        error.add_note(traceback.format_exc())
        results.send((None, error, False))
