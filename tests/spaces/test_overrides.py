"""A space changed by variables: pins, budget, trials, another baseline, alone and together."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from spaces.domains import Choice, Condition, FloatRange
from spaces.overrides import Settings, unread_words, widening_words, with_overrides
from spaces.read.load import load_space
from spaces.space import SearchSpace
from trainable.config import BEFORE, DOCUMENTED, TrialConfig, make_config
from trainable.errors import UserError

MakeSpace = Callable[..., SearchSpace]
WARMUPS = ("warmup_constant", "warmup_cosine", "linear", "wsd")
NESTED: dict[str, Any] = {
    "lr_schedule": {"choice": ["constant", "linear", "wsd"]},
    "decay_frac": {"choice": [0.2, 0.4], "when": {"lr_schedule": ["wsd"]}},
    "min_lr_frac": {"choice": [0.1, 0.5], "when": {"decay_frac": [0.4]}},
    "dropout": {"choice": [0.0, 0.1]},
}


def names(space: SearchSpace) -> list[str]:
    return [parameter.name for parameter in space.parameters]


def conditions(space: SearchSpace) -> dict[str, Condition | None]:
    return {parameter.name: parameter.condition for parameter in space.parameters}


def test_a_pin_fixes_every_trial_and_drops_the_domain() -> None:
    space = with_overrides(load_space("plateau"), Settings(pins={"batch_size": 16, "dropout": 0.0}))
    assert names(space) == ["block_size", "learning_rate", "lr_schedule", "warmup_frac"]
    config = space.config_for({"block_size": 64})
    assert (config.batch_size, config.dropout, config.training_steps) == (16, 0.0, 300_000 // 1024)
    assert space.baseline == make_config(DOCUMENTED, {"batch_size": 16, "dropout": 0.0, "training_steps": 146})
    assert space.baseline_name == "documented, changed"
    assert space.user_settings == {"BATCH_SIZE": 16, "DROPOUT": 0.0}


def test_a_pin_outside_of_the_domain_is_the_users_choice() -> None:
    assert with_overrides(load_space("plateau"), Settings(pins={"batch_size": 12})).config_for({}).batch_size == 12


def test_a_pin_of_the_baselines_own_value_leaves_its_name() -> None:
    space = with_overrides(load_space("plateau"), Settings(pins={"batch_size": 32, "seed": 7}))
    assert (space.baseline_name, space.baseline.seed, space.config_for({"block_size": 64}).seed) == ("documented", 7, 7)


def test_a_pinned_parent_frees_or_drops_its_children(make_space: MakeSpace) -> None:
    space = make_space(NESTED)
    assert conditions(with_overrides(space, Settings(pins={"lr_schedule": "constant"}))) == {"dropout": None}
    assert conditions(with_overrides(space, Settings(pins={"lr_schedule": "linear"}))) == {"dropout": None}
    assert conditions(with_overrides(space, Settings(pins={"lr_schedule": "wsd"}))) == {
        "decay_frac": None,
        "min_lr_frac": Condition("decay_frac", (0.4,)),
        "dropout": None,
    }


def test_a_pinned_link_in_a_chain_hands_its_own_condition_down(make_space: MakeSpace) -> None:
    space = make_space(NESTED)
    assert conditions(with_overrides(space, Settings(pins={"decay_frac": 0.4}))) == {
        "lr_schedule": None,
        "min_lr_frac": Condition("lr_schedule", ("wsd",)),
        "dropout": None,
    }
    assert conditions(with_overrides(space, Settings(pins={"decay_frac": 0.3}))) == {
        "lr_schedule": None,
        "dropout": None,
    }


def test_the_baseline_takes_the_nearest_value_of_what_a_pin_makes_active() -> None:
    space = with_overrides(load_space("plateau"), Settings(pins={"lr_schedule": "warmup_cosine"}))
    assert conditions(space)["warmup_frac"] is None
    assert space.baseline_params()["warmup_frac"] == 0.01
    assert space.baseline.warmup_steps == round(0.01 * 73)
    grid = with_overrides(load_space("before_after"), Settings(pins={"lr_schedule": "warmup_cosine"}))
    assert (grid.trials, grid.baseline_params()["warmup_frac"], grid.baseline.warmup_steps) == (8, 0.1, 10)


def test_pinned_warmup_steps_are_steps_and_drop_the_share() -> None:
    space = with_overrides(load_space("plateau"), Settings(pins={"warmup_steps": 15}))
    assert "warmup_frac" not in names(space)
    for batch_size in (8, 64):
        assert space.config_for({"batch_size": batch_size, "lr_schedule": "linear"}).warmup_steps == 15
    assert space.config_for({"lr_schedule": "constant"}).warmup_steps == 0
    doubled = with_overrides(space, Settings(budget_tokens=800_000))
    assert doubled.config_for({"lr_schedule": "linear"}).warmup_steps == 15


def test_pinned_steps_must_fit_into_the_shortest_run() -> None:
    with pytest.raises(UserError) as caught:
        with_overrides(load_space("plateau"), Settings(pins={"warmup_steps": 25}))
    assert str(caught.value) == (
        "spaces/plateau.toml with WARMUP_STEPS=25: warmup_steps=25 is longer than the run of 18 steps at batch_size=64 "
        "x block_size=256. Lower it, raise the budget, or use warmup_frac, a share of the run."
    )


@pytest.mark.parametrize(
    ("pins", "message"),
    [
        (
            {"batch_size": 8, "block_size": 64, "learning_rate": 1e-3, "lr_schedule": "constant"},
            "spaces/plateau.toml: nothing is left to search. "
            "Unset one of BATCH_SIZE, BLOCK_SIZE, LEARNING_RATE, LR_SCHEDULE.",
        ),
        (
            {"training_steps": 100},
            "TRAINING_STEPS is not for a search, whose trials get the same tokens. Set BUDGET_TOKENS.",
        ),
        (
            {"batch_size": 0},
            "batch_size (BATCH_SIZE) is 0; it must be at least 1 and at most 65536 (sequences per micro-batch); "
            "the documented value is 32.",
        ),
        (
            {"batch_size": 512},
            "spaces/plateau.toml with BATCH_SIZE=512: batch_size=512 x block_size=256 is 131072 tokens a step, and "
            "every trial is first evaluated after 33600. Set BUDGET_TOKENS=1180000 or more, or drop the largest sizes.",
        ),
        ({"batchsize": 8}, "there is no hyperparameter 'batchsize'. Did you mean 'batch_size'?"),
    ],
)
def test_pins_that_cannot_be(pins: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        with_overrides(load_space("plateau"), Settings(pins=pins))
    assert str(caught.value) == message


def test_one_thing_left_is_enough() -> None:
    pins = {"batch_size": 8, "block_size": 64, "learning_rate": 1e-3, "lr_schedule": "linear"}
    assert names(with_overrides(load_space("plateau"), Settings(pins=pins))) == ["warmup_frac"]


def test_a_new_budget_scales_the_grace_that_is_a_share(make_space: MakeSpace) -> None:
    space = with_overrides(load_space("plateau"), Settings(trials=6, budget_tokens=1_000_000))
    assert (space.trials, space.budget.tokens, space.rung_tokens()) == (6, 1_000_000, (112_000, 336_000))
    assert space.baseline.training_steps == 244
    assert space.user_settings == {"TRIALS": 6, "BUDGET_TOKENS": 1_000_000}

    fixed = make_space({"dropout": {"choice": [0.0, 0.1]}}, scheduler={"grace_tokens": 3_000})
    assert with_overrides(fixed, Settings(budget_tokens=30_000)).rung_tokens() == (3_000, 9_000, 27_000)
    with pytest.raises(UserError) as caught:
        with_overrides(fixed, Settings(budget_tokens=3_000))
    assert str(caught.value) == (
        "small.toml with BUDGET_TOKENS=3000: [scheduler] a grace of 3000 tokens leaves no rung below the budget of "
        '3000 tokens. Lower it (grace_frac follows the budget), or set name = "none".'
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "spaces/plateau.toml with TRIALS=0: trials is 0; it must be at least 1 and at most 100000."),
        ({"budget_tokens": 0}, "BUDGET_TOKENS is 0; it must be at least 1 and at most 1000000000000."),
        (
            {"budget_tokens": 10**13},
            "BUDGET_TOKENS is 10000000000000; it must be at least 1 and at most 1000000000000.",
        ),
        (
            {"budget_tokens": 4_000},
            "a budget of 4000 tokens is less than one step of 4096 tokens "
            "(batch_size=32 x block_size=128 x grad_accum_steps=1). Raise BUDGET_TOKENS.",
        ),
    ],
)
def test_overrides_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        with_overrides(load_space("plateau"), Settings(**settings))  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_grid_runs_all_of_its_cells() -> None:
    grid = load_space("before_after")
    assert with_overrides(grid, Settings(trials=16)).trials == 16
    with pytest.raises(UserError) as caught:
        with_overrides(grid, Settings(trials=5))
    assert str(caught.value) == "TRIALS=5: spaces/before_after.toml is a grid, and all of its 16 cells run. Unset it."


def test_auto_keeps_the_spaces_number_as_the_most_and_a_number_is_a_number() -> None:
    space = with_overrides(load_space("plateau"), Settings(trials="auto"))
    assert (space.trials, space.ends_early) == (24, True)
    assert with_overrides(space, Settings(budget_tokens=400_000)).ends_early
    again = with_overrides(space, Settings(trials=9))
    assert (again.trials, again.ends_early) == (9, False)
    with pytest.raises(UserError, match=r"^spaces/before_after.toml with TRIALS=auto: trials is auto, and the cells"):
        with_overrides(load_space("before_after"), Settings(trials="auto"))


def test_only_the_sum_of_the_settings_has_to_be_sound() -> None:
    """Neither setting alone is: the batch does not fit into the budget, nor does the budget hold the largest batch."""
    plateau = load_space("plateau")
    large = with_overrides(plateau, Settings(pins={"batch_size": 512}, budget_tokens=4_000_000))
    assert large.config_for({}).training_steps == 4_000_000 // (512 * 128)
    small = with_overrides(plateau, Settings(pins={"batch_size": 8, "block_size": 64}, budget_tokens=8_000))
    assert small.config_for({}).training_steps == 15
    for settings in ({"pins": {"batch_size": 512}}, {"budget_tokens": 8_000}):
        with pytest.raises(UserError):
            with_overrides(plateau, Settings(**settings))


def test_another_baseline_keeps_its_place_in_ranges_and_widens_choices() -> None:
    found = TrialConfig(batch_size=12, block_size=64, learning_rate=3e-4, training_steps=500, dropout=0.0)
    space = with_overrides(load_space("plateau"), Settings(baseline=("trial 7 of plateau-0412", found)))
    assert space.baseline_name == "trial 7 of plateau-0412"
    assert space.baseline == make_config(found, {"training_steps": 300_000 // 768})
    assert space.domain("batch_size") == Choice((8, 16, 32, 64, 12))
    assert space.domain("block_size") == Choice((64, 128, 256))
    assert space.domain("learning_rate") == FloatRange(1e-6, 3e-2, log=True)
    assert space.baseline_params() == {
        "batch_size": 12,
        "block_size": 64,
        "learning_rate": 3e-4,
        "lr_schedule": "constant",
    }
    assert space.config_for({"batch_size": 8}).dropout == 0.0
    assert space.evaluation.block_size == 64, "the file names none, so it is the baseline's"


def test_a_range_is_widened_to_hold_another_baseline() -> None:
    space = load_space("plateau")
    hot = with_overrides(space, Settings(baseline=("hot", make_config(DOCUMENTED, {"learning_rate": 3.0}))))
    assert hot.domain("learning_rate") == FloatRange(1e-6, 3.0, log=True)
    assert widening_words(space, hot) == [
        "learning_rate is searched in log_uniform [1e-06, 3] instead of log_uniform [1e-06, 0.03], to hold the baseline"
    ]


def test_no_domain_is_widened_to_a_value_that_the_baseline_does_not_read(make_space: MakeSpace) -> None:
    searched = {
        "lr_schedule": {"choice": ["constant", "linear"]},
        "warmup_frac": {"uniform": [0.05, 0.3]},
        "use_lora": {"choice": [False, True]},
        "lora_rank": {"choice": [8, 16]},
    }
    baseline = {"batch_size": 4, "block_size": 32, "lr_schedule": "linear", "warmup_frac": 0.1}
    space = make_space(searched, baseline=baseline)
    winner = replace(space.baseline, lr_schedule="constant", warmup_steps=0, lora_rank=4)
    again = with_overrides(space, Settings(baseline=("winner", winner)))
    assert widening_words(space, again) == []
    assert again.baseline == replace(winner, lora_rank=8)
    read = with_overrides(space, Settings(baseline=("winner", replace(winner, use_lora=True))))
    assert read.domain("lora_rank") == Choice((8, 16, 4))


def test_what_no_trial_reads_is_said(make_space: MakeSpace) -> None:
    searched = {
        "lora_rank": {"choice": [4, 8]},
        "decay_frac": {"choice": [0.2, 0.4]},
        "lr_schedule": {"choice": ["constant", "linear"]},
    }
    space = make_space(searched)
    unread = [
        "lora_rank is searched, and no trial reads it: use_lora is False",
        "decay_frac is searched, and no trial reads it: lr_schedule is constant or linear",
    ]
    assert unread_words(space) == unread
    assert unread_words(with_overrides(space, Settings(pins={"use_lora": True}))) == unread[1:]
    assert [unread_words(load_space(name)) for name in ("plateau", "schedule", "lora", "before_after")] == [[]] * 4
    # Some trial has a schedule that reads it, and never together with it.
    apart = {"warmup_frac": {"uniform": [0.0, 0.3], "when": {"lr_schedule": ["constant"]}}}
    assert unread_words(make_space({**searched, **apart}))[2:] == [
        "warmup_frac is searched, and no trial reads it: lr_schedule is constant"
    ]


def test_a_baseline_found_by_a_search_comes_back_with_its_share() -> None:
    plateau = load_space("plateau")
    for batch_size, share in ((64, 0.01), (8, 0.0123), (64, 0.3)):
        params = {"batch_size": batch_size, "block_size": 256, "lr_schedule": "linear", "warmup_frac": share}
        found = plateau.config_for(params)
        assert with_overrides(plateau, Settings(baseline=("found", found))).baseline == found
    grid = load_space("before_after")
    again = with_overrides(grid, Settings(baseline=("before", grid.config_for(grid.grid_points()[5]))))
    assert (again.trials, again.domain("warmup_frac")) == (16, Choice((0.1,)))


def test_pins_hold_against_a_baseline_that_comes_later() -> None:
    pinned = with_overrides(load_space("plateau"), Settings(pins={"batch_size": 16, "lr_schedule": "warmup_cosine"}))
    for space in (
        with_overrides(pinned, Settings(baseline=("before", BEFORE))),
        with_overrides(
            load_space("plateau"),
            Settings(pins={"batch_size": 16, "lr_schedule": "warmup_cosine"}, baseline=("before", BEFORE)),
        ),
    ):
        assert (space.baseline.batch_size, space.baseline.block_size, space.baseline_name) == (
            16,
            256,
            "before, changed",
        )
        assert space.baseline_params()["warmup_frac"] == 0.1


def test_what_a_pin_makes_active_is_not_held_against_another_baseline() -> None:
    space = with_overrides(
        load_space("plateau"),
        Settings(pins={"lr_schedule": "linear"}, baseline=("found", make_config(DOCUMENTED, {"learning_rate": 1e-3}))),
    )
    assert space.baseline_params() == {
        "batch_size": 32,
        "block_size": 128,
        "learning_rate": 1e-3,
        "warmup_frac": 0.01,
    }


def test_the_baseline_alone_asks_no_room_for_what_is_not_searched() -> None:
    with pytest.raises(UserError, match="and every trial is first evaluated after"):
        with_overrides(load_space("plateau"), Settings(budget_tokens=60_000))
    alone = with_overrides(
        load_space("plateau").baseline_alone(), Settings(budget_tokens=60_000, pins={"learning_rate": 1e-3})
    )
    assert (alone.trials, alone.parameters, alone.baseline.training_steps) == (1, (), 60_000 // 4096)
    assert alone.baseline.learning_rate == 1e-3
    assert load_space("before_after").baseline_alone().trials == 1
    # The file is sound by itself: it is the baseline's steps that are too large for it.
    with pytest.raises(UserError, match=r"Set BUDGET_TOKENS=1180000 or more, or drop the largest sizes\.$"):
        with_overrides(load_space("plateau"), Settings(baseline=("mine", replace(DOCUMENTED, batch_size=512))))
    # There is no space to drop sizes from.
    with pytest.raises(UserError, match=r"\. Set BUDGET_TOKENS=36700 or more, or lower BATCH_SIZE or BLOCK_SIZE\.$"):
        with_overrides(load_space("plateau").baseline_alone(), Settings(budget_tokens=10_000))
