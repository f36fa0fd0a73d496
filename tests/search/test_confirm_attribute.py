"""Confirmation and attribution of one real study: fresh seeds into the same study, combinations run once."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from results.confirmation.attempt import load_attempts, plan_attempt, write_attempts
from results.confirmation.paired_t import judge
from results.study.folder import Study
from results.study.lock import hold
from results.study.tables import TRIALS, write_table
from results.winner import winner_of
from search.options import Options
from trainable.config import config_from
from trainable.errors import UserError


@pytest.fixture(scope="module")
def study(two_rates: Study, studies: Path) -> Study:
    return Study(Path(shutil.copytree(two_rates.path, studies / "two")))


def test_a_search_that_has_run_every_configuration_is_over(study: Study, run_here: Any) -> None:
    ran = run_here("resume", "--json", STUDY="two")
    assert (ran.code, study.document()["trials_planned"]) == (0, 2)
    assert study.document()["exhausted"]
    assert "all 2 trials of study two have ended" in ran.stderr
    assert "runs as many again" not in ran.stderr
    assert ran.document["next"][0]["command"] == "make confirm STUDY=two"


def test_a_search_with_nothing_to_confirm_is_summed_up_all_the_same(two_rates: Study, run_here: Any) -> None:
    alone = Study(Path(shutil.copytree(two_rates.path, Path(os.environ["STUDIES_DIR"]) / "alone")))
    write_table(alone.trials_path, alone.trials()[:1], TRIALS)
    studies = os.environ["STUDIES_DIR"]
    ran = run_here("resume", "--json", STUDY="alone", STUDIES_DIR=studies, TRIALS="1", CONFIRM="1")
    assert ran.code == 0, ran.stderr
    assert "there is nothing to confirm" in ran.stderr
    assert ran.document["winner"]["trial_id"] == 0
    # One trial was asked for, so nothing is left to go on with.
    assert alone.document()["trials_planned"] == 1
    assert "make resume STUDY=alone" not in [one["command"] for one in ran.document["next"]]


def test_a_resume_confirms_what_an_earlier_process_was_asked_to(
    two_rates: Study, run_here: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    studies = Path(os.environ["STUDIES_DIR"])
    cut = Study(Path(shutil.copytree(two_rates.path, studies / "cut")))
    began: list[tuple[int, int | None]] = []

    def killed(study: Study, options: Options, terminal: object) -> int:
        began.append((options.top, options.seeds))
        raise SystemExit(9)

    monkeypatch.setattr("search.commands.run_command.confirm_study", killed)

    def resumed(*words: str) -> list[tuple[int, int | None]]:
        began.clear()
        ran = run_here("resume", "STUDY=cut", *words, STUDIES_DIR=str(studies))
        assert ran.code == (9 if began else 0), ran.output
        return [*began]

    assert resumed() == []
    assert resumed("CONFIRM=1", "TOP=1", "SEEDS=3") == [(1, 3)]
    assert resumed() == [(1, 3)]
    assert resumed("SEEDS=4") == [(1, 4)]
    attempt = plan_attempt(cut.trials(), (), study="cut", top=1, seeds=4)
    write_attempts(cut, [attempt])
    assert resumed() == [(1, 4)]
    assert resumed("TRIALS=2") == []  # whoever asks for trials waits for those
    verdicts = judge({1: 3.0, 2: 3.1}, {1: {1: 2.9, 2: 3.2}}, alpha=attempt.alpha, next_alpha=attempt.alpha / 2)
    write_attempts(cut, [replace(attempt, verdicts=tuple(verdicts))])
    assert resumed() == []
    assert resumed("CONFIRM=1") == resumed() == [(1, 4)]
    assert resumed("CONFIRM=0") == resumed() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_a_confirmation_is_prepared_says_what_is_kept_and_what_goes_on(
    two_rates: Study, run_here: Any, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    studies = Path(os.environ["STUDIES_DIR"])
    cut = Study(Path(shutil.copytree(two_rates.path, studies / "cut")))

    def interrupted(*_: object, **__: object) -> None:
        assert signal.getsignal(number) != signal.SIG_DFL
        os.kill(os.getpid(), number)

    monkeypatch.setattr("search.commands.confirm_command.reopen", interrupted)
    ran = run_here("confirm", "STUDY=cut", "SEEDS=3", STUDIES_DIR=str(studies))
    kept = "no run was begun, and study cut is kept as it was; to go on: make confirm STUDY=cut TOP=1 SEEDS=3"
    said = "interrupted\n" if number == signal.SIGINT else ""
    assert (ran.code, ran.stdout.splitlines()[-1], ran.stderr) == (128 + number, kept, said)
    assert load_attempts(cut) == ()
    # The trials before it are summed up all the same.
    ran = run_here("resume", "--json", "STUDY=cut", "CONFIRM=1", STUDIES_DIR=str(studies))
    assert (ran.code, ran.document["winner"]["trial_id"]) == (128 + number, 1)
    assert f"{kept[:-1]}5\n" in ran.stderr
    assert ran.document["next"][0]["command"] == "make confirm STUDY=cut"


def test_confirmed_and_attributed_in_the_study_itself(study: Study, run_here: Any, studies: Path) -> None:
    ran = run_here("confirm", "--json", STUDY="two", SEEDS="2", TOP="1", CONCURRENCY="1")
    assert ran.code == 0, ran.stderr
    assert f"report: {study.path / 'report.html'}" in ran.stderr
    document = ran.document
    (verdict,) = document["verdicts"]
    assert (verdict["trial_id"], verdict["seeds"]) == (1, 2)
    assert verdict["mean_difference"] < -0.05
    assert "baseline, seed 1 completed" in study.log_path.read_text()
    fresh = study.trials()[2:]
    assert [(row["trial_id"], row["purpose"], row["is_baseline"], row["attempt"]) for row in fresh] == [
        (trial_id, "confirmation", False, 1) for trial_id in (2, 3, 4, 5)
    ]
    assert sorted((row["of_trial"], row["seed"], row["learning_rate"]) for row in fresh) == [
        (0, 1, 1e-5), (0, 2, 1e-5), (1, 1, 3e-3), (1, 2, 3e-3)
    ]  # fmt: skip
    assert all(row["status"] == "completed" for row in fresh)
    # What was confirmed has its checkpoint, and the runs that confirm it have none.
    assert checkpoints(study) == {0, 1}
    assert_one_winner(study, run_here, proven=verdict["outcome"] == "better")

    ran = run_here("attribute", "--json", STUDY="two", SEEDS="2", SKIP_PREFLIGHT="1", CONCURRENCY="1")
    assert ran.code == 0, ran.stderr
    (setting,) = ran.document["settings"]
    rows = [row for row in study.trials() if row["purpose"] == "attribution"]
    assert [(row["combination"], row["seed"], row["learning_rate"]) for row in rows] == [
        ("none", 3, 1e-5), ("learning_rate", 3, 3e-3), ("none", 4, 1e-5), ("learning_rate", 4, 3e-3)
    ]  # fmt: skip
    losses = [row["val_loss"] for row in rows]
    assert setting["shapley"] == pytest.approx((losses[1] - losses[0] + losses[3] - losses[2]) / 2)
    assert "report.html" in ran.stderr
    assert "attribution-shapley" in (study.path / "report.html").read_text()
    assert [path.name for path in studies.iterdir() if not path.name.startswith(".")] == ["two"]
    assert checkpoints(study) == {0, 1}
    assert_one_winner(study, run_here)

    known = run_here("attribute", "--json", STUDY="two", SEEDS="2", SKIP_PREFLIGHT="1")
    assert "4 of 4 runs have ended before" in known.stderr
    assert known.document["settings"] == [setting]


def test_what_an_attribution_could_not_write_to_is_told_before_the_text_is_read(
    run_here: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refused(*values: Any, **named: Any) -> None:
        raise UserError("MLFLOW cannot be used")

    monkeypatch.setattr("search.commands.attribute_command.load_for", None)
    monkeypatch.setattr("search.commands.attribute_command.check_mirrors", refused)
    assert "MLFLOW cannot be used" in run_here("attribute", FROM="before").stderr
    (tmp_path / "file").touch()
    assert (
        "cannot make a study in"
        in run_here("attribute", FROM="before", STUDIES_DIR=str(tmp_path / "file" / "s")).stderr
    )


@pytest.mark.parametrize("command", ["confirm", "attribute"])
def test_the_study_is_held_from_the_question_on(
    study: Study, run_here: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def loading(*_: object, **__: object) -> None:
        # Another command might find another winner meanwhile.
        with hold(study):
            pass

    monkeypatch.setattr(f"search.commands.{command}_command.reopen", loading)
    ran = run_here(command, STUDY="two", SEEDS="7")
    assert (ran.code, "study two is held by process" in ran.stderr) == (2, True)


def test_another_budget_is_a_question_of_its_own(study: Study, run_here: Any) -> None:
    one_slot = {"SKIP_PREFLIGHT": "1", "CONCURRENCY": "1"}
    for asked in ({"BUDGET_TOKENS": "3072"}, {"BUDGET_TIME": "1h"}):
        refused = run_here("confirm", STUDY="two", **asked)
        assert refused.code == 2
        assert "BUDGET_T" in refused.stderr
    for command in ("confirm", "attribute"):
        refused = run_here(command, STUDY="two", STEPS="9")
        assert (refused.code, "STEPS is the length of a winner's run" in refused.stderr) == (2, True)
        with hold(study):
            held = run_here(command, STUDY="two")
        # In a second, and not after the text and preflight.
        assert (held.code, "loading torch" in held.output) == (2, False)
        assert held.stderr.startswith("error: study two is held by process ")
    smaller = run_here("attribute", "--json", STUDY="two", SEEDS="1", BUDGET_TOKENS="3072", **one_slot)
    assert smaller.code == 0, smaller.stderr
    rows = [row for row in study.trials() if row["tokens_seen"] == 3072]
    assert [(row["purpose"], row["learning_rate"], row["is_baseline"]) for row in rows] == [
        ("attribution", 1e-5, False), ("attribution", 3e-3, False)
    ]  # fmt: skip
    assert config_from(rows[0]).training_steps == 3072 // 128
    assert_one_winner(study, run_here)


def checkpoints(study: Study) -> set[int]:
    return {int(path.parent.name) for path in study.path.glob("checkpoints/*/*.pt")}


def assert_one_winner(study: Study, run: Any, *, proven: bool | None = None) -> None:
    """All that names a winner names trial 1."""
    winner = winner_of(study)
    assert winner.trial is not None
    exported, report = (run(command, "--json", STUDY="two").document for command in ("export", "report"))
    (listed,) = run("list", "--json").document["studies"]
    named = [winner.trial["trial_id"], exported["trial_id"], report["answer"]["winner"]["trial_id"]]
    named += [listed["best"]["trial_id"]]
    assert named == [1, 1, 1, 1]
    if proven is not None:
        assert exported["confirmed"] == listed["proven"] == (winner.standing == "proven") == proven
