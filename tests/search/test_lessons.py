"""What one study teaches another: told only where it compares, first points only where they fit."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from results.study.folder import Study, create_study
from results.study.tables import METRICS, TRIALS, write_table
from search.tune.warm_start import WarmStart, lessons_from, read_warm_start, write_lessons
from spaces.read.load import space_from_tables
from spaces.space import SearchSpace
from tests.documents import sound_document
from trainable.errors import UserError

FACTS: dict[str, Any] = {
    "model": "tiny",
    "model_fingerprint": None,
    "checkpoint_fingerprint": None,
    "corpus": {"fingerprint": "abc"},
}
MILESTONES = (3200, 6400, 12_800)
POINTS: list[dict[str, Any]] = [
    {"batch_size": 4, "learning_rate": 1e-4, "lr_schedule": "constant"},
    {"batch_size": 2, "learning_rate": 1e-3, "lr_schedule": "constant"},
    {"batch_size": 2, "learning_rate": 2e-3, "lr_schedule": "warmup_cosine", "warmup_frac": 0.123},
    {"batch_size": 8, "learning_rate": 5e-2, "lr_schedule": "constant"},
    {"batch_size": 8, "learning_rate": 4e-3, "lr_schedule": "constant"},
]
STATUSES = ("completed", "completed", "stopped", "unstable", "failed")
LOSSES = (6.0, 5.0, 5.5, 7.0, None)


def make_space(*, budget: int = 12_800, searcher: str = "tpe", **search: Any) -> SearchSpace:
    tables: dict[str, Any] = {
        "trials": 12,
        "baseline": {"batch_size": 4, "block_size": 32, "learning_rate": 1e-4},
        "budget": {"tokens": budget},
        "evaluation": {"tokens": 256, "count": 4},
        "searcher": {"name": searcher},
        "search": {
            "batch_size": {"choice": [2, 4, 8]},
            "learning_rate": {"log_uniform": [1e-5, 1e-1]},
            "lr_schedule": {"choice": ["constant", "warmup_cosine"]},
            "warmup_frac": {"uniform": [0.01, 0.3], "when": {"lr_schedule": ["warmup_cosine"]}},
            **search,
        },
    }
    return space_from_tables(tables, name="small", path="small.toml")


@pytest.fixture
def source() -> Study:
    """A study of the space at 12,800 tokens: the baseline and a better one completed, three others ended otherwise."""
    space = make_space()
    evaluation = {"block_size": 32, "tokens": 256, "milestones_tokens": list(MILESTONES)}
    document = sound_document("before", budget_tokens=12_800, evaluation=evaluation)
    document = {**document, **FACTS, "corpus": {**document["corpus"], **FACTS["corpus"]}}
    study = create_study("before", document)
    rows, metrics = [], []
    for trial_id, (point, status, loss) in enumerate(zip(POINTS, STATUSES, LOSSES, strict=True)):
        config = space.config_for(point)
        counters = {"tokens_seen": 12_800, "optimizer_steps": 1, "active_s": 1.0}
        row = dict.fromkeys(TRIALS.names) | asdict(config) | {"trial_id": trial_id, "purpose": "search"}
        row["is_baseline"] = trial_id == 0
        rows.append(row | counters | {"status": status, "val_loss": loss, "point": json.dumps(point)})
        for tokens in (0, *MILESTONES) if loss else ():
            one = dict.fromkeys(METRICS.names, 1) | {"trial_id": trial_id, "tokens_seen": tokens, "val_loss": loss}
            metrics.append(one | {"optimizer_steps": tokens // config.tokens_per_step})
    write_table(study.trials_path, rows, TRIALS)
    write_table(study.metrics_path, metrics, METRICS)
    return study


def test_at_the_same_budget_all_endings_are_told_and_the_best_run_first(source: Study) -> None:
    lessons = lessons_from(source, make_space(), FACTS)
    assert [(one.trial_id, one.status) for one in lessons.told] == [(-1 - n, s) for n, s in enumerate(STATUSES)]
    assert [one.val_loss for one in lessons.told] == list(LOSSES)
    assert lessons.told[1].losses == ((0, 5.0), (3200, 5.0), (6400, 5.0))
    # The warm-up has lost digits in its steps; the source's baseline is this one's too.
    assert lessons.first_points[0] == POINTS[1]
    assert lessons.first_points[1] == {**POINTS[2], "warmup_frac": pytest.approx(0.123, abs=0.003)}
    assert len(lessons.first_points) == 2
    assert "5 of its results are told to the searcher; its best 2 run" in lessons.words


def test_at_a_larger_budget_a_completed_trial_counts_as_stopped_at_the_smaller(source: Study) -> None:
    lessons = lessons_from(source, make_space(budget=25_600), FACTS)
    assert [one.status for one in lessons.told] == ["stopped", "stopped", "stopped", "unstable", "failed"]
    assert lessons.told[1].losses == ((0, 5.0), (3200, 5.0), (6400, 5.0), (12_800, 5.0))


def test_of_a_longer_run_no_loss_is_told(source: Study) -> None:
    lessons = lessons_from(source, make_space(budget=6400), FACTS)
    assert list(lessons.told) == []
    assert len(lessons.first_points) == 2
    assert "its losses do not compare" in lessons.words


@pytest.mark.parametrize(
    "change",
    [
        {"model": "gpt2-scratch"},
        {"model_fingerprint": "x"},
        {"checkpoint_fingerprint": "x"},
        {"corpus": {"fingerprint": "other"}},
    ],
)
def test_of_another_model_text_or_start_no_loss_is_told(source: Study, change: dict[str, Any]) -> None:
    lessons = lessons_from(source, make_space(), {**FACTS, **change})
    assert list(lessons.told) == []
    assert lessons.first_points


def test_of_another_evaluation_no_loss_is_told(source: Study) -> None:
    space = make_space()
    other = replace(space, evaluation=replace(space.evaluation, tokens=512))
    assert list(lessons_from(source, other, FACTS).told) == []


def test_what_lies_outside_the_space_or_differs_in_what_it_fixes_is_left_out(source: Study) -> None:
    narrower = make_space(learning_rate={"log_uniform": [1e-5, 1e-3]})
    assert [one.trial_id for one in lessons_from(source, narrower, FACTS).told] == [-1, -2]
    assert lessons_from(source, narrower, FACTS).first_points == [POINTS[1]]
    space = make_space()
    drier = replace(space, baseline=replace(space.baseline, dropout=0.0))
    assert list(lessons_from(source, drier, FACTS).told) == []


def test_a_grid_keeps_its_order(source: Study) -> None:
    warmup_frac = {"choice": [0.1], "when": {"lr_schedule": ["warmup_cosine"]}}
    grid = make_space(searcher="grid", learning_rate={"choice": [1e-4, 1e-3]}, warmup_frac=warmup_frac)
    assert lessons_from(source, grid, FACTS).first_points == []


def test_a_study_without_a_loss_teaches_nothing(source: Study) -> None:
    rows = [row | {"status": "failed"} for row in source.trials()]
    write_table(source.trials_path, rows, TRIALS)
    with pytest.raises(UserError, match="WARM_START=before: it has no trial with a loss"):
        lessons_from(source, make_space(), FACTS)


def test_a_study_of_another_kind_teaches_nothing(source: Study) -> None:
    document = source.document()
    del document["evaluation"]["milestones_tokens"]
    source.study_json.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"its study\.json is not a search's"):
        lessons_from(source, make_space(), FACTS)


def test_lessons_are_kept_in_the_study_to_the_last_digit(source: Study, tmp_path: Path) -> None:
    lessons = lessons_from(source, make_space(budget=25_600), FACTS)
    study = Study(tmp_path)
    assert read_warm_start(study) is None
    write_lessons(study, lessons)
    assert read_warm_start(study) == lessons


@pytest.mark.parametrize("spoil", [lambda text: text[:-20], lambda text: text.replace('"losses"', '"loses"')])
def test_damaged_lessons_are_a_line(tmp_path: Path, source: Study, spoil: Callable[[str], str]) -> None:
    study = Study(tmp_path)
    write_lessons(study, lessons_from(source, make_space(), FACTS))
    path = tmp_path / "lessons.json"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UserError, match=r"lessons\.json: not a study's lessons"):
        read_warm_start(study)


def test_no_lessons_are_no_words_of_results() -> None:
    assert "its losses do not compare; its best 0 run" in WarmStart(source="x").words
