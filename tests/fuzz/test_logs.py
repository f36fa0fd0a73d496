"""Whatever a log file holds, diagnosing it ends in a report or one line, in a time that its size bounds."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from results.diagnosis.logs.training_log import read_training_log
from results.diagnosis.render import Report, plain_text, report_of_trace, to_json
from results.diagnosis.run_view import Context
from results.diagnosis.trace import RunTrace
from tests.fuzz.logs import LOGS, mutated_logs
from tests.fuzz.outcome import attempt, clocked

CONTEXTS = [
    Context(),
    Context(pretrained=True),
    Context(vocab_size=2048, pretrained=False, unigram_entropy=6.3),
]


def report_of(data: bytes, folder: Path, context: Context) -> Report:
    path = folder / "fuzz.log"
    path.write_bytes(data)
    report = report_of_trace(read_training_log(path), context=context)
    json.dumps(to_json(report), allow_nan=False)
    assert plain_text(report)
    return report


@given(mutated_logs(), st.sampled_from(CONTEXTS))
def test_a_mutated_log_is_diagnosed_or_refused(own_environment: Path, data: bytes, context: Context) -> None:
    attempt("log mutated", lambda: report_of(data, own_environment, context))


@given(st.binary(max_size=400) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_diagnosed_or_refused(own_environment: Path, data: bytes) -> None:
    attempt("log of any bytes", lambda: report_of(data, own_environment, CONTEXTS[0]))


WORDS = (
    "step iter loss val_loss train_loss lr grad_norm epoch steps/sec ETA elapsed / | : = , s ms it/s [ < ] % { '"
    " nan best time of h val"
)
words = st.sampled_from(WORDS.split())
numbers = st.integers(-9, 10**6).map(str) | st.floats().map(str) | st.integers(0, 10**30).map("{:,}".format)


@given(st.lists(st.lists(words | numbers, max_size=12).map(" ".join), max_size=60).map("\n".join))
@example("step 0 loss 1\nstep 1 loss 1\n" * 3)
def test_lines_of_a_logs_words_are_diagnosed_or_refused(own_environment: Path, text: str) -> None:
    attempt("log of words", lambda: report_of(text.encode(), own_environment, CONTEXTS[1]))


LONG = b"9" * 400
PACKED = gzip.compress(LOGS[0], mtime=0)
FOUND = {
    "a damaged block of .gz": PACKED[:10] + b"\xff" * 20,
    "a speed of two points": b"{'train_runtime': 5.0, 'train_steps_per_second': 1.2.3}\nstep 1 loss 2\nstep 2 loss 2\n",
    "endless training": b"{'train_runtime': %b, 'train_steps_per_second': 1}\nstep 1 loss 2\nstep 2 loss 2\n" % LONG,
    "a vocabulary of one": b"vocab_size: 1\nstep 0 loss 5\nstep 1 loss 5\n",
    "a bar's hours": b" 1%%|# | 10/1000 [%b:30:00<1:00]\r{'loss': 3, 'epoch': 0.1}\n" % LONG,
    "a step": b"step 1/2 | 1.00 steps/sec | ETA: 1.0m\nstep %b/2 | 1.00 steps/sec | ETA: 1.0m\n" % LONG * 3,
    "a length": b"".join(b"step %d/%b loss 5 | 1.00 steps/sec | ETA: 1.0m\n" % (step, LONG) for step in range(9)),
    "a length announced": b"total_steps: %b\nstep 1 loss 2\nstep 2 loss 2\n" % LONG,
    "an epoch": b"{'loss': 3, 'epoch': %b}\n{'loss': 3, 'epoch': 1}\n" % LONG
    + b"{'train_runtime': 9, 'train_steps_per_second': 9}\n",
    "thousands of steps": b"step %bk loss 3\nstep 1k loss 3\n" % LONG,
    "a number of JSON": b'{"step": 1, "loss": 3, "grad_norm": %b}\n{"step": 2, "loss": 3}\n' % LONG,
    "no epoch": b'{"max_steps": 9, "num_train_epochs": 3, "log_history": [{"epoch": NaN, "loss": 3}, {"loss": 2}]}',
    "a cell": b"step,loss,text\n1,3,%b\n2,3,a\n" % (b"x" * 200_000),
    "a rate announced": b"learning rate: 1e999\n" + b"".join(b"step %d loss 5 lr 1e-3\n" % step for step in range(9)),
    "an epoch's head": b"Epoch %b\nloss 3\nloss 4\n{'train_runtime': 9, 'train_steps_per_second': 9}\n" % LONG,
}
"""Logs that were found by the tests above, made small."""


@pytest.mark.parametrize("name", sorted(FOUND))
def test_a_log_that_was_found_is_diagnosed_or_refused(tmp_path: Path, name: str) -> None:
    attempt("log found", lambda: report_of(FOUND[name], tmp_path, CONTEXTS[0]))


ROWS = 120_000
LONG_S = 30
"""Ten times what the reading of these takes."""
LONGER, MOST_LONGER = 4, 8
"""(Times the rows, times the time that is taken for linear.) With the square it is 12 times the time."""


def diagnosis_s(rows: int, columns: dict[str, list[float | None]]) -> float:
    """Return the processor's seconds that a record of so many rows is diagnosed in."""
    names = ("train_loss", "val_loss", "grad_norm", "learning_rate", "step_time_s")
    values: dict[str, Any] = {name: tuple(columns.get(name, [None] * ROWS))[-rows:] for name in names}
    trace = RunTrace(source="long", origin="trial", steps=tuple(range(rows)), restarts=tuple(range(rows)), **values)
    start = time.process_time()
    report_of_trace(trace, context=CONTEXTS[0])
    return time.process_time() - start


@pytest.mark.parametrize(
    "columns",
    [
        {"val_loss": [5.0 + 3.0 * (step % 7 == 0) for step in range(ROWS)]},
        {name: [5.0 + step * 7919 % 9973 / 9973 for step in range(ROWS)] for name in ("train_loss", "val_loss")},
        {"train_loss": [5.0] * ROWS, "grad_norm": [float("inf")] * (ROWS - 1) + [1.0]},
        {"train_loss": [0.0] * (ROWS - 1) + [1.0], "step_time_s": [1.0 + step % 5 for step in range(ROWS)]},
    ],
    ids=["evaluations alone", "both losses", "norms", "zeros and times"],
)
def test_a_long_record_is_diagnosed_in_linear_time(columns: dict[str, list[float | None]]) -> None:
    # Whatever else the machine does in one of the measurements, it does not in all.
    times = ((diagnosis_s(ROWS // LONGER, columns), diagnosis_s(ROWS, columns)) for _ in range(4))
    assert any(longer < MOST_LONGER * short for short, longer in times)


@pytest.mark.parametrize("filling", ["1", "1,", "9.", "time ", "[1/"])
def test_a_line_without_end_is_read_in_linear_time(tmp_path: Path, filling: str) -> None:
    line = "step 5 loss 1.0 " + filling * 40_000
    path = tmp_path / "long.log"
    path.write_text("\n".join([line] * 100))
    with clocked(LONG_S):
        read_training_log(path)


def test_of_many_runs_each_is_kept_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.log"
    path.write_text("step 0 loss 4\nstep 1 loss 3\nstep 2 loss 2\n" * 300)
    trace = read_training_log(path)
    assert len(trace.earlier_runs) == 299
    assert not any(run.earlier_runs for run in trace.earlier_runs)
