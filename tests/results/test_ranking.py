"""Order, best, endings and savings on tables small enough to reckon by hand."""

import math
from collections.abc import Callable
from typing import Any

import pytest

from results.ranking import (
    Savings,
    baseline_trial,
    budget_frac,
    ending_counts,
    final_loss,
    full_tokens,
    leaderboard,
    of_their_own,
    ranked_trials,
    savings,
)
from search.terminal.summary import cost_line

MakeTrial = Callable[..., dict[str, Any]]


def ids(trials: list[dict[str, Any]]) -> list[int]:
    return [trial["trial_id"] for trial in trials]


def test_the_leaderboard_ranks_by_ending_then_rung_then_loss(make_trial: MakeTrial) -> None:
    trials = [
        make_trial(0, "completed", 4.5, rung=None),
        make_trial(1, "unstable", 1.0, rung=3),
        make_trial(2, "stopped", 4.0, rung=0),
        make_trial(3, "stopped", 4.9, rung=1),
        make_trial(4, "completed", 4.2, rung=2),
        make_trial(5, "failed"),
        make_trial(6, "stopped", 4.8, rung=1),
        make_trial(7, "out_of_memory"),
        make_trial(8, "stopped", 3.0),
        make_trial(9, "completed", None, rung=2),
        make_trial(10, "running", 3.9, rung=0),
        make_trial(11, "interrupted", 3.9, rung=0),
        make_trial(12, "running", 3.8, rung=1),
    ]
    order = [4, 0, 9, 6, 3, 2, 8, 12, 10, 11, 1, 7, 5]
    assert ids(leaderboard(trials)) == order
    assert ids(leaderboard(trials[::-1])) == order


def test_the_last_loss_ranks_not_the_best_ever(make_trial: MakeTrial) -> None:
    trials = [make_trial(1, val_loss=4.4, best_val_loss=4.0), make_trial(2, val_loss=4.3, best_val_loss=4.3)]
    assert ids(leaderboard(trials)) == [2, 1]


def test_runs_that_explain_a_trial_are_never_ranked_whatever_their_seed(make_trial: MakeTrial) -> None:
    trials = [make_trial(0), make_trial(1, seed=9)]
    explaining = [make_trial(n, val_loss=1.0, purpose=name) for n, name in ((2, "confirmation"), (3, "attribution"))]
    assert ranked_trials([*trials, *explaining]) == trials


def test_ties_go_to_the_lower_id_so_to_the_baseline(make_trial: MakeTrial) -> None:
    trials = [make_trial(3, val_loss=4.5), make_trial(0, val_loss=4.5), make_trial(2, val_loss=4.5)]
    assert ids(leaderboard(trials)) == [0, 2, 3]


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf, None])
def test_a_loss_that_is_no_number_never_wins(make_trial: MakeTrial, loss: float | None) -> None:
    trials = [make_trial(n, val_loss=loss if n % 2 else 5.0 - n) for n in range(4)]
    assert ids(leaderboard(trials)) == [2, 0, 1, 3]
    assert [final_loss(trial) for trial in trials] == [5.0, None, 3.0, None]


def test_only_a_completed_trial_has_a_final_loss(make_trial: MakeTrial) -> None:
    assert final_loss(None) is None
    assert final_loss(make_trial(0, "running", 4.0)) is None
    assert final_loss(make_trial(1, "stopped", 3.0, rung=1)) is None


def test_the_baseline_is_found_however_it_stands(make_trial: MakeTrial) -> None:
    assert baseline_trial([]) is None
    assert baseline_trial([make_trial(1)]) is None
    assert baseline_trial([make_trial(1), make_trial(0, "unstable")]) == make_trial(0, "unstable")


def test_endings_are_counted_and_never_merged(make_trial: MakeTrial) -> None:
    trials = [make_trial(n, status) for n, status in enumerate(["completed", "stopped", "stopped", "interrupted"])]
    assert ending_counts(trials) == {
        "completed": 1,
        "stopped": 2,
        "unstable": 0,
        "out_of_memory": 0,
        "failed": 0,
        "running": 0,
        "interrupted": 1,
    }


def test_savings_on_a_table_reckoned_by_hand(make_trial: MakeTrial) -> None:
    # A step is 32 x 128 = 4096 tokens, or half of it in trial 3. Seconds per 4096 tokens: 1, 2, 4, 5.
    trials = [
        make_trial(0, "completed", tokens_seen=40_960, active_s=10.0, training_steps=10),
        # Its first steps took 2 s; 8 steps of 1 s, as those of the completed trial of its shape, were saved.
        make_trial(1, "stopped", tokens_seen=8_192, active_s=4.0, training_steps=10),
        make_trial(2, "unstable", training_steps=10),  # nothing measured: 10 steps of 1 s
        make_trial(3, "stopped", tokens_seen=2_048, active_s=2.0, training_steps=10, batch_size=16),  # 9 of 2 s
        make_trial(4, "stopped", tokens_seen=8_192, active_s=10.0, training_steps=10, dropout=0.0),  # 8 of 5 s
        make_trial(5, "unstable", training_steps=10, grad_accum_steps=2),  # no speed of its shape: 10 steps of 2 x 1 s
    ]
    rest_s = 8.0 + 10.0 + 18.0 + 40.0 + 20.0
    assert savings(trials) == Savings(
        device_s_spent=26.0,
        device_s_full=26.0 + rest_s,
        device_s_saved_frac=rest_s / (26.0 + rest_s),
        tokens_spent=59_392,
        tokens_full=5 * 40_960 + 40_960 // 2 + 40_960,
    )


def test_each_trial_has_a_full_budget_of_its_own(make_trial: MakeTrial) -> None:
    step = {"batch_size": 3, "block_size": 100, "grad_accum_steps": 2}
    two, three = (make_trial(1, "stopped", tokens_seen=600, active_s=1.0, training_steps=n, **step) for n in (2, 3))
    assert [full_tokens(one) for one in (two, three)] == [1_200, 1_800]
    assert [budget_frac(one) for one in (two, three)] == [1 / 2, 1 / 3]
    assert savings([two]).tokens_full == 1_200
    assert savings([three]).device_s_full == 3.0


def test_a_run_from_a_checkpoint_costs_what_it_trained_itself(make_trial: MakeTrial) -> None:
    start = {"trial_id": 0, "optimizer_steps": 8, "tokens_seen": 8 * 4_096}
    metrics = [start, {**start, "optimizer_steps": 9, "tokens_seen": 9 * 4_096}]
    trial = make_trial(0, "unstable", tokens_seen=9 * 4_096, training_steps=10, warmup_steps=9, active_s=1.0)
    found = savings(of_their_own([{**trial, "purpose": "train"}], metrics))
    assert (found.tokens_spent, found.tokens_full, found.device_s_full) == (4_096, 2 * 4_096, 2.0)
    assert of_their_own([trial], metrics) == [trial]  # a trial of a search begins at step 0


@pytest.mark.parametrize("status", ["running", "interrupted", "failed", "out_of_memory", "completed"])
def test_what_nobody_ended_early_saved_nothing(make_trial: MakeTrial, status: str) -> None:
    trials = [make_trial(1, status, tokens_seen=8_192, active_s=4.0)]
    assert cost_line(trials) == "device time: 4.0 s (8.19k tokens) on the search"
    assert savings(trials) == Savings(
        device_s_spent=4.0, device_s_full=4.0, device_s_saved_frac=0.0, tokens_spent=8_192, tokens_full=8_192
    )


def test_savings_of_nothing_are_nothing(make_trial: MakeTrial) -> None:
    none = Savings(device_s_spent=0.0, device_s_full=0.0, device_s_saved_frac=0.0, tokens_spent=0, tokens_full=0)
    assert savings([]) == none
    assert savings([make_trial(1, "unstable")]).device_s_saved_frac == 0.0
