"""One process at a time holds a study, the others are told who; a killed one's lock is free."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results.study.folder import Study
from results.study.lock import SCRATCH, hold
from results.study.tables import TRIALS, write_table
from tests.rows import trial_row
from trainable.errors import UserError

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time
from pathlib import Path
from results.study.lock import hold
from results.study.folder import Study
with hold(Study(Path(sys.argv[1]))):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def study(tmp_path: Path) -> Study:
    (tmp_path / "mine").mkdir()
    return Study(tmp_path / "mine")


@pytest.fixture
def other(study: Study) -> "Iterator[subprocess.Popen[str]]":
    """Another process that holds the study."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(study.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process, process.stdout:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_holds_a_study_is_told_with_its_pid_and_host(study: Study, other: Any) -> None:
    with pytest.raises(UserError) as refused, hold(study):
        raise AssertionError("held twice")
    assert str(refused.value).startswith(
        f"study mine is held by process {other.pid} on {socket.gethostname()} since 20"
    )
    # Who was refused has not touched what the holder wrote.
    with pytest.raises(UserError, match=f"process {other.pid} on "), hold(study):
        raise AssertionError("held twice")


def test_what_a_killed_holder_left_is_deleted(study: Study) -> None:
    """Whatever the next command does: of a search killed after its last trial none writes there again."""
    (scratch := study.path / SCRATCH / "tune").mkdir(parents=True)
    for unfinished in (scratch / "state.json", study.path / ".trials.parquet.0.tmp"):
        unfinished.touch()
    study.study_json.touch()
    with hold(study):
        assert {path.name for path in study.path.iterdir()} == {".lock", ".holder.json", "study.json"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_process_that_died_is_taken_over(study: Study, other: Any, number: int) -> None:
    other.send_signal(number)
    other.wait(60)
    with hold(study):
        assert f'"pid": {os.getpid()}' in (study.path / ".holder.json").read_text()


def test_a_trial_runs_as_long_as_its_process(study: Study, other: Any) -> None:
    """The report said "under way" of a search that was killed, and confirm that it was interrupted."""
    write_table(study.trials_path, [trial_row(0), trial_row(1, "running")], TRIALS)
    assert [row["status"] for row in study.trials()] == ["completed", "running"]
    other.kill()
    other.wait(60)
    assert [row["status"] for row in study.trials()] == ["completed", "interrupted"]
    study.holder_path.write_text(json.dumps({"pid": 1 << 80, "host": socket.gethostname()}))
    assert study.trials()[1]["status"] == "interrupted"
    study.holder_path.write_text(json.dumps({"pid": other.pid, "host": "another"}))
    assert study.trials()[1]["status"] == "running"
    study.holder_path.unlink()
    assert study.trials()[1]["status"] == "interrupted"
    study.study_json.write_text(json.dumps({"storage": "s3://bucket"}))
    assert study.trials()[1]["status"] == "running"


def test_nothing_but_the_empty_lock_file_is_left(study: Study) -> None:
    for _ in range(2):
        with hold(study):
            pass
        assert [(path.name, path.stat().st_size) for path in study.path.iterdir()] == [(".lock", 0)]


def test_the_lock_is_free_again_after_an_error(study: Study) -> None:
    with pytest.raises(ZeroDivisionError), hold(study):
        raise ZeroDivisionError
    with hold(study):
        pass


def test_a_holder_that_left_no_word_is_another_process(study: Study, other: Any) -> None:
    times: tuple[Any, ...] = (5, "x", [], "0001-01-01T00:00:00+14:00")
    odd = (json.dumps({"pid": 1, "host": "here", "since": time}).encode() for time in times)
    for word in (b"", b"[1]", b"\xff", b'{"pid": 1}', *odd):
        (study.path / ".holder.json").write_bytes(word)
        with pytest.raises(UserError, match=r"study mine is held by another process\. Wait"), hold(study):
            raise AssertionError("held twice")


def test_a_full_disk_takes_the_holders_name_and_not_the_lock(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("results.study.lock.write_atomic", full)
    with hold(study):
        assert not (study.path / ".holder.json").exists()


def test_a_folder_that_cannot_be_written_is_a_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(UserError, match=r"study gone cannot be written: .*Make .* writable"),
        hold(Study(tmp_path / "file" / "gone")),
    ):
        raise AssertionError("held")
