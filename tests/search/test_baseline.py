"""`make baseline COMPARE=before`: what was documented against what a real run of both measured."""

from typing import Any

import pytest

from search.commands.baseline_command import _say_facts, speed_words
from search.terminal.console import Terminal
from trainable.config import BEFORE, DOCUMENTED, TrialConfig
from trainable.schedule import learning_rate_at


@pytest.fixture(scope="module")
def ran(run_here: Any) -> Any:
    return run_here(
        "baseline",
        "--json",
        "COMPARE=before",
        "SPACE=smoke",
        "BUDGET_TOKENS=18432",
        "STUDY=both",
        "CONCURRENCY=2",
        "SKIP_PREFLIGHT=1",
        COLUMNS="80",
    )


def test_both_configurations_ran_in_full_side_by_side(ran: Any) -> None:
    assert ran.code == 0, ran.stderr
    baseline, before = ran.document["runs"]
    assert (baseline["name"], before["name"]) == ("documented, changed", "before")
    assert (baseline["status"], before["status"]) == ("completed", "completed")
    assert baseline["evaluations"][-1]["tokens_seen"] == 144 * 4 * 32 == 18_432
    assert before["evaluations"][-1]["tokens_seen"] == 9 * 8 * 256 == 18_432


def test_the_configurations_are_told_whole(ran: Any) -> None:
    baseline, before = (TrialConfig(**facts["config"]) for facts in ran.document["runs"])
    assert (baseline.batch_size, baseline.block_size, baseline.learning_rate) == (4, 32, DOCUMENTED.learning_rate)
    assert (before.batch_size, before.block_size) == (BEFORE.batch_size, BEFORE.block_size)
    assert (before.learning_rate, before.lr_schedule) == (BEFORE.learning_rate, BEFORE.lr_schedule)
    # A tenth of the run, as 500 of 5000 steps are.
    assert (before.training_steps, before.warmup_steps) == (9, 1)


def test_measured_rates_are_those_of_the_formula(ran: Any) -> None:
    for facts in ran.document["runs"]:
        config = TrialConfig(**facts["config"])
        assert len(facts["learning_rates"]) == len(facts["evaluations"]) > 2
        for rate in facts["learning_rates"]:
            assert rate["measured"] == rate["by_formula"] == learning_rate_at(rate["step"], config)


def test_the_speed_ratio_is_of_the_two_runs(ran: Any) -> None:
    baseline, before = ran.document["runs"]
    assert ran.document["speed_ratio"] == pytest.approx(baseline["tokens_per_s"] / before["tokens_per_s"])
    assert baseline["steps_per_s"] > 0
    assert before["steps_per_s"] > 0


def test_runs_of_one_slot_were_not_side_by_side() -> None:
    ends = [speed_words(0.8, "before", slots).partition(" of before, ")[2] for slots in (1, 2)]
    assert ends == ["both run one after the other", "both run side by side"]


def test_the_tables_show_documented_against_measured(ran: Any) -> None:
    text = " ".join(ran.stderr.split())
    assert "before: as documented, and as measured here" in text
    # Three columns of tables drawn with lines: setting, documented, measured.
    for setting, documented, measured in (
        ("LR at step 0 of 5000", "2.00e-06", "2.00e-06"),
        ("LR at step 500 of 5000", "2.00e-05", "2.00e-05"),
        ("LR at step 1000 of 5000", "1.95e-05", "1.95e-05"),
        ("LR at step 2000 of 5000", "1.55e-05", "1.55e-05"),
        ("training_steps", "5000", "9"),
        ("training_steps", "2000", "144"),
    ):
        assert any(
            [cell.strip() for cell in line.strip("│").split("│")] == [setting, documented, measured]
            for line in ran.stderr.splitlines()
        ), setting
    assert "times the tokens/s of before, both run side by side" in text
    assert "documented val losses, of another model and text, so not comparable: 9.268 at step 0" in text
    assert "…" not in ran.stderr


def test_of_own_settings_nothing_was_documented(ran: Any, capsys: pytest.CaptureFixture[str]) -> None:
    facts = ran.document["runs"][1]
    _say_facts({**facts, "name": "mine.env", "config": TrialConfig(**facts["config"])}, Terminal(as_json=False))
    said = capsys.readouterr().out
    assert "mine.env: as measured here" in said
    assert [cell.strip() for cell in said.splitlines()[4].strip("│").split("│")] == ["batch_size", "8"]
    assert "documented" not in said


def test_where_it_started_and_what_it_writes_are_part_of_the_answer(ran: Any) -> None:
    start = ran.document["start_val_loss"]
    assert all(facts["evaluations"][0]["val_loss"] == start for facts in ran.document["runs"])
    text = " ".join(ran.stderr.split())
    assert f"start {start:.4f} → baseline {ran.document['runs'][0]['evaluations'][-1]['val_loss']:.4f}" in text
    assert ran.document["samples"]["samples"].keys() >= {"start", "baseline"}
    assert " start: " in text.partition("samples, after ")[2]
    assert any(step["command"].startswith("make model STUDY=both") for step in ran.document["next"])


def test_it_is_a_study_of_its_own_kind(ran: Any, run_here: Any) -> None:
    entries = {entry["study"]: entry for entry in run_here("list", "--json").document["studies"]}
    assert entries["both"]["kind"] == "baseline"
    assert entries["both"]["trials"] == 2
