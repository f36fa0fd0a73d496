"""Whole sequences of commands in one shell, as a person types them; every printed next step is typed as it stands."""

import json
import re
from pathlib import Path

from results.confirmation.attempt import load_attempts
from results.winner import winner_of
from tests.journeys.conftest import WILD_SPACE, Shell, purposes, study_agrees


def test_from_a_search_to_a_proof_and_on(shell: Shell, space: Path) -> None:
    """Search, then all that it prints next, in its order, and all that these print; nothing contradicts another."""
    shell("export SEEDS=4 TOP=1")
    searched = shell(f"make search SPACE={space} STUDY=first BUDGET_TOKENS=6144")
    first = shell.study("first")
    study_agrees(first)
    assert purposes(first) == {"search": 3}
    winner = winner_of(first).name
    assert re.search(rf"{winner} beat the baseline by 0\.\d+ nats/token", searched.output, re.IGNORECASE)
    confirm, model, train, attribute, schedule = searched.next_lines
    assert confirm == "make confirm STUDY=first"

    confirmed = shell(confirm)
    study_agrees(first)
    assert purposes(first) == {"search": 3, "confirmation": 8}
    assert winner_of(first).standing == "proven"
    assert f"{winner} is better than the baseline".lower() in confirmed.output.lower()
    assert confirmed.next_lines == [model, train, attribute, schedule]

    again = shell("make confirm STUDY=first SEEDS=2")
    study_agrees(first)
    assert [(one.number, one.seeds) for one in load_attempts(first)] == [(1, (1, 2, 3, 4)), (2, (5, 6))]
    assert load_attempts(first)[0].verdicts[0].outcome == "better"
    assert load_attempts(first)[1].alpha == load_attempts(first)[0].alpha / 2
    assert winner_of(first).name == winner
    assert again.next_lines == confirmed.next_lines

    assert "model-" in shell(model).output
    trained = shell(train)
    assert f"val loss {winner_of(first).trial['val_loss']:.4f}" in trained.output  # type: ignore[index]
    shell('(eval "$(make -s export STUDY=first)"; make train)')
    shell("export SEEDS=2")
    attributed = shell(attribute)
    study_agrees(first)
    assert purposes(first)["attribution"] == 8
    assert attributed.next_lines == [model, train, schedule]
    # What was trained, confirmed or attributed meanwhile is not what "latest" means.
    shell("make report")
    assert json.loads(shell("make -s export FORMAT=json").stdout)["study"] == "first"

    bring_back = shell(f"TRIALS=2 BUDGET_TOKENS=1024 {schedule} STUDY=second")
    study_agrees(shell.study("second"))
    document = shell.study("second").document()
    assert document["baseline"]["name"].startswith("first")
    assert "set by the export" not in bring_back.output
    # Nothing of the schedule is left to search: the long run is next.
    [longer_run] = [line for line in bring_back.next_lines if "BUDGET_TOKENS" in line]
    assert "10.2k tokens" in shell(longer_run).output

    # A larger budget needs no space file, and keeps the best.
    best = winner_of(first).trial
    assert best is not None
    shell(f"mv {space} {space}.away")
    there = set(shell.studies.iterdir())
    longer = shell("make resume STUDY=first BUDGET_TOKENS=7168")
    assert "learning from study first: " in longer.output
    [path] = set(shell.studies.iterdir()) - there
    study = shell.study(path.name)
    study_agrees(study)
    assert study.document()["budget_tokens"] == 7_168
    same = [row for row in study.trials() if row["learning_rate"] == best["learning_rate"]]
    assert [(row["status"], row["tokens_seen"]) for row in same] == [("completed", 7_168)]
    assert longer.next_lines[0].startswith("make ")


def test_what_is_interrupted_goes_on_as_it_says(shell: Shell, space: Path) -> None:
    """A search that is to be confirmed; then its confirmation, before which the search is extended."""
    typed = shell.type(f"make search SPACE={space} STUDY=cut BUDGET_TOKENS=3k CONFIRM=1 TOP=1 SEEDS=2")
    study = shell.study("cut")
    typed.wait_for(lambda: study.trials_path.exists() and any(row["tokens_seen"] > 0 for row in study.trials()))
    typed.interrupt()
    said = typed.said()
    assert said.code != 0
    assert said.next_lines == ["make resume STUDY=cut"]
    typed = shell.type(said.next_lines[0])
    typed.wait_for(lambda: purposes(study)["confirmation"] >= 2)
    typed.interrupt()
    said = typed.said()
    assert said.code != 0
    assert said.next_lines == ["make confirm STUDY=cut"]
    study_agrees(study)
    extended = shell("make resume STUDY=cut TRIALS=+2")
    study_agrees(study)
    assert purposes(study)["search"] == 5
    assert extended.next_lines == ["make confirm STUDY=cut"]
    shell(extended.next_lines[0])
    study_agrees(study)
    [attempt] = load_attempts(study)
    assert len(attempt.verdicts) == 1
    assert purposes(study)["confirmation"] == 4


def test_a_baseline_that_wins_is_told_so_and_asked_on(shell: Shell, space: Path) -> None:
    """No trial of these rates beats the baseline: what is printed then is more trials, and what is wrong."""
    space.write_text(WILD_SPACE.replace("trials = 3", "trials = 2"))
    searched = shell(f"make search SPACE={space} STUDY=base BUDGET_TOKENS=1024")
    study = shell.study("base")
    study_agrees(study)
    assert winner_of(study).trial["is_baseline"]  # type: ignore[index]
    assert "The baseline is the best" in searched.output
    more, diagnose = searched.next_lines[:2]
    assert more == "make resume STUDY=base TRIALS=+2"
    shell(more)
    study_agrees(study)
    assert purposes(study) == {"search": 4}
    shell(diagnose)
