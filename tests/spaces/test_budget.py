"""A budget of device time: every shape gets steps for the same time, and rungs are the same share of each one's run."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from spaces.budget import Budget, Speeds, budget_of, duration_text, parse_duration
from spaces.domains import points
from spaces.overrides import Settings, with_overrides
from spaces.read.load import load_space, space_from_tables
from spaces.space import SearchSpace
from trainable.config import DOCUMENTED, TrialConfig, shape_of
from trainable.errors import UserError

EVALUATION_S = 0.25
TABLES: Mapping[str, Any] = {
    "trials": 8,
    "baseline": {"batch_size": 4, "block_size": 32, "lr_schedule": "warmup_cosine", "warmup_frac": 0.1},
    "budget": {"device_minutes": 1},
    "evaluation": {"tokens": 256, "count": 4},
    "search": {
        "batch_size": {"choice": [2, 4, 8]},
        "block_size": {"choice": [16, 32, 64]},
        "learning_rate": {"log_uniform": [1e-5, 1e-1]},
    },
}


def affine_s(shape: TrialConfig) -> float:
    """2 ms a step, 1 ms a micro-batch and 10 us a token: a small batch takes longer a token than a large one."""
    a_pass_s = 1e-3 + 1e-5 * shape.batch_size * shape.block_size
    return 2e-3 + shape.grad_accum_steps * a_pass_s * (0.5 if shape.precision == "bf16" else 1.0)


def space_of(**changes: Any) -> SearchSpace:
    return space_from_tables({**TABLES, **changes}, name="small", path="small.toml")


def measured(space: SearchSpace, step_s: Callable[[TrialConfig], float] = affine_s, **settings: Any) -> SearchSpace:
    """The space with the speeds that a probe would find."""
    draft = with_overrides(space, Settings(**settings))
    speeds = Speeds(step_s={shape: step_s(shape) for shape in draft.shapes()}, evaluation_s=EVALUATION_S)
    return with_overrides(space, Settings(**settings), speeds=speeds)


@pytest.mark.parametrize(
    ("text", "seconds", "shortest"),
    [
        ("10m", 600, "10m"), ("90s", 90, "90s"), ("2h", 7200, "2h"), ("600", 600, "10m"), ("1h30m", 5400, "90m"),
        ("0.5h", 1800, "30m"), ("1m30s", 90, "90s"), ("1.5", 1.5, "1.5s"), ("45S", 45, "45s"),
    ],
)  # fmt: skip
def test_a_time_is_read_and_written(text: str, seconds: float, shortest: str) -> None:
    assert parse_duration(text) == seconds
    assert duration_text(seconds) == shortest
    assert parse_duration(shortest) == seconds


@pytest.mark.parametrize(
    "text", ["", "m", "10 m", "-5m", "0", "0s", "1e3", "ten", "5d", "30m1h", "1h30", "1.m", "inf", "nan", "1000001m"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a time of more than 0"):
        parse_duration(text)


def test_a_warmup_that_only_the_slowest_precision_cannot_hold_is_refused_at_once() -> None:
    search = {**TABLES["search"], "precision": {"choice": ["fp32", "bf16"]}}
    space = space_of(baseline={**TABLES["baseline"], "precision": "bf16"}, search=search)
    slow, fast = (
        measured(space).config_for({"batch_size": 8, "block_size": 64, "precision": one})
        for one in search["precision"]["choice"]
    )
    pins = {"warmup_steps": (slow.training_steps + fast.training_steps) // 2}
    steps = slow.training_steps
    with pytest.raises(
        UserError, match=f"longer than the run of {steps} steps at batch_size=8 x block_size=64 in fp32"
    ):
        measured(space, pins=pins)
    assert (
        measured(space, pins={"warmup_steps": steps})
        .config_for({"batch_size": 8, "block_size": 64, "precision": "fp32"})
        .warmup_steps
        == steps
    )


def test_every_shape_gets_steps_for_the_same_device_time() -> None:
    space = measured(space_of())
    assert space.budget.device_s == 60
    tokens = set()
    for batch_size, block_size in product((2, 4, 8), (16, 32, 64)):
        config = space.config_for({"batch_size": batch_size, "block_size": block_size, "learning_rate": 1e-3})
        device_s = config.training_steps * affine_s(config) + 4 * EVALUATION_S
        assert 0.99 * 60 < device_s <= 60
        assert config.warmup_steps == round(0.1 * config.training_steps)  # the share of its own run
        tokens.add(config.training_steps * config.tokens_per_step)
    assert max(tokens) > 3 * min(tokens)


def test_the_budgets_tokens_are_the_baselines() -> None:
    space = measured(space_of())
    assert space.baseline.training_steps == int(59 / affine_s(space.baseline))
    assert space.budget.tokens == space.baseline.training_steps * 128
    assert space.rung_tokens() == load_like_tokens(space).rung_tokens()
    assert space.evaluation_tokens() == load_like_tokens(space).evaluation_tokens()


def load_like_tokens(space: SearchSpace) -> SearchSpace:
    return with_overrides(space_of(), Settings(budget_tokens=space.budget.tokens))


def test_rungs_are_the_same_share_of_each_trials_own_run() -> None:
    space = measured(space_of())
    for batch_size in (2, 8):
        config = space.config_for({"batch_size": batch_size, "block_size": 64, "learning_rate": 1e-3})
        pairs = space.milestones(config)
        assert tuple(tokens for tokens, _ in pairs) == space.evaluation_tokens()
        assert pairs[-1] == (space.budget.tokens, config.training_steps)
        for tokens, step in pairs:
            share = tokens / space.budget.tokens
            assert share * config.training_steps - 1 <= step <= share * config.training_steps + 1


def test_without_speeds_nothing_is_refused_and_all_shapes_are_named() -> None:
    space = space_of(search={**TABLES["search"], "precision": {"choice": ["fp32", "bf16"]}})
    shapes = space.shapes()
    assert shapes[0] == shape_of(space.baseline)
    assert len(shapes) == len(set(shapes)) == 3 * 3 * 2
    assert {shape.learning_rate for shape in shapes} == {DOCUMENTED.learning_rate}
    assert space.budget.speeds is None


def test_what_changes_no_speed_is_no_shape() -> None:
    searched = {
        "use_lora": {"choice": [True, False]},
        "lora_rank": {"choice": [2, 4, 8], "when": {"use_lora": [True]}},
        "lora_alpha": {"choice": [8, 16], "when": {"use_lora": [True]}},
        "dropout": {"uniform": [0.1, 0.3]},
        "weight_decay": {"choice": [0.01, 0.1]},
    }
    shapes = space_of(search=searched).shapes()
    assert sorted((shape.use_lora, shape.lora_rank) for shape in shapes) == [(False, 8), (True, 2), (True, 8)]


def test_a_parameter_that_is_not_active_has_the_baselines_value_outside_of_its_domain() -> None:
    searched = {
        "lr_schedule": {"choice": ["warmup_cosine", "linear"]},
        "batch_size": {"choice": [8, 16], "when": {"lr_schedule": ["linear"]}},
        "dropout": {"choice": [0.2], "when": {"lr_schedule": ["linear"]}},
        "block_size": {"choice": [16, 32]},
    }
    space = measured(space_of(search=searched, baseline={**TABLES["baseline"], "dropout": 0.0}))
    for point in points(space.parameters, lambda parameter: parameter.domain.examples()):
        assert space.config_for(point).training_steps > 0


def test_between_two_that_were_measured_a_steps_time_is_a_line() -> None:
    searched = {
        "batch_size": {"int": [2, 33]},
        "grad_accum_steps": {"choice": [1, 2, 3, 8]},
        "lora_rank": {"int": [1, 64]},
    }
    tables = {**TABLES["baseline"], "use_lora": True}
    space = measured(space_of(search=searched, baseline=tables, budget={"device_minutes": 5}))
    assert len(space.shapes()) <= 6 * 2 * 3
    assert space.budget.speeds is not None
    for batch_size, grad_accum_steps in product(range(2, 34), (1, 2, 3, 8)):
        config = replace(space.baseline, batch_size=batch_size, grad_accum_steps=grad_accum_steps, lora_rank=5)
        assert space.budget.speeds.seconds_a_step(config) == pytest.approx(affine_s(config), rel=0.05)
    with pytest.raises(UserError, match="no speed is known of batch_size=64 x block_size=32"):
        space.budget.speeds.seconds_a_step(replace(space.baseline, batch_size=64))


@pytest.mark.parametrize("slow", [1, 7, 100])
@pytest.mark.parametrize("count", [1, 4, 12])
def test_the_least_time_that_is_named_works(slow: int, count: int) -> None:
    file = space_of(evaluation={"tokens": 256, "count": count})
    with pytest.raises(UserError, match="BUDGET_TIME=") as refused:
        measured(file, lambda shape: slow * affine_s(shape), device_s=0.001)
    line = str(refused.value)
    assert line.startswith(
        "small.toml with BUDGET_TIME=0.001s: as measured, a step of batch_size=8 x block_size=64 takes "
    )
    least = line.partition("Set BUDGET_TIME=")[2].partition(" or more")[0]
    space = measured(file, lambda shape: slow * affine_s(shape), device_s=parse_duration(least))
    largest = space.config_for({"batch_size": 8, "block_size": 64, "learning_rate": 1e-3})
    assert space.milestones(largest)[0][1] >= 1
    with pytest.raises(UserError, match="BUDGET_TIME="):
        measured(file, lambda shape: slow * affine_s(shape), device_s=0.8 * parse_duration(least))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"budget": {"device_minutes": 0}}, "[budget] device_minutes is 0; it must be more than 0 and at most 1000000"),
        ({"budget": {"device_minutes": "10m"}}, "[budget] device_minutes must be a finite number, not '10m'."),
        ({"budget": {"device_minutes": 5, "tokens": 9}}, "[budget] must have one of tokens, baseline_steps"),
        ({"scheduler": {"grace_tokens": 4096}}, "[scheduler] has grace_tokens, and the budget is time"),
    ],
)  # fmt: skip
def test_a_space_file_that_is_wrong_about_time_is_refused(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as refused:
        space_of(**changes)
    assert str(refused.value).startswith(f"small.toml: {line}")


def test_a_variable_takes_the_place_of_the_files_budget() -> None:
    in_tokens = with_overrides(space_of(), Settings(budget_tokens=100_000))
    assert in_tokens.budget == Budget(tokens=100_000)
    plateau = load_space("plateau")
    in_time = measured(plateau, device_s=600.0)
    assert (in_time.budget.device_s, in_time.user_settings["BUDGET_TIME"]) == (600.0, "10m")
    assert len(in_time.shapes()) == 12
    assert with_overrides(in_time, Settings(trials=30)).budget == in_time.budget


def test_a_study_keeps_its_speeds() -> None:
    """Read back from JSON they are the same numbers, so a study that goes on gives the same steps."""
    space = measured(space_of())
    document = {"budget_tokens": space.budget.tokens, "device_time": space.budget.to_json()}
    again = budget_of(json.loads(json.dumps(document)))
    assert again == space.budget
    assert budget_of({"budget_tokens": 5000}) == Budget(tokens=5000)
    assert Budget(tokens=5000).to_json() is None


def test_more_time_is_more_steps_at_the_same_speeds() -> None:
    budget = measured(space_of()).budget
    longer = budget.asked(None, 600)
    config = replace(DOCUMENTED, batch_size=8, block_size=64)
    assert longer.sized(config).training_steps == int(599 / affine_s(config))
    assert longer.tokens == 10 * budget.tokens
    assert budget.asked(None, None) is budget
    assert budget.asked(5000, None) == Budget(tokens=5000)


def test_a_budget_names_the_variable_that_asks_for_it() -> None:
    assert Budget(tokens=400_000).setting == "BUDGET_TOKENS=400000"
    assert measured(space_of()).budget.setting == "BUDGET_TIME=1m"


def test_a_time_in_which_no_step_fits_is_refused() -> None:
    budget = measured(space_of()).budget
    with pytest.raises(UserError, match=r"BUDGET_TIME=1s is less than one step of batch_size=4 x block_size=32 and"):
        budget.asked(None, 1.0).sized(replace(DOCUMENTED, batch_size=4, block_size=32))
    with pytest.raises(UserError, match="BUDGET_TIME=10m: the budget is in tokens"):
        Budget(tokens=5000).asked(None, 600)
