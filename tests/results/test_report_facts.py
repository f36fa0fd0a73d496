"""The facts of a report: the answer in every case, and numbers that are the tables'."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from results.attribution.attribute import attribute
from results.attribution.attribution_values import write_attribution
from results.attribution.design import changed_settings
from results.report.facts.study_facts import report_facts
from results.report.page import markdown, write_reports
from results.study.folder import Study
from results.study.lock import hold
from results.study.planned_run import Row
from results.study.tables import METRICS, TRIALS, write_table
from spaces.overrides import Settings
from spaces.read.load import load_space
from tests.results.confirmed import add_attempt
from tests.results.report_study import make_report_study
from trainable.config import DOCUMENTED
from trainable.errors import UserError

MakeTrial = Callable[..., Row]
MakeDocument = Callable[..., dict[str, Any]]
BUDGET = 409_600


def write_study(folder: Path, document: dict[str, Any], trials: list[Row], metrics: list[Row] | None = None) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(folder)
    study.study_json.write_text(json.dumps(document), encoding="utf-8")
    if trials:
        write_table(study.trials_path, trials, TRIALS)
    if metrics:
        write_table(study.metrics_path, metrics, METRICS)
    return study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_report_study(tmp_path_factory.mktemp("studies") / "plateau-1125-0310")


@pytest.fixture(scope="module")
def facts(study: Study) -> dict[str, Any]:
    return report_facts(study)


def test_facts_are_json_and_the_tables_numbers(study: Study, facts: dict[str, Any]) -> None:
    assert json.loads(json.dumps(facts, allow_nan=False)) == facts
    rows = {row["trial_id"]: row for row in study.trials()}
    assert len(facts["trials"]) == len(rows)
    for trial in facts["trials"]:
        row = rows[trial["trial_id"]]
        for name in ("val_loss", "status", "tokens_seen", "active_s", "learning_rate", "verdict", "rung"):
            assert trial[name] == row[name], name
    metrics = [row for row in study.metrics() if row["trial_id"] == 0]
    assert next(t for t in facts["trials"] if t["is_baseline"])["evaluations"] == {
        name: [row[name] for row in metrics] for name in ("tokens_seen", "optimizer_steps", "active_s", "val_loss")
    }


def test_the_answer_is_the_best_against_the_baseline(study: Study, facts: dict[str, Any]) -> None:
    done = [row for row in study.trials() if row["status"] == "completed"]
    best, baseline = min(done, key=lambda row: row["val_loss"]), done[0]
    answer = facts["answer"]
    assert answer["winner"]["trial_id"] == best["trial_id"]
    assert answer["baseline"]["val_loss"] == baseline["val_loss"]
    assert answer["val_loss_difference"] == best["val_loss"] - baseline["val_loss"]
    gain = baseline["val_loss"] - best["val_loss"]
    assert answer["headline"] == f"Trial {best['trial_id']} beat the baseline by {gain:.4f} nats/token"
    assert (answer["proof"]["state"], answer["proof"]["words"]) == (
        "not_confirmed", "one seed each, so not proven yet"
    )  # fmt: skip
    assert answer["export"] == f"make train STUDY=plateau-1125-0310 STUDIES_DIR={study.path.parent}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("results.report.facts.answer.STUDIES_DIR", study.path.parent)
        assert report_facts(study)["answer"]["export"] == "make train STUDY=plateau-1125-0310"
    changed = {row["name"]: (row["baseline"], row["winner"]) for row in answer["changes"]}
    assert changed["learning_rate"] == (1e-5, best["learning_rate"])
    assert "training_steps" not in changed


def test_the_cost_sums_to_the_whole(study: Study, facts: dict[str, Any]) -> None:
    cost, rows = facts["cost"], study.trials()
    assert cost["device_s_spent"] == pytest.approx(sum(row["active_s"] for row in rows))
    assert sum(row["device_s"] for row in cost["by_ending"]) == pytest.approx(cost["device_s_spent"])
    assert sum(row["tokens"] for row in cost["by_ending"]) == cost["tokens_spent"]
    assert sum(row["tokens_full"] for row in cost["by_ending"]) == cost["tokens_full"]
    assert {row["status"]: row["trials"] for row in cost["by_ending"]} == facts["endings"]


def test_why_a_trial_ended(facts: dict[str, Any]) -> None:
    why = {trial["status"]: trial["why"] for trial in facts["trials"]}
    assert why["completed"] == ""
    assert why["stopped"].startswith("not among the best 1/3 at 1")
    assert why["unstable"].startswith("divergence at step ")


# --- every way a study can stand


def case_trials(case: str, make: MakeTrial) -> list[Row]:
    baseline, trial = make(0, "completed", 5.0, tokens_seen=BUDGET), make(1, "completed", 4.5, tokens_seen=BUDGET)
    return {
        "nothing_started": [],
        "nothing_completed": [make(0, "failed"), make(1, "unstable", verdict="nonfinite at step 1: loss nan")],
        "baseline_alone": [baseline],
        "baseline_best": [baseline, make(1, "completed", 5.5), make(2, "stopped", 4.0, rung=0)],
        "nothing_to_compare": [make(0, "interrupted", 6.0), trial],
        "no_baseline": [trial],
        "beaten": [baseline, trial],
        "running": [make(0, "running"), make(1, "running", 6.0, tokens_seen=100)],
    }[case]


HEADLINES = {
    "nothing_started": "No trial was started",
    "nothing_completed": "No trial was completed, so there is no best configuration",
    "baseline_alone": "The baseline alone was run",
    "baseline_best": "The baseline is the best: no trial beat it",
    "nothing_to_compare": "Trial 1 is the best; the baseline did not complete (interrupted), so there is nothing to "
    "compare it with",
    "no_baseline": "Trial 1 is the best; the baseline has not started, so there is nothing to compare it with",
    "beaten": "Trial 1 beat the baseline by 0.5000 nats/token",
    "running": "No trial was completed, so there is no best configuration",
}


@pytest.mark.parametrize("case", HEADLINES)
def test_every_case_has_its_headline(
    tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial, case: str
) -> None:
    facts = report_facts(write_study(tmp_path / "s", make_document("s"), case_trials(case, make_trial)))
    assert facts["answer"]["headline"] == HEADLINES[case]
    claims = facts["answer"]["proof"]["state"]
    assert claims == ("not_confirmed" if case == "beaten" else "no_claim")


def test_runs_that_confirm_or_attribute_never_rank_and_cost_on_their_own(
    tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial
) -> None:
    trials = [
        make_trial(0, "completed", 5.0, tokens_seen=BUDGET, active_s=10.0),
        make_trial(1, "completed", 4.5, tokens_seen=BUDGET, active_s=10.0),
        make_trial(2, "completed", 4.0, tokens_seen=BUDGET, active_s=7.0, purpose="confirmation", of_trial=1),
        make_trial(3, "completed", 3.0, tokens_seen=BUDGET, active_s=5.0, purpose="attribution"),
    ]
    facts = report_facts(write_study(tmp_path / "s", make_document("s", seed=0), trials))
    assert facts["answer"]["winner"]["trial_id"] == 1
    assert [trial["trial_id"] for trial in facts["trials"]] == [1, 0]
    assert facts["cost"]["device_s_spent"] == 20.0
    assert [(row["purpose"], row["runs"], row["device_s"]) for row in facts["cost"]["by_purpose"]] == [
        ("search", 2, 20.0), ("confirmation", 1, 7.0), ("attribution", 1, 5.0)
    ]  # fmt: skip
    assert [row["purpose"] for row in facts["cost"]["further"]] == ["confirmation", "attribution"]


def test_the_runs_of_an_attribution_on_its_own_are_not_counted_twice(
    tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial
) -> None:
    trials = [make_trial(0, "completed", 4.0, active_s=7.0, purpose="attribution", combination="none")]
    facts = report_facts(write_study(tmp_path / "s", make_document("s", kind="attribute"), trials))
    assert facts["cost"]["device_s_spent"] == 7.0
    assert " more" not in markdown(facts)


# --- confirmed or not


def confirmed(
    folder: Path, document: dict[str, Any], make: MakeTrial, losses: Mapping[int, Sequence[float | str | None]]
) -> dict[str, Any]:
    trials = [make(0, "completed", 5.0), make(1, "completed", 4.5, batch_size=8)]
    trials += [make(2, "completed", 4.6, batch_size=16)] if 2 in losses else []
    study = write_study(folder, document, trials)
    add_attempt(study, losses)
    facts = report_facts(study)
    answer: dict[str, Any] = facts["answer"]
    assert [t["trial_id"] for t in facts["trials"] if t["is_best"]] == [answer["winner"]["trial_id"]]
    return answer


BASELINE = [5.0, 5.1, 5.05, 4.95, 5.02]


def test_a_proven_winner(tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial) -> None:
    losses = {0: BASELINE, 1: [x - 0.5 + 0.001 * k for k, x in enumerate(BASELINE)]}
    answer = confirmed(tmp_path / "s", make_document("s"), make_trial, losses)
    assert answer["headline"] == "Trial 1 is better than the baseline by 0.4980 nats/token"
    assert answer["proof"]["state"] == "better"
    assert answer["proof"]["words"].startswith("better than the baseline on 5 fresh seeds; interval -0.5")
    assert answer["fresh"] == {
        "seeds": 5,
        "winner": pytest.approx(sum(losses[1]) / 5),
        "baseline": pytest.approx(sum(BASELINE) / 5),
    }
    assert answer["proof"]["low"] < answer["proof"]["mean_difference"] < answer["proof"]["high"] < 0


def test_a_lucky_seed_loses_to_the_proven_one(
    tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial
) -> None:
    lucky = [5.2, 4.9, 5.0, 5.1, 4.9]
    losses = {0: BASELINE, 1: lucky, 2: [x - 0.3 + 0.001 * k for k, x in enumerate(BASELINE)]}
    answer = confirmed(tmp_path / "s", make_document("s"), make_trial, losses)
    assert answer["winner"]["trial_id"] == 2
    assert answer["search_best"]["trial_id"] == 1
    (note,) = answer["notes"]
    assert note.startswith("trial 1 came first in the search, val loss 4.5000 on one seed; not proven with 5 seeds")


def test_not_proven_and_worse(tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial) -> None:
    equal = confirmed(tmp_path / "a", make_document("a"), make_trial, {0: BASELINE, 1: [5.2, 4.9, 5.0, 5.1, 4.9]})
    assert equal["proof"]["state"] == "not_proven"
    assert equal["proof"]["words"].startswith("not proven with 5 seeds")
    assert equal["headline"] == "Trial 1 came first in the search; that it is better than the baseline is not proven"
    losses = {0: BASELINE, 1: [x + 0.3 + 0.001 * k for k, x in enumerate(BASELINE)]}
    worse = confirmed(tmp_path / "b", make_document("b"), make_trial, losses)
    assert worse["winner"]["trial_id"] == 0
    assert worse["headline"] == "The baseline is the best: trial 1 came first in the search and is proven worse"


@pytest.mark.parametrize(
    ("statuses", "words"),
    [
        (["completed"] * 4, None),
        (["completed", "interrupted"], "Interrupted: 2 of 4 trials started, 1 cut off"),
        ([], "Interrupted: 0 of 4 trials started"),
        (["completed", "running", "interrupted"], "Under way: 1 trial running, 3 of 4 started"),
    ],
)
def test_page_and_markdown_say_that_a_study_is_not_finished(
    statuses: list[Any], words: str | None, tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial
) -> None:
    trials = [make_trial(number, status, 5.0 + number) for number, status in enumerate(statuses)]
    with hold(study := write_study(tmp_path / "s", make_document("s"), trials)):
        facts = write_reports(study)
    assert facts["study"]["unfinished"] == words
    page, text = ((tmp_path / "s" / name).read_text() for name in ("report.html", "report.md"))
    for shown in (page, text):
        assert "trials started" not in shown if words is None else f"{words}." in shown


def test_a_confirmation_under_way(tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial) -> None:
    trials = [make_trial(0, "completed", 5.0), make_trial(1, "completed", 4.5, batch_size=8)]
    study = write_study(tmp_path / "s", make_document("s"), trials)
    add_attempt(study, {0: [5.0, None], 1: ["failed", None]})
    facts = report_facts(study)
    assert facts["answer"]["proof"]["state"] == "under_way"
    assert facts["answer"]["notes"] == ["a confirmation is under way: 1 of 4 runs have ended"]
    (attempt,) = facts["confirmation"]["attempts"]
    assert [(run["of_trial"], run["seed"], run["status"], run["val_loss"]) for run in attempt["runs"]] == [
        (0, 1, "completed", 5.0), (1, 1, "failed", None), (0, 2, None, None), (1, 2, None, None)
    ]  # fmt: skip


# --- damage


@pytest.mark.parametrize(
    "name", ["confirmation.json", "attribution.json", "samples.json", "study.json", "trials.parquet"]
)
def test_a_damaged_file_is_named(tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial, name: str) -> None:
    study = write_study(tmp_path / "s", make_document("s"), [make_trial(0, "completed", 5.0)])
    (study.path / name).write_text("{")
    with pytest.raises(UserError, match=name):
        report_facts(study)


def test_a_document_without_a_budget_is_named(tmp_path: Path, make_document: MakeDocument) -> None:
    with pytest.raises(UserError, match=r"study\.json: budget_tokens"):
        report_facts(write_study(tmp_path / "s", make_document("s", budget_tokens=None), []))


def test_times_are_utc_text_and_a_pause_is_no_wall_time(
    tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial
) -> None:
    start = datetime(2025, 11, 25, 3, 10, tzinfo=UTC)
    trial = make_trial(0, "completed", 5.0, started_at=start, ended_at=start.replace(minute=12), active_s=100.0)
    # Interrupted after a minute and resumed eight hours later for another one.
    paused = {"started_at": start.replace(minute=11), "ended_at": start.replace(hour=11), "active_s": 120.0}
    trials = [trial, make_trial(1, "completed", 5.0, **paused)]
    facts = report_facts(write_study(tmp_path / "s", make_document("s"), trials))
    assert facts["study"]["wall_s"] == 120.0 + 120.0
    assert facts["trials"][0]["started_at"] == "2025-11-25T03:10:00+00:00"


def test_a_schedule_that_the_winner_dropped_is_a_change(
    tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial
) -> None:
    warm = asdict(replace(DOCUMENTED, lr_schedule="wsd", warmup_steps=200))
    trials = [make_trial(0, "completed", 5.0, **warm), make_trial(1, "completed", 4.5)]
    facts = report_facts(write_study(tmp_path / "s", make_document("s"), trials))
    changed = {row["name"]: (row["baseline"], row["winner"]) for row in facts["answer"]["changes"]}
    assert changed == {
        "batch_size": (32, 32),
        "learning_rate": (1e-5, 1e-5),
        "lr_schedule": ("wsd", "constant"),
        "warmup_frac": (0.1, None),
    }


def test_the_warm_up_of_a_schedule_that_the_baseline_has_added_is_shown(
    tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial
) -> None:
    space = load_space("smoke")
    own = replace(DOCUMENTED, batch_size=4, block_size=32, lr_schedule="wsd", warmup_steps=200)
    names = ("name", "path", "description", "toml")
    document = make_document("s", space={name: getattr(space, name) for name in names})
    document["settings"] = asdict(Settings(baseline=("mine", own)))
    trials = [make_trial(0, "completed", 4.0, **asdict(own)), make_trial(1, "completed", 4.5, batch_size=4)]
    facts = report_facts(write_study(tmp_path / "s", document, trials))
    assert ["warmup_frac" in trial["searched"] for trial in facts["trials"]] == [False, False]
    assert [trial["read"].get("warmup_frac") for trial in facts["trials"]] == [0.1, None]
    assert "| wsd | 0.1 |" in markdown(facts)


def test_a_warm_up_of_the_same_share_is_no_change(
    tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial
) -> None:
    warm = {"lr_schedule": "linear", "training_steps": 25, "warmup_steps": 2}  # 0.1 of either run, in whole steps
    trials = [
        make_trial(0, "completed", 5.0, **warm),
        make_trial(1, "completed", 4.5, **warm | {"batch_size": 8, "training_steps": 100, "warmup_steps": 10}),
    ]
    facts = report_facts(write_study(tmp_path / "s", make_document("s"), trials))
    changed = {row["name"] for row in facts["answer"]["changes"] if row["baseline"] != row["winner"]}
    assert changed == {"batch_size"}


def test_a_completed_run_without_a_loss_is_no_fresh_seed(
    tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial
) -> None:
    better = [x - 0.3 + 0.001 * k for k, x in enumerate(BASELINE[:4])]
    losses: dict[int, Sequence[float | str | None]] = {0: BASELINE, 1: [*better, "completed"]}
    answer = confirmed(tmp_path / "s", make_document("s"), make_trial, losses)
    assert answer["fresh"]["seeds"] == answer["proof"]["seeds"] == 4


def test_names_in_an_attribution_are_text_in_markdown(tmp_path: Path, make_document: MakeDocument) -> None:
    study = write_study(tmp_path / "s", make_document("s", kind="attribute"), [])
    losses: dict[frozenset[int], dict[int, float | None]] = {frozenset(): {1: 5.0}, frozenset({0}): {1: 4.0}}
    settings = changed_settings(DOCUMENTED, replace(DOCUMENTED, batch_size=8))
    write_attribution(study, attribute(losses, settings, before_name="<img src=x>", after_name="[a](b)"))
    facts = report_facts(study)
    assert facts["attribution"]["summary"][0] == "batch size 8 did it: -1.0000 (not proven) of -1.0000 nats/token."
    assert "it: &lt;img src=x&gt; to \\[a\\](b)" in markdown(report_facts(study))
