"""What one study teaches another: told only where it compares, first points only where they fit."""

import json
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from results.study.atomic import write_document
from results.study.folder import Study, create_study
from results.study.tables import METRICS, TRIALS, write_table
from search.tune.history import (
    WARM_START_JSON,
    KnownTrial,
    WarmStart,
    read_warm_start,
    warm_start_from,
)
from search.tune.optuna_searcher import SpaceSearcher
from spaces.read.load import space_from_tables
from spaces.space import SearchSpace
from tests.documents import sound_document
from trainable.config import TrialConfig
from trainable.errors import UserError
from trainable.rows import TrialStatus

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
STATUSES: tuple[TrialStatus, ...] = ("completed", "completed", "stopped", "unstable", "failed")
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


def write_source(space: SearchSpace, trials: Sequence[KnownTrial], name: str = "before") -> Study:
    """A study of the space whose trials ended so."""
    evaluation = {"block_size": 32, "tokens": 256, "milestones_tokens": list(MILESTONES)}
    document = sound_document(name, budget_tokens=space.budget.tokens, evaluation=evaluation)
    document = {**document, **FACTS, "corpus": {**document["corpus"], **FACTS["corpus"]}}
    study = create_study(name, document)
    rows, metrics = [], []
    for trial in trials:
        counters = {"tokens_seen": 12_800, "optimizer_steps": 1, "active_s": 1.0}
        row = dict.fromkeys(TRIALS.names) | asdict(trial.config) | {"trial_id": trial.trial_id} | counters
        row |= {
            "is_baseline": trial.trial_id == 0,
            "purpose": "search",
            "status": trial.status,
            "point": json.dumps(trial.point),
        }
        rows.append(row | {"val_loss": trial.val_loss})
        last = [(space.budget.tokens, trial.val_loss)] if trial.status == "completed" else []
        for tokens, loss in (*trial.losses, *last):
            one = dict.fromkeys(METRICS.names, 1) | {"trial_id": trial.trial_id, "tokens_seen": tokens}
            metrics.append(one | {"val_loss": loss, "optimizer_steps": tokens // trial.config.tokens_per_step})
    write_table(study.trials_path, rows, TRIALS)
    write_table(study.metrics_path, metrics, METRICS)
    return study


@pytest.fixture
def source() -> Study:
    """A study of the space at 12,800 tokens: the baseline and a better one completed, three others ended otherwise."""
    space = make_space()
    trials = []
    for trial_id, (point, status, loss) in enumerate(zip(POINTS, STATUSES, LOSSES, strict=True)):
        tokens = () if loss is None else (0, *MILESTONES[: 2 if status == "completed" else 3])
        trials.append(
            KnownTrial(
                trial_id=trial_id,
                status=status,
                config=space.config_for(point),
                point=point,
                losses=tuple((one, loss or 0.0) for one in tokens),
                val_loss=loss,
            )
        )
    return write_source(space, trials)


def test_at_the_same_budget_all_endings_are_told_and_the_best_run_first(source: Study) -> None:
    warm_start = warm_start_from(source, make_space(), FACTS)
    assert [(one.trial_id, one.status) for one in warm_start.told] == [(-1 - n, s) for n, s in enumerate(STATUSES)]
    assert [one.val_loss for one in warm_start.told] == list(LOSSES)
    assert warm_start.told[1].losses == ((0, 5.0), (3200, 5.0), (6400, 5.0))
    # The warm-up has lost digits in its steps; the source's baseline is this one's too.
    assert warm_start.first_points[0] == POINTS[1]
    assert warm_start.first_points[1] == {**POINTS[2], "warmup_frac": pytest.approx(0.123, abs=0.003)}
    assert len(warm_start.first_points) == 2
    assert "5 of its results are told to the searcher; its best 2 trials run" in warm_start.words(make_space())
    two = replace(make_space(), trials=2)
    assert warm_start.words(two).endswith("; its best trial runs after the baseline")
    one = replace(warm_start, told=warm_start.told[:1]).words(two)
    assert "1 of its results is told to the searcher" in one


def test_what_made_the_model_worse_is_told_and_not_run_again(source: Study) -> None:
    write_document(source.study_json, {**source.document(), "start": {"val_loss": 5.3, "train_loss": None}})
    warm_start = warm_start_from(source, make_space(), FACTS)
    assert warm_start.first_points == [POINTS[1]]
    assert len(warm_start.told) == 5


def test_at_a_larger_budget_a_completed_trial_counts_as_stopped_at_the_smaller(source: Study) -> None:
    warm_start = warm_start_from(source, make_space(budget=25_600), FACTS)
    assert [one.status for one in warm_start.told] == ["stopped", "stopped", "stopped", "unstable", "failed"]
    assert warm_start.told[1].losses == ((0, 5.0), (3200, 5.0), (6400, 5.0), (12_800, 5.0))


def test_of_a_longer_run_no_loss_is_told(source: Study) -> None:
    warm_start = warm_start_from(source, make_space(budget=6400), FACTS)
    assert list(warm_start.told) == []
    assert len(warm_start.first_points) == 2
    assert "its losses do not compare" in warm_start.words(make_space())


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
    warm_start = warm_start_from(source, make_space(), {**FACTS, **change})
    assert list(warm_start.told) == []
    assert warm_start.first_points


def test_of_another_evaluation_no_loss_is_told(source: Study) -> None:
    space = make_space()
    other = replace(space, evaluation=replace(space.evaluation, tokens=512))
    assert list(warm_start_from(source, other, FACTS).told) == []


def test_what_lies_outside_the_space_or_differs_in_what_it_fixes_is_left_out(source: Study) -> None:
    narrower = make_space(learning_rate={"log_uniform": [1e-5, 1e-3]})
    assert [one.trial_id for one in warm_start_from(source, narrower, FACTS).told] == [-1, -2]
    assert warm_start_from(source, narrower, FACTS).first_points == [POINTS[1]]
    space = make_space()
    drier = replace(space, baseline=replace(space.baseline, dropout=0.0))
    assert list(warm_start_from(source, drier, FACTS).told) == []


def test_a_grid_keeps_its_order(source: Study) -> None:
    warmup_frac = {"choice": [0.1], "when": {"lr_schedule": ["warmup_cosine"]}}
    grid = make_space(searcher="grid", learning_rate={"choice": [1e-4, 1e-3]}, warmup_frac=warmup_frac)
    warm_start = warm_start_from(source, grid, FACTS)
    assert warm_start.first_points == []
    assert warm_start.words(grid) == "nothing is learned from study before: a grid search learns from no losses"


def test_a_random_search_only_runs_the_best_first(source: Study) -> None:
    space = make_space(searcher="random")
    why = "and that is all, for a random search learns from no losses"
    words = f"learning from study before: its best 2 trials run after the baseline, {why}"
    assert warm_start_from(source, space, FACTS).words(space) == words


def test_a_study_without_a_loss_teaches_nothing(source: Study) -> None:
    rows = [row | {"status": "failed"} for row in source.trials()]
    write_table(source.trials_path, rows, TRIALS)
    with pytest.raises(UserError, match="study before has no trial with a loss to learn from"):
        warm_start_from(source, make_space(), FACTS)


def test_a_study_of_another_kind_teaches_nothing(source: Study) -> None:
    source.study_json.write_text(json.dumps({**source.document(), "kind": "train"}))
    with pytest.raises(UserError, match="study before is of kind train"):
        warm_start_from(source, make_space(), FACTS)


def test_a_warm_start_is_kept_in_the_study_to_the_last_digit(source: Study, tmp_path: Path) -> None:
    warm_start = warm_start_from(source, make_space(budget=25_600), FACTS)
    study = Study(tmp_path)
    assert read_warm_start(study, make_space()) is None
    write_document(tmp_path / WARM_START_JSON, asdict(warm_start))
    assert read_warm_start(study, make_space()) == warm_start


SPOILT: list[Callable[[str], str]] = [
    lambda text: text[:-20],
    lambda text: text.replace('"losses"', '"loses"'),
    # In a trial's point, or in one that is to run, is what the space has not.
    lambda text: re.sub(r'("point": \{\s+"batch_size": )\d', r"\g<1>3", text),
    lambda text: re.sub(r'("point": \{\s+)"batch_size"', r'\g<1>"batch"', text),
    lambda text: re.sub(r'("point": )\{[^}]*\}', r"\g<1>null", text),
    lambda text: re.sub(r'("first_points": \[\s+\{)', r'\g<1>"dropout": 0.1, ', text),
]


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_damaged_one_is_a_line(tmp_path: Path, source: Study, spoil: Callable[[str], str]) -> None:
    study = Study(tmp_path)
    path = tmp_path / WARM_START_JSON
    write_document(path, asdict(warm_start_from(source, make_space(), FACTS)))
    path.write_text(spoil(path.read_text()))
    with pytest.raises(UserError, match=r"warm_start\.json: not a study's warm start"):
        read_warm_start(study, make_space())


def test_without_results_none_are_claimed() -> None:
    words = "nothing is learned from study x: its losses do not compare with this study's"
    assert WarmStart(source="x").words(make_space()) == words


def searched(space: SearchSpace, draw: random.Random, warm_start: WarmStart | None = None) -> list[KnownTrial]:
    """A search on one slot over made-up learning curves, by the real searcher and scheduler.

    A loss falls with the share of the budget, so that at the same tokens it is higher in a study of a larger one.
    """
    searcher = SpaceSearcher(space, warm_start=warm_start)
    log = searcher.log
    while len(log.trials) < space.trials:
        proposal = searcher.suggest("any")
        assert isinstance(proposal, dict)
        number, config = proposal["trial_id"], TrialConfig(**proposal["trial"])
        best = abs(math.log10(config.learning_rate) + 2.5) + draw.gauss(0, 0.05)
        for tokens in (0, *space.evaluation_tokens()):
            loss = best + 4 * math.exp(-5 * tokens / space.budget.tokens)
            if tokens < space.budget.tokens and not log.evaluate(number, tokens, loss):
                log.end(number, "stopped", loss)
                break
        else:
            log.end(number, "completed", loss)
    return log.trials


def test_the_sources_best_complete_at_a_larger_budget_as_often_as_without_its_losses() -> None:
    completed = {"told": 0, "untold": 0}
    for seed in range(40):
        space, larger = make_space(searcher="random"), replace(make_space(budget=38_400), trials=5)
        source = write_source(space, searched(space, random.Random(seed)), name=f"before{seed}")
        warm_start = warm_start_from(source, larger, FACTS)
        assert len(warm_start.told) == space.trials
        assert len(warm_start.first_points) == 3
        for name, known in (("told", warm_start), ("untold", replace(warm_start, told=()))):
            trials = searched(larger, random.Random(seed), known)
            completed[name] += sum(one.status == "completed" for one in trials[1:4])
    assert completed["told"] == completed["untold"] > 40
