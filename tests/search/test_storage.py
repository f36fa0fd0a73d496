"""Checkpoints and tables in a real S3-compatible store, and a machine that takes a study over from there."""

import json
import logging
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from results.study.folder import Study, StudyExistsError, create_study
from results.winner import winner_of
from search.cluster.storage_hold import ALIVE_S, MARK, TableMirror, check_unheld, claim_name, release_name
from search.cluster.study_storage import fetch_study, open_or_fetch_study, probed, read_probe
from search.options import parse_options
from search.setup.train_plan import with_winner_of
from tests.documents import sound_document
from tests.faults.common import QUICK_SPACE, Place, differences, has_begun
from tests.results.report_study import make_report_study
from tests.search.conftest import run_in_process
from trainable.checkpoint.checkpoint_path import checkpoint_name
from trainable.data.remote_files import below, files_at, write_whole
from trainable.errors import UserError

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of an empty bucket of a server of this process."""
    server_module = pytest.importorskip("moto.server")
    import boto3

    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
    client.create_bucket(Bucket="studies")
    yield f"s3://studies/here?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


def names_below(storage: str, part: str) -> list[str]:
    from pyarrow import fs

    files, root = files_at(storage)
    found = files.get_file_info(fs.FileSelector(f"{root}/{part}", recursive=True, allow_not_found=True))
    return sorted(one.path.removeprefix(f"{root}/") for one in found if one.type == fs.FileType.File)


def test_another_machine_takes_a_study_over_from_s3(left_alone: Study, bucket: str, tmp_path: Path) -> None:
    here, there = (Place(str(tmp_path / name), QUICK_SPACE) for name in ("here", "there"))
    running = here.start("run", "moved", STORAGE=bucket)
    running.wait_for(lambda: has_begun(here.study("moved"), 2))
    running.kill()
    assert not here.study("moved").path.joinpath("checkpoints").exists()
    assert [name for name in names_below(bucket, "moved/checkpoints") if name.endswith(".pt")]
    resumed = run_in_process(there.words("resume", "moved", STORAGE=bucket), os.environ)
    assert resumed.code == 0, resumed.output
    assert "study moved goes on: " in resumed.output
    assert differences(left_alone, there.study("moved")) == []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIES_DIR", str(tmp_path / "fetched"))
        fetch_study("moved", bucket)
    assert differences(left_alone, Study(tmp_path / "fetched" / "moved")) == []
    assert here.study("moved").document()["storage"] == bucket
    behind = run_in_process(here.words("resume", "moved"), os.environ)
    assert behind.code == 2
    assert "error: study moved has gone on elsewhere: STORAGE=" in behind.output
    assert {f"moved/{name}" for name in ("best.env", "report.html", "study.json")} <= set(names_below(bucket, "moved"))


def test_a_winner_goes_on_from_its_checkpoint_in_the_store(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path))
    study = make_report_study(tmp_path / "kept", document={"storage": bucket})
    winner = winner_of(study).trial
    assert winner is not None
    asked = parse_options({"STUDY": "kept", "RESUME_STEPS": "5"})
    none = "^STUDY=kept: no checkpoint of its winner was kept to go on from"
    with pytest.raises(UserError, match=none):
        with_winner_of(asked)
    files, root = files_at(below(bucket, "kept", "checkpoints", f"{winner['trial_id']}"))
    with ZipFile(tmp_path / "archive", "w") as archive:
        archive.writestr("data", "12")
    whole = (tmp_path / "archive").read_bytes()
    for step, content in ((3, whole), (12, whole), (24, whole[:-9])):
        write_whole(files, f"{root}/{checkpoint_name(step)}", iter([content]))
    checkpoint = with_winner_of(asked).checkpoint_path
    assert checkpoint == study.checkpoint_dir(winner["trial_id"]) / "step_00000012.pt"
    assert checkpoint.read_bytes() == whole
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    # It is there now, and nothing is fetched.
    monkeypatch.setattr("search.setup.train_plan.fetch_checkpoint", None)
    assert with_winner_of(asked).checkpoint_path == checkpoint


def test_a_study_goes_on_where_its_checkpoints_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path / "studies"))
    store, named = tmp_path / "store", parse_options({"STORAGE": "elsewhere"})
    create_study("one", sound_document("one", storage=str(store)))
    told = (
        f"study one has its checkpoints in STORAGE={store}, which has no one now. Set STORAGE to where they are, or to "
        f"{tmp_path}/studies to go on without them."
    )
    with pytest.raises(UserError, match=f"^{re.escape(told)}$"):
        open_or_fetch_study(parse_options({}))
    assert open_or_fetch_study(named)[1] == named
    (store / "one").mkdir(parents=True)
    for study in ("one", "latest"):
        found, options = open_or_fetch_study(parse_options({"STUDY": study}))
        assert (found.name, options.storage) == ("one", str(store))
    assert open_or_fetch_study(named)[1] == named
    create_study("two", sound_document("two", storage="s3://***@bucket/here"))
    with pytest.raises(UserError, match=r"in STORAGE=s3://\*{3}@bucket/here, whose password is not kept\. Set "):
        open_or_fetch_study(parse_options({"STUDY": "two"}))


def claimed(study: Study, storage: Path, **mark: Any) -> None:
    (storage / study.name).mkdir(parents=True, exist_ok=True)
    (storage / study.name / MARK).write_text(json.dumps(mark))


def test_one_driver_at_a_time_writes_a_study_into_the_storage(tmp_path: Path) -> None:
    study, storage = small_study(tmp_path), tmp_path / "storage"
    study.study_json.write_text(json.dumps(sound_document("one")))
    check_unheld(study, str(storage))
    here, pid = socket.gethostname(), os.getpid()
    with subprocess.Popen([sys.executable, "-c", ""]) as nobody_waits_for:
        os.waitid(os.P_PID, nobody_waits_for.pid, os.WEXITED | os.WNOWAIT)
        claimed(study, storage, host=here, pid=nobody_waits_for.pid)
        check_unheld(study, str(storage))
    for mark, held in (
        ({"host": here, "pid": pid}, False),
        ({"host": here, "pid": os.getppid()}, True),
        ({"host": here, "pid": 2**22 + 1}, False),
        ({"host": "elsewhere", "pid": 7}, True),
    ):
        claimed(study, storage, **mark)
        if held:
            with pytest.raises(UserError, match=f"^study one is held by process {mark['pid']} on {mark['host']}, "):
                check_unheld(study, str(storage))
        else:
            check_unheld(study, str(storage))
    (storage / "one" / MARK).write_text("[7]")  # of no driver of ours
    check_unheld(study, str(storage))
    long_ago = time.time() - ALIVE_S - 1
    for mark in ({"host": "elsewhere", "pid": 7}, {"host": here, "pid": os.getppid()}):
        claimed(study, storage, **mark)
        os.utime(storage / "one" / MARK, (long_ago, long_ago))
        check_unheld(study, str(storage))
    assert sorted(path.name for path in storage.iterdir()) == ["one"]


def test_another_study_of_that_name_in_the_storage_is_left_alone(tmp_path: Path) -> None:
    study, storage = small_study(tmp_path), tmp_path / "storage"
    study.study_json.write_text(json.dumps(sound_document("one")))
    TableMirror(study, str(storage), print).close()
    assert not (storage / "one" / MARK).exists()
    check_unheld(study, str(storage))
    study.study_json.write_text(json.dumps(sound_document("one", created_at="2025-11-26T03:10:00+00:00")))
    with pytest.raises(UserError, match="holds another study one"):
        check_unheld(study, str(storage))


@pytest.mark.parametrize("kind", ["folder", "s3", "the studies' own"])
def test_a_name_of_the_programs_own_that_is_taken_in_the_storage_takes_a_number(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    places = {"folder": tmp_path / "storage", "the studies' own": tmp_path / "0"}
    storage = request.getfixturevalue("bucket") if kind == "s3" else str(places[kind])
    claim = partial(claim_name, storage=storage)
    studies = []
    for machine in range(3):
        monkeypatch.setenv("STUDIES_DIR", str(tmp_path / f"{machine}"))
        studies.append(create_study("one", sound_document("one"), is_chosen=False, claim=claim))
        check_unheld(studies[-1], storage)
        assert sorted(studies[-1].path.parent.iterdir()) == [studies[-1].path]
    assert [study.name for study in studies] == ["one", "one-2", "one-3"]
    assert [study.document()["name"] for study in studies] == ["one", "one-2", "one-3"]
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path / "other"))
    with pytest.raises(UserError, match=r"holds another study one-2\. Choose another STUDY= name, or STORAGE\.$"):
        create_study("one-2", sound_document("one-2"), claim=claim)
    assert list((tmp_path / "other").iterdir()) == []
    release_name(studies[1], storage)
    assert create_study("one-2", sound_document("one-2"), claim=claim).name == "one-2"


def test_of_several_machines_that_begin_at_once_each_has_a_name_of_its_own(tmp_path: Path) -> None:
    def begin(machine: int) -> str:
        study = Study(tmp_path / f"{machine}" / "one")
        study.path.mkdir(parents=True)
        study.study_json.write_text("{}")
        try:
            claim_name(study, str(tmp_path / "storage"))
        except StudyExistsError:
            return "taken"
        return "free"

    with ThreadPoolExecutor(16) as machines:
        assert sorted(machines.map(begin, range(16))) == ["free", *["taken"] * 15]


def test_a_bucket_that_is_not_there_is_one_line(bucket: str) -> None:
    missing = bucket.replace("s3://studies/", "s3://absent/")
    words = r"^STORAGE=s3://absent/.* cannot be written: [^\n]*absent[^\n]*$"
    with pytest.raises(UserError, match=words), probed(missing):
        pass


def test_a_store_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    nowhere = "s3://b/p?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1"
    with pytest.raises(UserError, match=r"cannot be written: [^\n]*NETWORK_CONNECTION"), probed(nowhere):
        pass


def test_a_probe_is_read_where_it_is_seen_and_leaves_nothing(tmp_path: Path) -> None:
    with probed(str(tmp_path / "a")) as (path, word):
        assert read_probe(str(tmp_path / "a"), path) == word != ""
    assert read_probe(str(tmp_path / "a"), path) == ""
    assert list((tmp_path / "a").iterdir()) == []


def test_a_place_is_made_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_options({"STORAGE": "shared"}).storage == str(tmp_path / "shared")
    assert parse_options({}).storage is None
    assert parse_options({"STORAGE": "gs://b/p"}).storage == "gs://b/p?retry_limit_seconds=60"
    assert parse_options({"STORAGE": "gs://b/p?retry_limit_seconds=5"}).storage == "gs://b/p?retry_limit_seconds=5"
    with pytest.raises(UserError, match="STORAGE=nowhere://x: "):
        parse_options({"STORAGE": "nowhere://x"})


def test_a_study_that_is_nowhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path / "studies"))
    with pytest.raises(UserError, match="no study named 'absent' in "):
        fetch_study("absent", str(tmp_path / "storage"))
    with pytest.raises(UserError, match="cannot name a study"):
        fetch_study("../absent", str(tmp_path / "storage"))
    assert not (tmp_path / "studies").exists()


def small_study(path: Path) -> Study:
    study = Study(path / "one")
    (study.path / "steps").mkdir(parents=True)
    study.study_json.write_text("{}")
    (study.path / ".holder.json").write_text("{}")
    study.steps_path(3).write_text("steps")
    return study


def test_what_a_link_in_the_storage_leads_out_to_is_not_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = tmp_path / "storage"
    TableMirror(small_study(tmp_path), str(storage), print).close()
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path / "elsewhere"))
    (tmp_path / "private").write_text("secret")
    (storage / "one" / "best.json").symlink_to(tmp_path / "private")
    with pytest.raises(UserError, match=r"best\.json is a link that leads out of the study's folder"):
        fetch_study("one", str(storage))
    assert not (tmp_path / "elsewhere").exists()


def test_only_what_has_changed_is_copied(tmp_path: Path) -> None:
    study, storage = small_study(tmp_path), tmp_path / "storage"
    said: list[str] = []
    mirror = TableMirror(study, str(storage), said.append)
    mirror.copy_if_due()
    while not (storage / "one" / "study.json").exists():
        time.sleep(0.01)
    (storage / "one" / "study.json").unlink()
    study.steps_path(3).write_text("more steps")
    mirror.close()
    assert (storage / "one" / "steps" / "3.parquet").read_text() == "more steps"
    assert not (storage / "one" / "study.json").exists()
    assert not (storage / "one" / ".holder.json").exists()
    study.best_env.write_text("BATCH_SIZE=8")
    (storage / "one" / "steps" / "3.parquet").unlink()
    # Another mirror of the same process, as for the report at the end.
    TableMirror(study, str(storage), said.append).close()
    assert [path.name for path in (storage / "one").iterdir() if path.is_file()] == ["best.env"]
    assert not (storage / "one" / "steps" / "3.parquet").exists()
    assert said == []


def test_the_mark_of_whoever_has_gone_on_with_a_study_is_left(tmp_path: Path) -> None:
    """The report is written after the trials, when another driver may hold the study already."""
    study, storage = small_study(tmp_path), tmp_path / "storage"
    mark, said = {"host": "elsewhere", "pid": 7}, list[str]()
    claimed(study, storage, **mark)
    TableMirror(study, str(storage), said.append).close()
    assert json.loads((storage / "one" / MARK).read_text()) == mark
    assert not (storage / "one" / "study.json").exists()
    [line] = said
    assert "is behind, the study itself is up to date: study one is held by process 7 on elsewhere" in line


def test_a_study_without_steps_is_copied(tmp_path: Path) -> None:
    study, said = small_study(tmp_path), list[str]()
    study.steps_path(3).unlink()
    study.steps_path(3).parent.rmdir()
    TableMirror(study, str(tmp_path / "storage"), said.append).close()
    assert (said, names_below(str(tmp_path / "storage"), "")) == ([], ["one/study.json"])


def test_a_study_that_cannot_be_reached_is_told_and_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    study, said = Study(tmp_path / "file" / "one"), list[str]()
    (tmp_path / "file").touch()
    TableMirror(study, str(tmp_path / "storage"), said.append).close()
    [line] = said
    assert "is behind, the study itself is up to date: " in line
    with pytest.raises(UserError, match="cannot be written: Not a directory"):
        claim_name(study, str(tmp_path / "elsewhere"))


def test_a_study_is_not_copied_over_itself(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    before = {path: path.stat().st_ino for path in study.path.rglob("*")}
    mirror = TableMirror(study, str(tmp_path), print)
    mirror.copy_if_due(at_once=True)
    mirror.close()
    assert {path: path.stat().st_ino for path in study.path.rglob("*")} == before


def test_a_storage_from_which_nothing_can_be_deleted_is_one_line(tmp_path: Path) -> None:
    told = pytest.raises(UserError, match=r"^STORAGE=\S+ cannot be written: .*\. Name another place\.$")
    with told, probed(str(tmp_path)) as (path, _):
        Path(path).unlink()


def test_a_storage_that_went_away_is_told_once_and_ends_nothing(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    said: list[str] = []
    (tmp_path / "file").touch()
    mirror = TableMirror(study, str(tmp_path / "file"), said.append)
    mirror.copy_if_due()
    mirror.copy_if_due(at_once=True)
    mirror.close()
    assert len(said) == 1
    assert said[0].startswith(f"STORAGE={tmp_path}/file is behind, the study itself is up to date: ")
