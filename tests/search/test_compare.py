"""Studies side by side: ranked where their losses measure the same thing, else side by side alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from results.study.folder import create_study
from search.commands.compare_command import _budget, _entry, _lowest_words, protocol_differences, speed_differences
from spaces.budget import Budget, Speeds
from tests.documents import sound_document
from trainable.config import DOCUMENTED


def entry(study: str, **protocol: object) -> dict[str, object]:
    same: dict[str, object] = {
        "corpus fingerprint": "f" * 64,
        "evaluation block_size": 128,
        "evaluation tokens": 4096,
        "budget": "1,000 tokens",
    }
    return {"study": study, "protocol": {**same, **protocol}}


def test_the_same_protocol_has_no_differences() -> None:
    assert protocol_differences([entry("a"), entry("b"), entry("c")]) == []


def test_every_difference_is_named() -> None:
    other = entry("b", **{"corpus fingerprint": "e" * 64, "evaluation block_size": 256, "budget": "2,000 tokens"})
    assert protocol_differences([entry("a"), other]) == [
        f"corpus fingerprint: a {'f' * 16}; b {'e' * 16}",
        "evaluation block_size: a 128; b 256",
        "budget: a 1,000 tokens; b 2,000 tokens",
    ]


def test_as_many_scored_tokens_are_the_same_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path))

    def of(name: str, tokens: int) -> dict[str, Any]:
        document = sound_document(name)
        document["evaluation"] |= {"block_size": 48, "tokens": tokens}
        return _entry(create_study(name, document), document)

    # Windows of 48 score 24 tokens each: 41 of them fit into either.
    assert protocol_differences([of("a", 1000), of("b", 990)]) == []
    assert protocol_differences([of("c", 1000), of("d", 1008)]) == ["evaluation tokens: c 984; d 1008"]


def test_the_same_time_is_the_same_budget_on_the_same_device_alone() -> None:
    time = {"device_s": 600.0, "evaluations": 5, "evaluation_s": 0.1, "shapes": []}
    document = {"budget_tokens": 1000, "device": {"name": "a CPU", "slots": 2}}
    assert _budget(document) == "1,000 training tokens"
    assert _budget({**document, "device_time": time}) == "10 min 00 s of device time, 2 at a time on a CPU"


def test_who_has_the_lowest_loss() -> None:
    def of(study: str, loss: float | None) -> dict[str, object]:
        return {"study": study, "best": None if loss is None else {"val_loss": loss}}

    assert _lowest_words([of("a", 4.0), of("b", 4.5), of("c", None)]) == "a has the lowest loss, one seed each"
    assert _lowest_words([of("a", 4.0), of("b", 4.0)]) == "a and b have the lowest loss, one seed each"
    assert _lowest_words([of("a", None), of("b", None)]) == "no study has a completed trial"


def test_a_time_measured_at_another_speed_is_another_budget() -> None:
    small = replace(DOCUMENTED, batch_size=8)

    def budget(step_s: float, small_s: float) -> Budget:
        speeds = Speeds(step_s={DOCUMENTED: step_s, small: small_s}, evaluation_s=0.1)
        return Budget(tokens=1000, device_s=6.0, evaluations=3, speeds=speeds)

    assert speed_differences({"a": budget(0.2, 0.1), "b": budget(0.21, 0.105)}) == []
    assert speed_differences({"a": budget(0.2, 0.1), "b": budget(0.21, 0.05)}) == [
        "measured speed, a step of batch 8 x block 128: a 0.1 s; b 0.05 s"
    ]
    # A budget of tokens is told apart by its words.
    assert speed_differences({"a": budget(0.2, 0.1), "b": Budget(tokens=1000)}) == []
