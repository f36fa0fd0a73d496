"""Whatever words a command is given, it ends in a result or one line, and leaves no study behind."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from results.study.folder import Study
from search.options import KNOWN
from tests.fuzz.commands import _Stream, run
from tests.fuzz.outcome import attempt
from tests.fuzz.studies import whole_study
from tests.fuzz.test_variables import as_it_was
from tests.fuzz.texts import assignable

COMMANDS = ("list", "export", "compare", "diagnose", "spaces", "variables")
"""Those that train nothing and need no torch."""
FEW = settings(phases=[Phase.explicit, Phase.generate])


@pytest.fixture(scope="module")
def studies(own_environment: Path) -> Path:
    study, _ = whole_study(own_environment)
    return study.path.parent


names = st.sampled_from(["STUDY", "TARGET", "SPACE", "FORMAT", "BASELINE", *KNOWN])
assignments = st.lists(st.tuples(names, assignable).map("=".join) | assignable, min_size=1, max_size=2)


@FEW
@given(st.sampled_from(COMMANDS), assignments)
def test_any_words_end_in_a_result_or_one_line(studies: Path, command: str, words: list[str]) -> None:
    with as_it_was():
        attempt(f"command {command}", lambda: run(command, *words))
    assert [path.name for path in studies.iterdir()] == ["one"]


@pytest.mark.parametrize("word", ["STUDIES_DIR={}", "TARGET={}"])
def test_a_long_name_is_refused(studies: Path, word: str) -> None:
    with as_it_was():
        attempt("command diagnose", lambda: run("diagnose", word.format("a" * 300)))


@pytest.mark.parametrize(
    "target",
    [
        "~nobody_at_all",
        "one/²",
        "one/x",
        "one/9",
        "one/-1",
        "",
        " ",
        "nobody",
        "nobody/1",
        "latest/99999999999999999999999",
    ],
)
def test_a_target_is_found_or_refused(studies: Path, target: str) -> None:
    with as_it_was():
        attempt("command diagnose", lambda: run("diagnose", f"TARGET={target}"))


@pytest.mark.parametrize("words", [("variables", "SPACE=\udcff"), ("diagnose", "TARGET=\udcff")])
def test_what_is_not_utf8_is_printed_all_the_same(studies: Path, words: tuple[str, ...]) -> None:
    with as_it_was():
        attempt(f"command {words[0]}", lambda: run(*words))


def test_a_value_with_the_marks_of_markup_is_shown(studies: Path) -> None:
    with as_it_was():
        assert "[/x]" in run("variables", "SPACE=[/x]")


def test_a_folder_with_the_marks_of_markup_is_listed(own_environment: Path, studies: Path) -> None:
    folder = own_environment / "marked"
    folder.mkdir()
    (folder / "[b]a").symlink_to(studies / "one")
    with as_it_was():
        os.environ["STUDIES_DIR"] = str(folder)
        printed = attempt("command list", lambda: run("list"))
    assert printed is not None
    assert "[b]a" in printed


def test_an_export_is_exact_for_a_shell_and_printable_on_a_terminal(
    studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study(Path(shutil.copytree(studies / "one", tmp_path / "one")))
    study.study_json.write_text(json.dumps({**study.document(), "model": "a\x1b[2Jb"}))
    with as_it_was():
        os.environ["STUDIES_DIR"] = str(tmp_path)
        assert "GPT2_MODEL_NAME='a\x1b[2Jb'" in run("export", "STUDY=one")
        monkeypatch.setattr(_Stream, "isatty", lambda self: True)
        assert r"GPT2_MODEL_NAME='a\x1b[2Jb'" in run("export", "STUDY=one")
