"""What the ledger holds, when it is on disk, and that it comes back."""

import math
import shutil
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from results.study.atomic import storage_error_words
from results.study.folder import Study, create_study
from results.study.ledger import Ledger
from results.study.lock import hold
from results.study.planned_run import PlannedRun
from results.study.tables import STEPS, read_rows, write_table
from tests.rows import evaluation
from trainable.config import BEFORE, DOCUMENTED
from trainable.rows import MetricsRow, StepRow, Verdict

NOON = datetime(2025, 11, 25, 12, 0, 0, 250, tzinfo=UTC)
LATER = NOON + timedelta(minutes=3)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def study(studies: Path, make_document: Callable[..., dict[str, Any]]) -> Study:
    return create_study("one", make_document("one"))


def metrics(steps: int, val_loss: float, **changes: Any) -> MetricsRow:
    plain = {"tokens_seen": steps * 4096, "train_loss": val_loss + 0.1, "grad_norm": 1.5, "tokens_per_s": 1000.0}
    return evaluation(steps, val_loss, **{**plain, "active_s": steps * 5.0, **changes})


def steps(*numbers: int, train_loss: float = 5.0) -> list[StepRow]:
    return [
        StepRow(
            optimizer_steps=number,
            tokens_seen=number * 4096,
            train_loss=train_loss,
            grad_norm=1.5,
            learning_rate=1e-5,
            step_time_s=0.5,
        )
        for number in numbers
    ]


def saved_steps(study: Study, trial_id: int) -> list[tuple[int, float]]:
    rows = read_rows(study.steps_path(trial_id), STEPS)
    return [(row["optimizer_steps"], row["train_loss"]) for row in rows]


def start(ledger: Ledger, trial_id: int) -> None:
    config = DOCUMENTED if trial_id == 0 else BEFORE
    ledger.start_trial(
        PlannedRun(trial_id=trial_id, purpose="search", is_baseline=trial_id == 0, config=config), started_at=NOON
    )


def end(ledger: Ledger, trial_id: int, status: Any = "completed", **changes: Any) -> None:
    ledger.end_trial(trial_id, **{"status": status, "verdict": None, "ended_at": LATER, **changes})


def test_a_started_trial_is_on_disk_at_once(study: Study) -> None:
    with hold(study):
        start(Ledger(study), 0)
        (row,) = study.trials()
    assert row["status"] == "running"
    assert row["is_baseline"] is True
    assert (row["batch_size"], row["learning_rate"], row["lr_schedule"], row["seed"]) == (32, 1e-5, "constant", 0)
    assert (row["tokens_seen"], row["optimizer_steps"], row["active_s"]) == (0, 0, 0.0)
    assert (row["started_at"], row["ended_at"]) == (NOON, None)
    assert [row[name] for name in ("verdict", "val_loss", "best_val_loss", "tokens_per_s", "rung")] == [None] * 5
    assert study.metrics() == []


def test_the_last_and_the_best_loss_are_kept_apart(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 1)
    for steps, loss, rung in [(10, 5.0, None), (20, 4.0, 0), (30, 4.5, 1)]:
        ledger.add_metrics(1, metrics(steps, loss), rung)
    end(ledger, 1)
    (row,) = study.trials()
    assert (row["val_loss"], row["best_val_loss"], row["rung"]) == (4.5, 4.0, 1)
    assert (row["tokens_seen"], row["optimizer_steps"], row["active_s"]) == (122_880, 30, 150.0)
    assert (row["status"], row["ended_at"]) == ("completed", LATER)
    assert [(row["optimizer_steps"], row["val_loss"]) for row in study.metrics()] == [(10, 5.0), (20, 4.0), (30, 4.5)]
    assert list(study.metrics()[0].items()) == [
        ("trial_id", 1), ("tokens_seen", 40_960), ("optimizer_steps", 10), ("val_loss", 5.0), ("train_loss", 5.1),
        ("grad_norm", 1.5), ("learning_rate", 1e-5), ("tokens_per_s", 1000.0), ("active_s", 50.0),
    ]  # fmt: skip


def test_the_speed_is_tokens_over_their_training_time(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 1)
    ledger.add_metrics(1, metrics(0, 9.0, tokens_per_s=0.0), None)
    assert ledger.trials()[0]["tokens_per_s"] is None
    ledger.add_metrics(1, metrics(1, 8.0, tokens_seen=1000, tokens_per_s=500.0), None)  # 2 s
    ledger.add_metrics(1, metrics(2, 7.0, tokens_seen=2000, tokens_per_s=125.0), None)  # 8 s
    assert ledger.trials()[0]["tokens_per_s"] == 200.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_is_null_never_nan(study: Study, bad: float) -> None:
    ledger = Ledger(study)
    start(ledger, 1)
    ledger.add_metrics(1, metrics(10, 5.0), None)
    ledger.add_metrics(1, metrics(20, bad, train_loss=bad, grad_norm=bad), None)
    end(ledger, 1, "unstable", verdict=Verdict(reason="nonfinite", step=21, evidence="loss\nnan"), optimizer_steps=21)
    (row,) = study.trials()
    assert (row["status"], row["verdict"]) == ("unstable", "nonfinite at step 21: loss nan")
    assert (row["val_loss"], row["best_val_loss"]) == (None, 5.0)
    assert [study.metrics()[1][name] for name in ("val_loss", "train_loss", "grad_norm")] == [None] * 3


def test_a_trial_may_end_beyond_its_last_evaluation_or_before_its_first(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 0)
    start(ledger, 1)
    ledger.add_metrics(0, metrics(10, 5.0), None)
    end(ledger, 0, "stopped", optimizer_steps=14, tokens_seen=14 * 4096, active_s=66.0)
    verdict = Verdict(reason="nonfinite", step=3, evidence="loss nan")
    end(ledger, 1, "unstable", verdict=verdict, optimizer_steps=3, tokens_seen=3 * 4096, active_s=15.5)
    first, second = study.trials()
    assert (first["optimizer_steps"], first["tokens_seen"], first["active_s"]) == (14, 14 * 4096, 66.0)
    assert (second["optimizer_steps"], second["tokens_seen"], second["active_s"]) == (3, 3 * 4096, 15.5)
    assert (second["val_loss"], second["verdict"]) == (None, "nonfinite at step 3: loss nan")


def test_an_ending_that_lags_takes_nothing_back(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 0)
    ledger.add_metrics(0, metrics(10, 5.0), 2)
    end(ledger, 0, "failed", optimizer_steps=4, tokens_seen=4 * 4096, active_s=1.0)
    (row,) = study.trials()
    assert (row["optimizer_steps"], row["tokens_seen"], row["active_s"]) == (10, 10 * 4096, 50.0)


def test_a_trial_that_went_back_replaces_what_it_passes_again(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 1)
    for steps, loss in [(10, 5.0), (20, 3.0), (30, 4.0)]:
        ledger.add_metrics(1, metrics(steps, loss), 1)
    ledger.add_metrics(1, metrics(20, 4.8), 0)
    ledger.add_metrics(1, metrics(20, 4.8), None)
    (row,) = ledger.trials()
    assert [(row["optimizer_steps"], row["val_loss"]) for row in ledger.metrics()] == [(10, 5.0), (20, 4.8)]
    assert (row["val_loss"], row["best_val_loss"], row["optimizer_steps"], row["rung"]) == (4.8, 4.8, 20, 1)


def test_evaluations_are_flushed_at_most_once_an_interval(study: Study) -> None:
    clock = Clock()
    ledger = Ledger(study, flush_interval_s=5.0, clock=clock)
    start(ledger, 1)
    ledger.add_metrics(1, metrics(10, 5.0), 0)
    clock.now += 4.9
    ledger.add_metrics(1, metrics(20, 4.9), 0)
    assert study.metrics() == []
    assert study.trials()[0]["status"] == "interrupted"
    clock.now += 0.1
    ledger.add_metrics(1, metrics(30, 4.8), 0)
    assert [row["val_loss"] for row in study.metrics()] == [5.0, 4.9, 4.8]
    assert study.trials()[0]["val_loss"] == 4.8
    clock.now += 4.9
    ledger.add_metrics(1, metrics(40, 4.7), 0)
    assert len(study.metrics()) == 3
    ledger.flush()
    assert len(study.metrics()) == 4


def test_writing_large_tables_takes_a_twentieth_of_the_time_at_most(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()

    def write_slowly(path: Path, rows: Any, schema: Any) -> None:
        clock.now += 1.5 if path == study.metrics_path else 0.0
        write_table(path, rows, schema)

    monkeypatch.setattr("results.study.ledger.write_table", write_slowly)
    ledger = Ledger(study, flush_interval_s=5.0, clock=clock)
    start(ledger, 1)
    for waited_s, step, on_disk in ((29.0, 10, 0), (2.0, 20, 2), (29.0, 30, 2), (2.0, 40, 4)):
        clock.now += waited_s
        ledger.add_metrics(1, metrics(step, 5.0), 0)
        assert len(study.metrics()) == on_disk, step


def test_another_trials_start_or_ending_flushes_all(study: Study) -> None:
    ledger = Ledger(study, clock=Clock())
    start(ledger, 0)
    ledger.add_metrics(0, metrics(10, 5.0), 0)
    start(ledger, 1)
    assert len(study.metrics()) == 1
    ledger.add_metrics(0, metrics(20, 4.0), 0)
    end(ledger, 1, "out_of_memory")
    assert len(study.metrics()) == 2


def test_steps_are_on_disk_with_the_next_flush(study: Study) -> None:
    clock = Clock()
    ledger = Ledger(study, flush_interval_s=5.0, clock=clock)
    start(ledger, 1)
    ledger.add_steps(1, steps(1, 2))
    ledger.add_steps(1, [])
    assert not study.steps_path(1).exists()
    clock.now += 5.0
    ledger.add_metrics(1, metrics(2, 5.0), None)
    assert saved_steps(study, 1) == [(1, 5.0), (2, 5.0)]
    ledger.add_steps(1, steps(3, train_loss=math.inf))
    end(ledger, 1, "unstable", verdict=Verdict(reason="nonfinite", step=3, evidence="loss inf"))
    assert saved_steps(study, 1) == [(1, 5.0), (2, 5.0), (3, math.inf)]


def test_a_long_run_takes_few_bytes_a_step(study: Study) -> None:
    start(ledger := Ledger(study), 0)
    tracemalloc.start()
    for number in range(1, 20_001):
        ledger.add_steps(0, steps(number, train_loss=5.0 + 1 / number))
    held_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held_bytes / 20_000 < 100
    ledger.flush()
    assert saved_steps(study, 0) == [(number, 5.0 + 1 / number) for number in range(1, 20_001)]


def test_steps_that_are_passed_again_are_replaced(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 1)
    ledger.add_steps(1, steps(1, 2, 3, 4))
    ledger.add_steps(1, steps(3, train_loss=2.0))
    ledger.interrupt(LATER)
    assert saved_steps(study, 1) == [(1, 5.0), (2, 5.0), (3, 2.0)]
    for again in (ledger, Ledger(study)):
        again.start_trial(PlannedRun(trial_id=1, purpose="search", is_baseline=False, config=BEFORE), started_at=LATER)
        again.add_steps(1, steps(2, train_loss=1.0))
        again.interrupt(LATER)
        assert saved_steps(study, 1) == [(1, 5.0), (2, 1.0)]


def test_an_interrupted_run_counts_what_it_trained_since_its_last_evaluation(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 0)
    ledger.add_metrics(0, metrics(10, 5.0), None)
    ledger.interrupt(LATER, optimizer_steps=16, tokens_seen=4096, active_s=1.5)
    [row] = study.trials()
    assert (row["optimizer_steps"], row["tokens_seen"], row["active_s"], row["val_loss"]) == (16, 4096, 1.5, 5.0)


def test_steps_are_written_where_their_folder_was_deleted(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 0)
    shutil.rmtree(study.steps_path(0).parent)
    ledger.add_steps(0, steps(1, train_loss=5.0))
    ledger.interrupt(LATER)
    assert saved_steps(study, 0) == [(1, 5.0)]


def test_interrupted_trials_go_on_where_they_were(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 0)
    start(ledger, 1)
    end(ledger, 0)
    ledger.add_metrics(1, metrics(10, 5.0), 0)
    ledger.interrupt(LATER)
    assert [(row["status"], row["ended_at"]) for row in study.trials()] == [
        ("completed", LATER),
        ("interrupted", LATER),
    ]
    again = Ledger(study)
    again.start_trial(PlannedRun(trial_id=1, purpose="search", is_baseline=False, config=BEFORE), started_at=LATER)
    row = again.trials()[1]
    assert (row["status"], row["started_at"], row["ended_at"], row["val_loss"]) == ("running", NOON, None, 5.0)
    again.add_metrics(1, metrics(20, 4.0), 1)
    assert [row["optimizer_steps"] for row in again.metrics()] == [10, 20]


def test_a_loaded_ledger_is_the_saved_one(study: Study) -> None:
    ledger = Ledger(study)
    assert Ledger(study).trials() == Ledger(study).metrics() == []
    for trial_id in (10, 2, 0):
        start(ledger, trial_id)
        ledger.add_metrics(trial_id, metrics(10, 0.1 + 0.2), 0)
        end(ledger, trial_id)
    loaded = Ledger(study)
    assert loaded.trials() == ledger.trials() == study.trials()
    assert loaded.metrics() == ledger.metrics() == study.metrics()
    assert [row["trial_id"] for row in loaded.trials()] == [0, 2, 10]


def test_a_death_between_the_two_writes_loses_no_evaluation(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 1)
    before = study.trials_path.read_bytes()
    ledger.add_metrics(1, metrics(10, 5.0), 0)
    ledger.flush()
    study.trials_path.write_bytes(before)
    (row,) = Ledger(study).trials()
    assert (row["val_loss"], row["optimizer_steps"], row["status"]) == (5.0, 10, "interrupted")


def test_a_study_that_was_deleted_or_moved_is_written_no_more_until_it_is_back(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 1)
    away = study.path.with_name("away")
    study.path.rename(away)
    study.checkpoint_dir(1).mkdir(parents=True)  # by a trial that is saved meanwhile
    with pytest.raises(OSError, match="one") as refused:
        end(ledger, 1)
    words = "/one: deleted or moved while it was written to. Put it back; what was measured so far is kept"
    assert f"{words}. Then " in storage_error_words(refused.value)
    assert not study.trials_path.exists()
    shutil.rmtree(study.path)
    away.rename(study.path)
    assert study.trials()[0]["status"] == "interrupted"
    ledger.flush()
    assert study.trials()[0]["status"] == "completed"


def test_callers_cannot_change_the_ledger_through_its_rows(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 0)
    ledger.add_metrics(0, metrics(10, 5.0), 0)
    ledger.trials()[0]["status"] = "failed"
    ledger.metrics()[0]["val_loss"] = 0.0
    assert ledger.trials()[0]["status"] == "running"
    assert ledger.metrics()[0]["val_loss"] == 5.0


def test_our_own_mistakes_are_asserted(study: Study) -> None:
    ledger = Ledger(study)
    start(ledger, 1)
    with pytest.raises(AssertionError, match="new config"):
        ledger.start_trial(
            PlannedRun(trial_id=1, purpose="search", is_baseline=False, config=DOCUMENTED), started_at=NOON
        )
    with pytest.raises(AssertionError, match="verdict None"):
        end(ledger, 1, "unstable")
    with pytest.raises(AssertionError, match="interrupted"):
        end(ledger, 1, "interrupted")
    end(ledger, 1)
    with pytest.raises(AssertionError, match="trial 1 is completed"):
        end(ledger, 1, "failed")
    with pytest.raises(AssertionError, match="trial 1 is completed"):
        start(ledger, 1)
    with pytest.raises(AssertionError, match="trial 1 is completed"):
        ledger.add_metrics(1, metrics(1, 1.0), 0)
    with pytest.raises(AssertionError, match="trial 1 is completed"):
        ledger.add_steps(1, steps(1))
