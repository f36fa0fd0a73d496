"""The columns of a study's tables, and how tables are written and read. Rows as a whole are results.ranking's."""

import errno
import hashlib
import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from results.study.atomic import write_atomic
from results.study.paths import shown
from results.study.planned_run import Row
from spaces.warmup import WARMUP_FRAC
from trainable.config import HYPERPARAMETERS, TrialConfig, config_from
from trainable.errors import UserError, reason
from trainable.regular_files import MAX_FILE_BYTES, file_type, read_regular
from trainable.rows import MetricsRow, Purpose, StepColumns, StepRow, TrialStatus

_TIME = pa.timestamp("us", tz="UTC")
_TIMES_US = tuple(int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000 for year in (1970, 9999))
_ARROW_TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}


def _column(name: str, kind: Any) -> Any:
    return pa.field(name, kind, nullable=False)


def _columns(cls: type, *nullable: str, without: Sequence[str] = ()) -> list[Any]:
    kinds = [(name, kind) for name, kind in get_type_hints(cls).items() if name not in without]
    return [pa.field(name, _ARROW_TYPES[kind], nullable=name in nullable) for name, kind in kinds]


TRIALS = pa.schema(
    [
        _column("trial_id", pa.int64()),
        _column("purpose", pa.string()),
        _column("is_baseline", pa.bool_()),
        ("of_trial", pa.int64()),
        ("attempt", pa.int64()),
        ("combination", pa.string()),
        _column("status", pa.string()),
        ("verdict", pa.string()),
        ("point", pa.string()),
        *_columns(TrialConfig),
        ("val_loss", pa.float64()),
        ("best_val_loss", pa.float64()),
        ("end_loss", pa.float64()),
        _column("tokens_seen", pa.int64()),
        _column("optimizer_steps", pa.int64()),
        _column("active_s", pa.float64()),
        ("tokens_per_s", pa.float64()),
        ("rung", pa.int64()),
        ("started_at", _TIME),
        ("ended_at", _TIME),
    ]
)
"""trials.parquet: a row per run.

is_baseline: true for the one row that the study's trials are compared with.
of_trial, attempt: of a confirmation run, the trial whose configuration it repeats, and the attempt, from 1.
combination: of an attribution run, the changes made, joined by +. point: the searcher's proposal as JSON.
val_loss: of the last evaluation; null for an unstable trial, whose evaluations came before it went wrong.
end_loss: an unstable trial's training loss at the step that ended it; null where that was not finite.
"""

METRICS = pa.schema(
    [
        _column("trial_id", pa.int64()),
        *_columns(MetricsRow, "val_loss", "train_loss", "grad_norm", "tokens_per_s", without=["part_losses"]),
    ]
)
"""metrics.parquet: a row per evaluation; null in place of infinite or NaN."""

STEPS = pa.schema(_columns(StepRow))
"""steps/TRIAL.parquet: a row per optimizer step; a loss or norm may be infinite or NaN."""

MARK = b"gpt2-search sha256 "
"""Comes before the checksum, and nowhere else in a file."""
_TAIL_BYTES = 8
"""The footer's length in four bytes, then PAR1."""
MAX_ROWS = 5_000_000
MAX_MEASURED = 1e39
"""Above fp32's largest number, 3.4e38: no measurement is as large, and sums and axes of such values overflow."""
BATCH_ROWS = 4096


class DamagedTableError(UserError):
    """A table that is cut short or has changed since it was written."""


def write_table(path: Path, rows: Sequence[Row] | StepColumns, schema: Any) -> None:
    """Write `rows` as the Parquet file `path` (zstd), atomically; the old file stays as `.NAME.previous`.

    Raises OSError with the table unchanged.
    """
    if isinstance(rows, dict):
        table = pa.table(rows, schema=schema)
    else:
        names = set(schema.names)
        for row in rows:
            assert row.keys() == names, f"{path.name}: {sorted(row.keys() ^ names)}"
        table = pa.Table.from_pylist(rows, schema=schema)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    data = guarded(sink.getvalue().to_pybytes())
    previous = previous_path(path)
    # Where the file system has no hard links, or is full, the table is written without a copy.
    with suppress(OSError):
        if path.exists():
            previous.unlink(missing_ok=True)
            previous.hardlink_to(path)
    write_atomic(path, data)


def guarded(parquet: bytes) -> bytes:
    """Return the Parquet file with a checksum right before its footer, in bytes that no page refers to.

    It covers the whole file. Parquet's own cover only the pages: a changed footer reads as other rows.
    """
    footer_at = _footer_at(parquet)
    return parquet[:footer_at] + MARK + hashlib.sha256(parquet).digest() + parquet[footer_at:]


def check_guard(data: bytes) -> None:
    """Raise ValueError when a guarded Parquet file has changed; a file without a checksum passes."""
    mark_at = data.rfind(MARK)
    if mark_at < 0:
        return
    digest_at = mark_at + len(MARK)
    footer_at = digest_at + hashlib.sha256().digest_size
    digest = hashlib.sha256(data[:mark_at] + data[footer_at:]).digest()
    if footer_at != _footer_at(data) or digest != data[digest_at:footer_at]:
        raise ValueError("checksum mismatch")


def _footer_at(data: bytes) -> int:
    return len(data) - _TAIL_BYTES - int.from_bytes(data[-_TAIL_BYTES:-4], "little")


def read_table(path: Path, schema: Any) -> Any:
    """Return a Parquet file's columns of `schema` as an Arrow table.

    Raises UserError when it is missing, damaged, not Parquet, lacks a column of `schema`, or has values that no study
    writes.
    """
    damaged = "{}: not a whole Parquet table ({}). Restore it, or move its study away."
    try:
        data = read_regular(path)
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: there is no such table.") from None
    except OSError as err:
        kind = DamagedTableError if err.errno == errno.EIO else UserError
        raise kind(damaged.format(shown(path), reason(err))) from None
    try:
        check_guard(data)
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            schema_found = file.schema_arrow
            for wanted in schema:
                once = schema_found.names.count(wanted.name) == 1
                found = schema_found.field(wanted.name).type if once else None
                if found != wanted.type:
                    raise UserError(
                        f"{shown(path)}: column '{wanted.name}' is {found or 'missing'}, not {wanted.type}: "
                        "it is not a study's table, or another version wrote it."
                    )
            table = _unpacked(file, schema.names)
    except (pa.ArrowException, OSError, ValueError) as err:
        if isinstance(err, UserError):
            raise
        raise DamagedTableError(damaged.format(shown(path), reason(err))) from None
    if (fault := _fault(table, schema)) is not None:
        raise _changed(path, fault)
    return table


def _unpacked(file: Any, names: Sequence[str]) -> Any:
    """Return the columns of a Parquet file. Raises ValueError where they are larger than any study's."""
    large = f"it unpacks to more than the {MAX_FILE_BYTES >> 20} MiB of any study's table"
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    if file.metadata.num_rows > MAX_ROWS or sum(group.total_byte_size for group in groups) > MAX_FILE_BYTES:
        raise ValueError(large)
    batches, size_bytes = [], 0
    # Batch by batch, because a long text that every row refers to is small in the file, whatever its footer says.
    # Without threads: Arrow's can outlive a short command and then abort its exit.
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=names, use_threads=False):
        batches.append(batch)
        size_bytes += batch.nbytes
        if size_bytes > MAX_FILE_BYTES:
            raise ValueError(large)
    return pa.Table.from_batches(batches, pa.schema([file.schema_arrow.field(name) for name in names]))


def read_rows(path: Path, schema: Any) -> list[Row]:
    """Return the rows of a Parquet file. Raises UserError as read_table does, and for a trial that cannot be."""
    rows = _rows(read_table(path, schema))
    if schema is TRIALS and (fault := _fault_of_trials(rows)) is not None:
        raise _changed(path, fault)
    return rows


def _changed(path: Path, fault: str) -> UserError:
    return UserError(f"{shown(path)}: {fault}. It was changed since it was written: restore it.")


def _fault(table: Any, schema: Any) -> str | None:
    for column in schema:
        values = table[column.name]
        if values.null_count and not column.nullable:
            return f"a row has no {column.name}"
        if pa.types.is_integer(column.type) and (least := pc.min(values).as_py()) is not None and least < 0:
            return f"a row has {column.name}={least}"
        # A step's loss may be infinite: the trace has to show it.
        if pa.types.is_floating(column.type) and schema is not STEPS and pc.all(pc.is_finite(values)).as_py() is False:
            return f"a row has a non-finite {column.name}"
        finite = values.filter(pc.is_finite(values)) if pa.types.is_floating(column.type) else None
        if finite is not None and not _is_between(finite, -MAX_MEASURED, MAX_MEASURED):
            return f"a row has a {column.name} beyond {MAX_MEASURED:g}"
        # Python's dates end with the year 9999, in some time zones hours earlier.
        if column.type == _TIME and not _is_between(values.cast(pa.int64()), *_TIMES_US):
            return f"a row has a {column.name} before 1970 or after 9998"
    return None


def _is_between(values: Any, least: float, most: float) -> bool:
    found = pc.min_max(values).as_py()
    return found["min"] is None or (least <= found["min"] and found["max"] <= most)


def _fault_of_trials(rows: Sequence[Row]) -> str | None:
    for row in rows:
        for name, known in (("status", get_args(TrialStatus)), ("purpose", get_args(Purpose))):
            if row[name] not in known:
                return f"trial {row['trial_id']} has {name}={row[name]!r}"
        try:
            config_from(row)
        except UserError as refusal:
            return f"trial {row['trial_id']}: {refusal}"
        if row["point"] is not None and not _is_point(row["point"]):
            return f"trial {row['trial_id']} has a point that is not a JSON object of hyperparameters"
    if len({row["trial_id"] for row in rows}) < len(rows):
        return "two rows have the same trial_id"
    return "two rows are the baseline" if sum(row["is_baseline"] for row in rows) > 1 else None


def _is_point(text: str) -> bool:
    try:
        point = json.loads(text)
    except (ValueError, RecursionError):
        return False
    known = {*HYPERPARAMETERS, WARMUP_FRAC}
    return isinstance(point, dict) and not any(
        name not in known or isinstance(value, (dict, list)) for name, value in point.items()
    )


def read_rows_or_previous(path: Path, schema: Any) -> tuple[list[Row], str | None]:
    """Return the rows as read_rows does; of a damaged or missing table the previous copy's, with a note about it.

    The copy takes the table's place, and a damaged table stays as NAME.damaged. Raises UserError where the copy is not
    whole either, and OSError.
    """
    previous = previous_path(path)
    try:
        return read_rows(path, schema), None
    except UserError as error:
        damaged = isinstance(error, DamagedTableError)
        if file_type(previous) is None or (file_type(path) is not None and not damaged):
            raise
        refusal = error
    try:
        rows = read_rows(previous, schema)
    except UserError:
        raise refusal from None
    if damaged:
        path.replace(path.with_name(f"{path.name}.damaged"))
    write_atomic(path, read_regular(previous))
    moved = f"is damaged and now {path.name}.damaged" if damaged else "is missing"
    return rows, f"{shown(path)} {moved}; its previous copy took its place: what was written last is lost"


def previous_path(path: Path) -> Path:
    """Return where the copy is that the last write_table of `path` replaced."""
    return path.with_name(f".{path.name}.previous")


def _rows(table: Any) -> list[Row]:
    # Cast to naive times first: for aware ones Arrow needs a time-zone database, which a bare container lacks.
    times = [field.name for field in table.schema if field.type == _TIME]
    for name in times:
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.timestamp("us")))
    rows: list[Row] = table.to_pylist()
    for row in rows:
        row.update({name: row[name].replace(tzinfo=UTC) for name in times if row[name] is not None})
    return rows
