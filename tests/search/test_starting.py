"""A search where much is odd at once, and one where Ray does not come up; tests/faults/starting.py tries more."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from results.study.folder import Study
from search.__main__ import main
from tests.faults.common import Place
from tests.faults.starting import Machine


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.usefixtures("no_reaping_init")
def test_an_odd_path_a_long_tmpdir_a_dead_proxy_no_home_no_init_and_a_closed_pipe(tmp_path: Path) -> None:
    machine = Machine(Place(str(tmp_path / "place")))
    wrong = machine.search(
        "odd",
        shell="ulimit -n 256; {} | head -3; exit ${{PIPESTATUS[0]}}",
        without="HOME",
        TMPDIR=f"/tmp/{'t' * 85}",
        http_proxy="http://127.0.0.1:9",
    )
    assert wrong == []


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch, text_file: Path, narrow: Path) -> None:
    """A machine on which Ray does not come up."""

    def refuse(**asked: object) -> None:
        raise RuntimeError("Failed to start GCS")

    monkeypatch.setattr("ray.init", refuse)
    for name, value in (("GPT2_MODEL_NAME", str(narrow)), ("TRAINING_DATA_SOURCE", str(text_file))):
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("no_ray")
def test_where_ray_does_not_come_up_no_study_of_no_trials_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path))
    assert main(["run", "SPACE=smoke", "STUDY=new", "DEVICE=cpu"]) == 1
    [error] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.startswith("error: Ray did not start on this machine: Failed to start GCS. ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_ray")
def test_where_ray_does_not_come_up_a_study_that_is_gone_on_with_stays(
    searched: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(searched.study.path, tmp_path / "old")
    study = Study(tmp_path / "old")
    study.study_json.write_text(study.study_json.read_text().replace('"shared"', '"old"'))
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path))
    assert main(["confirm", "STUDY=old", "SEEDS=2", "DEVICE=cpu"]) == 1
    assert "error: Ray did not start on this machine: Failed to start GCS. " in capsys.readouterr().err
    assert study.trials() == searched.study.trials()
