"""TrialConfig: the story's two configurations, every bound and type, and messages that name field and variable."""

import math
from dataclasses import FrozenInstanceError, asdict, fields, replace
from typing import Any

import pytest

from spaces.budget import Budget
from trainable.config import (
    BASELINES,
    BEFORE,
    DOCUMENTED,
    ENV_NAMES,
    HYPERPARAMETERS,
    KINDS,
    LR_SCHEDULES,
    TrialConfig,
    make_config,
    parse_hyperparameter,
    without_seed,
)
from trainable.errors import UserError

INTS = [name for name, spec in HYPERPARAMETERS.items() if spec.type is int]
FLOATS = [name for name, spec in HYPERPARAMETERS.items() if spec.type is float]
NAMES = [name for name, spec in HYPERPARAMETERS.items() if spec.type is str]
ADAPTERS = [name for name in HYPERPARAMETERS if name.startswith("lora_")]
FLAGS = [name for name, spec in HYPERPARAMETERS.items() if spec.type is bool]


def refusal(**values: Any) -> str:
    with pytest.raises(UserError) as caught:
        TrialConfig(**values)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 250
    for name in values:
        assert name in message
        assert HYPERPARAMETERS[name].metadata["env"] in message
    return message


def nearest(name: str, bound: float, away: int) -> int | float:
    return int(bound) + away if name in INTS else math.nextafter(bound, away * math.inf)


def test_documented_is_the_storys_table() -> None:
    assert TrialConfig() == DOCUMENTED == BASELINES["documented"]
    assert asdict(DOCUMENTED) == {
        "batch_size": 32,
        "block_size": 128,
        "grad_accum_steps": 1,
        "learning_rate": 1e-5,
        "lr_schedule": "constant",
        "warmup_steps": 0,
        "min_lr_frac": 0.1,
        "decay_frac": 0.2,
        "training_steps": 2000,
        "grad_clip_norm": 1.0,
        "weight_decay": 0.01,
        "dropout": 0.1,
        "precision": "fp32",
        "use_lora": False,
        "lora_rank": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "lora_targets": "auto",
        "seed": 0,
    }


def test_before_differs_from_documented_by_the_storys_table() -> None:
    assert BASELINES["before"] == BEFORE
    own, documented = asdict(BEFORE), asdict(DOCUMENTED)
    assert {name: value for name, value in own.items() if value != documented[name]} == {
        "batch_size": 8,
        "block_size": 256,
        "learning_rate": 2e-5,
        "lr_schedule": "warmup_cosine",
        "warmup_steps": 500,
        "training_steps": 5000,
    }


def test_every_field_is_a_hyperparameter_with_a_variable_of_its_own() -> None:
    assert set(HYPERPARAMETERS) == {spec.name for spec in fields(TrialConfig)} == {*INTS, *FLOATS, *NAMES, *FLAGS}
    assert {name.upper(): name for name in HYPERPARAMETERS} == ENV_NAMES


@pytest.mark.parametrize("name", INTS + FLOATS)
def test_bounds_are_in_or_out_to_the_last_digit(name: str) -> None:
    meta = HYPERPARAMETERS[name].metadata
    inside = nearest(name, meta["low"], 1) if meta["low_open"] else meta["low"]
    outside = meta["low"] if meta["low_open"] else nearest(name, meta["low"], -1)
    kind = int if name in INTS else float
    for value in (inside, meta["high"]):
        values: dict[str, Any] = {name: kind(value)}
        assert getattr(TrialConfig(**values), name) == value
    for value in (outside, nearest(name, meta["high"], 1)):
        message = refusal(**{name: kind(value)})
        assert str(HYPERPARAMETERS[name].default) in message
        assert meta["unit"] in message


@pytest.mark.parametrize("name", INTS + FLOATS)
@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_whole_numbers_that_no_float_holds_are_out_of_bounds(name: str, value: int) -> None:
    assert "must be" in refusal(**{name: value})


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nonfinite_numbers_are_refused(name: str, value: float) -> None:
    assert str(value) in refusal(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (name, value)
        for names, values in ((INTS, ["1", 1.5]), (FLOATS, ["1"]), (NAMES, [1, 1.5]))
        for name in names
        for value in (*values, True, None, [1], b"fp32")
    ]
    + [(name, value) for name in FLAGS for value in (1, 0, "True", None)],
)
def test_a_wrong_type_is_refused(name: str, value: object) -> None:
    message = refusal(**{name: value})
    assert f"must be {KINDS[type(HYPERPARAMETERS[name].default)]}, not " in message
    assert repr(value) in message


def test_a_whole_number_is_a_number() -> None:
    config = TrialConfig(learning_rate=1, dropout=0, grad_clip_norm=0)
    assert [type(value) for value in (config.learning_rate, config.dropout, config.grad_clip_norm)] == [float] * 3
    assert refusal(batch_size=32.0)


def test_the_bounds_of_a_message_are_the_bounds() -> None:
    assert "is 2147483648; it must be at least 0 and at most 2147483647" in refusal(seed=2**31)
    assert "is 1048577; it must be at least 2 and at most 1048576 (tokens per sequence);" in refusal(
        block_size=1_048_577
    )
    assert "is 0; it must be more than 0 and at most 100 (the schedule's peak);" in refusal(learning_rate=0.0)


@pytest.mark.parametrize(
    ("name", "value", "hint"),
    [
        ("lr_schedule", "cosine", "Did you mean 'warmup_cosine'?"),
        ("lr_schedule", "warmup_cosin", "Did you mean 'warmup_cosine'?"),
        ("lr_schedule", "Constant", "Did you mean 'constant'?"),
        ("lr_schedule", "", "Known: constant, linear, warmup_constant, warmup_cosine, wsd."),
        ("precision", "double", "Known: bf16, fp16, fp32."),
    ],
)
def test_an_unknown_choice_gets_a_suggestion(name: str, value: str, hint: str) -> None:
    message = refusal(**{name: value})
    assert repr(value) in message
    assert hint in message


def test_a_warmup_longer_than_the_run_is_refused_where_it_is_read() -> None:
    assert TrialConfig(warmup_steps=11, training_steps=10).warmup_steps == 11
    assert TrialConfig(warmup_steps=10, training_steps=10, lr_schedule="linear").has_warmup
    for schedule in LR_SCHEDULES[1:]:
        with pytest.raises(UserError, match=r"warmup_steps=11 .* training_steps=10\. Shorten WARMUP_STEPS"):
            TrialConfig(warmup_steps=11, training_steps=10, lr_schedule=schedule)


def test_it_cannot_be_changed_or_given_by_position() -> None:
    with pytest.raises(FrozenInstanceError):
        DOCUMENTED.seed = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        TrialConfig(32)  # type: ignore[call-arg]


def test_tokens_per_step_counts_every_micro_batch() -> None:
    assert TrialConfig(batch_size=3, block_size=5, grad_accum_steps=7).tokens_per_step == 105


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("batch_size", "8", 8),
        ("batch_size", " 8 ", 8),
        ("learning_rate", "2e-5", 2e-5),
        ("learning_rate", "1", 1.0),
        ("lr_schedule", " warmup_cosine ", "warmup_cosine"),
        ("lora_targets", "q_proj,v_proj", "q_proj,v_proj"),
        ("use_lora", "True", True),
        ("use_lora", " false ", False),
        ("use_lora", "1", True),
        ("use_lora", "no", False),
    ],
)
def test_text_is_parsed_to_the_fields_type(name: str, text: str, value: object) -> None:
    parsed = parse_hyperparameter(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize("name", INTS + FLOATS)
@pytest.mark.parametrize("text", ["", "many", "1,5", "0x10", "1 2", "None", "True"])
def test_text_that_is_no_number_names_the_variable(name: str, text: str) -> None:
    env = HYPERPARAMETERS[name].metadata["env"]
    kind = "a whole number" if name in INTS else "a number"
    with pytest.raises(UserError) as caught:
        parse_hyperparameter(name, text)
    assert str(caught.value).startswith(f"{env}={text!r} is not {kind}")
    assert f"{env}={HYPERPARAMETERS[name].default}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [("batch_size", "0"), ("batch_size", "9" * 400), ("learning_rate", "nan"), ("learning_rate", "1e999"),
     ("dropout", "-0.1"), ("precision", "FP32")],
)  # fmt: skip
def test_text_out_of_bounds_names_the_variable(name: str, text: str) -> None:
    with pytest.raises(UserError, match=rf"\({name.upper()}\)"):
        parse_hyperparameter(name, text)


@pytest.mark.parametrize("text", ["", "maybe", "2", "None"])
def test_text_that_is_no_flag_names_the_variable(text: str) -> None:
    with pytest.raises(UserError, match=rf"USE_LORA='{text}' must be True or False"):
        parse_hyperparameter("use_lora", text)


@pytest.mark.parametrize("value", ["", "q_proj v_proj", "a,,b", "a;rm", "a\nb", ",a"])
def test_targets_are_names_with_commas_between(value: str) -> None:
    assert "auto, all-linear, or layer names with commas between" in refusal(lora_targets=value)


def test_make_config_replaces_what_is_named() -> None:
    assert make_config(BEFORE, {"batch_size": 64, "seed": 3}) == TrialConfig(
        **{**asdict(BEFORE), "batch_size": 64, "seed": 3}
    )
    with pytest.raises(UserError, match=r"no hyperparameter 'block_sise'\. Did you mean 'block_size'\?"):
        make_config(BEFORE, {"block_sise": 64})
    with pytest.raises(UserError, match="BATCH_SIZE"):
        make_config(BEFORE, {"batch_size": 0})


def test_a_token_budget_is_never_passed_and_warmup_keeps_its_share() -> None:
    budget = 2_000_000
    config = Budget(tokens=budget).sized(BEFORE)
    assert config.training_steps == budget // 2048 == 976
    assert config.training_steps * config.tokens_per_step <= budget < (config.training_steps + 1) * 2048
    assert config.warmup_steps == 98  # 976 / 10
    assert Budget(tokens=5000 * 2048).sized(BEFORE) == BEFORE


def test_a_budget_of_a_step_is_the_least() -> None:
    assert Budget(tokens=2048).sized(BEFORE).training_steps == 1
    for budget in (2047, 0, -1):
        with pytest.raises(UserError, match=rf"budget of {budget} tokens .* 2048 tokens .* Raise BUDGET_TOKENS"):
            Budget(tokens=budget).sized(BEFORE)
    whole = TrialConfig(lr_schedule="linear", warmup_steps=10, training_steps=10)
    assert Budget(tokens=3 * whole.tokens_per_step).sized(whole).warmup_steps == 3


@pytest.mark.parametrize(
    ("changes", "unread"),
    [
        ({}, {"warmup_steps", "warmup_frac", "min_lr_frac", "decay_frac", *ADAPTERS}),
        ({"lr_schedule": "linear", "use_lora": True}, {"decay_frac"}),
        ({"lr_schedule": "wsd"}, {*ADAPTERS}),
    ],
)
def test_what_a_run_reads(changes: dict[str, Any], unread: set[str]) -> None:
    config = make_config(DOCUMENTED, changes)
    assert {name for name in (*HYPERPARAMETERS, "warmup_frac") if not config.reads(name)} == unread


def test_two_runs_are_of_one_configuration_where_they_differ_in_what_neither_reads() -> None:
    plain = TrialConfig(min_lr_frac=0.5, decay_frac=0.3, warmup_steps=9, lora_rank=4, seed=3)
    assert without_seed(plain) == DOCUMENTED
    read = TrialConfig(lr_schedule="wsd", min_lr_frac=0.5, decay_frac=0.3, warmup_steps=9, use_lora=True, lora_rank=4)
    assert without_seed(replace(read, seed=3)) == read
