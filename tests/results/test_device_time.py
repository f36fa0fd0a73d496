"""Who is ahead at the same device time: the longest that every completed trial has come to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from results.device_time import time_winner
from results.report.facts.study_facts import report_facts
from results.report.figures.all_figures import report_figures, views
from results.report.page import write_reports
from results.winner import find_winner, winner_of
from tests.results.report_study import make_report_study

Row = dict[str, Any]
TOKENS: Row = {"budget_tokens": 400_000}
CURVES = {
    0: [(0.0, 9.0), (100.0, 8.0), (200.0, 7.0)],
    4: [(0.0, 9.0), (25.0, 7.0), (50.0, 6.0)],
    7: [(0.0, 9.0), (40.0, 8.0), (80.0, 7.0), (400.0, 5.0)],
}


def rows_of(curves: dict[int, list[tuple[float, float]]]) -> list[Row]:
    return [
        {"trial_id": trial_id, "active_s": at_s, "val_loss": loss}
        for trial_id, curve in curves.items()
        for at_s, loss in curve
    ]


def found(make_trial: Callable[..., Row], curves: Any = None, document: Row = TOKENS, **changes: Any) -> Any:
    curves = curves or CURVES
    trials = [
        make_trial(
            trial_id, "completed", curve[-1][1], is_baseline=trial_id == 0, **{"batch_size": 8 + trial_id, **changes}
        )
        for trial_id, curve in curves.items()
    ]
    trials.append(make_trial(9, "stopped", 4.0))
    metrics = rows_of({**curves, 9: [(0.0, 9.0), (50.0, 4.0)]})
    return time_winner(document, trials, metrics, find_winner(trials))


def test_the_time_is_the_shortest_of_a_completed_trial(make_trial: Callable[..., Row]) -> None:
    ahead = found(make_trial)
    assert ahead == {
        "trial_id": 4,
        "device_s": 50.0,
        "val_loss": 6.0,
        "winner_val_loss": 7.75,  # a quarter of the way from 8 after 40 s to 7 after 80 s
        "words": "by tokens trial 7; by device time trial 4: at the same device time, 50 s, it has a val loss of "
        "6.0000 and trial 7 7.7500",
    }


def test_a_trial_of_the_winners_own_shape_is_not_ahead_by_time(make_trial: Callable[..., Row]) -> None:
    # Whatever the clock says: the machine was busy with something else.
    assert found(make_trial, batch_size=8) is None


def test_a_slow_run_of_a_shape_counts_with_the_shapes_usual_time(make_trial: Callable[..., Row]) -> None:
    curves = {
        0: [(0.0, 9.0), (50.0, 7.0)],
        1: [(0.0, 9.0), (100.0, 5.0)],
        2: [(0.0, 9.0), (50.0, 6.0)],
        3: [(0.0, 9.0), (50.0, 6.5)],
    }
    trials = [
        make_trial(trial_id, "completed", curve[-1][1], is_baseline=trial_id == 0, batch_size=8 if trial_id == 2 else 4)
        for trial_id, curve in curves.items()
    ]
    assert time_winner(TOKENS, trials, rows_of(curves), find_winner(trials)) is None


def test_a_rate_that_had_yet_to_fall_is_told(make_trial: Callable[..., Row]) -> None:
    assert found(make_trial, lr_schedule="warmup_cosine")["words"].endswith(", whose learning rate had yet to fall")


def test_nobody_is_named_who_is_not_clearly_ahead(make_trial: Callable[..., Row]) -> None:
    assert found(make_trial, {**CURVES, 7: [(0.0, 9.0), (50.0, 5.5), (400.0, 5.0)]}) is None
    assert found(make_trial, {**CURVES, 7: [(0.0, 9.0), (50.0, 6.009), (400.0, 5.0)]}) is None
    assert found(make_trial, {**CURVES, 7: [(0.0, 9.0), (50.0, 6.011), (400.0, 5.0)]})["trial_id"] == 4
    assert found(make_trial, {0: CURVES[0]}) is None


def test_where_the_budget_is_time_the_winner_has_it(make_trial: Callable[..., Row]) -> None:
    time = {"device_s": 60.0, "evaluations": 4, "evaluation_s": 0.1, "shapes": []}
    assert found(make_trial, document={**TOKENS, "device_time": time}) is None


def test_the_report_of_a_budget_of_time_counts_in_time(tmp_path: Path) -> None:
    study = make_report_study(tmp_path / "timed", device_s=60.0)
    facts = report_facts(study)
    assert (facts["protocol"]["budget"], facts["protocol"]["device_s"]) == ("1 min 00 s of device time", 60)
    assert [(rung["at"], rung["trials_reached"]) for rung in facts["rungs"]] == [("6.7 s", 23), ("20 s", 8)]
    assert len(facts["parameters"]) == 5
    assert all(trial["budget_frac"] == 1 for trial in facts["trials"] if trial["status"] == "completed")
    tokens = {trial["tokens_seen"] for trial in facts["trials"] if trial["status"] == "completed"}
    assert max(tokens) > 1.2 * min(tokens)
    stopped = [trial for trial in facts["trials"] if trial["status"] == "stopped"]
    assert {trial["why"].partition(" at ")[2] for trial in stopped} == {"11% of the budget", "34% of the budget"}
    assert all(trial["rung_losses"][trial["rung"]] is not None for trial in stopped)
    figures = report_figures(facts)
    (by_tokens,), by_time = figures["curves"], figures["speed"][-1]
    lines = {
        one["id"]: [line["x0"] for line in one["layout"]["shapes"] if "yref" in line] for one in (by_tokens, by_time)
    }
    assert lines["curves"] == []
    assert lines["curves-by-time"] == pytest.approx([0.112 * 60, 0.336 * 60], rel=1e-3)
    assert views(facts) == ["at the full budget", "at 11% of the budget (6.7 s)", "at 34% of the budget (20 s)"]
    write_reports(study)
    assert "budget 1 min 00 s of device time a trial" in (study.path / "report.md").read_text()
    page = (study.path / "report.html").read_text()
    assert "Trials are compared at equal device time" in page
    assert answer_of(facts) is None


def answer_of(facts: Row) -> Any:
    return facts["answer"]["by_device_time"]


def test_the_report_of_a_budget_of_tokens_names_who_is_ahead(tmp_path: Path) -> None:
    study = make_report_study(tmp_path / "counted", early_stopping=False)
    facts = report_facts(study)
    ahead = time_winner(study.document(), study.trials(), study.metrics(), winner_of(study))
    assert answer_of(facts) == ahead
    assert (ahead is not None) == any("by device time" in line for line in facts["answer"]["notes"])


def test_an_evaluation_that_was_not_finite_is_no_point(make_trial: Callable[..., Row]) -> None:
    curves: Any = {**CURVES, 4: [(0.0, 9.0), (25.0, None), (50.0, 6.0)]}
    assert found(make_trial, curves)["val_loss"] == 6.0


def test_a_trial_whose_last_loss_is_not_finite_is_ahead_of_none(make_trial: Callable[..., Row]) -> None:
    trials = [make_trial(k, "completed", loss, batch_size=8 + k) for k, loss in ((0, 7.0), (4, None), (7, 5.0))]
    assert time_winner(TOKENS, trials, rows_of(CURVES), find_winner(trials)) is None
