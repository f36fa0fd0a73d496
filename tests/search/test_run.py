"""A real search, end to end: what is on disk afterwards is exactly what the design promises."""

import json
import math
import tomllib
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest

from results.study.folder import Study
from spaces.read.load import space_from_tables
from trainable.config import HYPERPARAMETERS, TrialConfig
from trainable.rows import ENDINGS

TRIAL_COLUMNS = [
    *("trial_id", "purpose", "is_baseline", "of_trial", "attempt", "combination", "status", "verdict", "point"),
    *HYPERPARAMETERS,
    *("val_loss", "best_val_loss", "end_loss", "tokens_seen", "optimizer_steps", "active_s", "tokens_per_s", "rung"),
    *("started_at", "ended_at"),
]
METRICS_COLUMNS = [
    *("trial_id", "tokens_seen", "optimizer_steps", "val_loss", "train_loss", "grad_norm", "learning_rate"),
    *("tokens_per_s", "active_s"),
]
STEPS_COLUMNS = ["optimizer_steps", "tokens_seen", "train_loss", "grad_norm", "learning_rate", "step_time_s"]
BUDGET_TOKENS = 12_288
MILESTONES_TOKENS = (3072, 4916, 9832, 12_288)
SECRET = "hunter2"


@pytest.fixture(scope="session")
def trials(searched: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = searched.study.trials()
    return rows


def test_it_ends_well_with_one_document_on_stdout(searched: Any) -> None:
    assert searched.ran.code == 0
    document = searched.ran.document
    assert document["study"] == "shared"
    assert document["path"] == str(searched.study.path)
    assert document["proven"] is False
    assert document["baseline"]["trial_id"] == 0
    assert len(document["trials"]) == 8
    assert sum(document["endings"].values()) == 8
    assert "Traceback" not in searched.ran.stderr
    assert "Warning" not in searched.ran.stderr
    assert "[transformers]" not in searched.ran.stderr
    assert "trial_" not in searched.ran.stderr


def test_no_process_is_left(searched: Any) -> None:
    assert searched.orphans == []


def test_trial_0_is_the_baseline_completed_at_the_full_budget(trials: list[dict[str, Any]]) -> None:
    baseline = trials[0]
    assert (baseline["trial_id"], baseline["is_baseline"], baseline["status"]) == (0, True, "completed")
    assert {row["purpose"] for row in trials} == {"search"}
    assert baseline["tokens_seen"] == BUDGET_TOKENS == 96 * 4 * 32
    assert baseline["optimizer_steps"] == baseline["training_steps"] == 96
    assert (baseline["batch_size"], baseline["learning_rate"]) == (4, 1e-4)
    assert [row["is_baseline"] for row in trials[1:]] == [False] * 7


def test_every_cell_ran_once_and_none_beyond_the_budget(trials: list[dict[str, Any]]) -> None:
    cells = [(row["learning_rate"], row["batch_size"]) for row in trials]
    assert sorted(cells) == sorted((rate, batch) for rate in (1e-6, 1e-4, 1e-3, 100.0) for batch in (4, 8))
    assert all(row["tokens_seen"] <= BUDGET_TOKENS for row in trials)
    assert all(row["tokens_seen"] == row["optimizer_steps"] * row["batch_size"] * 32 for row in trials)
    assert all(row["training_steps"] == BUDGET_TOKENS // (row["batch_size"] * 32) for row in trials)


def test_every_trial_ended_in_a_way_of_its_own(trials: list[dict[str, Any]]) -> None:
    status = {(row["learning_rate"], row["batch_size"]): row["status"] for row in trials}
    assert set(status.values()) <= set(ENDINGS)
    assert status[1e-4, 4] == "completed"
    assert status[1e-3, 4] == "completed"
    assert status[100.0, 4] == status[100.0, 8] == "unstable"
    assert status[1e-6, 4] == "stopped"
    assert status[1e-6, 8] == "failed"


def test_a_loss_that_is_no_number_is_a_verdict_at_that_step(searched: Any, trials: list[dict[str, Any]]) -> None:
    for row in trials:
        assert (row["verdict"] is not None) == (row["status"] == "unstable")
        if row["status"] == "unstable":
            # It ends at the step of the verdict and not at the next evaluation.
            assert row["verdict"].startswith(f"nonfinite at step {row['optimizer_steps']}: ")
            assert row["tokens_seen"] < MILESTONES_TOKENS[0]
            last = pd.read_parquet(searched.study.steps_path(row["trial_id"])).iloc[-1]
            assert not (math.isfinite(last["train_loss"]) and math.isfinite(last["grad_norm"]))
            # Its evaluation at step 0, a good one, came before it went wrong.
            assert row["val_loss"] is None
            assert math.isfinite(row["best_val_loss"])
            assert row["end_loss"] == (last["train_loss"] if math.isfinite(last["train_loss"]) else None)
            assert f"trial {row['trial_id']} unstable: nonfinite" in searched.ran.stderr


def test_a_stopped_trials_results_end_at_a_rung(searched: Any, trials: list[dict[str, Any]]) -> None:
    stopped = [row for row in trials if row["status"] == "stopped"]
    assert stopped
    for row in stopped:
        step_tokens = row["batch_size"] * 32
        rung_tokens = (4916, 9832)[row["rung"]]
        evaluations = [one for one in searched.study.metrics() if one["trial_id"] == row["trial_id"]]
        assert evaluations[-1]["tokens_seen"] == rung_tokens // step_tokens * step_tokens
        assert row["val_loss"] == evaluations[-1]["val_loss"]
        # What it trained while those before it had not got there is its cost.
        assert row["tokens_seen"] >= evaluations[-1]["tokens_seen"]


def test_the_best_beats_the_baseline(searched: Any, trials: list[dict[str, Any]]) -> None:
    best = searched.ran.document["best"]
    completed = [row for row in trials if row["status"] == "completed"]
    assert best["val_loss"] == min(row["val_loss"] for row in completed)
    assert best["val_loss"] < trials[0]["val_loss"]
    assert best["learning_rate"] == 1e-3


def test_the_failure_is_told_with_its_reason_and_the_study_went_on(searched: Any) -> None:
    # When it happened, and below the results.
    line, again = [line for line in searched.ran.stderr.splitlines() if line.startswith("trial 7 failed")]
    assert again.startswith("trial 7 failed")
    assert line.startswith("trial 7 failed at 0% of the budget: trainable.errors.UserError: checkpoint ")
    assert "has version 99; this program reads 1. Update it." in line
    log = searched.study.log_path.read_text()
    assert ", in _begin\n" in log
    assert "\x1b" not in log


def test_the_tables_have_exactly_the_designs_columns(searched: Any) -> None:
    study: Study = searched.study
    assert list(pd.read_parquet(study.trials_path).columns) == TRIAL_COLUMNS
    assert list(pd.read_parquet(study.metrics_path).columns) == METRICS_COLUMNS
    for row in study.trials():
        if row["optimizer_steps"]:
            assert list(pd.read_parquet(study.steps_path(row["trial_id"])).columns) == STEPS_COLUMNS


def test_pandas_reads_types_that_can_be_worked_with(searched: Any) -> None:
    trials = pd.read_parquet(searched.study.trials_path)
    assert trials["is_baseline"].dtype == bool
    assert trials["val_loss"].dtype == float
    assert str(trials["started_at"].dt.tz) == "UTC"
    assert (trials["ended_at"] >= trials["started_at"]).all()
    assert not trials["trial_id"].duplicated().any()


def test_duckdb_reads_the_same(searched: Any, trials: list[dict[str, Any]]) -> None:
    with duckdb.connect() as connection:
        query = f"select trial_id, status, val_loss from '{searched.study.trials_path}' order by trial_id"
        assert connection.sql(query).fetchall() == [(r["trial_id"], r["status"], r["val_loss"]) for r in trials]
        late = f"""
            select count(*) from '{searched.study.path}/steps/*.parquet' where tokens_seen > {BUDGET_TOKENS}
            union all select count(*) from '{searched.study.metrics_path}' where isnan(val_loss) or val_loss is null
            union all select count(*) from '{searched.study.trials_path}'
                      where status = 'completed' and (val_loss is null or isnan(val_loss) or isinf(val_loss))
        """
        assert connection.sql(late).fetchall() == [(0,), (0,), (0,)]
        joined = f"""
            select t.trial_id from '{searched.study.trials_path}' t join '{searched.study.metrics_path}' m
            on m.trial_id = t.trial_id and m.tokens_seen = t.tokens_seen where t.status = 'completed'
            and m.val_loss = t.val_loss order by 1
        """
        completed = [(row["trial_id"],) for row in trials if row["status"] == "completed"]
        assert connection.sql(joined).fetchall() == completed


def test_all_trials_are_evaluated_at_the_same_tokens_up_to_their_last_whole_step(
    searched: Any, trials: list[dict[str, Any]]
) -> None:
    metrics = pd.read_parquet(searched.study.metrics_path)
    for row in trials:
        step_tokens = row["batch_size"] * 32
        planned = [0, *(tokens // step_tokens * step_tokens for tokens in MILESTONES_TOKENS)]
        seen = metrics.loc[metrics["trial_id"] == row["trial_id"], "tokens_seen"].tolist()
        assert seen == planned[: len(seen)]
        if row["status"] == "completed":
            assert seen == planned


def test_one_evaluation_for_all_the_same_weights_read_the_same_loss(searched: Any) -> None:
    metrics = pd.read_parquet(searched.study.metrics_path)
    first = metrics[metrics["tokens_seen"] == 0]
    assert len(first) == 7
    # Evaluated once, before Ray starts, and handed to every trial.
    start = searched.study.document()["start"]
    assert set(zip(first["val_loss"], first["train_loss"], strict=True)) == {(start["val_loss"], start["train_loss"])}
    assert (first["active_s"] == 0).all()
    assert searched.ran.stderr.count("evaluating the start") == 1
    assert searched.ran.document["winner"]["start_val_loss"] == start["val_loss"]
    assert searched.ran.document["winner"]["worse_than_start"] is False
    evaluation = searched.study.document()["evaluation"]
    assert (evaluation["block_size"], evaluation["tokens"]) == (32, 512)
    assert evaluation["milestones_tokens"] == list(MILESTONES_TOKENS)


def test_every_step_is_in_the_trace(searched: Any, trials: list[dict[str, Any]]) -> None:
    for row in trials:
        if not row["optimizer_steps"]:
            continue
        steps = pd.read_parquet(searched.study.steps_path(row["trial_id"]))
        assert steps["optimizer_steps"].tolist() == list(range(1, row["optimizer_steps"] + 1))
        assert steps["tokens_seen"].iloc[-1] == row["tokens_seen"]
        assert (steps["step_time_s"] > 0).all()
        assert (steps["learning_rate"] == row["learning_rate"]).all()


def test_checkpoints_are_kept_of_the_best_and_of_the_baseline_alone(
    searched: Any, trials: list[dict[str, Any]]
) -> None:
    completed = sorted((row for row in trials if row["status"] == "completed"), key=lambda row: row["val_loss"])
    kept = {0, *(row["trial_id"] for row in completed[:3])}
    folders = {int(path.name) for path in (searched.study.path / "checkpoints").iterdir()}
    assert folders == kept
    for trial_id in kept:
        [file] = searched.study.checkpoint_dir(trial_id).iterdir()
        assert file.name == f"step_{trials[trial_id]['training_steps']:08d}.pt"


def unexpected_files(study: Study) -> list[Path]:
    """Return what is neither for people nor the lock nor a table's previous copy."""
    hidden = [path for path in study.path.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    return [path for path in hidden if path.name != ".lock" and path.suffix != ".previous"]


def test_nothing_else_is_left_in_the_study(searched: Any, trials: list[dict[str, Any]]) -> None:
    names = {path.name for path in searched.study.path.iterdir()}
    assert names >= {"study.json", "trials.parquet", "metrics.parquet", "steps", "best.env", "best.json", "search.log"}
    assert "ray" not in names
    assert unexpected_files(searched.study) == []
    steps = {path.name for path in (searched.study.path / "steps").glob("[!.]*")}
    assert steps == {f"{row['trial_id']}.parquet" for row in trials if row["optimizer_steps"]}


def test_the_document_is_enough_to_run_the_study_again(
    searched: Any, trials: list[dict[str, Any]], narrow: Path
) -> None:
    document = searched.study.document()
    space = space_from_tables(tomllib.loads(document["space"]["toml"]), name="own", path="own.toml")
    assert document["space"]["toml"] == searched.space_path.read_text()
    assert list(space.evaluation_tokens()) == document["evaluation"]["milestones_tokens"]
    assert list(space.rung_tokens()) == document["rung_tokens"] == [4916, 9832]
    baseline = {name: document["baseline"][name] for name in HYPERPARAMETERS}
    assert TrialConfig(**baseline) == space.baseline
    assert document["baseline"]["name"] == "documented, changed"
    assert document["budget_tokens"] == BUDGET_TOKENS
    assert document["trials_planned"] == 8
    assert document["searcher"] == {"name": "grid"}
    assert document["scheduler"]["name"] == "asha"
    assert document["scheduler"]["reduction_factor"] == 2
    assert document["seed"] == 0
    assert document["settings"]["pins"] == {}
    assert document["model"] == str(narrow)
    assert document["checkpoint_path"] is None
    assert document["device"]["type"] == "cpu"
    assert document["device"]["slots"] == 2
    assert len(document["corpus"]["fingerprint"]) == 64
    assert document["versions"].keys() >= {"python", "platform", "torch", "ray", "transformers", "optuna"}
    assert "git_commit" in document


def test_no_secret_of_the_environment_is_in_any_file(searched: Any) -> None:
    for path in searched.study.path.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path.name
    text = searched.study.study_json.read_text()
    assert "TOKEN" not in text
    assert "PASSWORD" not in text


def test_the_best_is_written_for_a_shell_and_for_a_program(searched: Any) -> None:
    best = searched.ran.document["best"]
    program = json.loads(searched.study.best_json.read_text())
    assert program["trial_id"] == best["trial_id"]
    assert program["val_loss"] == best["val_loss"]
    assert program["hyperparameters"] == {name: best[name] for name in HYPERPARAMETERS}
    lines = searched.study.best_env.read_text().splitlines()
    assert f"export BATCH_SIZE={best['batch_size']}" in lines
    assert "export LEARNING_RATE=0.001" in lines


def test_the_log_tells_of_the_beginning_and_of_every_ending(searched: Any, trials: list[dict[str, Any]]) -> None:
    log = searched.study.log_path.read_text()
    assert "study shared: A grid with good, useless and wild rates" in log
    assert "2 at a time on cpu" in log
    for row in trials:
        name = "baseline" if row["is_baseline"] else f"trial {row['trial_id']}"
        assert f"{name} {row['status']}" in log


def test_the_summary_says_what_was_won_and_what_it_cost(searched: Any, trials: list[dict[str, Any]]) -> None:
    document = searched.ran.document
    spent_tokens = sum(row["tokens_seen"] for row in trials)
    assert document["tokens_spent"] == spent_tokens
    assert document["device_s_spent"] == pytest.approx(math.fsum(row["active_s"] for row in trials))
    assert 0 < document["device_s_saved_frac"] < 1
    text = " ".join(searched.ran.stderr.split())
    assert "nats/token lower on the same held-out tokens" in text
    assert "make train STUDY=shared" in text
