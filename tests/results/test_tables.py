"""The columns are the design's, and a table comes back as it was written, here, in pandas and in DuckDB."""

import errno
import math
import os
import random
import subprocess
import sys
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

from results.study import tables
from results.study.tables import (
    MARK,
    METRICS,
    STEPS,
    TRIALS,
    DamagedTableError,
    previous_path,
    read_rows,
    read_rows_or_previous,
    write_table,
)
from trainable.errors import UserError
from trainable.regular_files import read_regular
from trainable.rows import StepRow

MakeTrial = Callable[..., dict[str, Any]]
NOON = datetime(2025, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)


def test_the_columns_are_the_designs() -> None:
    assert " ".join(TRIALS.names) == (
        "trial_id purpose is_baseline of_trial attempt combination status verdict point "
        "batch_size block_size grad_accum_steps learning_rate lr_schedule warmup_steps min_lr_frac decay_frac "
        "training_steps grad_clip_norm weight_decay dropout precision "
        "use_lora lora_rank lora_alpha lora_dropout lora_targets seed "
        "val_loss best_val_loss end_loss tokens_seen optimizer_steps active_s tokens_per_s rung started_at ended_at"
    )
    assert " ".join(METRICS.names) == (
        "trial_id tokens_seen optimizer_steps val_loss train_loss grad_norm learning_rate tokens_per_s active_s"
    )
    assert " ".join(STEPS.names) == "optimizer_steps tokens_seen train_loss grad_norm learning_rate step_time_s"


def test_each_column_has_its_own_type() -> None:
    types = {name: str(TRIALS.field(name).type) for name in ("trial_id", "is_baseline", "batch_size", "learning_rate")}
    assert types == {"trial_id": "int64", "is_baseline": "bool", "batch_size": "int64", "learning_rate": "double"}
    assert str(TRIALS.field("lr_schedule").type) == "string"
    assert str(TRIALS.field("use_lora").type) == "bool"
    assert str(TRIALS.field("ended_at").type) == "timestamp[us, tz=UTC]"
    assert str(METRICS.field("optimizer_steps").type) == "int64"


def test_rows_come_back_exactly(tmp_path: Path, make_trial: MakeTrial) -> None:
    rows = [
        make_trial(0, val_loss=0.1 + 0.2, started_at=NOON, ended_at=NOON, rung=2, learning_rate=1e-5),
        make_trial(1, "running", started_at=NOON),
    ]
    write_table(tmp_path / "trials.parquet", rows, TRIALS)
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
        read_rows(path, TRIALS)
    assert "\n" not in str(caught.value)


def test_damaged_pages_under_a_whole_footer_are_seen(tmp_path: Path, make_trial: MakeTrial) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, [make_trial(n, val_loss=n / 7) for n in range(200)], TRIALS)
    data = bytearray(path.read_bytes())
    data[4:2000] = bytes(1996)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"trials\.parquet: not a whole Parquet table"):
        read_rows(path, TRIALS)


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "trials.parquet").write_text("trial_id,val_loss\n0,4.5\n")
    with pytest.raises(UserError, match="not a whole Parquet table"):
        read_rows(tmp_path / "trials.parquet", TRIALS)
    with pytest.raises(UserError, match="there is no such table"):
        read_rows(tmp_path / "none.parquet", TRIALS)
    with pytest.raises(UserError, match="not a whole Parquet table"):
        read_rows(tmp_path, TRIALS)


def test_anothers_columns_are_refused_by_name(tmp_path: Path) -> None:
    pq.write_table(pa.table({"trial_id": ["0"]}), tmp_path / "trials.parquet")
    with pytest.raises(UserError, match=r"trials\.parquet: column 'trial_id' is string, not int64"):
        read_rows(tmp_path / "trials.parquet", TRIALS)
    pq.write_table(pa.table({"trial_id": [0]}), tmp_path / "trials.parquet")
    with pytest.raises(UserError, match="column 'purpose' is missing, not string"):
        read_rows(tmp_path / "trials.parquet", TRIALS)


def test_no_changed_bit_passes_for_other_rows(tmp_path: Path, make_trial: MakeTrial) -> None:
    path = tmp_path / "trials.parquet"
    rows = [make_trial(n, val_loss=4.5 + n / 7, started_at=NOON) for n in range(3)]
    write_table(path, rows, TRIALS)
    data = path.read_bytes()
    mark = range(data.index(MARK), data.index(MARK) + len(MARK))
    tail = range(len(data) - 8, len(data))
    whole = {*mark, *tail}
    for position in sorted({*range(0, len(data), 3), *whole}):
        for bit in range(8) if position in whole else (position % 8,):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            if position in mark:
                assert read_rows(path, TRIALS) == rows
            else:
                with pytest.raises(DamagedTableError, match=r"trials\.parquet: not a whole Parquet table"):
                    read_rows(path, TRIALS)


def test_no_cut_or_overwritten_part_passes_for_other_rows(tmp_path: Path, make_trial: MakeTrial) -> None:
    path = tmp_path / "trials.parquet"
    rows = [make_trial(n, val_loss=4.5 + n / 7, started_at=NOON) for n in range(3)]
    write_table(path, rows, TRIALS)
    data, draw = path.read_bytes(), random.Random(0)
    for length in range(0, len(data), 7):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedTableError):
            read_rows(path, TRIALS)
    for _ in range(300):
        start, length = draw.randrange(len(data)), draw.choice((16, 512, 4096))
        changed = data[:start] + bytes(len(data[start : start + length])) + data[start + length :]
        path.write_bytes(changed)
        try:
            assert read_rows(path, TRIALS) == rows
        except DamagedTableError:
            assert changed != data


def test_a_table_without_a_guard_is_read(tmp_path: Path, make_trial: MakeTrial) -> None:
    path, rows = tmp_path / "trials.parquet", [make_trial(0), make_trial(1)]
    pq.write_table(pa.Table.from_pylist(rows, schema=TRIALS), path)
    assert MARK not in path.read_bytes()
    assert read_rows(path, TRIALS) == rows
    write_table(path, rows, TRIALS)
    assert path.read_bytes().count(MARK) == 1


def test_pages_have_checksums_of_their_own_for_other_readers(tmp_path: Path) -> None:
    path, draw = tmp_path / "steps.parquet", random.Random(0)
    rows = [{**dict.fromkeys(STEPS.names, 1), "grad_norm": draw.random()} for _ in range(100)]
    write_table(path, rows, STEPS)
    data = path.read_bytes()
    table = pq.ParquetFile(path).read()
    column = pq.ParquetFile(path).metadata.row_group(0).column(STEPS.names.index("grad_norm"))
    noticed = 0
    # A page's checksum does not cover its header, of less than 40 bytes.
    for position in range(column.dictionary_page_offset + 40, column.data_page_offset):
        changed = bytearray(data)
        changed[position] ^= 1
        file = pa.BufferReader(bytes(changed))
        try:
            passes = pq.ParquetFile(file).read() != table
        except (OSError, pa.ArrowException):
            continue
        if passes:
            noticed += 1
            with pytest.raises(OSError, match=r"CRC|[Cc]hecksum"):
                pq.ParquetFile(file, page_checksum_verification=True).read()
    assert noticed > 100


def test_the_copy_before_is_kept_and_the_first_write_has_none(tmp_path: Path, make_trial: MakeTrial) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, [make_trial(0)], TRIALS)
    assert list(tmp_path.iterdir()) == [path]
    for count in (2, 3, 4):
        write_table(path, [make_trial(n) for n in range(count)], TRIALS)
        assert len(read_rows(previous_path(path), TRIALS)) == count - 1
        assert sorted(tmp_path.iterdir()) == [previous_path(path), path]
    assert read_rows_or_previous(path, TRIALS) == (read_rows(path, TRIALS), None)


@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_table_gives_way_to_its_previous_copy(
    tmp_path: Path, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path, kept = tmp_path / "trials.parquet", tmp_path / "trials.parquet.damaged"
    first = [make_trial(0)]
    write_table(path, first, TRIALS)
    write_table(path, [make_trial(0), make_trial(1)], TRIALS)
    data = path.read_bytes()
    broken = data[:-9] if damage == "cut" else data[:40] + bytes([data[40] ^ 8]) + data[41:]
    path.write_bytes(broken)
    if damage == "missing":
        path.unlink()
    rows, note = read_rows_or_previous(path, TRIALS)
    assert rows == first
    what = "is missing" if damage == "missing" else "is damaged and now trials.parquet.damaged"
    assert note == f"trials.parquet {what}; its previous copy took its place: what was written last is lost"
    assert read_rows(path, TRIALS) == first
    assert not kept.exists() if damage == "missing" else kept.read_bytes() == broken
    assert read_rows_or_previous(path, TRIALS) == (first, None)
    write_table(path, [make_trial(5)], TRIALS)
    assert read_rows(previous_path(path), TRIALS) == first


@pytest.mark.parametrize("point", ["{", "[]", '{"batch": 2}', '{"batch_size": [2]}', '{"warmup_frac": {}}'])
def test_a_point_of_anything_but_hyperparameters_is_refused(tmp_path: Path, make_trial: MakeTrial, point: str) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, [make_trial(0, point='{"batch_size": 2, "warmup_frac": 0.1}')], TRIALS)
    assert read_rows(path, TRIALS)
    write_table(path, [make_trial(0, point=point)], TRIALS)
    with pytest.raises(UserError, match="trial 0 has a point that is not a JSON object of hyperparameters"):
        read_rows(path, TRIALS)


def test_without_a_whole_copy_the_damaged_table_stays_where_it_is(tmp_path: Path, make_trial: MakeTrial) -> None:
    path = tmp_path / "trials.parquet"
    with pytest.raises(UserError, match="there is no such table"):
        read_rows_or_previous(path, TRIALS)
    path.write_bytes(b"PAR1 and no more")
    for previous in (None, b"PAR1 neither"):
        if previous:
            previous_path(path).write_bytes(previous)
        with pytest.raises(UserError, match=r"trials\.parquet: not a whole Parquet table"):
            read_rows_or_previous(path, TRIALS)
        assert path.read_bytes() == b"PAR1 and no more"


def test_a_table_that_may_not_be_read_is_not_moved(
    tmp_path: Path, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trials.parquet"
    for count in (1, 2):
        write_table(path, [make_trial(n) for n in range(count)], TRIALS)
    number = errno.EACCES

    def refuse(asked: Path) -> bytes:
        if asked == path:
            raise OSError(number, os.strerror(number))
        return read_regular(asked)

    monkeypatch.setattr(tables, "read_regular", refuse)
    with pytest.raises(UserError, match="Permission denied"):
        read_rows_or_previous(path, TRIALS)
    number = errno.EIO
    assert read_rows_or_previous(path, TRIALS)[0] == [make_trial(0)]
    assert (tmp_path / "trials.parquet.damaged").exists()


def test_anothers_columns_are_no_damage(tmp_path: Path, make_trial: MakeTrial) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, [make_trial(0)], TRIALS)
    pq.write_table(pa.table({"trial_id": ["0"]}), path)
    previous_path(path).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match="column 'trial_id' is string"):
        read_rows_or_previous(path, TRIALS)
    assert path.exists()


def test_where_links_are_not_supported_the_table_is_written(
    tmp_path: Path, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "trials.parquet"
    for count in (1, 2):
        write_table(path, [make_trial(n) for n in range(count)], TRIALS)
    assert len(read_rows(path, TRIALS)) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_table_and_nothing_else(
    tmp_path: Path, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trials.parquet"
    write_table(path, [make_trial(0)], TRIALS)

    def refuse(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space left"):
            write_table(path, [make_trial(0), make_trial(1)], TRIALS)
    assert read_rows(path, TRIALS) == [make_trial(0)]
    assert sorted(tmp_path.iterdir()) == [previous_path(path), path]
    write_table(path, [make_trial(0), make_trial(1)], TRIALS)
    assert read_rows(previous_path(path), TRIALS) == [make_trial(0)]


@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_reading_a_table_leaves_no_thread_that_could_abort_the_exit(tmp_path: Path) -> None:
    """Arrow's own end the process by "terminate called without an active exception" now and then."""
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path)
    script = (
        "import os, sys, pathlib, pyarrow\n"
        "from results.study.tables import read_table\n"
        "before = len(os.listdir('/proc/self/task'))\n"
        "read_table(pathlib.Path(sys.argv[1]), pyarrow.schema([('a', pyarrow.int64())]))\n"
        "sys.exit(len(os.listdir('/proc/self/task')) - before)\n"
    )
    assert subprocess.run([sys.executable, "-c", script, path], check=False).returncode == 0
