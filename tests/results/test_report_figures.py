"""The report's figures: what plotly accepts, what is thinned, what is drawn where."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from results.attribution.attribute import attribute
from results.attribution.attribution_values import write_attribution
from results.attribution.design import changed_settings
from results.ranking import leaderboard
from results.report.facts.analysis import Measured
from results.report.facts.study_facts import report_facts
from results.report.figures.all_figures import default_view, pareto_front, report_figures, views
from results.report.figures.curves import curves, place_of, thinned
from results.report.figures.marks import loss_ceiling, position
from results.report.figures.traces import short, trial_traces
from results.study.folder import Study
from results.study.tables import STEPS, write_table
from results.winner import find_winner
from spaces.budget import Budget
from tests.results.confirmed import add_attempt
from tests.results.report_study import make_report_study
from trainable.config import BEFORE, DOCUMENTED


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = make_report_study(tmp_path_factory.mktemp("studies") / "plateau")
    done = [row["trial_id"] for row in leaderboard(study.trials()) if row["status"] == "completed"]
    candidates = [trial_id for trial_id in done if trial_id][:2]
    add_attempt(study, {i: [5.0 - i / 10 + seed / 50 for seed in (1, 2, 3)] for i in (0, *candidates)})
    settings = changed_settings(BEFORE, DOCUMENTED)
    combinations = [frozenset(i for i in range(4) if mask >> i & 1) for mask in range(16)]
    losses = {c: {seed: 6.0 - 0.3 * len(c) + 0.01 * seed * (0 in c) for seed in (0, 1)} for c in combinations}
    write_attribution(study, attribute(losses, settings))
    return study


@pytest.fixture(scope="module")
def facts(study: Study) -> dict[str, Any]:
    return report_facts(study)


@pytest.fixture(scope="module")
def figures(facts: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    return report_figures(facts)


def painted(value: Any) -> Any:
    """As the page's script does: a role becomes a colour."""
    if isinstance(value, str):
        return "#123456" if value.startswith("@") else value
    if isinstance(value, list):
        return [painted(item) for item in value]
    return {key: painted(item) for key, item in value.items()} if isinstance(value, dict) else value


def test_plotly_accepts_every_figure(figures: dict[str, list[dict[str, Any]]]) -> None:
    from plotly.graph_objects import Figure

    assert all(figures.values()), {name for name, section in figures.items() if not section}
    for figure in (figure for section in figures.values() for figure in section):
        traces = [{k: v for k, v in trace.items() if k not in ("view", "hover")} for trace in figure["traces"]]
        Figure(data=painted(traces), layout=painted(figure["layout"]))  # raises for an unknown key or a bad value


def test_every_colour_is_one_of_the_page(figures: dict[str, list[dict[str, Any]]]) -> None:
    style = (Path(__file__).parents[2] / "results/report/style.css").read_text(encoding="utf-8")
    light, dark = style.partition("@media screen and (prefers-color-scheme: dark)")[::2]
    dark = dark.partition("\n}")[0]

    def roles(value: Any) -> set[str]:
        if isinstance(value, str):
            return {value} if value.startswith("@") else set()
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return set().union(*(roles(item) for item in items))

    used = roles([figure for section in figures.values() for figure in section])
    assert len(used) > 12
    for role in used:
        assert f"--{role[1:]}:" in light, role
        assert f"--{role[1:]}:" in dark, role


def test_the_winner_and_the_baseline_have_their_own_accent(figures: dict[str, list[dict[str, Any]]]) -> None:
    traces = {trace["name"]: trace for trace in figures["curves"][0]["traces"] if trace["mode"] == "lines"}
    colors = {name.partition(" (")[0]: trace["line"]["color"] for name, trace in traces.items()}
    assert colors == {
        "completed": "@completed", "stopped": "@stopped", "unstable": "@unstable", "baseline": "@baseline",
        "best": "@winner",
    }  # fmt: skip


def test_a_baseline_that_is_the_best_is_named_once(facts: dict[str, Any]) -> None:
    trials = [{**trial, "is_best": trial["is_baseline"]} for trial in facts["trials"]]
    drawn = [figure for part in report_figures({**facts, "trials": trials}).values() for figure in part]
    named = {figure["id"]: {(t.get("name"), t.get("view")) for t in figure["traces"]} for figure in drawn}
    for figure in drawn:
        own = [(t["name"], t.get("view")) for t in figure["traces"] if t.get("showlegend", True) and "name" in t]
        assert len(own) == len(set(own)), figure["id"]
    assert ("baseline (best)", None) in named["parallel"]
    assert ("baseline (best)", 0) in named["lr-by-batch"]


def test_a_study_of_few_completed_trials_is_compared_at_the_first_rung(facts: dict[str, Any]) -> None:
    assert views(facts)[0] == "at the full budget"
    assert views(facts)[1].startswith("at 11% of the budget (")
    assert default_view(facts) == 1
    assert default_view({**facts, "trials": [t for t in facts["trials"] if t["status"] == "completed"]}) == 0


def test_a_blown_up_loss_does_not_set_the_scale() -> None:
    known = {"loss_limit": 7.6}
    assert loss_ceiling(known, [5.0, 6.0, 240.0]) == pytest.approx(6.02)
    assert loss_ceiling(known, [8.0, 240.0]) == 240.0
    assert loss_ceiling(known, []) == 1.0


def test_a_trial_that_makes_the_model_worse_is_shown_where_it_is(tmp_path: Path) -> None:
    """Its trials end at 4.9 and more."""
    study = make_report_study(tmp_path / "worse", document={"start": {"val_loss": 4.0, "train_loss": 4.0}})
    facts = report_facts(study)
    sound = [trial for trial in facts["trials"] if trial["status"] != "unstable"]
    highest = max(loss for trial in sound for loss in trial["evaluations"]["val_loss"])
    assert facts["answer"]["worse_than_start"] is True
    assert facts["initial_loss"] == 4.0 < highest < facts["loss_limit"]
    (figure,) = curves(facts)
    low, high = figure["layout"]["yaxis"]["range"]
    assert low < 4.0 < highest < high
    [line] = [shape for shape in figure["layout"]["shapes"] if shape.get("xref") == "paper"]
    assert (line["y0"], line["y1"]) == (4.0, 4.0)
    assert figure["layout"]["annotations"][-1]["text"] == "start"


def test_a_stopped_trial_far_above_the_start_does_not_flatten_the_others() -> None:
    """The limit lies as far above the highest of start, baseline and best as the lowest loss lies below it."""
    rows = [{"trial_id": n, "is_baseline": n == 0, "status": "stopped" if n == 2 else "completed"} for n in range(3)]
    ends = (4.4, 4.0, 6.5)
    measured = Measured(
        trials=rows,
        winner=find_winner((), start_val_loss=4.5),
        evaluations={
            n: [{"tokens_seen": 0, "val_loss": 4.5}, {"tokens_seen": 100, "val_loss": end}]
            for n, end in enumerate(ends)
        },
        parameters=(),
        domains_known=True,
        budget=Budget(tokens=1_000),
        rung_tokens=(),
        uniform_loss=7.6,
    )
    assert measured.loss_limit == pytest.approx(5.0)
    assert loss_ceiling({"loss_limit": measured.loss_limit}, [4.5, *ends]) == pytest.approx(4.51)
    assert replace(measured, winner=find_winner(())).loss_limit == pytest.approx(5.0)
    assert replace(measured, winner=find_winner(()), evaluations={}).loss_limit is None


def test_the_pareto_front_is_what_no_trial_beats() -> None:
    rows = [
        {"trial_id": i, "tokens_per_s": speed, "val_loss": loss}
        for i, (speed, loss) in enumerate([(10, 5.0), (20, 5.5), (15, 5.6), (30, 6.0), (30, 5.9), (5, 5.0)])
    ]
    assert [row["trial_id"] for row in pareto_front(rows)] == [4, 1, 0]


def test_positions_on_an_axis() -> None:
    choice = {"values": [8, 16, 32], "log": False}
    assert [round(place_of(choice, value, 0), 1) for value in (8, 16, 32)] == [0.0, 0.5, 1.0]
    assert [round(position(choice, value, 3)) for value in (8, 16, 32)] == [0, 1, 2]
    assert position(choice, 64, 0) is None
    log = {"values": None, "log": True, "low": 1e-6, "high": 1.0}
    assert place_of(log, 1e-3, 5) == pytest.approx(0.5)
    assert position(log, 1e-3, 5) == 1e-3
    assert place_of(log, None, 5) < 0


def test_thinning_keeps_the_ends() -> None:
    assert thinned(range(5), 10) == [0, 1, 2, 3, 4]
    found = thinned(range(1000), 20)
    assert len(found) == 20
    assert (found[0], found[-1]) == (0, 999)


def steps(losses: list[float]) -> list[dict[str, Any]]:
    return [
        {"optimizer_steps": k, "tokens_seen": k * 4096, "train_loss": loss, "grad_norm": 1.0, "learning_rate": 1e-5 * k,
         "step_time_s": 0.1}
        for k, loss in enumerate(losses, 1)
    ]  # fmt: skip


def test_a_short_trace_is_whole(tmp_path: Path) -> None:
    study = Study(tmp_path)
    (tmp_path / "steps").mkdir()
    write_table(study.steps_path(3), steps([5.0, 4.5, math.inf, math.nan]), STEPS)
    assert trial_traces(study, [3, 4]) == {
        "3": {
            "at": [1, 2, 3, 4], "pairs": False, "loss": [5, 4.5, None, None], "grad": [1, 1, 1, 1],
            "lr": [1e-5, 2e-5, 3e-5, 4e-5], "nonfinite_at": 3,
        }
    }  # fmt: skip


def test_a_long_trace_is_thinned_and_keeps_its_spikes(tmp_path: Path) -> None:
    losses = [5.0 - k / 10_000 for k in range(10_000)]
    losses[7_777], losses[123] = 99.0, 0.5
    study = Study(tmp_path)
    (tmp_path / "steps").mkdir()
    write_table(study.steps_path(0), steps(losses), STEPS)
    trace = trial_traces(study, [0])["0"]
    assert trace["pairs"]
    assert 2 * len(trace["at"]) == len(trace["loss"]) == len(trace["grad"]) == 2 * len(trace["lr"]) <= 400
    assert max(trace["loss"]) == 99
    assert min(trace["loss"]) == 0.5
    spike = trace["loss"].index(99) // 2
    assert trace["at"][spike] <= 7_778 < trace["at"][spike + 1]


def test_a_torn_trace_is_left_out(tmp_path: Path) -> None:
    study = Study(tmp_path)
    (tmp_path / "steps").mkdir()
    study.steps_path(0).write_bytes(b"PAR1")
    assert trial_traces(study, [0]) == {}


@pytest.mark.parametrize(
    ("value", "expected"), [(1.23456789, 1.2346), (7.0, 7), (1e-5, 1e-5), (math.nan, None), (math.inf, None), (0, 0)]
)
def test_short_numbers(value: float, expected: float | None) -> None:
    assert short(value) == expected
