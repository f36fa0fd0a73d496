"""A training log of any format read into a RunTrace, a text log in bounded memory. What a line says is in lines.py."""

import codecs
import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from results.diagnosis.logs.event_file import event_rows, is_event_file
from results.diagnosis.logs.hints import MAX_DIGITS, read_hints
from results.diagnosis.logs.lines import (
    EPOCH_HEADER,
    LogRow,
    read_heading,
    read_line,
    read_summary,
    with_decimal_points,
)
from results.diagnosis.logs.log_documents import json_line, json_rows, table_header, table_rows
from results.diagnosis.logs.runs import (
    are_mixed,
    drop_carried,
    drop_cut_numbers,
    drop_placeholders,
    in_nats,
    is_same,
    number_rows,
    runs_of,
    step_of,
)
from results.diagnosis.logs.speed import step_times
from results.diagnosis.trace import RunTrace, Unit
from results.study.paths import shown
from trainable.errors import UserError

CHUNK_BYTES = 1 << 20
MAX_LINE_BYTES = 1 << 16
MAX_ROWS = 50_000
"""Rows kept without a validation loss, and as many with one; of more an even sample is."""
HINT_LINES = 5000
"""Lines outside the table that are searched for the configuration."""

EXAMPLE = "step 500/5000 (10.0%): train loss 6.9544, val loss 7.1291 | LR: 2.00e-05 | 480.9s (1.04 steps/sec)"

FORMATS = (
    "nanoGPT's, Hugging Face's and mlx-lm's too; trainer_state.json, JSON lines, tables of Lightning, W&B and "
    "TensorBoard as CSV, TensorBoard's event files"
)
LOG_NAMES = ("metrics.csv", "*tfevents*", "trainer_state.json", "*.log")
"""What loggers call their files in a folder of their own, the surest first."""
HEAD_BYTES = 1 << 14
MAX_DOCUMENT_BYTES = 1 << 28
"""A JSON document or a table is held whole; a larger one is read as lines."""
_RANK = re.compile(rb"\W{0,2}(?:default|(?:global[_ ]?|local[_ ]?)?rank)[ _:=]?(\d+)\b", re.I)
"""torchrun's prefix: each process says the same."""

_TELLING = re.compile(rb"(?<![a-zA-Z])(?:[eE]?[vV]al(?!ue)|E?VAL(?!UE)|(?:nan|NaN|NAN|[iI]nf(?:inity)?)\b(?! iter))")
"""What is read of every line, however long the log: evaluations, and losses that are not finite."""
_HASH = 2_654_435_761  # Knuth's multiplicative hash: an even sample without the log's own rhythm
_OWN = ("line", "run", "step", "is_bar", "iteration", "after_restart", "at_line_end")
_MERGED = [field.name for field in fields(LogRow) if field.name not in _OWN]
_REPEATS = re.compile(rb"\s*wandb:")
"""W&B's summary at the end: the last values once more, rounded."""
_SECOND_RUN = "after the run's last line another one begins, whose rows name no steps: it was not read"
_ERROR = re.compile(
    rb"(?:\[rank\d+\]: *)?[\w.]*(?:Error|Exception|Interrupt)(?::.{0,120}(?!\w)|\s*$)"
    rb"|.{0,60}(?:\bKilled\b|Segmentation fault|\(core dumped\))|slurmstepd: error: .{0,120}"
)
_TROUBLE = re.compile(rb"Error|Exception|Interrupt|Killed|Segmentation|dumped|slurmstepd")


def read_training_log(path: Path) -> RunTrace:
    """Return the last run in a log file (plain or .gz), the runs before it in earlier_runs.

    Raises UserError for a file that cannot be read or has no line that looks like a training log's.
    """
    where = f"TARGET={shown(path)}"
    reader = _Reader(path.name)
    try:
        _read(path, reader)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or "a damaged .gz file"
        if not reader.rows.items and not reader.evaluations.items:
            raise UserError(f"{where} cannot be read: {reason}. Name a text log.") from None
        reader.notes.append(f"the file could be read only in part: {reason}")
    rows = reader.finish()
    if not any(row.has_loss for row in rows) and len(rows) < 2:
        raise UserError(
            f"{where} has no line of a training log. Read are lines with a step and a loss, key and value in any order "
            f"({FORMATS}), for example: {EXAMPLE}"
        )
    *before, last = runs_of(rows)
    earlier = tuple(_trace(shown(path), run, reader) for run in before)
    return _trace(shown(path), last, reader, earlier=earlier)


def log_in(folder: Path) -> Path:
    """Return the log of a logger's folder, or of its runs' (the newest); the folder where it holds none."""
    # Not of any name one deeper.
    for pattern in (*LOG_NAMES, *(f"*/{name}" for name in LOG_NAMES[:-1])):
        logs = sorted(filter(Path.is_file, folder.glob(pattern)), key=lambda path: (path.stat().st_mtime, path.name))
        if logs:
            return logs[-1]
    return folder


def _read(path: Path, reader: "_Reader") -> None:
    head = b""
    with _open(path) as file, suppress(EOFError, zlib.error):
        # Of a damaged .gz there is no head: its lines are read as far as they go.
        head = file.read(HEAD_BYTES)
    with _open(path) as file:
        if is_event_file(head):
            for row in event_rows(file, reader.notes):
                reader.add_row(row)
        elif path.stat().st_size > MAX_DOCUMENT_BYTES or not _read_document(file, head, path.name, reader):
            file.seek(0)
            for line, is_whole in _lines(file):
                reader.add(line, is_whole=is_whole)


def _read_document(file: BinaryIO, head: bytes, name: str, reader: "_Reader") -> bool:
    """Read a JSON document or a table into `reader`; False where the file is none."""
    # TensorBoard's exports: run-NAME-tag-train_loss.csv or .json.
    metric = Path(name.removesuffix(".gz")).stem.rpartition("tag-")[2]
    if head.lstrip()[:1] in (b"{", b"["):
        found = json_rows(file.read().decode("utf-8-sig", "replace"), metric)
        if found:
            rows, announced = found
            reader.announced.update(announced)
            for row in rows:
                reader.add_row(row)
        return found is not None
    header = table_header(head.decode("utf-8-sig", "replace"), metric)
    if header is None:
        return False
    rows = list(table_rows(file.read().decode("utf-8-sig", "replace"), header))
    for row in rows:
        reader.add_row(row)
    return bool(rows)


def _open(path: Path) -> BinaryIO:
    with path.open("rb") as file:
        head = file.read(2)
    if head in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        # What PowerShell's > writes.
        return cast(BinaryIO, codecs.EncodedFile(path.open("rb"), "utf-8", "utf-16", errors="replace"))
    return cast(BinaryIO, gzip.open(path, "rb")) if head == b"\x1f\x8b" else path.open("rb")


def _lines(file: BinaryIO) -> Iterator[tuple[bytes, bool]]:
    """Yield the lines, split at \\n and \\r, and whether each is ended; of an endless one the head is kept."""
    head = b""
    # read would swallow what a damaged .gz still yields; a recoder lends its raw file's read1.
    read = file.read if isinstance(file, codecs.StreamRecoder) else cast(BufferedReader, file).read1
    while chunk := read(CHUNK_BYTES):
        parts = (head + chunk).splitlines(keepends=True)
        head = b"" if parts[-1][-1:] in b"\r\n" else parts.pop()[:MAX_LINE_BYTES]
        for part in parts:
            yield part, True
    if head:
        yield head, False


class _Sample:
    """At most MAX_ROWS of the rows added, evenly: twice as thin whenever full."""

    def __init__(self) -> None:
        self.items: list[LogRow] = []
        self.stride = 1

    def takes(self, line: int) -> bool:
        # Nested: what is kept at a stride was kept at the one before.
        return (line * _HASH & 0xFFFFFFFF) * self.stride < 1 << 32

    def add(self, row: LogRow) -> None:
        self.items.append(row)
        if len(self.items) >= MAX_ROWS:
            self.stride *= 2
            self.items = [row for row in self.items if self.takes(row.line)]


class _Reader:
    """Rows as they come, those of one step merged."""

    def __init__(self, name: str) -> None:
        self.rows, self.evaluations = _Sample(), _Sample()
        self.announced: dict[str, str] = read_hints(name.encode("utf-8", "replace"), is_name=True)
        self.notes: list[str] = []
        self.total_steps: int | None = None
        self.unit: Unit = "step"
        self._line = 0
        self._rank: bytes | None = None
        self._other_lines = 0
        self._open_row: LogRow | None = None
        self._last_step: int | None = None
        self._epoch: float | None = None
        self._bar: LogRow | None = None
        self._bar_total: int | None = None
        self._is_cleared = False
        self._written: LogRow | None = None
        self._heading: int | None = None
        self._names_both = False
        self._last_val: float | None = None
        self._is_over = False
        self._overflow_lines = 0
        self._resumes = False
        self._error = ""

    def add(self, line: bytes, *, is_whole: bool) -> None:
        self._line += 1
        if self.rows.stride > 1 and not self.rows.takes(self._line) and not _TELLING.search(line):
            return
        rank = _RANK.match(line)
        if rank:
            number = rank[1].lstrip(b"0")
            self._rank = number if self._rank is None else self._rank
            if number != self._rank:
                return
        line = with_decimal_points(line)
        # Spaces clear a bar.
        is_cleared, self._is_cleared = self._is_cleared, line.isspace() and len(line) > 10
        step = self._heading if line[:1] in b" \t" else None
        row = json_line(line) or read_line(line, step=step)
        if row is None:
            self._read_other(line)
            return
        if _REPEATS.match(line) or (self._is_over and row.step is None):
            if row.learning_rate is not None and _SECOND_RUN not in self.notes:
                self.notes.append(_SECOND_RUN)
            return
        self._is_over = False
        is_bar = row.is_bar and not row.has_loss
        if is_bar and row.total_steps != self._bar_total:
            self._bar = row
            return
        self._place_written(row.step if is_bar else None)
        if is_bar:
            self._bar = row
        elif row.step is None and is_cleared and self._bar and (self._bar_total or row.train_loss is not None):
            self._bar_total = self._bar_total or self._bar.total_steps
            self._written = row
            return
        if not is_whole and row.at_line_end:
            setattr(row, row.at_line_end, None)
            self.notes.append("the last line has no line end: its last number may be cut short, and is left out")
        self._place(row)

    def _place_written(self, step: int | None) -> None:
        # tqdm redraws its bar seldom, but always behind what is written over it: that bar has the step.
        row, self._written = self._written, None
        if row is not None:
            row.step = step if (step or 0) >= (self._last_step or 0) else None
            self._place(row)

    def add_row(self, row: LogRow) -> None:
        """Take a row of a document, as `add` takes a line."""
        self._line += 1
        if self.rows.stride == 1 or self.rows.takes(self._line) or row.val_loss is not None:
            self._place(row)

    def _place(self, row: LogRow) -> None:
        row.line = self._line
        if row.has_loss:
            row.after_restart, self._resumes, self._error = self._resumes, False, ""
        if row.iteration is not None and row.step is not None:
            self._names_both |= row.iteration != row.step
            if self._names_both and row.iteration == row.step:
                # "iter 400: val loss 3.29" where other lines say "iter 400 step 100".
                row.step = self._last_step
        bar = self._bar
        if row.step is None and bar and bar.total_steps != self._bar_total:
            # The bar above a training loss is the training loop's; an evaluation before it is of step 0.
            if row.train_loss is not None:
                self._bar_total = bar.total_steps
                bar.line = self._line
                self._merge(bar)
                self._last_step = bar.step
            elif self._last_step is None:
                row.step = 0
        if row.step is None:
            # "val loss 3.29" on a line of its own, or a Trainer's between its bars, belongs to the step before it.
            row.step, before = self._last_step, self._open_row
            if before and before.step == row.step is not None and row.epoch is None and before.train_loss is not None:
                # "saved checkpoint-10 loss=0.5" says no other loss than the step's own line.
                row.train_loss = None
        self._last_step = row.step
        row.epoch = self._epoch if row.epoch is None else row.epoch
        self._merge(row)

    def finish(self) -> list[LogRow]:
        self._place_written(None)
        self._close()
        rows = sorted([*self.rows.items, *self.evaluations.items], key=lambda row: row.line)
        drop_cut_numbers(rows)
        in_nats(rows, self.notes)
        drop_placeholders(rows)
        drop_carried(rows)
        self.unit = number_rows(rows, self.total_steps, self.announced, self.notes)
        if are_mixed(rows):
            rows = _in_order(rows)
            self.notes.append("lines of several processes stand mixed: of each step the first that it printed is read")
        if self._error:
            self.announced["error"] = self._error
        if self._overflow_lines:
            self.announced["overflows"] = str(self._overflow_lines)
        if self.rows.stride > 1:
            self.notes.append(
                f"a long log: of lines without a validation loss about one in {self.rows.stride} was read"
            )
        return rows

    def _merge(self, row: LogRow) -> None:
        before = self._open_row
        same = (
            before is not None
            and (before.step, before.run) == (row.step, row.run)
            and (row.step is not None or before.epoch == row.epoch)
        )
        if before is not None and not is_same(before.val_loss, row.val_loss):
            if same and before.val_loss == self._last_val:
                # The step's own evaluation comes after a line that repeats the one before.
                before.val_loss = None
            else:
                # Evaluated again: the run was resumed at that step.
                same = False
        same = same and not row.after_restart
        if before is not None and same and (before.train_loss is None or row.train_loss is None or before.val_loss):
            _fill(before, row)
            return
        self._close()
        if before is not None and same:
            # The same step once more (by another of the log's lines, by a micro-batch): it adds what it has.
            _fill(row, before)
        self._open_row = row

    def _close(self) -> None:
        row, self._open_row = self._open_row, None
        if row is not None:
            self._last_val = self._last_val if row.val_loss is None else row.val_loss
            is_kept = row.val_loss is not None or (row.train_loss is not None and row.train_loss - row.train_loss != 0)
            (self.evaluations if is_kept else self.rows).add(row)

    def _read_other(self, line: bytes) -> None:
        header = EPOCH_HEADER.match(line)
        if header and len(header[1]) <= MAX_DIGITS:
            self._epoch = float(header[1])
        if line[:1] not in b" \t":
            self._heading = read_heading(line)
            self._last_step = self._last_step if self._heading is None else self._heading
        error = _ERROR.match(line) if _TROUBLE.search(line) else None
        self._error = error[0].decode("utf-8", "replace").strip() if error else self._error
        self._overflow_lines += b"verflow" in line or b"VERFLOW" in line
        self._other_lines += 1
        if self._other_lines > HINT_LINES:
            return
        total = read_summary(line)
        if total:
            # A Trainer goes on to print what it said once more, and means over the whole run.
            self.total_steps, self._is_over = total, True
        for name, value in read_hints(line[:2000]).items():
            if name == "resumed" and self._last_step is not None:
                self._resumes = True
                continue
            if (name, value) == ("pretrained", "no"):
                # A tokenizer or a file's name may sound of a pretrained model; that it began random is said on purpose.
                self.announced[name] = value
            self.announced.setdefault(name, value)


def _in_order(rows: list[LogRow]) -> list[LogRow]:
    by_step: dict[int, LogRow] = {}
    for row in sorted(rows, key=step_of):
        _fill(by_step.setdefault(step_of(row), row), row)
    return list(by_step.values())


def _fill(row: LogRow, other: LogRow) -> None:
    for name in _MERGED:
        if getattr(row, name) is None:
            setattr(row, name, getattr(other, name))


def _trace(
    source: str, segments: list[list[LogRow]], reader: _Reader, *, earlier: tuple[RunTrace, ...] = ()
) -> RunTrace:
    table: dict[int, LogRow] = {}
    step_time_s: dict[int, float] = {}
    printed_speed = "momentary"
    for segment in segments:
        start = step_of(segment[0])
        # What a restart passes again replaces what it lost; the table's steps rise.
        while table and next(reversed(table)) >= start:
            lost, _ = table.popitem()
            step_time_s.pop(lost, None)
        for row in segment:
            table[step_of(row)] = row
        # A row stands for an unknown number of steps: no time of a step comes out of two.
        samples, speed = step_times(segment) if reader.unit == "step" else ([], printed_speed)
        printed_speed = printed_speed if speed == "momentary" else speed
        step_time_s.update(samples)
    steps = sorted(table.keys() | step_time_s.keys())
    found = [table.get(step, LogRow()) for step in steps]
    totals = [row.total_steps for row in found if row.total_steps]
    announced_total = int(reader.announced.get("total_steps", 0))
    total_steps = max([*totals[-1:], reader.total_steps or 0]) or announced_total
    notes, announced = list(reader.notes), dict(reader.announced)
    if total_steps and steps[-1] > total_steps and reader.unit == "step":
        if steps[0] > 0:
            announced["resumed"] = "yes"
        notes.append(
            f"the steps go on to {steps[-1]}, past the {total_steps} that were set: a resumed run, which counts on "
            "from its checkpoint's step"
        )
    announced["printed_speed"] = printed_speed
    return RunTrace(
        source=source,
        run=segments[0][0].run,
        origin="log",
        unit=reader.unit,
        steps=tuple(steps),
        train_loss=tuple(row.train_loss for row in found),
        val_loss=tuple(row.val_loss for row in found),
        grad_norm=tuple(row.grad_norm for row in found),
        learning_rate=tuple(row.learning_rate for row in found),
        step_time_s=tuple(step_time_s.get(step) for step in steps),
        printed_steps_per_s=tuple(row.steps_per_s for row in found),
        total_steps=total_steps if total_steps and total_steps >= steps[-1] and reader.unit == "step" else None,
        restarts=tuple(step_of(segment[0]) for segment in segments[1:]),
        earlier_runs=earlier,
        announced=announced,
        notes=tuple(dict.fromkeys(notes)),
    )
