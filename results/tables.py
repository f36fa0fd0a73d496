"""The columns of a study's tables, and the one way they are written and read. Not what the rows mean together."""

from collections.abc import Sequence
from datetime import UTC
from pathlib import Path
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.parquet as pq

from results.atomic import write_atomic
from results.paths import shown
from trainable.config import TrialConfig
from trainable.errors import UserError
from trainable.rows import MetricsRow, StepRow

Row = dict[str, Any]
"""A table's row: value by column name; null is None, a time is aware and in UTC."""

_TIME = pa.timestamp("us", tz="UTC")
_ARROW_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string()}


def _columns(cls: type) -> list[tuple[str, Any]]:
    return [(name, _ARROW_TYPES[kind]) for name, kind in get_type_hints(cls).items()]


TRIALS = pa.schema(
    [
        ("trial_id", pa.int64()),
        ("is_baseline", pa.bool_()),
        ("status", pa.string()),
        ("verdict", pa.string()),
        *_columns(TrialConfig),
        ("val_loss", pa.float64()),
        ("best_val_loss", pa.float64()),
        ("tokens_seen", pa.int64()),
        ("optimizer_steps", pa.int64()),
        ("active_s", pa.float64()),
        ("tokens_per_s", pa.float64()),
        ("rung", pa.int64()),
        ("started_at", _TIME),
        ("ended_at", _TIME),
    ]
)
"""trials.parquet: a row per trial; trial 0 is the baseline."""

METRICS = pa.schema([("trial_id", pa.int64()), *_columns(MetricsRow)])
"""metrics.parquet: a row per evaluation."""

STEPS = pa.schema(_columns(StepRow))
"""steps/TRIAL.parquet: a row per optimizer step, as measured: a loss or norm may be infinite or NaN."""


def write_table(path: Path, rows: Sequence[Row], schema: Any) -> None:
    """Write `rows` as the Parquet file `path` (zstd), atomically. Raises OSError."""
    names = set(schema.names)
    for row in rows:
        assert row.keys() == names, f"{path.name}: {sorted(row.keys() ^ names)}"
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="zstd")
    write_atomic(path, sink.getvalue().to_pybytes())


def read_rows(path: Path, schema: Any = None) -> list[Row]:
    """Return the rows of a Parquet file, in its order.

    Raises UserError when it is missing, cut short, not Parquet, or lacks a column of `schema`.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
    except FileNotFoundError:
        raise UserError(f"{shown(path)}: there is no such table.") from None
    except (pa.ArrowException, OSError) as err:
        reason = " ".join(str(err).split())
        raise UserError(
            f"{shown(path)}: not a whole Parquet table ({reason}). Restore it, or move its study away."
        ) from None
    for wanted in schema or ():
        found = table.schema.field(wanted.name).type if wanted.name in table.column_names else None
        if found != wanted.type:
            raise UserError(
                f"{shown(path)}: column '{wanted.name}' is {found or 'missing'}, not {wanted.type}: "
                "it is not a study's table, or another version wrote it."
            )
    return _rows(table)


def _rows(table: Any) -> list[Row]:
    # Cast first: to turn an aware time into Python's, Arrow wants a time-zone database, which a bare container lacks.
    times = [field.name for field in table.schema if field.type == _TIME]
    for name in times:
        table = table.set_column(table.column_names.index(name), name, table[name].cast(pa.timestamp("us")))
    rows: list[Row] = table.to_pylist()
    for row in rows:
        row.update({name: row[name].replace(tzinfo=UTC) for name in times if row[name] is not None})
    return rows
