"""Studies from somebody else: one line each, nothing outside is touched, nothing is printed raw."""

import os
import shutil
from pathlib import Path

import pytest

from results.study.folder import Study
from results.study.lock import check_own_files, hold, remove_unfinished
from tests.faults.received import CASES, Case, wrong
from trainable.errors import UserError


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_received_study_is_a_line_or_goes_on(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIES_DIR", "replaced")
    assert wrong(case, tmp_path) == []


def test_unfinished_files_are_removed_inside_alone(tmp_path: Path) -> None:
    outside, study = tmp_path / "outside", tmp_path / "study"
    for place in (outside, study / "checkpoints" / "0"):
        place.mkdir(parents=True)
        (place / ".left.tmp").write_text("half")
        (place / "kept.tmp").write_text("whole")
    (study / "steps").symlink_to(outside)
    (study / ".link.tmp").symlink_to(outside / ".left.tmp")
    remove_unfinished(study)
    assert sorted(path.name for path in outside.iterdir()) == [".left.tmp", "kept.tmp"]
    assert sorted(path.name for path in study.rglob("*")) == ["0", "checkpoints", "kept.tmp", "steps"]


def test_a_studys_whole_folder_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "one").mkdir(parents=True)
    (tmp_path / "one").symlink_to(tmp_path / "disk" / "one")
    with hold(Study(tmp_path / "one")):
        assert (tmp_path / "disk" / "one" / ".holder.json").is_file()
    (tmp_path / "disk" / "one" / "best.env").symlink_to(tmp_path / "one")
    check_own_files(tmp_path / "one")


def test_files_that_vanish_meanwhile_are_another_process_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "gone").write_text("")
    walk = os.walk

    def then_gone(folder: Path) -> list[tuple[str, list[str], list[str]]]:
        found = [(str(place), folders, files) for place, folders, files in walk(folder)]
        (tmp_path / "gone").unlink()
        return found

    monkeypatch.setattr(os, "walk", then_gone)
    check_own_files(tmp_path)


def test_a_copy_without_its_links_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "checkpoints").symlink_to("/")
    with pytest.raises(UserError, match=r"one/checkpoints is a link that leads out .* Replace it by what it leads to"):
        check_own_files(tmp_path / "one")
    (tmp_path / "one" / "checkpoints").unlink()
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    check_own_files(tmp_path / "two")
