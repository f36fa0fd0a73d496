"""The columns are the design's, and a table comes back as it was written, here, in pandas and in DuckDB."""

import math
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from results.tables import METRICS, STEPS, TRIALS, read_rows, write_table
from trainable.errors import UserError
from trainable.rows import StepRow

MakeTrial = Callable[..., dict[str, Any]]
NOON = datetime(2025, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)


def test_the_columns_are_the_designs() -> None:
    assert " ".join(TRIALS.names) == (
        "trial_id is_baseline status verdict "
        "batch_size block_size grad_accum_steps learning_rate lr_schedule warmup_steps min_lr_frac decay_frac "
        "training_steps grad_clip_norm weight_decay dropout precision seed "
        "val_loss best_val_loss tokens_seen optimizer_steps active_s tokens_per_s rung started_at ended_at"
    )
    assert " ".join(METRICS.names) == (
        "trial_id tokens_seen optimizer_steps val_loss train_loss grad_norm learning_rate tokens_per_s active_s"
    )
    assert " ".join(STEPS.names) == "optimizer_steps tokens_seen train_loss grad_norm learning_rate step_time_s"


def test_each_column_has_its_own_type() -> None:
    types = {name: str(TRIALS.field(name).type) for name in ("trial_id", "is_baseline", "batch_size", "learning_rate")}
    assert types == {"trial_id": "int64", "is_baseline": "bool", "batch_size": "int64", "learning_rate": "double"}
    assert str(TRIALS.field("lr_schedule").type) == "string"
    assert str(TRIALS.field("ended_at").type) == "timestamp[us, tz=UTC]"
    assert str(METRICS.field("optimizer_steps").type) == "int64"


def test_rows_come_back_exactly(tmp_path: Path, make_trial: MakeTrial) -> None:
    rows = [
        make_trial(0, val_loss=0.1 + 0.2, started_at=NOON, ended_at=NOON, rung=2, learning_rate=1e-5),
        make_trial(1, "running", started_at=NOON),
    ]
    write_table(tmp_path / "trials.parquet", rows, TRIALS)
    assert read_rows(tmp_path / "trials.parquet") == rows
    assert read_rows(tmp_path / "trials.parquet", TRIALS) == rows
    assert pq.ParquetFile(tmp_path / "trials.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


def test_no_rows_are_a_table_too(tmp_path: Path) -> None:
    write_table(tmp_path / "metrics.parquet", [], METRICS)
    assert read_rows(tmp_path / "metrics.parquet", METRICS) == []


def test_steps_keep_what_was_measured(tmp_path: Path) -> None:
    row = StepRow(
        optimizer_steps=1,
        tokens_seen=4096,
        train_loss=math.inf,
        grad_norm=math.nan,
        learning_rate=1e-5,
        step_time_s=0.25,
    )
    write_table(tmp_path / "7.parquet", [asdict(row)], STEPS)
    (back,) = read_rows(tmp_path / "7.parquet", STEPS)
    assert back["train_loss"] == math.inf
    assert math.isnan(back["grad_norm"])
    assert StepRow(**{**back, "grad_norm": 1.0}).step_time_s == 0.25


def test_a_row_with_other_columns_is_our_bug(tmp_path: Path, make_trial: MakeTrial) -> None:
    with pytest.raises(AssertionError, match="val_los"):
        write_table(tmp_path / "trials.parquet", [make_trial(0, val_los=1.0)], TRIALS)
    assert list(tmp_path.iterdir()) == []


def test_pandas_reads_it(tmp_path: Path, make_trial: MakeTrial) -> None:
    write_table(tmp_path / "trials.parquet", [make_trial(0, val_loss=4.5, started_at=NOON), make_trial(1)], TRIALS)
    frame = pd.read_parquet(tmp_path / "trials.parquet")
    assert list(frame.columns) == TRIALS.names
    assert frame["val_loss"].isna().tolist() == [False, True]
    assert frame["batch_size"].dtype == "int64"
    assert frame["tokens_seen"].dtype == "int64"
    assert frame["started_at"][0] == NOON


def test_duckdb_reads_it_and_a_null_loss_is_not_ranked(tmp_path: Path, make_trial: MakeTrial) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, [make_trial(0, val_loss=4.5, started_at=NOON), make_trial(1, "unstable")], TRIALS)
    assert duckdb.sql(f"select trial_id, status, started_at from '{path}' where val_loss < 5").fetchall() == [
        (0, "completed", NOON)
    ]
    assert duckdb.sql(f"select max(val_loss), count(*), count(val_loss) from '{path}'").fetchall() == [(4.5, 2, 1)]


@pytest.mark.parametrize("kept", [0, 3, 100, -1, -9])
def test_a_truncated_table_is_one_line_that_names_it(tmp_path: Path, make_trial: MakeTrial, kept: int) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, [make_trial(0)], TRIALS)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"trials\.parquet: not a whole Parquet table") as caught:
        read_rows(path)
    assert "\n" not in str(caught.value)


def test_damaged_pages_under_a_whole_footer_are_seen(tmp_path: Path, make_trial: MakeTrial) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, [make_trial(n, val_loss=n / 7) for n in range(200)], TRIALS)
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"trials\.parquet: not a whole Parquet table"):
        read_rows(path)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "trials.parquet").write_text("trial_id,val_loss\n0,4.5\n")
    with pytest.raises(UserError, match="not a whole Parquet table"):
        read_rows(tmp_path / "trials.parquet")
    with pytest.raises(UserError, match="there is no such table"):
        read_rows(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="not a whole Parquet table"):
        read_rows(tmp_path)


def test_anothers_columns_are_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"trial_id": ["0"]}), tmp_path / "trials.parquet")
    assert read_rows(tmp_path / "trials.parquet") == [{"trial_id": "0"}]
    with pytest.raises(UserError, match=r"trials\.parquet: column 'trial_id' is string, not int64"):
        read_rows(tmp_path / "trials.parquet", TRIALS)
    pq.write_table(pa.table({"trial_id": [0]}), tmp_path / "trials.parquet")
    with pytest.raises(UserError, match="column 'is_baseline' is missing, not bool"):
        read_rows(tmp_path / "trials.parquet", TRIALS)
