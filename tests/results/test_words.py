"""Numbers and configurations as words, at their exact turning points."""

import math
from dataclasses import asdict, replace
from typing import get_args

import numpy as np
import pytest

from results.study.document_model import document_fault
from results.words import (
    STATUS_LABELS,
    amount_words,
    config_words,
    difference_words,
    duration_words,
    early_end_words,
    evaluation_words,
    interval_words,
    loss_words,
    percent_words,
    schedule_words,
    token_words,
    value_words,
)
from tests.documents import sound_document
from trainable.config import BEFORE, DOCUMENTED
from trainable.evaluation import EvalProtocol, eval_windows
from trainable.rows import TrialStatus


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (None, "–"),
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
def test_tokens(tokens: float | None, words: str) -> None:
    assert token_words(tokens) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0, "0.0 s"),
        (0.23, "0.2 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (7620, "2 h 07 min"),
        (86_399, "23 h 59 min"),
        (200_000, "2 d 07 h"),
    ],
)
def test_durations(seconds: float | None, words: str) -> None:
    assert duration_words(seconds) == words


def test_losses() -> None:
    assert [loss_words(loss) for loss in (None, 6.44791555)] == ["–", "6.4479"]
    assert [difference_words(loss) for loss in (None, 0.25, -0.012345)] == ["–", "+0.2500", "-0.0123"]
    assert [difference_words(loss) for loss in (0.0, 5e-5, -4.99e-5, 1e-9)] == [
        "+0.0000",
        "+0.0001",
        "-5.0e-05",
        "+1.0e-09",
    ]
    assert [amount_words(loss) for loss in (-0.25, 0.25, -4.2e-5, 0.0)] == ["0.2500", "0.2500", "4.2e-05", "0.0000"]


def test_an_early_end() -> None:
    end = {"most_trials": 24, "gain_nats": 0.0042, "noise_nats": 0.01}
    assert early_end_words({"trials_planned": 15, "early_end": end}) == (
        "ended after 15 of 24 trials, 9 saved: the next ones would gain about 0.0042 nats/token, less than the "
        "evaluation's noise 0.0100"
    )
    assert early_end_words({"trials_planned": 24, "early_end": None}) is None


def test_values_and_shares() -> None:
    values = (None, 1e-5, 1.16e-2, 2.5e-4, 100.0, 999.6, 1490.2, 0.0, 4096, "wsd", math.inf, True)
    assert [value_words(value) for value in values] == [
        "–", "1e-5", "0.0116", "2.5e-4", "100", "1,000", "1,490", "0", "4,096", "wsd", "inf", "True"
    ]  # fmt: skip
    assert [percent_words(s) for s in (None, 0.0, 0.004, 0.5549, 1.0)] == ["–", "0%", "0.4%", "55%", "100%"]
    assert [percent_words(share) for share in (0.99, 0.996, 0.9996, 2e-4)] == [
        "99%",
        "99.6%",
        "over 99.9%",
        "under 0.1%",
    ]


def test_configurations() -> None:
    assert config_words(asdict(DOCUMENTED)) == "batch 32 x block 128, LR 1.00e-05, constant"
    adapters = asdict(DOCUMENTED) | {"use_lora": True, "lora_targets": "c_attn", "point": '{"lora_targets": "c_attn"}'}
    assert config_words(adapters).endswith(", constant, LoRA rank 8, alpha 16, targets c_attn")
    accumulated = asdict(replace(BEFORE, grad_accum_steps=4))
    assert config_words(accumulated) == "batch 8x4 x block 256, LR 2.00e-05, warmup_cosine after 500 steps"
    searched = {**asdict(DOCUMENTED), "point": '{"batch_size": 32, "dropout": 0.0329512, "decay_frac": 0.25}'}
    said = "batch 32 x block 128, LR 1.00e-05, constant, dropout 0.033, decay share 0.25"
    assert config_words(searched) == said
    assert schedule_words(asdict(DOCUMENTED)) == "constant"
    assert schedule_words(accumulated) == "warmup_cosine 500"
    unread = accumulated | {"lr_schedule": "constant"}
    assert schedule_words(unread) == "constant"
    assert config_words(unread) == "batch 8x4 x block 256, LR 2.00e-05, constant"


@pytest.mark.parametrize(
    ("val_tokens", "tokens", "block", "words"),
    [
        (92, 1024, 64, "32 held-out tokens at context 64 (all that the text gives)"),
        (5000, 1024, 64, "1,024 held-out tokens at context 64"),
        (5000, 1000, 33, "992 held-out tokens at context 33"),
        (1056, 1024, 64, "992 held-out tokens at context 64 (all that the text gives)"),
        (1057, 1024, 64, "1,024 held-out tokens at context 64"),
    ],
)
def test_as_many_tokens_are_named_as_are_scored(val_tokens: int, tokens: int, block: int, words: str) -> None:
    evaluation = {"block_size": block, "tokens": tokens}
    assert evaluation_words({"evaluation": evaluation, "corpus": {"val_tokens": val_tokens}}) == words
    windows = eval_windows(np.arange(val_tokens, dtype=np.uint16), EvalProtocol(block_size=block, tokens=tokens))
    assert words.startswith(f"{len(windows) * (block // 2):,} held-out tokens")


def test_of_a_received_study_no_evaluation_breaks_the_words() -> None:
    document = sound_document("one", corpus={**sound_document("one")["corpus"], "val_tokens": 5})
    assert evaluation_words(document) == "0 held-out tokens at context 128 (all that the text gives)"
    document["evaluation"] = {**document["evaluation"], "block_size": 1}
    assert "evaluation.block_size: " in str(document_fault(document))


def test_every_status_has_a_label() -> None:
    assert set(STATUS_LABELS) == set(get_args(TrialStatus))
    assert STATUS_LABELS["out_of_memory"] == "out of memory"


def test_an_interval_names_the_bounds_that_it_has() -> None:
    assert interval_words(-0.25, -0.1) == "-0.2500 to -0.1000"
    assert interval_words(-0.25, None) == "from -0.2500 up"
    assert interval_words(None, 0.05) == "up to +0.0500"
    assert interval_words(None, None) == "without bounds"
