"""Device work in a process of its own: the same rows and errors as here, and the process ends with them."""

import os
from collections.abc import Iterator

import pytest

from trainable.device.own_process import in_own_process
from trainable.errors import MachineError, UserError


def work(count: int, end: str) -> Iterator[tuple[int, int]]:
    for number in range(count):
        yield os.getpid(), number
    if end == "refused":
        raise UserError("BATCH_SIZE is too large.")
    if end == "cut short":
        raise EOFError("a text ends too soon")
    if end == "killed":
        os._exit(9)


@pytest.mark.parametrize(("device_type", "is_apart"), [("cpu", False), ("cuda", True), ("mps", True)])
def test_rows_come_from_a_process_that_then_is_gone(device_type: str, is_apart: bool) -> None:
    rows = list(in_own_process(device_type, work, 3, end=""))
    assert [number for _, number in rows] == [0, 1, 2]
    (pid,) = {pid for pid, _ in rows}
    assert (pid != os.getpid()) is is_apart
    if is_apart:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(
    ("end", "error", "words"),
    [
        ("refused", UserError, "BATCH_SIZE is too large"),
        ("cut short", EOFError, "a text ends too soon"),
        ("killed", MachineError, r"ended at once \(exit code 9\)"),
    ],
)
def test_an_error_there_is_one_here(end: str, error: type[Exception], words: str) -> None:
    rows = in_own_process("cuda", work, 1, end)
    next(rows)
    with pytest.raises(error, match=words):
        next(rows)


def test_who_wants_no_more_ends_it() -> None:
    rows = in_own_process("cuda", work, 10**9, "")
    pid, _ = next(rows)
    rows.close()  # type: ignore[attr-defined]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
