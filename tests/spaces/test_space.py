"""SearchSpace: the configuration of a point, the grid, rungs and evaluations, exact."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from spaces.domains import Choice, SearchParameter
from spaces.overrides import Settings, with_overrides
from spaces.space import SearchSpace
from trainable.config import BEFORE, TrialConfig
from trainable.errors import UserError

MakeSpace = Callable[..., SearchSpace]
SCHEDULES = {"choice": ["constant", "warmup_cosine", "linear"]}
WITH_WARMUP = {"lr_schedule": ["warmup_cosine", "linear"]}
BATCHES = {"choice": [2, 4, 8]}
SMALL = {"batch_size": 4, "block_size": 32}
WARM = SMALL | {"lr_schedule": "linear", "warmup_frac": 0.1}


def test_every_trial_gets_the_budget_in_whole_steps(make_space: MakeSpace) -> None:
    space = make_space({"batch_size": {"choice": [3, 4, 8]}, "grad_accum_steps": {"int": [1, 2]}})
    assert space.config_for({"batch_size": 3}).training_steps == 12_800 // 96 == 133
    assert space.config_for({"batch_size": 8, "grad_accum_steps": 2}).training_steps == 25
    assert space.baseline.training_steps == 100


def test_the_baselines_point_is_the_baseline(make_space: MakeSpace) -> None:
    search = {
        "batch_size": BATCHES,
        "lr_schedule": SCHEDULES,
        "warmup_frac": {"uniform": [0, 0.5], "when": WITH_WARMUP},
    }
    for baseline in (SMALL, WARM):
        space = make_space(search, baseline=baseline)
        assert space.config_for(space.baseline_params()) == space.baseline == space.config_for({})
    assert space.baseline_params() == {"batch_size": 4, "lr_schedule": "linear", "warmup_frac": 0.1}


def test_warmup_frac_is_a_share_of_each_trials_own_steps(make_space: MakeSpace) -> None:
    search = {
        "batch_size": BATCHES,
        "lr_schedule": SCHEDULES,
        "warmup_frac": {"uniform": [0, 0.5], "when": WITH_WARMUP},
    }
    space = make_space(search)
    params = {"lr_schedule": "linear", "warmup_frac": 0.25}
    assert space.config_for(params | {"batch_size": 2}).warmup_steps == 50
    assert space.config_for(params | {"batch_size": 8}).warmup_steps == round(0.25 * 50)
    assert space.config_for(params | {"lr_schedule": "constant"}).warmup_steps == 0


def test_warmup_steps_are_the_same_in_every_trial(make_space: MakeSpace) -> None:
    space = make_space({"batch_size": BATCHES, "lr_schedule": SCHEDULES, "warmup_steps": {"int": [0, 50]}})
    for batch_size in (2, 8):
        params = {"batch_size": batch_size, "lr_schedule": "linear", "warmup_steps": 20}
        assert space.config_for(params).warmup_steps == 20


@pytest.mark.parametrize("budget", [{"tokens": 12_800}, {"tokens": 25_600}, {"device_minutes": 5}])
def test_the_baselines_warmup_is_its_own_number_of_steps_where_steps_are_searched(
    make_space: MakeSpace, budget: dict[str, Any]
) -> None:
    baseline = {"batch_size": 4, "block_size": 32, "lr_schedule": "linear", "warmup_steps": 5}
    search = {"warmup_steps": {"choice": [0, 5, 20]}, "lr_schedule": SCHEDULES}
    space = make_space(search, baseline=baseline, budget=budget)
    assert (space.baseline.warmup_steps, space.baseline_params()["warmup_steps"]) == (5, 5)
    longer = Settings(device_s=600.0) if "device_minutes" in budget else Settings(budget_tokens=51_200)
    assert with_overrides(space, longer).baseline.warmup_steps == 5
    constant = replace(space.baseline, lr_schedule="constant", warmup_steps=0)
    assert with_overrides(space, Settings(baseline=("constant", constant))).baseline.warmup_steps == 0


def test_the_baselines_warmup_keeps_its_share_when_none_is_searched(make_space: MakeSpace) -> None:
    space = make_space({"batch_size": BATCHES, "lr_schedule": SCHEDULES}, baseline=WARM)
    assert space.baseline.warmup_steps == 10
    assert space.config_for({"batch_size": 2, "lr_schedule": "linear"}).warmup_steps == 20
    assert space.config_for({"batch_size": 8, "lr_schedule": "warmup_cosine"}).warmup_steps == 5
    assert space.config_for({"batch_size": 2, "lr_schedule": "constant"}).warmup_steps == 0


def test_a_schedule_without_any_warmup_named_starts_at_the_peak(make_space: MakeSpace) -> None:
    assert make_space({"lr_schedule": SCHEDULES}).config_for({"lr_schedule": "linear"}).warmup_steps == 0


def test_the_share_is_not_lost_in_the_rounding_to_steps(make_space: MakeSpace) -> None:
    search = {"learning_rate": {"choice": [2e-5, 1e-3]}, "warmup_frac": {"choice": [0.1, 0.2]}}
    space = make_space(search, baseline="before", budget={"tokens": 37_000}, evaluation={"tokens": 256, "count": 4})
    assert (space.baseline.training_steps, space.baseline.warmup_steps) == (18, 2)
    assert space.baseline_params()["warmup_frac"] == 0.1
    assert with_overrides(space, Settings(budget_tokens=2048 * 5000)).baseline == BEFORE


def test_inactive_parameters_are_ignored_and_unknown_ones_are_a_bug(make_space: MakeSpace) -> None:
    search = {
        "lr_schedule": {"choice": ["constant", "wsd"]},
        "decay_frac": {"uniform": [0.1, 0.5], "when": {"lr_schedule": ["wsd"]}},
    }
    space = make_space(search)
    assert space.config_for({"lr_schedule": "constant", "decay_frac": 0.4}).decay_frac == 0.2
    assert space.config_for({"lr_schedule": "wsd", "decay_frac": 0.4}).decay_frac == 0.4
    with pytest.raises(AssertionError, match="dropout"):
        space.config_for({"dropout": 0.0})


def test_a_grid_is_every_combination_once_the_baseline_first(make_space: MakeSpace) -> None:
    search = {
        "decay_frac": {"choice": [0.1, 0.3], "when": {"lr_schedule": ["wsd"]}},
        "lr_schedule": {"choice": ["wsd", "constant"]},
        "batch_size": {"choice": [8, 4]},
    }
    space = make_space(search, searcher={"name": "grid"}, trials=None)
    assert space.grid_points() == [
        {"lr_schedule": "constant", "batch_size": 4},
        {"lr_schedule": "wsd", "decay_frac": 0.1, "batch_size": 8},
        {"lr_schedule": "wsd", "decay_frac": 0.1, "batch_size": 4},
        {"lr_schedule": "wsd", "decay_frac": 0.3, "batch_size": 8},
        {"lr_schedule": "wsd", "decay_frac": 0.3, "batch_size": 4},
        {"lr_schedule": "constant", "batch_size": 8},
    ]
    assert space.trials == 6


def test_a_grid_runs_cells_that_differ_in_what_neither_reads_once(make_space: MakeSpace) -> None:
    search = {
        "warmup_frac": {"choice": [0.0, 0.1, 0.101]},  # the last two are the same number of steps
        "lr_schedule": {"choice": ["constant", "linear"]},
        "lora_rank": {"choice": [8, 16]},
    }
    space = make_space(search, searcher={"name": "grid"}, trials=None)
    assert space.grid_points() == [
        {"warmup_frac": 0.0, "lr_schedule": "constant", "lora_rank": 8},
        {"warmup_frac": 0.0, "lr_schedule": "linear", "lora_rank": 8},
        {"warmup_frac": 0.1, "lr_schedule": "linear", "lora_rank": 8},
    ]
    assert space.trials == 3


@pytest.mark.parametrize(
    ("scheduler", "rungs"),
    [
        ({"grace_tokens": 100, "reduction_factor": 3}, (100, 300, 900, 2700, 8100)),
        ({"grace_tokens": 6_400, "reduction_factor": 2}, (6_400,)),
        ({}, (1_423, 4_269)),
        ({"grace_frac": 0.111, "reduction_factor": 3}, (1_421, 4_263)),  # 12,789 would be 11 tokens before the end
        ({"name": "none"}, ()),
        ({"name": "none", "grace_tokens": 100}, ()),
    ],
)
def test_rungs(make_space: MakeSpace, scheduler: dict[str, Any], rungs: tuple[int, ...]) -> None:
    baseline = {"batch_size": 1, "block_size": 16}
    search = {"learning_rate": {"log_uniform": [1e-6, 1e-1]}}
    assert make_space(search, scheduler=scheduler, baseline=baseline).rung_tokens() == rungs


@pytest.mark.parametrize(
    ("scheduler", "count", "tokens"),
    [
        ({"name": "none"}, 4, (3_200, 6_400, 9_600, 12_800)),
        ({"name": "none"}, 1, (12_800,)),
        ({"grace_tokens": 3_000}, 4, (3_000, 6_400, 9_000, 12_800)),
        ({"grace_tokens": 6_400}, 8, (1_600, 3_200, 4_800, 6_400, 8_000, 9_600, 11_200, 12_800)),
        ({"grace_tokens": 500, "reduction_factor": 5}, 1, (500, 2_500, 12_800)),
    ],
)
def test_evaluations(make_space: MakeSpace, scheduler: dict[str, Any], count: int, tokens: tuple[int, ...]) -> None:
    search = {"learning_rate": {"log_uniform": [1e-6, 1e-1]}}
    space = make_space(search, scheduler=scheduler, evaluation={"tokens": 256, "count": count})
    assert space.evaluation_tokens() == tokens
    assert set(space.rung_tokens()) <= set(tokens)


def test_the_largest_step_is_looked_for_among_the_combinations_that_exist(make_space: MakeSpace) -> None:
    """Batch 32 x block 64 would not fit before the first evaluation, but the two never meet."""
    search: dict[str, dict[str, Any]] = {
        "batch_size": {"choice": [4, 32]},
        "block_size": {"choice": [32, 64], "when": {"batch_size": [4]}},
    }
    assert make_space(search).config_for({"batch_size": 32, "block_size": 64}).tokens_per_step == 1_024
    search["block_size"]["when"] = {"batch_size": [4, 32]}
    with pytest.raises(
        UserError, match=r"batch_size=32 x block_size=64 is 2048 tokens a step, .* evaluated after 1423\."
    ):
        make_space(search)


def test_a_space_made_by_hand_is_brought_to_its_budget_and_checked(make_space: MakeSpace) -> None:
    small = make_space({"learning_rate": {"log_uniform": [1e-6, 1e-1]}})
    fields = {name: getattr(small, name) for name in SearchSpace.__dataclass_fields__}
    fields |= {"baseline": TrialConfig(batch_size=4, block_size=32, training_steps=7), "baseline_warmup_frac": None}
    assert SearchSpace(**fields).baseline.training_steps == 100
    fields["parameters"] = (SearchParameter("dropout", Choice((0.0, 0.2))),)
    with pytest.raises(
        UserError, match=r"has dropout=0\.1, outside \[search\] dropout, choice \[0\.0, 0\.2\]\. Add 0\.1"
    ):
        SearchSpace(**fields)


def test_a_space_survives_pickling(make_space: MakeSpace) -> None:
    space = make_space({"learning_rate": {"log_uniform": [1e-6, 1e-1]}}, stability={"spike_sigma": 6})
    assert pickle.loads(pickle.dumps(space)) == space
    assert space.stability == {"spike_sigma": 6}


def test_a_file_with_too_small_a_budget_names_its_own_keys(make_space: MakeSpace) -> None:
    remedy = r"Set \[budget\] tokens = 1160 or more, or lower batch_size or block_size\.$"
    with pytest.raises(UserError, match=remedy):
        make_space({"learning_rate": {"log_uniform": [1e-6, 1e-1]}}, budget={"tokens": 1000})
