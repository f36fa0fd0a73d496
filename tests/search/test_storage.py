"""Checkpoints and tables in a real S3-compatible store, and a machine that takes a study over from there."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from results.study import Study
from search.storage import TableMirror, checked_storage, fetch_study, place_of
from tests.faults.common import Place, differences, has_begun
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


def test_another_machine_takes_a_study_over_from_s3(bucket: str, tmp_path: Path) -> None:
    here, there = Place(str(tmp_path / "here")), Place(str(tmp_path / "there"))
    alone = here.left_alone()
    running = here.start("run", "moved", STORAGE=bucket)
    running.wait_for(lambda: has_begun(here.study("moved"), 4))
    running.signal(15)
    running.ended(code=143)
    assert not here.study("moved").path.joinpath("checkpoints").exists()
    resumed = there.start("resume", "moved", STORAGE=bucket)
    resumed.ended(code=0)
    assert "study moved goes on: " in resumed.output
    assert differences(alone, there.study("moved")) == []
    fetched = tmp_path / "fetched"
    (fetched / "studies").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STUDIES_DIR", str(fetched / "studies"))
        fetch_study("moved", bucket)
    assert differences(alone, Study(fetched / "studies" / "moved")) == []


def test_a_place_keeps_a_uris_query_at_its_end() -> None:
    assert place_of("/shared", "one", "checkpoints") == "/shared/one/checkpoints"
    assert place_of("s3://b/p?scheme=http", "one", "inputs") == "s3://b/p/one/inputs?scheme=http"


def test_a_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert checked_storage("shared") == str(tmp_path / "shared")
    assert checked_storage(None) is None


def test_a_study_that_is_nowhere_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path / "studies"))
    with pytest.raises(UserError, match="no study named 'absent' in "):
        fetch_study("absent", str(tmp_path / "storage"))
    with pytest.raises(UserError, match="cannot name a study"):
        fetch_study("../absent", str(tmp_path / "storage"))
    assert not (tmp_path / "studies").exists()


def test_only_what_has_changed_is_copied(tmp_path: Path) -> None:
    study, storage = Study(tmp_path / "one"), tmp_path / "storage"
    (study.path / "steps").mkdir(parents=True)
    study.study_json.write_text("{}")
    study.steps_path(3).write_text("steps")
    mirror = TableMirror(study, str(storage))
    mirror.copy_if_due()
    assert not storage.exists()
    mirror.copy()
    assert (storage / "one" / "steps" / "3.parquet").read_text() == "steps"
    (storage / "one" / "study.json").unlink()
    study.steps_path(3).write_text("more steps")
    mirror.copy()
    assert (storage / "one" / "steps" / "3.parquet").read_text() == "more steps"
    assert not (storage / "one" / "study.json").exists()
