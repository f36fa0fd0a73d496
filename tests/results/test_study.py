"""Names, paths and documents; and that a refused study leaves nothing behind."""

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from results.study.folder import (
    Study,
    check_has_baseline,
    check_studies_dir,
    check_study_name,
    create_study,
    list_studies,
    new_study_name,
    open_study,
    studies_dir,
    time_to_make,
)
from results.study.paths import shown
from results.study.tables import METRICS, TRIALS, write_table
from search.commands.list_command import _entry
from trainable.errors import UserError

MakeDocument = Callable[..., dict[str, Any]]
NOW = datetime(2025, 11, 25, 3, 10, 59, tzinfo=UTC)


def one_line(caught: pytest.ExceptionInfo[UserError]) -> str:
    text = str(caught.value)
    assert "\n" not in text
    return text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_modules_that_help_needs_load_nothing_heavy() -> None:
    code = (
        "import sys, results.study.folder, results.export, results.ranking; "
        "print([name for name in ('pyarrow', 'numpy', 'pandas', 'torch', 'ray') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_studies_live_in_the_package_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STUDIES_DIR", raising=False)
    assert studies_dir().parts[-2:] == ("results", "studies")
    monkeypatch.setenv("STUDIES_DIR", "")
    assert studies_dir().parts[-2:] == ("results", "studies")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STUDIES_DIR", "here/too")
    assert studies_dir() == tmp_path / "here" / "too"
    monkeypatch.setenv("STUDIES_DIR", "~/s")
    assert studies_dir() == Path.home() / "s"


def test_a_studies_dir_that_is_a_link_to_nothing_is_refused_before_anything_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "away")
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path / "link"))
    with pytest.raises(UserError, match=r"link is not a folder\. Set STUDIES_DIR to a folder"):
        check_studies_dir()


def test_a_studies_dir_that_is_a_file_or_nobodys_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path / "file"))
    with pytest.raises(UserError, match="is not a folder"):
        studies_dir()
    monkeypatch.setenv("STUDIES_DIR", "~no-such-user-here/x")
    with pytest.raises(UserError, match="no such user"):
        studies_dir()


@pytest.mark.parametrize("name", ["a", "plateau-0412", "A.b_c-9", "_x", "9", "x" * 100])
def test_good_names(name: str) -> None:
    check_study_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".x", "-x", "a/b", "../a", "a\\b", "a b", "a\n", "a\0", "é", "$(touch x)", "latest", "x" * 101],
)
def test_bad_names_are_one_line(name: str) -> None:
    with pytest.raises(UserError, match="STUDY") as caught:
        check_study_name(name)
    assert len(one_line(caught)) < 200


def test_the_paths_are_the_designs(tmp_path: Path) -> None:
    study = Study(tmp_path / "plateau-0412")
    assert study.name == "plateau-0412"
    paths = [study.study_json, study.trials_path, study.metrics_path, study.steps_path(7), study.checkpoint_dir(7)]
    paths += [study.best_env, study.best_json, study.log_path]
    assert [str(path.relative_to(study.path)) for path in paths] == [
        "study.json",
        "trials.parquet",
        "metrics.parquet",
        "steps/7.parquet",
        "checkpoints/7",
        "best.env",
        "best.json",
        "search.log",
    ]


def test_a_new_study_is_there_with_its_document_and_no_more(studies: Path, make_document: MakeDocument) -> None:
    document = make_document("one", model="pfad\udcff/ü\n")
    study = create_study("one", document)
    assert study.path == studies / "one"
    assert study.document() == document
    assert study.steps_path(0).parent.is_dir()
    assert study.trials() == study.metrics() == []
    assert names(studies) == ["one"]


def test_a_taken_name_is_refused_and_its_study_untouched(studies: Path, make_document: MakeDocument) -> None:
    study = create_study("one", make_document("one"))
    before = study.study_json.read_bytes()
    with pytest.raises(UserError) as caught:
        create_study("one", make_document("one", model="other"))
    assert one_line(caught) == "study one exists. Go on with it: make resume STUDY=one; or choose another STUDY= name."
    (studies / "file").touch()
    (studies / "folder").mkdir()
    for name in ("file", "folder"):
        with pytest.raises(UserError, match="exists"):
            create_study(name, make_document(name))
    assert study.study_json.read_bytes() == before
    assert names(studies) == ["file", "folder", "one"]


def test_of_many_who_make_one_study_at_once_one_does(studies: Path, make_document: MakeDocument) -> None:
    together = threading.Barrier(8)

    def make(number: int) -> str:
        together.wait(60)
        try:
            create_study("one", make_document("one", seed=number))
        except UserError as err:
            return str(err)
        return "made"

    with ThreadPoolExecutor(8) as pool:
        said = sorted(pool.map(make, range(8)))
    assert said[0] == "made"
    assert set(said[1:]) == {"study one exists. Go on with it: make resume STUDY=one; or choose another STUDY= name."}
    assert names(studies) == ["one"]
    assert names(studies / "one") == ["steps", "study.json"]


def test_a_disk_that_fills_leaves_no_study(studies: Path) -> None:
    code = (
        "import resource; from results.study.folder import create_study\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: create_study('one', {'schema_version': 3, 'name': 'one', 'space': 'x' * 100_000})\n"
        "except OSError as err: print(err.filename)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == f"{studies / 'one'}\n"
    assert names(studies) == []


def test_a_document_that_cannot_be_written_leaves_no_folder(studies: Path, make_document: MakeDocument) -> None:
    for bad in (object(), float("nan")):
        with pytest.raises((TypeError, ValueError)):
            create_study("one", make_document("one", seed=bad))
    with pytest.raises(UserError, match="STUDY="):
        create_study("../one", make_document("../one"))
    assert list(studies.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_one_line(monkeypatch: pytest.MonkeyPatch, make_document: MakeDocument) -> None:
    monkeypatch.setenv("STUDIES_DIR", "/dev/null/studies")
    with pytest.raises(UserError, match="Set STUDIES_DIR") as caught:
        create_study("one", make_document("one"))
    assert "Not a directory" in one_line(caught)


def test_new_names_carry_the_minute_and_a_number_when_taken(studies: Path, make_document: MakeDocument) -> None:
    names = []
    for _ in range(3):
        name = new_study_name("plateau", NOW)
        create_study(name, make_document(name))
        names.append(name)
    assert names == ["plateau-1125-0310", "plateau-1125-0310-2", "plateau-1125-0310-3"]


def test_a_name_that_was_taken_meanwhile_becomes_another(studies: Path, make_document: MakeDocument) -> None:
    """Two searches begun in one minute choose the same name minutes before either makes its study."""
    name = new_study_name("plateau", NOW)
    made = [create_study(name, make_document(name), is_chosen=False) for _ in range(3)]
    assert [study.name for study in made] == [name, f"{name}-2", f"{name}-3"]
    assert [study.document()["name"] for study in made] == [study.name for study in made]
    with pytest.raises(UserError, match="exists"):
        create_study(name, make_document(name))


@pytest.mark.parametrize("space_name", ["..", "my space/ü", "-x", "", "x" * 300])
def test_new_names_are_good_names_whatever_the_space_is_called(studies: Path, space_name: str) -> None:
    check_study_name(new_study_name(space_name, NOW))


def test_latest_is_the_one_made_last_not_the_last_by_name(studies: Path, make_document: MakeDocument) -> None:
    for name, created_at in [
        ("z", "2025-11-25T03:10:00+00:00"),
        ("a", "2025-11-25T04:00:00+00:00"),
        ("m", "2025-11-25T04:30:00+01:00"),
        ("n", "2025-11-25T03:20:00"),
    ]:
        create_study(name, make_document(name, created_at=created_at))
    assert [study.name for study in list_studies()] == ["a", "m", "n", "z"]
    assert open_study("latest").name == "a"
    assert open_study("z").path == studies / "z"


def test_a_study_of_a_clock_that_was_years_ahead_is_not_the_latest_for_ever(
    studies: Path, make_document: MakeDocument
) -> None:
    now = datetime.now(UTC)
    create_study("ahead", make_document("ahead", created_at="2099-01-01T00:00:00+00:00"))
    assert timedelta() <= time_to_make() - now < timedelta(minutes=1)
    assert open_study("latest").name == "ahead"
    create_study("now", make_document("now", created_at=time_to_make().isoformat()))
    assert open_study("latest").name == "now"
    assert [study.name for study in list_studies()] == ["now", "ahead"]
    # One that was set back a little: what is made afterwards is later all the same.
    create_study("fast", make_document("fast", created_at=(now + timedelta(days=2)).isoformat()))
    assert time_to_make() > now + timedelta(days=2)


@pytest.mark.parametrize(
    ("table", "changes", "fault"),
    [
        ("evaluation", {"milestones_tokens": []}, "evaluation: milestones_tokens is missing"),
        ("space", {"toml": None}, "space.toml: it must be a text"),
        ("start", {"val_loss": 7.0}, "start.train_loss: it is missing"),
        ("settings", {"x": 1}, "settings.x: it is not known"),
        ("settings", {"compare": "x"}, "settings.compare: Input should be 'before' or 'documented'"),
        # They are printed to be typed, and make takes more than the program's own variables.
        ("run_options", {"VENV": "/theirs"}, "run_options.VENV.[key]: Input should be 'EVAL_INTERVAL', "),
    ],
)
def test_what_its_runs_need_and_a_document_does_not_say_is_named(
    studies: Path, make_document: MakeDocument, table: str, changes: dict[str, Any], fault: str
) -> None:
    document = make_document("one")
    study = create_study("one", {**document, table: {**document.get(table, {}), **changes}})
    with pytest.raises(UserError, match=rf"study\.json: {re.escape(fault)}.*\. It was changed since"):
        study.document()
    if table == "evaluation":
        whole = {**document, "kind": "train", table: {"block_size": 128, "tokens": 256}}
        assert create_study("run", whole).document()["kind"] == "train"


@pytest.mark.parametrize("created_at", ["0001-01-01T00:00:00+00:00", "9999-12-31T23:59:59"])
def test_a_time_that_some_zone_cannot_show_is_refused(
    studies: Path, make_document: MakeDocument, created_at: str
) -> None:
    study = create_study("one", make_document("one", created_at=created_at))
    with pytest.raises(UserError, match=r"created_at: .*a time before 1970 or after 9998"):
        study.document()


def test_other_things_among_the_studies_are_passed_over(studies: Path, make_document: MakeDocument) -> None:
    create_study("one", make_document("one"))
    (studies / "notes.txt").touch()
    (studies / "empty").mkdir()
    (studies / ".two.0a0a0a0a.tmp").mkdir()
    (studies / ".two.0a0a0a0a.tmp" / "study.json").write_text("{}")
    (studies / "broken").mkdir()
    (studies / "broken" / "study.json").write_text('{"schema_vers')
    assert [study.name for study in list_studies()] == ["one", "broken"]
    assert open_study("latest").name == "one"
    with pytest.raises(UserError, match=r"broken/study\.json: not whole JSON"):
        open_study("broken")
    with pytest.raises(UserError, match="no study named 'empty'"):
        open_study("empty")


def test_an_unknown_study_gets_the_nearest_name(studies: Path, make_document: MakeDocument) -> None:
    create_study("plateau-0412", make_document("plateau-0412"))
    with pytest.raises(UserError, match=r"no study named 'platau-0412' in .*\. Did you mean 'plateau-0412'\?$"):
        open_study("platau-0412")
    with pytest.raises(UserError, match=r"Known: plateau-0412\.$"):
        open_study("zzz")
    for path in ("../plateau-0412", "plateau-0412/3", "/studies/plateau-0412/"):
        with pytest.raises(UserError, match=r"cannot name a study: it is a path.*STUDY=plateau-0412\.$"):
            open_study(path)
    for path in ("3/", "/3"):
        with pytest.raises(UserError, match=r"Write its name alone, STUDY=3\.$"):
            open_study(path)
    create_study("moved", make_document("moved"))
    folder = studies.parent / "moved to"
    folder.mkdir()
    (studies / "moved").rename(folder / "moved")
    for path in ("/", "../.."):
        with pytest.raises(UserError, match="cannot name a study: use letters"):
            open_study(path)
    for path in ("moved", "moved/3"):
        with pytest.raises(UserError, match=r"it is a path. Write STUDIES_DIR='/.*/moved to' STUDY=moved\.$"):
            open_study(str(folder / path))


@pytest.mark.parametrize("name", ["latest", "plateau"])
def test_without_any_study_the_line_says_how_to_make_one(studies: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"there is no study in .*make search SPACE=plateau$"):
        open_study(name)
    assert not studies.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"schema_version": 1}', "[" * 100_000, "\x00", '{"a": "\ud800"}']
)
def test_a_damaged_document_is_one_line_that_names_it(tmp_path: Path, text: str) -> None:
    study = Study(tmp_path / "one")
    with pytest.raises(UserError, match="not a study"):
        study.document()
    study.path.mkdir()
    study.study_json.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(UserError, match=r"one/study\.json: not") as caught:
        study.document()
    assert len(one_line(caught)) < 400


def test_tables_come_sorted(studies: Path, make_document: MakeDocument, make_trial: Callable[..., Any]) -> None:
    study = create_study("one", make_document("one"))
    write_table(study.trials_path, [make_trial(2), make_trial(0), make_trial(1)], TRIALS)
    row = dict.fromkeys(METRICS.names, 1)
    rows = [{**row, "trial_id": t, "tokens_seen": n} for t, n in [(1, 9), (0, 5), (1, 3)]]
    write_table(study.metrics_path, rows, METRICS)
    assert [row["trial_id"] for row in study.trials()] == [0, 1, 2]
    assert [(row["trial_id"], row["tokens_seen"]) for row in study.metrics()] == [(0, 5), (1, 3), (1, 9)]


def test_a_damaged_table_is_one_line_that_names_it(studies: Path, make_document: MakeDocument) -> None:
    study = create_study("one", make_document("one"))
    study.trials_path.write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"one/trials\.parquet"):
        study.trials()


def test_latest_is_what_search_or_baseline_made_last(studies: Path, make_document: MakeDocument) -> None:
    for day, (name, kind) in enumerate({"s": "search", "b": "baseline", "a": "attribute", "t": "train"}.items(), 1):
        create_study(name, make_document(name, kind=kind, created_at=f"2026-01-0{day}T00:00:00+00:00"))
    assert [study.name for study in list_studies()] == ["t", "a", "b", "s"]
    assert open_study("latest").name == "b"
    assert [open_study(name).name for name in "abst"] == ["a", "b", "s", "t"]


def test_a_clock_that_was_set_back_makes_no_study_older(studies: Path, make_document: MakeDocument) -> None:
    create_study("old", make_document("old", created_at="2025-01-01T00:00:00+00:00"))
    assert abs(time_to_make() - datetime.now(UTC)) < timedelta(minutes=1)
    ahead = datetime.now(UTC) + timedelta(days=40)
    create_study("first", make_document("first", created_at=ahead.isoformat()))
    for name in ("second", "third"):
        create_study(name, make_document(name, created_at=time_to_make().isoformat()))
        assert open_study("latest").name == name


def test_a_copy_is_not_the_latest_study(studies: Path, make_document: MakeDocument) -> None:
    create_study("plateau-1", make_document("plateau-1"))
    shutil.copytree(studies / "plateau-1", studies / "backup")
    shutil.copytree(studies / "plateau-1", studies / "zz")
    assert open_study("latest").name == "plateau-1"
    (studies / "plateau-1").rename(studies / "renamed")
    assert open_study("latest").name in ("backup", "renamed", "zz")


@pytest.mark.parametrize("name", ["my study", "latest", "étude", "a'b"])
def test_a_study_renamed_to_what_no_command_takes_is_told_everywhere(
    studies: Path, make_document: MakeDocument, name: str
) -> None:
    create_study("older", make_document("older", created_at="2020-01-01T00:00:00+00:00"))
    create_study("one", make_document("one")).path.rename(studies / name)
    listed = {entry["study"]: entry.get("error", "") for entry in map(_entry, list_studies())}
    assert listed["older"] == ""
    assert listed[name].startswith(f"{shown(studies / name)}: STUDY=")
    assert listed[name].endswith(" Rename the folder.")
    # Not the older one: that would be another answer.
    with pytest.raises(UserError, match=f"^{re.escape(listed[name])}$"):
        open_study("latest")


def test_without_a_search_or_a_baseline_there_is_no_latest(studies: Path, make_document: MakeDocument) -> None:
    create_study("t", make_document("t", kind="train"))
    with pytest.raises(UserError, match=r"holds no search and no baseline yet\. Make one with: make search"):
        open_study("latest")
    (studies / "s").mkdir()
    (studies / "s" / "study.json").write_text("{")
    with pytest.raises(UserError, match=r"s/study\.json: not whole JSON"):
        open_study("latest")


def test_an_attribution_that_another_command_has_just_begun_is_gone_on_with_by_that_command(
    studies: Path, make_document: MakeDocument
) -> None:
    create_study("one", make_document("one", kind="attribute"))
    with pytest.raises(UserError, match=r"exists\. Go on with it: the same make attribute again; or choose"):
        create_study("one", make_document("one", kind="attribute"))


def test_what_resume_does_not_go_on_with_is_not_said_to_be_resumed(studies: Path, make_document: MakeDocument) -> None:
    study = create_study("one", make_document("one", kind="train"))
    with pytest.raises(UserError) as caught:
        create_study("one", make_document("one"))
    assert one_line(caught) == "study one exists. Choose another STUDY= name."
    with pytest.raises(UserError, match=r"of kind train, without trials beside a baseline\. Name a search\."):
        check_has_baseline(study)
    check_has_baseline(create_study("two", make_document("two")))
