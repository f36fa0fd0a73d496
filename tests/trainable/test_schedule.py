"""Learning rates: the story's logged numbers, each schedule's ends, and nothing but step and config in them."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainable.config import BEFORE, DOCUMENTED, LR_SCHEDULES, TrialConfig
from trainable.schedule import learning_rate_at


def trial(schedule: str, **changes: float | int) -> TrialConfig:
    values = {"learning_rate": 2e-3, "warmup_steps": 10, "training_steps": 110, "min_lr_frac": 0.1, "decay_frac": 0.2}
    return TrialConfig(lr_schedule=schedule, **{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("step", "logged"), [(0, "2.00e-06"), (500, "2.00e-05"), (1000, "1.95e-05"), (2000, "1.55e-05")]
)
def test_before_gives_the_logged_rates(step: int, logged: str) -> None:
    assert f"{learning_rate_at(step, BEFORE):.2e}" == logged


def test_before_warms_up_in_a_straight_line_and_ends_at_a_tenth() -> None:
    assert learning_rate_at(250, BEFORE) == pytest.approx(1.1e-5, rel=1e-12)
    assert learning_rate_at(2750, BEFORE) == pytest.approx(1.1e-5, rel=1e-12)
    assert learning_rate_at(5000, BEFORE) == pytest.approx(2e-6, rel=1e-12)


def test_documented_is_constant() -> None:
    assert {learning_rate_at(step, DOCUMENTED) for step in (0, 1, 999, 1999, 2000, 10**6)} == {1e-5}


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", {0: 1.0, 5: 1.0, 10: 1.0, 60: 1.0, 110: 1.0, 10**6: 1.0}),
        ("warmup_constant", {0: 0.1, 5: 0.55, 10: 1.0, 60: 1.0, 110: 1.0, 10**6: 1.0}),
        ("warmup_cosine", {0: 0.1, 5: 0.55, 10: 1.0, 35: 0.55 + 0.45 * math.sqrt(0.5), 60: 0.55, 110: 0.1, 10**6: 0.1}),
        ("linear", {0: 0.1, 5: 0.55, 10: 1.0, 35: 0.775, 60: 0.55, 110: 0.1, 10**6: 0.1}),
        ("wsd", {0: 0.1, 5: 0.55, 10: 1.0, 60: 1.0, 88: 1.0, 99: 0.55, 110: 0.1, 10**6: 0.1}),
    ],
)
def test_shares_of_the_peak(schedule: str, shares: dict[int, float]) -> None:
    config = trial(schedule)
    given_shares = {step: learning_rate_at(step, config) / config.learning_rate for step in shares}
    assert given_shares == pytest.approx(shares, rel=1e-12)


def test_every_schedule_is_covered_above() -> None:
    assert set(LR_SCHEDULES) == {"constant", "warmup_constant", "warmup_cosine", "linear", "wsd"}


@pytest.mark.parametrize("schedule", ["warmup_cosine", "linear", "wsd"])
def test_the_horizon_is_the_whole_run(schedule: str) -> None:
    short, long = trial(schedule), trial(schedule, training_steps=1010)
    assert learning_rate_at(100, short) < learning_rate_at(100, long)
    assert learning_rate_at(1010, long) == pytest.approx(0.1 * long.learning_rate, rel=1e-12)


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_without_warmup_the_first_step_has_the_peak(schedule: str) -> None:
    config = trial(schedule, warmup_steps=0)
    assert learning_rate_at(0, config) == config.learning_rate


@pytest.mark.parametrize("schedule", LR_SCHEDULES[1:])
def test_a_warmup_as_long_as_the_run_never_divides_by_zero(schedule: str) -> None:
    config = trial(schedule, warmup_steps=110)
    rates = [learning_rate_at(step, config) for step in range(110)]
    assert rates == sorted(rates)
    assert rates[55] == pytest.approx(0.55 * config.learning_rate, rel=1e-12)


def test_wsd_decays_in_its_last_share_alone() -> None:
    assert learning_rate_at(54, trial("wsd", decay_frac=0.5)) == 2e-3
    assert learning_rate_at(56, trial("wsd", decay_frac=0.5)) < 2e-3
    assert learning_rate_at(109, trial("wsd", decay_frac=0.0)) == 2e-3
    # A decay longer than what the warm-up leaves begins where the warm-up ends.
    assert learning_rate_at(10, trial("wsd", decay_frac=1.0)) == 2e-3
    assert learning_rate_at(60, trial("wsd", decay_frac=1.0)) == pytest.approx(1.1e-3, rel=1e-12)


@pytest.mark.parametrize(("low", "last"), [(0.0, 0.0), (1.0, 2e-3)])
def test_min_lr_frac_is_where_it_ends(low: float, last: float) -> None:
    for schedule in ("warmup_cosine", "linear", "wsd"):
        assert learning_rate_at(110, trial(schedule, min_lr_frac=low)) == pytest.approx(last, abs=1e-18)


@settings(derandomize=True, deadline=None)
@given(
    schedule=st.sampled_from(LR_SCHEDULES),
    training_steps=st.integers(1, 5000),
    warmup_share=st.floats(0, 1),
    low=st.floats(0, 1),
    decay_frac=st.floats(0, 1),
    data=st.data(),
)
def test_rates_stay_between_the_end_and_the_peak_and_turn_once(
    schedule: str, training_steps: int, warmup_share: float, low: float, decay_frac: float, data: st.DataObject
) -> None:
    config = trial(
        schedule,
        training_steps=training_steps,
        warmup_steps=int(warmup_share * training_steps),
        min_lr_frac=low,
        decay_frac=decay_frac,
    )
    first, second = sorted(data.draw(st.tuples(st.integers(0, training_steps), st.integers(0, training_steps))))
    early, late = learning_rate_at(first, config), learning_rate_at(second, config)
    for rate in (early, late):
        assert low * 2e-3 - 1e-15 <= rate <= 2e-3 + 1e-15
    if second < config.warmup_steps:
        assert early <= late + 1e-15
    elif first >= config.warmup_steps:
        assert late <= early + 1e-15


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_it_is_a_pure_function(schedule: str) -> None:
    config, equal = trial(schedule), replace(trial(schedule))
    forwards = [learning_rate_at(step, config) for step in range(120)]
    backwards = [learning_rate_at(step, equal) for step in reversed(range(120))]
    assert forwards == backwards[::-1]
    assert config == trial(schedule)
