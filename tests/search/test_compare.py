"""Studies side by side: ranked where their losses measure the same thing, else side by side alone."""

from search.commands.compare_command import protocol_differences


def entry(study: str, **protocol: object) -> dict[str, object]:
    same: dict[str, object] = {
        "corpus fingerprint": "f" * 64, "evaluation block_size": 128, "evaluation tokens": 4096, "budget_tokens": 1000
    }  # fmt: skip
    return {"study": study, "protocol": {**same, **protocol}}


def test_the_same_protocol_has_no_differences() -> None:
    assert protocol_differences([entry("a"), entry("b"), entry("c")]) == []


def test_every_difference_is_named() -> None:
    other = entry("b", **{"corpus fingerprint": "e" * 64, "evaluation block_size": 256, "budget_tokens": 2000})
    assert protocol_differences([entry("a"), other]) == [
        f"corpus fingerprint: a {'f' * 16}, b {'e' * 16}",
        "evaluation block_size: a 128, b 256",
        "budget_tokens: a 1000, b 2000",
    ]
