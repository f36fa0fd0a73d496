"""Whatever names of model, text and checkpoint a study holds: a shell, make and programs read exactly them."""

import json
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from results.export import export_cli, export_env, export_json, export_toml
from results.study.folder import Study
from results.study.tables import TRIALS, write_table
from tests.documents import sound_document
from tests.fuzz.outcome import EXAMPLES, attempt
from tests.fuzz.texts import HOSTILE, texts
from trainable.config import BEFORE

NAMES = ("GPT2_MODEL_NAME", "TRAINING_DATA_SOURCE", "CHECKPOINT_PATH")
FEW = settings(max_examples=max(5, EXAMPLES // 30), phases=[Phase.explicit, Phase.generate])
"""Each is a process and some dozens of values; to make a failing one smaller would take minutes."""


def as_read(text: str) -> str:
    """Return the text as Python reads its bytes: two texts, each not UTF-8, can be UTF-8 when joined."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text


joined = st.lists(texts, min_size=1, max_size=4).map("".join).map(as_read)
values = st.tuples(joined, joined, joined)
HAND_PICKED = [(text, "$(touch x)" + text, text + "'") for text in map(as_read, HOSTILE)]


@pytest.fixture(scope="module")
def study(own_environment: Path) -> Study:
    """A study of one completed trial."""
    study = Study(own_environment / "studies" / "one")
    study.path.mkdir(parents=True)
    row: dict[str, Any] = dict.fromkeys(TRIALS.names)
    row.update(asdict(BEFORE), trial_id=0, is_baseline=True, status="completed", val_loss=4.5, tokens_seen=409_600)
    row.update(optimizer_steps=200, active_s=1.0, purpose="search")
    write_table(study.trials_path, [row], TRIALS)
    return study


@pytest.fixture
def cwd(tmp_path: Path) -> Path:
    folder = tmp_path / "cwd"
    folder.mkdir()
    return folder


def name_all(study: Study, named: tuple[str, str, str]) -> None:
    paths = dict(zip(("model", "data_source", "checkpoint_path"), named, strict=True))
    study.study_json.write_text(json.dumps(sound_document("one", **paths)))


def exported(
    study: Study, cases: list[tuple[str, str, str]], export: Callable[[Study], str]
) -> list[tuple[tuple[str, str, str], str]]:
    """Return the cases that are not refused and their texts."""
    found = []
    for named in cases:
        name_all(study, named)
        text = attempt(export.__name__, lambda: export(study))
        if text is not None:
            found.append((named, text))
    return found


def run(script: str, cwd: Path, texts: list[str]) -> list[tuple[str, ...]]:
    """Return what the script prints for each text, in the file of its number; it must make no other file."""
    for index, text in enumerate(texts):
        (cwd / f"{index:04d}.in").write_bytes(text.encode("utf-8", "surrogateescape"))
    there = sorted(cwd.iterdir())
    ran = subprocess.run(["sh", "-c", script], cwd=cwd, env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=True)
    assert ran.stderr == b""
    assert sorted(cwd.iterdir()) == there
    words = ran.stdout.decode("utf-8", "surrogateescape").split("\0")[:-1]
    for path in cwd.glob("*.in"):
        path.unlink()
    return list(zip(words[::3], words[1::3], words[2::3], strict=True))


SHOW = 'printf "%s\\0" "$GPT2_MODEL_NAME" "$TRAINING_DATA_SOURCE" "$CHECKPOINT_PATH"'


@FEW
@given(st.lists(values, min_size=20, max_size=40))
@example(HAND_PICKED)
def test_a_shell_gets_exactly_the_names(study: Study, cwd: Path, cases: list[tuple[str, str, str]]) -> None:
    found = exported(study, cases, export_env)
    script = f'for file in *.in; do (eval "$(cat "$file")"; {SHOW}) || exit; done' if found else "true"
    assert run(script, cwd, [text for _, text in found]) == [named for named, _ in found]


@FEW
@given(st.lists(values, min_size=10, max_size=20))
@example(HAND_PICKED)
def test_make_gets_exactly_the_names(study: Study, cwd: Path, cases: list[tuple[str, str, str]]) -> None:
    (cwd / "Makefile").write_text("train:\n\t@" + SHOW.replace("$", "$$") + "\n")
    found = exported(study, cases, export_cli)
    script = "set -f; " + "".join(f". ./{index:04d}.in || exit;" for index in range(len(found)))
    assert run(script, cwd, [text for _, text in found]) == [named for named, _ in found]


@given(values)
def test_programs_get_exactly_the_names(study: Study, named: tuple[str, str, str]) -> None:
    for _, text in exported(study, [named], export_json):
        document = json.loads(text)
        assert tuple(document["env"][name] for name in NAMES) == named
        assert (document["model"], document["data_source"], document["checkpoint_path"]) == named
        assert all(note.isprintable() for note in document["notes"])
    for _, text in exported(study, [named], export_toml):
        assert tomllib.loads(text)["baseline"] == {k: v for k, v in asdict(BEFORE).items() if k != "seed"}
        assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize("text", ["\ud800", "a\udbffb", "a\0b"])
def test_a_name_that_no_variable_can_hold_is_refused(study: Study, text: str) -> None:
    assert exported(study, [(text, "x", "y"), ("x", text, "y"), ("x", "y", text)], export_env) == []
