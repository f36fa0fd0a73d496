"""Verdicts against scipy's own test, planted winners and lucky seeds, unstable runs, attempts, and the file."""

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from results.confirmation.attempt import (
    Attempt,
    attempt_rows,
    from_json,
    judged,
    load_attempts,
    plan_attempt,
    planned_runs,
    to_json,
    write_attempts,
)
from results.confirmation.paired_t import ALPHA, attempt_alpha, judge
from results.study.folder import Study
from results.study.planned_run import fresh_seeds, runs_left
from tests.results.confirmed import confirmation_rows
from trainable.config import config_from
from trainable.errors import UserError

MakeTrial = Callable[..., dict[str, Any]]
Losses = dict[int, float | None]

BASELINE: Losses = {1: 4.50, 2: 4.53, 3: 4.47, 4: 4.51, 5: 4.49}
BETTER: Losses = {1: 4.40, 2: 4.44, 3: 4.38, 4: 4.40, 5: 4.40}
EQUAL: Losses = {1: 4.52, 2: 4.50, 3: 4.48, 4: 4.50, 5: 4.495}


def shifted(losses: Losses, by: float) -> Losses:
    return {seed: None if loss is None else loss + by for seed, loss in losses.items()}


@pytest.mark.parametrize("number", [1, 2, 5])
def test_interval_and_p_are_the_paired_t_tests_bonferroni_corrected(number: int) -> None:
    candidates = dict.fromkeys(range(1, number), BETTER) | {7: EQUAL}
    verdict = judge(BASELINE, candidates)[-1]
    seeds = sorted(BASELINE)
    test = stats.ttest_rel([EQUAL[seed] for seed in seeds], [BASELINE[seed] for seed in seeds])
    interval = test.confidence_interval(1 - 0.05 / number)
    assert (verdict.trial_id, verdict.seeds) == (7, 5)
    assert verdict.p_value == pytest.approx(min(1.0, number * test.pvalue), rel=1e-9)
    assert (verdict.low, verdict.high) == pytest.approx((interval.low, interval.high), rel=1e-9)
    assert verdict.mean_difference == pytest.approx(-0.001)


def test_the_three_outcomes_and_their_words() -> None:
    better, worse, equal = judge(BASELINE, {3: BETTER, 5: shifted(BETTER, 0.2), 8: EQUAL})
    assert (better.outcome, better.words, better.seeds_needed) == ("better", "better than the baseline", None)
    assert (worse.outcome, worse.words, worse.seeds_needed) == ("worse", "worse than the baseline", None)
    assert equal.outcome == "not proven"
    assert equal.words == "not proven with 5 seeds; more than 1000 would be needed"
    nearly = judge(BASELINE, {8: shifted(EQUAL, -0.013)})[0]
    assert nearly.words == f"not proven with 5 seeds; about {nearly.seeds_needed} would be needed"
    nearly_worse = judge(BASELINE, {8: shifted(EQUAL, 0.013)})[0]
    assert nearly_worse.words.endswith(" would be needed to prove it worse")


@pytest.mark.parametrize(("standardised", "pairs"), [(0.5, 34), (0.8, 15), (1.0, 10)])
def test_seeds_needed_are_the_textbooks(standardised: float, pairs: int) -> None:
    # Cohen's table for a paired t-test, two-sided 5 %, power 80 %. Of two pairs the standard deviation is a plain one.
    differences = [standardised - math.sqrt(0.5), standardised + math.sqrt(0.5)]
    losses: Losses = {seed: 4.0 + difference for seed, difference in enumerate(differences)}
    verdict = judge({0: 4.0, 1: 4.0}, {1: losses})[0]
    assert verdict.seeds_needed == pairs


@pytest.mark.parametrize("standardised", [3.0, 10.22, 14.0, 30.0, 300.0])
def test_few_seeds_are_needed_where_a_large_difference_is_unproven_on_two(standardised: float) -> None:
    # scipy's noncentral t is NaN for some of the larger numbers, of which a bisection takes one for the answer.
    alpha, next_alpha = 1e-4, 0.0125 / 2
    differences = [standardised - math.sqrt(0.5), standardised + math.sqrt(0.5)]
    losses: Losses = {seed: 4.0 + difference for seed, difference in enumerate(differences)}
    verdict = judge({0: 4.0, 1: 4.0}, {1: losses}, alpha=alpha, next_alpha=next_alpha)[0]
    draws = np.random.default_rng(0)
    for pairs in range(2, verdict.seeds_needed + 1 if verdict.seeds_needed else 9):
        normal, spread = draws.standard_normal(100_000), np.sqrt(draws.chisquare(pairs - 1, 100_000) / (pairs - 1))
        proven = (normal + standardised * math.sqrt(pairs)) / spread > stats.t.ppf(1 - next_alpha / 2, pairs - 1)
        assert (proven.mean() >= 0.8) == (pairs == verdict.seeds_needed), pairs


def test_a_proof_costs_more_with_more_candidates() -> None:
    close = shifted(EQUAL, -0.029)
    alone, among = judge(BASELINE, {1: close})[0], judge(BASELINE, {1: close, 2: close, 3: close})[0]
    assert (alone.outcome, among.outcome) == ("better", "not proven")
    assert among.seeds_needed is not None
    assert among.seeds_needed > 5


@pytest.mark.parametrize("seeds", [(), (1,)])
def test_no_pair_or_one_proves_nothing(seeds: tuple[int, ...]) -> None:
    verdict = judge(BASELINE, {1: dict.fromkeys(seeds, 1.0)})[0]
    assert verdict.outcome == "not proven"
    assert verdict.words == f"not proven with {len(seeds)} seed{'' if seeds else 's'}"
    assert (verdict.low, verdict.high, verdict.p_value, verdict.seeds_needed) == (None,) * 4
    assert verdict.mean_difference == (-3.5 if seeds else None)


def test_the_same_losses_are_no_difference() -> None:
    verdict = judge(BASELINE, {1: BASELINE})[0]
    assert (verdict.outcome, verdict.p_value, verdict.low, verdict.high) == ("not proven", None, None, None)
    assert verdict.words == "not proven with 5 seeds; no difference was seen"


@pytest.mark.parametrize("by", [-0.5, 0.5, -0.1])
@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_the_same_difference_on_every_seed_was_measured_once(by: float, rounding: float) -> None:
    # Between loss + 0.1 and loss the differences are the same to rounding alone, even without any added here.
    candidate = {seed: loss + by + rounding * seed for seed, loss in BASELINE.items() if loss is not None}
    for seeds in (2, 5):
        verdict = judge(BASELINE, {1: dict(list(candidate.items())[:seeds])})[0]
        assert (verdict.outcome, verdict.p_value, verdict.low, verdict.high) == ("not proven", None, None, None)
        assert verdict.seeds_needed is None
        assert verdict.mean_difference == pytest.approx(by, abs=1e-6)
        assert verdict.words == (
            f"not proven with {seeds} seeds; the difference is the same on each, so that they say no more than one"
        )


def test_no_candidate_is_no_verdict() -> None:
    assert judge(BASELINE, {}) == []


@pytest.mark.parametrize("unstable", [None, math.nan, math.inf])
def test_an_unstable_seed_of_the_candidate_alone_forbids_better(unstable: float | None) -> None:
    verdict = judge(BASELINE, {1: {**BETTER, 3: unstable}})[0]
    assert (verdict.outcome, verdict.seeds, verdict.p_value, verdict.high) == ("not proven", 4, 1.0, None)
    assert verdict.low is not None
    assert verdict.unstable_seeds == (3,)
    assert verdict.words == "not proven with 5 seeds; it did not complete on 1 of 5 seeds"


def test_an_unstable_candidate_can_still_be_worse() -> None:
    verdict = judge(BASELINE, {1: {**shifted(BETTER, 0.2), 3: None}})[0]
    assert (verdict.outcome, verdict.words) == ("worse", "worse than the baseline; it did not complete on 1 of 5 seeds")
    assert verdict.high is None


def test_an_unstable_seed_of_the_baseline_forbids_worse_and_not_better() -> None:
    better, worse = judge({**BASELINE, 2: None}, {1: BETTER, 2: shifted(BETTER, 0.2)})
    assert better.words == "better than the baseline; the baseline did not complete on 1 of 5 seeds"
    assert (better.low, better.baseline_unstable_seeds) == (None, (2,))
    assert worse.words == "not proven with 5 seeds; the baseline did not complete on 1 of 5 seeds"
    assert worse.p_value == 1.0


def test_a_seed_on_which_both_were_unstable_says_nothing() -> None:
    verdict = judge({**BASELINE, 2: None}, {1: {**BETTER, 2: None}})[0]
    assert (verdict.outcome, verdict.seeds) == ("better", 4)
    assert verdict.words == (
        "better than the baseline; it did not complete on 1 of 5 seeds; the baseline did not complete on 1 of 5 seeds"
    )


@pytest.mark.parametrize("completed", [0, 1, 2])
def test_the_seeds_that_were_run_are_counted_however_few_completed(completed: int) -> None:
    losses = {seed: loss if seed <= completed else None for seed, loss in shifted(EQUAL, 0.1).items()}
    verdict = judge(BASELINE, {1: losses})[0]
    needed = "" if verdict.seeds_needed is None else f"; about {verdict.seeds_needed} would be needed to prove it worse"
    assert verdict.words == f"not proven with 5 seeds{needed}; it did not complete on {5 - completed} of 5 seeds"
    assert (verdict.seeds, needed != "") == (completed, completed == 2)


LOSS = st.none() | st.floats(3.0, 6.0)
LOSSES = st.dictionaries(st.integers(0, 7), LOSS, max_size=8)


@settings(max_examples=300, deadline=None, database=None)
@given(LOSSES, st.dictionaries(st.integers(1, 9), LOSSES, max_size=3))
def test_outcome_interval_and_p_always_say_the_same(baseline: Losses, candidates: dict[int, Losses]) -> None:
    for verdict in judge(baseline, candidates):
        low, high, p_value = verdict.low, verdict.high, verdict.p_value
        assert (verdict.outcome == "better") == (high is not None and high < 0)
        assert (verdict.outcome == "worse") == (low is not None and low > 0)
        assert (verdict.outcome != "not proven") == (p_value is not None and p_value < 0.05)
        lost = set(verdict.unstable_seeds) - set(verdict.baseline_unstable_seeds)
        won = set(verdict.baseline_unstable_seeds) - set(verdict.unstable_seeds)
        assert not (lost and verdict.outcome == "better")
        assert not (won and verdict.outcome == "worse")
        assert json.dumps(asdict(verdict), allow_nan=False)


@pytest.fixture(scope="module")
def benchmark_module() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "false_better_rate.py"
    spec = importlib.util.spec_from_file_location("false_better_rate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up by name.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("scenario", [1, 3, 5])
def test_of_200_studies_of_equal_configurations_at_most_5_percent_claim_better(
    benchmark_module: ModuleType, scenario: int
) -> None:
    count, by_search = benchmark_module.false_better_count(200, benchmark_module.EQUAL[scenario], seed=0)
    assert count <= 10
    assert by_search > 150


def test_better_at_least_once_in_five_confirmations_in_a_row_stays_below_5_percent(
    benchmark_module: ModuleType,
) -> None:
    once, ever = benchmark_module.repeated_count(2000, 5, seed=0)
    assert once <= 0.025 * 2000
    assert ever <= 0.05 * 2000
    # Without the division one study in five would be called better by the fifth attempt.
    assert benchmark_module.repeated_count(2000, 5, seed=0, divided=False)[1] > 0.08 * 2000


def test_attempts_spend_half_of_what_is_left() -> None:
    spent = [attempt_alpha(number) for number in range(1, 60)]
    assert spent[:4] == [ALPHA / 2, ALPHA / 4, ALPHA / 8, ALPHA / 16]
    assert sum(spent) <= ALPHA


def test_a_true_winner_is_found(benchmark_module: ModuleType) -> None:
    scenario = benchmark_module.Scenario(name="", gain=0.12)
    _, attempt = benchmark_module.simulate(np.random.default_rng(0), scenario)
    assert attempt.candidates[0] == 1
    assert attempt.verdicts[0].words == "better than the baseline"


def search_rows(make_trial: MakeTrial) -> list[dict[str, Any]]:
    return [
        make_trial(0, val_loss=4.50),
        make_trial(1, val_loss=4.20, learning_rate=2e-5),
        make_trial(2, val_loss=4.35, learning_rate=5e-5),
        make_trial(3, val_loss=4.45, learning_rate=1e-4),
        make_trial(4, "stopped", 4.00, rung=1, learning_rate=3e-4),
        make_trial(5, "unstable", 4.00, learning_rate=1e-2),
    ]


def around(losses: dict[int, float], seeds: int, scatter: float = 0.01) -> dict[int, list[Any]]:
    rng = np.random.default_rng(0)
    return {
        trial_id: [loss + scatter * float(rng.standard_normal()) for _ in range(seeds)]
        for trial_id, loss in losses.items()
    }


def test_a_lucky_seed_that_wins_the_search_loses_the_confirmation(make_trial: MakeTrial) -> None:
    trials = search_rows(make_trial)
    attempt = plan_attempt(trials, (), study="one", top=2, seeds=5)
    assert attempt.candidates == (1, 2)
    rows = confirmation_rows(attempt, trials, around({0: 4.50, 1: 4.50, 2: 4.35}, 5))
    attempt = judged(attempt, [*trials, *rows])
    assert {verdict.trial_id: verdict.outcome for verdict in attempt.verdicts} == {1: "not proven", 2: "better"}
    # How many seeds another attempt needs is told at the alpha that it would have.
    by_trial = [{row["seed"]: row["val_loss"] for row in rows if row["of_trial"] == trial_id} for trial_id in (0, 1)]
    later = judge(by_trial[0], {1: by_trial[1], 2: {}}, alpha=attempt_alpha(2))[0]
    assert attempt.verdicts[0].seeds_needed == later.seeds_needed


@pytest.mark.parametrize("status", ["unstable", "out_of_memory"])
def test_a_run_that_did_not_complete_counts_against_it(make_trial: MakeTrial, status: str) -> None:
    trials = search_rows(make_trial)[:2]
    attempt = plan_attempt(trials, (), study="one", top=1, seeds=3)
    losses: dict[int, list[float | str | None]] = {0: [4.5, 4.51, 4.52], 1: [4.2, 4.21, status]}
    attempt = judged(attempt, [*trials, *confirmation_rows(attempt, trials, losses)])
    assert attempt.verdicts[0].unstable_seeds == (3,)
    assert attempt.verdicts[0].outcome == "not proven"
    assert to_json([attempt])


@pytest.mark.parametrize("status", [None, "running", "interrupted", "failed"])
def test_nothing_is_judged_before_every_run_has_ended(make_trial: MakeTrial, status: Any) -> None:
    trials = search_rows(make_trial)
    attempt = plan_attempt(trials, (), study="one", top=2, seeds=5)
    losses = around({0: 4.50, 1: 4.50, 2: 4.35}, 5)
    losses[2][4] = status
    assert judged(attempt, [*trials, *confirmation_rows(attempt, trials, losses)]) == attempt


def test_a_run_is_found_by_configuration_and_seed_and_one_that_failed_is_run_again(make_trial: MakeTrial) -> None:
    trials = search_rows(make_trial)
    attempt = plan_attempt(trials, (), study="one", top=1, seeds=2)
    rows = confirmation_rows(attempt, trials, {0: [4.5, "failed"], 1: ["interrupted", None]})
    # Numbers mean nothing: a table whose confirmation runs are numbered otherwise holds the same runs.
    rows = [{**row, "trial_id": 90 - row["trial_id"]} for row in rows]
    trials = [*trials, *sorted(rows, key=lambda row: row["trial_id"])]
    left = {(run.of_trial, run.config.seed): run.trial_id for run in runs_left(planned_runs(attempt, trials), trials)}
    cut_off = next(row["trial_id"] for row in rows if row["status"] == "interrupted")
    assert left == {(1, 1): cut_off, (0, 2): 85, (1, 2): 86}
    failed = next(row for row in rows if row["status"] == "failed")
    again = {**failed, "trial_id": 99, "status": "completed", "val_loss": 4.4}
    held = {(run.of_trial, run.config.seed): row for run, row in attempt_rows(attempt, [*trials, again])}
    assert held[0, 2] == again


def test_the_plan_is_the_baseline_and_the_best_on_the_same_fresh_seeds(make_trial: MakeTrial) -> None:
    trials = [*search_rows(make_trial), make_trial(6, "failed", seed=2, purpose="attribution")]
    first = Attempt(number=1, alpha=0.025, baseline=0, candidates=(1,), seeds=(1, 9))
    attempt = plan_attempt(trials, (first,), study="one", top=2, seeds=3)
    assert attempt == plan_attempt(trials[::-1], (first,), study="one", top=2, seeds=3)
    assert (attempt.number, attempt.alpha, attempt.seeds) == (2, 0.0125, (3, 4, 5))
    runs = planned_runs(attempt, trials)
    assert [(run.of_trial, run.config.seed) for run in runs] == [(t, seed) for seed in (3, 4, 5) for t in (0, 1, 2)]
    assert {(run.purpose, run.attempt, run.is_baseline) for run in runs} == {("confirmation", 2, False)}
    assert runs[1].config == replace(config_from(trials[1]), seed=3)


def test_above_the_highest_seed_they_begin_again_at_0() -> None:
    assert fresh_seeds(3, above=2**31 - 2, taken={0}) == (2**31 - 1, 1, 2)


def test_the_plan_takes_each_configuration_once_and_none_that_is_no_trial_or_proven_worse(
    make_trial: MakeTrial,
) -> None:
    trials = [
        make_trial(0, val_loss=4.5),
        make_trial(1, val_loss=4.2, warmup_steps=500),  # constant: the warm-up is not read, so it is the baseline
        make_trial(2, val_loss=4.3, learning_rate=2e-5),
        make_trial(3, val_loss=4.3, learning_rate=2e-5),
        make_trial(4, val_loss=4.1, learning_rate=3e-5, purpose="confirmation", of_trial=2),
        make_trial(5, val_loss=math.nan, learning_rate=4e-5),
        make_trial(6, val_loss=4.6, learning_rate=5e-5),
    ]
    assert plan_attempt(trials, (), study="one", top=9, seeds=2).candidates == (2, 6)
    worse = judge({1: 4.5, 2: 4.5}, {2: {1: 4.8, 2: 4.8001}})
    first = Attempt(number=1, alpha=0.025, baseline=0, candidates=(2,), seeds=(1, 2), verdicts=tuple(worse))
    assert worse[0].outcome == "worse"
    assert plan_attempt(trials, (first,), study="one", top=9, seeds=2).candidates == (3, 6)


def test_what_cannot_be_planned_is_said(make_trial: MakeTrial) -> None:
    trials = search_rows(make_trial)
    for changes, message in (
        ({"seeds": 1}, "SEEDS is 1; it must be at least 2 and at most 1000."),
        ({"seeds": 1001}, "SEEDS is 1001; it must be"),
    ):
        arguments: dict[str, Any] = {"top": 2, "seeds": 5, **changes}
        with pytest.raises(UserError, match=message):
            plan_attempt(trials, (), study="one", **arguments)
    with pytest.raises(UserError, match=r"in study one: .* has completed\.$"):
        plan_attempt([trials[0], trials[4]], (), study="one", top=2, seeds=5)
    with pytest.raises(UserError, match=r"study one has no baseline .* make resume STUDY=one$"):
        plan_attempt(trials[1:], (), study="one", top=2, seeds=5)
    with pytest.raises(UserError, match=r"confirmation\.json is of trial 7, which trials\.parquet lacks"):
        planned_runs(Attempt(number=1, alpha=0.025, baseline=0, candidates=(7,), seeds=(1,)), trials)


def make_attempts(make_trial: MakeTrial) -> tuple[Attempt, ...]:
    trials = search_rows(make_trial)
    first = plan_attempt(trials, (), study="one", top=2, seeds=3)
    losses = around({0: 4.50, 1: 4.50, 2: 4.35}, 3)
    losses[2][2] = "unstable"
    first = judged(first, [*trials, *confirmation_rows(first, trials, losses)])
    assert first.verdicts
    return first, plan_attempt(trials, (first,), study="one", top=1, seeds=2)


def test_the_file_gives_back_what_was_written(make_trial: MakeTrial, tmp_path: Path) -> None:
    study, attempts = Study(tmp_path), make_attempts(make_trial)
    assert load_attempts(study) == ()
    write_attempts(study, attempts)
    assert load_attempts(study) == attempts == from_json(to_json(attempts))
    document = json.loads((tmp_path / "confirmation.json").read_bytes())
    assert set(document["attempts"][0]) == {"number", "alpha", "baseline", "candidates", "seeds", "verdicts"}


@pytest.mark.parametrize(
    "content",
    [
        *("{", "[]", "null", "{}", '{"attempts": [{}]}', '{"verdicts": [], "runs": []}'),
        '{"attempts": [{"number": 2, "alpha": 0.1, "baseline": 0, "candidates": [], "seeds": [], "verdicts": []}]}',
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "confirmation.json").write_text(content)
    with pytest.raises(UserError, match=r"confirmation\.json: not a confirmation .*Move it away and confirm again\."):
        load_attempts(Study(tmp_path))


@pytest.mark.parametrize(
    ("field", "value"),
    [("outcome", "proven"), ("mean_difference", "lower"), ("seeds", 2.5), ("unstable_seeds", [None]), ("words", 1)],
)
def test_a_field_of_another_type_is_damage(make_trial: MakeTrial, field: str, value: Any) -> None:
    document = to_json(make_attempts(make_trial))
    document["attempts"][0]["verdicts"][0][field] = value
    with pytest.raises(ValueError, match=rf"verdicts\.0\.{field}"):
        from_json(document)


@pytest.mark.parametrize("changes", [{"seeds": []}, {"candidates": []}, {"alpha": 1.5}, {"number": 3}])
def test_an_attempt_that_cannot_be_judged_is_damage(make_trial: MakeTrial, changes: dict[str, Any]) -> None:
    document = to_json(make_attempts(make_trial))
    document["attempts"][1] |= changes
    with pytest.raises(ValueError, match="attempt 2 is not whole"):
        from_json(document)


def test_the_interval_of_a_late_attempt_is_finite() -> None:
    losses = {1: {1: 4.9, 2: 4.95, 3: 5.0}, 2: {1: 5.01, 2: 5.1, 3: 5.04}}
    for verdict in judge({1: 5.0, 2: 5.1, 3: 5.05}, losses, alpha=attempt_alpha(60), next_alpha=attempt_alpha(61)):
        assert verdict.low is not None
        assert verdict.high is not None
        assert math.isfinite(verdict.low + verdict.high)
