"""Numbers and configurations as words, at their exact turning points."""

from dataclasses import asdict, replace

import pytest

from search.terminal.phrases import (
    config_words,
    duration_words,
    loss_words,
    schedule_words,
    shape_words,
    status_style,
    token_words,
)
from trainable.config import BEFORE, DOCUMENTED
from trainable.rows import ENDINGS


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (0, "0"),
        (950, "950"),
        (999, "999"),
        (1000, "1k"),
        (40_500, "40.5k"),
        (999_499, "999k"),
        (999_500, "1M"),
        (8_200_000, "8.2M"),
        (999_999_999, "1G"),
        (1_230_000_000, "1.23G"),
        (1e12, "1T"),
        (12_345e12, "12345T"),
    ],
)
def test_tokens(tokens: float, words: str) -> None:
    assert token_words(tokens) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3599.6, "1h00m"),
        (7620, "2h07m"),
        (360_000, "100h00m"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert duration_words(seconds) == words


def test_losses() -> None:
    assert loss_words(None) == "-"
    assert loss_words(6.44791555) == "6.4479"


def test_configurations() -> None:
    assert config_words(asdict(DOCUMENTED)) == "batch 32 x block 128, LR 1.00e-05, constant"
    accumulated = asdict(replace(BEFORE, grad_accum_steps=4))
    assert config_words(accumulated) == "batch 8x4 x block 256, LR 2.00e-05, warmup_cosine after 500 steps"
    assert shape_words(asdict(DOCUMENTED)) == "32 x 128"
    assert shape_words(accumulated) == "8x4 x 256"
    assert schedule_words(asdict(DOCUMENTED)) == "constant"
    assert schedule_words(accumulated) == "warmup_cosine 500"


def test_every_ending_has_a_colour() -> None:
    assert all(status_style(status) for status in ENDINGS)
    assert status_style("running") == ""
