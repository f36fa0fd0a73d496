"""What is concluded from planted trials: rungs, edges, instability, cost, importance."""

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from results.report.facts.analysis import Measured, searched_parameters
from results.report.facts.importance import importance
from results.report.facts.rungs import baseline_loss_reached, costs, first_beaten, rung_agreement
from results.report.facts.searched_parameters import edges, instability
from results.winner import find_winner
from spaces.budget import Budget
from spaces.domains import Choice, Condition, FloatRange, IntRange, SearchParameter
from trainable.config import DOCUMENTED

Row = dict[str, Any]
MakeTrial = Callable[..., Row]
START = datetime(2025, 11, 25, 3, 10, tzinfo=UTC)
STEP_TOKENS = 32 * 128
LR = SearchParameter("learning_rate", FloatRange(1e-6, 1.0, log=True))


def evaluation(tokens: int, loss: float | None) -> Row:
    return {"tokens_seen": tokens, "optimizer_steps": tokens // STEP_TOKENS, "val_loss": loss}


def measured(
    trials: list[Row],
    evaluations: dict[int, list[Row]] | None = None,
    *parameters: SearchParameter,
    rungs: tuple[int, ...] = (),
    known: bool = True,
) -> Measured:
    return Measured(
        trials=trials,
        winner=find_winner(trials),
        evaluations=evaluations or {},
        parameters=parameters or (LR,),
        domains_known=known,
        budget=Budget(tokens=100 * STEP_TOKENS),
        rung_tokens=rungs,
        uniform_loss=math.log(2048),
    )


# --- what was searched


def test_parameters_are_the_spaces_with_the_users_settings(make_document: Callable[..., Row]) -> None:
    toml = """
trials = 4
[budget]
tokens = 409_600
[search]
batch_size = { choice = [8, 32] }
learning_rate = { log_uniform = [1e-6, 1e-2] }
"""
    mine = {**asdict(DOCUMENTED), "batch_size": 16}
    document = make_document(
        space={"name": "s", "path": "s.toml", "toml": toml},
        settings={"pins": {"learning_rate": 1e-5}, "baseline": ["mine", mine]},
        baseline={"name": "mine", **mine},
    )
    parameters, known = searched_parameters(document, [])
    assert known
    # The baseline's 16 is in the choice, as a search puts it there, and the pinned rate is not searched.
    assert [(parameter.name, parameter.domain) for parameter in parameters] == [("batch_size", Choice((8, 32, 16)))]


@pytest.mark.parametrize("toml", ["[[[", "", "[search]\nbatch_sise = 1"])
def test_without_a_readable_space_the_trials_show_what_differs(
    make_document: Callable[..., Row], make_trial: MakeTrial, toml: str
) -> None:
    document = make_document(space={"name": "s", "path": "s.toml", "toml": toml})
    trials = [
        make_trial(0, training_steps=97),
        make_trial(1, batch_size=8, lr_schedule="warmup_cosine", warmup_steps=10, training_steps=100),
    ]
    parameters, known = searched_parameters(document, trials)
    assert not known
    assert {parameter.name: parameter.domain for parameter in parameters} == {
        "batch_size": Choice((8, 32)),
        "lr_schedule": Choice(("constant", "warmup_cosine")),
        "warmup_frac": Choice((0.0, 0.1)),
    }


def test_many_values_are_a_range(make_document: Callable[..., Row], make_trial: MakeTrial) -> None:
    trials = [make_trial(k, learning_rate=10.0**-k, weight_decay=k / 100) for k in range(10)]
    parameters, _ = searched_parameters(make_document(kind="baseline"), trials)
    assert {parameter.name: parameter.domain for parameter in parameters} == {
        "learning_rate": FloatRange(1e-9, 1.0, log=True),
        "weight_decay": FloatRange(0.0, 0.09),
    }


# --- rungs


def test_the_loss_at_a_rung_is_that_of_the_last_whole_step(make_trial: MakeTrial) -> None:
    trial = make_trial(1)
    seen = {1: [evaluation(0, 7.0), evaluation(2 * STEP_TOKENS, 6.0), evaluation(5 * STEP_TOKENS, 5.0)]}
    search = measured([trial], seen)
    assert search.loss_at(trial, 2 * STEP_TOKENS) == 6.0
    assert search.loss_at(trial, 3 * STEP_TOKENS - 1) == 6.0
    assert search.loss_at(trial, 3 * STEP_TOKENS) is None  # a further step fits, and was not evaluated
    assert search.loss_at(trial, STEP_TOKENS - 1) is None  # the untrained model is no trial at a rung


def test_rungs_agree_or_not_with_the_end(make_trial: MakeTrial) -> None:
    early, final = [5.0, 5.1, 5.2, 5.3], [4.0, 4.2, 4.1, 4.3]
    trials = [make_trial(k, "completed", loss, rung=1) for k, loss in enumerate(final)]
    trials.append(make_trial(9, "stopped", 4.9, rung=0))
    rung, budget = 10 * STEP_TOKENS, 100 * STEP_TOKENS
    rows = {k: [evaluation(rung, early[k]), evaluation(budget, final[k])] for k in range(4)}
    rows[9] = [evaluation(rung, 4.9)]
    (found,) = rung_agreement(measured(trials, rows, rungs=(rung,)))
    # Ranks 1 2 3 4 against 1 3 2 4: rho = 1 - 6 * 2 / (4 * 15), tau = (5 - 1) / 6.
    assert found["spearman"] == pytest.approx(0.8)
    assert found["kendall"] == pytest.approx(2 / 3)
    assert (found["trials_reached"], found["trials_stopped"], found["trials_with_both"]) == (5, 1, 4)
    assert found["stopped_ahead_of_best"] == [9]


def test_equal_losses_share_a_rank(make_trial: MakeTrial) -> None:
    from scipy.stats import kendalltau, spearmanr

    early, final = [5.0, 5.0, 5.2, 5.3, 5.1], [4.0, 4.2, 4.2, 4.3, 4.2]
    trials = [make_trial(k, "completed", loss) for k, loss in enumerate(final)]
    rung, budget = 10 * STEP_TOKENS, 100 * STEP_TOKENS
    rows = {k: [evaluation(rung, early[k]), evaluation(budget, final[k])] for k in range(5)}
    (found,) = rung_agreement(measured(trials, rows, rungs=(rung,)))
    assert found["spearman"] == pytest.approx(spearmanr(early, final).statistic)
    assert found["kendall"] == pytest.approx(kendalltau(early, final).statistic)


def test_too_few_trials_have_no_correlation(make_trial: MakeTrial) -> None:
    rung = 10 * STEP_TOKENS
    trials = [make_trial(k, "completed", 4.0 + k) for k in range(2)]
    (found,) = rung_agreement(measured(trials, {k: [evaluation(rung, 5.0 + k)] for k in range(2)}, rungs=(rung,)))
    assert found["spearman"] is None
    assert found["kendall"] is None


def test_without_rungs_the_evaluations_stand_in(make_trial: MakeTrial) -> None:
    trials = [make_trial(k, "completed", 4.0 + k) for k in range(3)]
    rows = {k: [evaluation(n * STEP_TOKENS, 6.0 - n / 100 + k) for n in range(0, 101, 5)] for k in range(3)}
    found = list(rung_agreement(measured(trials, rows)))
    assert [row["tokens"] // STEP_TOKENS for row in found] == [5, 20, 35, 50, 65, 80, 95]
    assert [row["spearman"] for row in found] == pytest.approx([1.0] * 7)
    assert {row["rung"] for row in found} == {None}


# --- edges


@pytest.mark.parametrize(
    ("parameter", "value", "side"),
    [
        (LR, 1e-6, "low"),
        (LR, 0.6, "high"),  # within 5 % of six decades
        (LR, 0.4, None),
        (SearchParameter("weight_decay", FloatRange(0.0, 0.1)), 0.001, None),  # 0 is as far as a weight decay goes
        (SearchParameter("weight_decay", FloatRange(0.0, 0.1)), 0.099, "high"),
        (SearchParameter("batch_size", Choice((16, 8, 32))), 8, "low"),
        (SearchParameter("batch_size", Choice((16, 8, 32))), 16, None),
        (SearchParameter("block_size", IntRange(32, 256, step=32)), 256, "high"),
        (SearchParameter("lr_schedule", Choice(("constant", "wsd"))), "constant", None),
        (SearchParameter("use_lora", Choice((True, False))), False, None),
    ],
)
def test_an_edge_says_which_way_to_widen(
    make_trial: MakeTrial, parameter: SearchParameter, value: Any, side: str | None
) -> None:
    trials = [make_trial(0, "completed", 5.0), make_trial(1, "completed", 4.0, **{parameter.name: value})]
    found = list(edges(measured(trials, None, parameter)))
    assert [row["side"] for row in found] == ([side] if side else [])
    if side:
        assert ("widen it downwards" if side == "low" else "widen it upwards") in found[0]["words"]


@pytest.mark.parametrize(("rate", "sides"), [(1.0, []), (1e-6, ["low"])])
def test_of_what_makes_the_model_worse_only_a_lower_rate_is_an_edge(
    make_trial: MakeTrial, rate: float, sides: list[str]
) -> None:
    batch = SearchParameter("batch_size", Choice((8, 32)))
    found = measured([make_trial(0, "completed", 4.0, learning_rate=rate, batch_size=8)], None, LR, batch)
    worse = replace(found, winner=replace(found.winner, start_val_loss=3.5))
    assert [row["side"] for row in edges(worse)] == sides


def test_domains_that_the_trials_span_have_no_edges(make_trial: MakeTrial) -> None:
    trials = [make_trial(0, "completed", 5.0), make_trial(1, "completed", 4.0, learning_rate=1.0)]
    assert list(edges(measured(trials, known=False))) == []


def test_a_parameter_that_the_best_does_not_read_has_no_edge(make_trial: MakeTrial) -> None:
    schedule = SearchParameter("lr_schedule", Choice(("constant", "wsd")))
    warmup = SearchParameter("warmup_frac", FloatRange(0.01, 0.3), Condition("lr_schedule", ("wsd",)))
    rank = SearchParameter("lora_rank", Choice((4, 8)))
    assert list(edges(measured([make_trial(0, "completed", 4.0)], None, schedule, warmup, rank))) == []


# --- instability


def test_a_warm_up_of_whole_steps_is_counted_as_the_share_that_was_asked_for(make_trial: MakeTrial) -> None:
    schedule = {"lr_schedule": "linear", "training_steps": 90}
    trials = [
        make_trial(0, "completed", 5.0, warmup_steps=9, **schedule),
        make_trial(1, "completed", 4.0, warmup_steps=0, **schedule),  # 0.4 of a step
        make_trial(2, "completed", 6.0),  # a constant rate has no warm-up
    ]
    shares = SearchParameter("warmup_frac", Choice((0.005, 0.095)))
    settings = instability(measured(trials, None, shares))["by_setting"]
    assert [(row["label"], row["trials"]) for row in settings if row["name"] == "warmup_frac"] == [
        ("0.005", 1),
        ("0.095", 1),
    ]
    decades = SearchParameter("warmup_frac", FloatRange(0.005, 0.3, log=True))
    assert [row["side"] for row in edges(measured(trials, None, decades))] == ["low"]


def test_unstable_share_and_where(make_trial: MakeTrial) -> None:
    trials = [
        make_trial(0, "completed", 5.0, learning_rate=1e-5),
        make_trial(1, "stopped", 5.0, learning_rate=0.3),
        make_trial(2, "unstable", None, learning_rate=0.2, verdict="divergence at step 40: 9 > 7"),
        make_trial(3, "unstable", None, learning_rate=0.9, batch_size=8, verdict="nonfinite at step 2"),
        make_trial(4, "failed", None, learning_rate=0.9),
        make_trial(5, "out_of_memory", None, learning_rate=0.9),
    ]
    found = instability(measured(trials))
    assert (found["trials"], found["unstable"], found["unstable_frac"]) == (4, 2, 0.5)
    assert found["reasons"] == {"divergence": 1, "nonfinite": 1}
    assert found["words"] == (
        "2 of 4 trials (50%) went unstable, none at a learning rate below 0.2; from there on 67% of 3 trials did"
    )
    cells = {(c["batch_size"], round(c["lr_low"], 7)): (c["unstable"], c["trials"]) for c in found["cells"]}
    assert cells == {(32, 1e-5): (0, 1), (32, 0.1): (1, 2), (8, 0.1): (1, 1)}


def test_a_stopped_trial_above_the_untrained_model_is_told(make_trial: MakeTrial) -> None:
    trials = [make_trial(1, "stopped", 180.9), make_trial(2, "stopped", 7.5), make_trial(3, "completed", 9.0)]
    assert instability(measured(trials, {1: [evaluation(0, 7.6)]}))["stopped_above_start"] == 1
    assert instability(measured(trials))["stopped_above_start"] == 0


def test_every_trial_is_in_one_interval_of_the_rate(make_trial: MakeTrial) -> None:
    rates = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0]
    found = instability(measured([make_trial(k, "completed", 5.0, learning_rate=rate) for k, rate in enumerate(rates)]))
    shares = [row["trials"] for row in found["by_setting"] if row["name"] == "learning_rate"]
    assert shares == [1, 1, 1, 1, 1, 2]
    assert sum(cell["trials"] for cell in found["cells"]) == len(rates)
    # The ends' ratio is beyond every float.
    rate = SearchParameter("learning_rate", FloatRange(1e-320, 1.0, log=True))
    wide = instability(measured([make_trial(0, "completed", 5.0, learning_rate=1e-5)], None, rate))
    assert [row["trials"] for row in wide["by_setting"]] == [0] * 7 + [1]


def test_a_rate_that_was_not_searched_has_no_map(make_trial: MakeTrial) -> None:
    batch = SearchParameter("batch_size", Choice((8, 32)))
    found = instability(measured([make_trial(0, "unstable", None)], None, batch))
    assert found["words"] == "1 of 1 trial (100%) went unstable"
    assert found["reasons"] == {"unknown": 1}
    assert found["lr_bins"] == [(1e-5, 1e-5)]


# --- cost


def test_costs_by_ending(make_trial: MakeTrial) -> None:
    full = 100 * STEP_TOKENS
    trials = [
        make_trial(0, "completed", 5.0, tokens_seen=full, active_s=10.0, training_steps=100),
        make_trial(1, "stopped", 5.5, tokens_seen=full // 10, active_s=1.0, training_steps=100),
        make_trial(2, "stopped", 5.6, tokens_seen=full // 10, active_s=2.0, training_steps=100),
        make_trial(3, "failed", None, tokens_seen=0, active_s=0.5),
    ]
    assert list(costs(trials)) == [
        {"status": "completed", "trials": 1, "device_s": 10.0, "tokens": full, "tokens_full": full},
        {"status": "stopped", "trials": 2, "device_s": 3.0, "tokens": full // 5, "tokens_full": 2 * full},
        {"status": "failed", "trials": 1, "device_s": 0.5, "tokens": 0, "tokens_full": 0},
    ]


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def test_when_the_baseline_was_first_beaten(make_trial: MakeTrial) -> None:
    trials = [
        make_trial(0, "completed", 5.0, active_s=100.0, started_at=at(0), ended_at=at(100)),
        make_trial(1, "completed", 5.5, active_s=20.0, started_at=at(0), ended_at=at(20)),
        make_trial(2, "completed", 4.5, active_s=30.0, started_at=at(20), ended_at=at(50)),
        make_trial(3, "completed", 4.0, active_s=40.0, started_at=at(60), ended_at=at(100)),
        make_trial(4, "stopped", 3.0, active_s=1.0, started_at=at(1), ended_at=at(2)),
    ]
    found = first_beaten(measured(trials))
    # By second 50: half of the baseline, trials 1, 2 and 4 whole, nothing of trial 3.
    assert found == {"trial_id": 2, "val_loss": 4.5, "after_s": 50.0, "device_s": 101.0, "trials_ended": 3}
    assert first_beaten(measured(trials[:2])) is None
    assert first_beaten(measured(trials[1:])) is None


def test_tokens_to_the_baselines_loss(make_trial: MakeTrial) -> None:
    trials = [
        make_trial(0, "completed", 5.0, tokens_seen=100 * STEP_TOKENS, training_steps=100),
        make_trial(1, "completed", 4.0, tokens_seen=100 * STEP_TOKENS, training_steps=100),
    ]
    rows = {1: [evaluation(n * STEP_TOKENS, loss) for n, loss in ((0, 7.0), (10, 5.5), (20, 4.9), (100, 4.0))]}
    assert baseline_loss_reached(measured(trials, rows)) == {"tokens": 20 * STEP_TOKENS, "frac": 0.2}
    assert baseline_loss_reached(measured(trials[:1])) is None


# --- importance


def importance_trials(make_trial: MakeTrial) -> list[Row]:
    """The loss depends on the rate alone; all but the best are stopped at the rung."""
    rates = [10.0 ** -(k % 6 + 0.5) for k in range(24)]
    losses = [4.0 + (k % 6 - 2) ** 2 / 4 for k in range(24)]
    return [
        make_trial(
            k, "completed" if losses[k] < 4.2 else "stopped", losses[k], learning_rate=rates[k], rung=0,
            batch_size=(8, 16, 32)[k * 7 % 3],
        )
        for k in range(24)
    ]  # fmt: skip


def test_what_matters_has_the_importance(make_trial: MakeTrial) -> None:
    trials = importance_trials(make_trial)
    rung = 10 * STEP_TOKENS
    rows = {trial["trial_id"]: [evaluation(rung, trial["val_loss"])] for trial in trials}
    batch = SearchParameter("batch_size", Choice((8, 16, 32)))
    found = importance(measured(trials, rows, LR, batch, rungs=(rung,)))
    assert found["reason"] is None
    assert [(method["name"], method["trials"]) for method in found["methods"]] == [("PED-ANOVA", 24), ("fANOVA", 24)]
    for method in found["methods"]:
        shares = {row["name"]: row["share"] for row in method["shares"]}
        assert sum(shares.values()) == pytest.approx(1.0) or method["name"] == "fANOVA"
        assert sum(shares.values()) <= 1.0 + 1e-9
        assert shares["learning_rate"] > 0.8, method["name"]
    assert all(0 <= row["low"] <= row["high"] <= 1 for row in found["methods"][0]["shares"])
    assert found == importance(measured(trials, rows, LR, batch, rungs=(rung,)))  # the same each time


def test_importance_wants_trials_and_two_parameters(make_trial: MakeTrial) -> None:
    trials = importance_trials(make_trial)
    batch = SearchParameter("batch_size", Choice((8, 16, 32)))
    assert importance(measured(trials))["reason"] == "fewer than two hyperparameters were searched"
    few = importance(measured(trials[:4], None, LR, batch))
    assert few == {
        "reason": "4 trials that can be ranked; 10 are needed, one of them completed", "methods": []
    }  # fmt: skip
    failed = [make_trial(k, "failed", None) for k in range(20)]
    assert importance(measured(failed, None, LR, batch))["methods"] == []


def test_what_no_trial_reads_has_no_importance(make_trial: MakeTrial) -> None:
    lora = [SearchParameter(name, Choice((4, 8))) for name in ("lora_rank", "lora_alpha")]
    found = importance(measured([make_trial(k, "completed", 5.0 + k) for k in range(12)], None, *lora))
    assert found == {"reason": "the best trials read none of the searched ones", "methods": []}


def test_equal_losses_have_no_variance_to_share(make_trial: MakeTrial) -> None:
    trials = [{**trial, "status": "completed", "val_loss": 5.0} for trial in importance_trials(make_trial)]
    found = importance(measured(trials, None, LR, SearchParameter("batch_size", Choice((8, 16, 32)))))
    assert [method["name"] for method in found["methods"]] == ["PED-ANOVA"]


def test_a_conditional_parameter_is_told_apart(make_trial: MakeTrial) -> None:
    schedule = SearchParameter("lr_schedule", Choice(("constant", "wsd")))
    warmup = SearchParameter("warmup_frac", FloatRange(0.01, 0.3), Condition("lr_schedule", ("wsd",)))
    trials = [
        make_trial(
            k, "completed", 4.0 + k / 10, lr_schedule=("constant", "wsd")[k % 2], warmup_steps=k, training_steps=100,
            learning_rate=10.0 ** -(k / 4), tokens_seen=100 * STEP_TOKENS,
        )
        for k in range(20)
    ]  # fmt: skip
    found = importance(measured(trials, None, LR, schedule, warmup))
    names = [[row["name"] for row in method["shares"]] for method in found["methods"]]
    assert names == [["learning_rate", "lr_schedule", "warmup_frac"], ["learning_rate", "lr_schedule"]]
    assert "Not for warm-up share, which only some trials read." in found["methods"][1]["words"]
    # One value among the best looks important whatever it is.
    once = [{**trial, "lr_schedule": "wsd" if k == 2 or k > 9 else "constant"} for k, trial in enumerate(trials)]
    [ped_anova, _] = importance(measured(once, None, LR, schedule, warmup))["methods"]
    assert [row["name"] for row in ped_anova["shares"]] == ["learning_rate", "lr_schedule"]
    assert "Not for warm-up share, which one of the best reads at most." in ped_anova["words"]
