"""A study planned again from its own document: the same space, or a line that says what differs."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from search.options import Options, read_options
from search.setup.settings import differences, planned_space, read_settings, space_file_differences
from spaces.overrides import SETTINGS, Settings, space_of_kind
from spaces.read.load import load_space
from spaces.space import SearchSpace
from trainable.config import BEFORE
from trainable.errors import UserError

SHIPPED = ("plateau", "schedule", "smoke", "before_after")
WORDS = {
    "as it is": [],
    "trials and budget": ["TRIALS=17", "BUDGET_TOKENS=2M"],
    "pins": ["BATCH_SIZE=16", "SEED=3", "WEIGHT_DECAY=0.05"],
    "a warm-up of steps": ["LR_SCHEDULE=warmup_cosine", "WARMUP_STEPS=20", "LEARNING_RATE=0.001"],
    "another baseline": ["BASELINE=before"],
    "confirmed at its end": ["CONFIRM=1", "TOP=3", "SEEDS=4"],
    "all at once": ["BASELINE=before", "BUDGET_TOKENS=3M", "SEED=5", "DROPOUT=0.0"],
}


def document_of(space: SearchSpace, settings: Settings, kind: str = "search") -> dict[str, Any]:
    """What study.json holds of a plan, once written and read."""
    document = {
        "name": "study",
        "kind": kind,
        "space": {"name": space.name, "path": space.path, "toml": space.toml},
        "baseline": {"name": space.baseline_name, **asdict(space.baseline)},
        "evaluation": {"milestones_tokens": list(space.evaluation_tokens())},
        "budget_tokens": space.budget.tokens,
        "device_time": space.budget.to_json(),
        "settings": asdict(settings),
    }
    read: dict[str, Any] = json.loads(json.dumps(document))
    return read


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("kind", ["search", "baseline"])
def test_every_shipped_space_is_planned_again_as_it_was(name: str, words: list[str], kind: str) -> None:
    file = load_space(name)
    words = [word for word in words if not (word.startswith("TRIALS") and file.searcher == "grid")]
    settings, _ = read_settings(read_options(words))
    try:
        space = space_of_kind(file, settings, kind)
    except UserError as refused:
        pytest.skip(f"the space refuses it: {refused}")
    again, settings_again = planned_space(document_of(space, settings, kind), "study.json")
    assert again == space
    assert settings_again == settings


def test_most_of_them_are_not_skipped() -> None:
    taken = 0
    for name in SHIPPED:
        for words in WORDS.values():
            settings, _ = read_settings(read_options([word for word in words if not word.startswith("TRIALS")]))
            try:
                space_of_kind(load_space(name), settings, "search")
            except UserError:
                continue
            taken += 1
    assert taken >= 20


def smoke(*words: str, kind: str = "search") -> tuple[dict[str, Any], Settings]:
    settings, _ = read_settings(read_options(list(words)))
    return document_of(space_of_kind(load_space("smoke"), settings, kind), settings, kind), settings


@pytest.mark.parametrize("key", ["settings", "space", "kind", "baseline", "evaluation"])
def test_a_document_that_lacks_a_part_is_refused(key: str) -> None:
    document, _ = smoke()
    del document[key]
    with pytest.raises(UserError, match=r"^study\.json does not say how the study was planned"):
        planned_space(document, "study.json")


def test_a_document_that_this_version_would_plan_otherwise_is_refused() -> None:
    document, _ = smoke()
    document["evaluation"]["milestones_tokens"][0] += 1
    with pytest.raises(UserError, match="the study was planned by another version of this program"):
        planned_space(document, "study.json")


def test_the_settings_of_a_study_are_json_and_back() -> None:
    settings = Settings(trials=3, pins={"seed": 4}, baseline=("before", BEFORE), compare="before")
    assert SETTINGS.validate_python(json.loads(json.dumps(asdict(settings)))) == settings
    with pytest.raises(ValidationError):
        SETTINGS.validate_python({**asdict(settings), "more": 1})


@pytest.mark.parametrize(
    ("planned", "now", "found"),
    [
        ([], [], []),
        (["LEARNING_RATE=1e-3"], [], []),
        (["LEARNING_RATE=1e-3"], ["LEARNING_RATE=0.001"], []),
        (["LEARNING_RATE=1e-3"], ["LEARNING_RATE=2e-3"], ["LEARNING_RATE is 0.002, was 0.001"]),
        ([], ["BATCH_SIZE=8"], ["BATCH_SIZE is 8, was searched or not set"]),
        ([], ["SEED=0"], []),
        ([], ["SEED=1"], ["SEED is 1, was 0"]),
        (["SEED=1"], ["SEED=0"], ["SEED is 0, was 1"]),
        ([], ["BASELINE=before"], ["BASELINE is before, was documented, changed"]),
        (["BASELINE=before", "BUDGET_TOKENS=1M"], ["BASELINE=before"], []),
        ([], ["SPACE=smoke"], []),
        ([], ["SPACE=plateau"], ["SPACE is plateau, was smoke"]),
        ([], ["TRIALS=99", "BUDGET_TOKENS=9M", "CONCURRENCY=3"], []),
    ],
)
def test_what_the_variables_say_otherwise(planned: list[str], now: list[str], found: list[str]) -> None:
    document, settings = smoke(*planned)
    assert differences(document, settings, read_options(now)) == found


def test_a_baselines_file_that_has_changed_is_not_told_by_its_name_alone(tmp_path: Path) -> None:
    (file := tmp_path / "mine.env").write_text("BATCH_SIZE=4")
    words = f"BASELINE={file}"
    document, settings = smoke(words)
    file.write_text("BATCH_SIZE=8")
    assert differences(document, settings, read_options([words])) == ["BASELINE is mine.env, which has changed since"]


def test_what_only_a_new_study_reads_is_not_passed_over() -> None:
    document, settings = smoke("COMPARE=before", "TRIALS=7", kind="baseline")
    assert differences(document, settings, read_options(["COMPARE=before", "TRIALS=7"])) == []
    now = read_options(["COMPARE=documented", "TRIALS=+2", "WARM_START=other"])
    told = ["COMPARE is documented, was before", "TRIALS is 2, was 7"]
    assert differences(document, settings, now) == ["WARM_START is other, was not set", *told]
    assert differences(document, settings, now, warm_start="other") == told


def test_a_space_file_that_has_changed_is_told_by_its_keys(tmp_path: Path) -> None:
    document, _ = smoke()
    assert space_file_differences(document, Options()) == []
    path = tmp_path / "smoke.toml"
    document["space"]["path"] = str(path)
    assert space_file_differences(document, Options()) == []
    text = document["space"]["toml"]
    path.write_text(
        text.replace("trials = 4", "trials = 5").replace("batch_size = { choice = [2, 4, 8] }", "") + "\n# more\n"
    )
    assert space_file_differences(document, Options()) == [
        "trials is 5, was 4",
        "search.batch_size is not there, was {'choice': [2, 4, 8]}",
    ]
    path.write_text("trials = 4\n[budget]\ntokens = 100_000\n[search]\nbatch_size = { choice = [4, 32] }")
    assert len(space_file_differences(document, Options())) == 6
    for words, reason in (("trials =", "not valid TOML: Invalid value"), ("trials = 4", "[budget] must have one of")):
        path.write_text(words)
        [told] = space_file_differences(document, Options())
        assert told.startswith(f"it cannot be used now: {reason}")
    path.write_bytes(b"\xff\xfe")
    assert space_file_differences(document, Options()) == []


def test_comments_order_and_written_out_defaults_are_no_change(tmp_path: Path) -> None:
    document, _ = smoke()
    path = tmp_path / "smoke.toml"
    document["space"]["path"] = str(path)
    tables = document["space"]["toml"].split("\n[")
    shuffled = "\n\n[".join([tables[0], *reversed(tables[1:])])
    path.write_text(shuffled.replace("12_288", "12288 # a comment").replace('[searcher]\nname = "tpe"', ""))
    assert "tpe" not in path.read_text()
    for options in (Options(), read_options([f"SPACE={path}"])):
        assert space_file_differences(document, options) == []
        assert differences(document, Settings(), options) == []


def test_a_space_is_the_same_however_its_path_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own.toml"
    file.write_text((Path(__file__).parents[2] / "spaces" / "smoke.toml").read_text())
    (tmp_path / "link.toml").symlink_to(file)
    (tmp_path / "copy.toml").write_text(file.read_text())
    (tmp_path / "below").mkdir()
    space = load_space("own.toml")
    document = document_of(space, Settings())
    document["space"]["path"] = str(file)
    ways = ["own.toml", "./own.toml", str(file), "below/../own.toml", "link.toml", "copy.toml", "smoke"]
    for way in ways:
        options = read_options([f"SPACE={way}"])
        assert (differences(document, Settings(), options), space_file_differences(document, options)) == ([], []), way
    monkeypatch.chdir(tmp_path / "below")
    assert differences(document, Settings(), read_options(["SPACE=../own.toml"])) == []
    assert differences(document, Settings(), read_options(["SPACE=own.toml"])) == ["SPACE is own.toml, was own"]


def test_a_space_file_that_was_moved_away_or_changed_is_still_the_studys_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own.toml"
    file.write_text((Path(__file__).parents[2] / "spaces" / "smoke.toml").read_text())
    document = document_of(load_space("own.toml"), Settings())
    document["space"]["path"] = str(file)
    file.write_text(file.read_text().replace("trials = 4", "trials = 5"))
    for options in (Options(), read_options(["SPACE=./own.toml"])):
        assert differences(document, Settings(), options) == []
        assert space_file_differences(document, options) == ["trials is 5, was 4"]
    file.unlink()
    for options in (Options(), read_options(["SPACE=./own.toml"]), read_options(["SPACE=own"])):
        assert differences(document, Settings(), options) == []
        assert space_file_differences(document, options) == []
    space, _ = planned_space(document, "study.json")
    assert space.toml == document["space"]["toml"]
