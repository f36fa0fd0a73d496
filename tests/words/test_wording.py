"""What a person reads is written in the field's words: no string of the list breaks a rule, each with its remedy."""

import re
from collections.abc import Mapping

import pytest

from tests.words.user_strings import Kind, UserString, user_strings

SEEN: tuple[Kind, ...] = ("message", "page")
EVERYWHERE: tuple[Kind, ...] = ("message", "docstring", "comment", "page")
RULES: Mapping[str, tuple[tuple[Kind, ...], str]] = {
    r"\bledger\b(?!\.py)": (SEEN, "say cost, results, or the table's name"),
    r"(?<![.\"])\bendings?\b(?! =|\.has)": (SEEN, "say how a trial ended, or its status"),
    r"\bthe story\b": (EVERYWHERE, "say whose run it was, or nothing"),
    r"\bowner'?s?\b": (EVERYWHERE, "say `before`, the plateau run, or the user's"),
    r"\bsay it again\b|\bagain with the same words\b": (SEEN, "run the command again"),
    r"\bis no number\b|\bthat is no number\b": (EVERYWHERE, "say non-finite"),
    r"\bat rungs? \d|\brung \{\}|\brung \d": (SEEN, "say rung at 11 % of the budget"),
    r"\bdigest is another\b|\banother digest\b": (EVERYWHERE, "say checksum mismatch"),
    r"\blook whether\b": (EVERYWHERE, "say check whether"),
    r"\bon end\b": (EVERYWHERE, "say in a row"),
    r"\bis said\b|\bare said\b": (SEEN, "say is reported, or is printed"),
    r"\bthere is no reading\b": (SEEN, "say cannot be read"),
    r"\bgoes? on anew\b|\bback or on anew\b": (SEEN, "say starts again"),
    r"\bof no number\b|(?<!there )\bis no (?:text|range|space|file|variable)\b": (SEEN, "say is not a ..."),
    r"\bfor want of\b": (EVERYWHERE, "say out of"),
    r"\bthe fair clock\b|\blucky\b|\bhunch\b": (SEEN, "say what is measured"),
    r"\botherwise than\b": (SEEN, "say differently from, or not as"),
    r"\bsay a (?:larger|smaller) number\b": (SEEN, "say set it to a larger number"),
    r"\bthread\(s\)|\bnode\(s\)|\bdevice\(s\)": (SEEN, "count the noun"),
    r"\bspoilt\b": (SEEN, "say corrupted"),
}
"""By pattern: where it must not stand, and what to write in its place."""


def broken_rules(one: UserString) -> list[str]:
    """Return a line for each rule that the string breaks."""
    return [
        f"{one}\n  {pattern}: {remedy}"
        for pattern, (kinds, remedy) in RULES.items()
        if one.kind in kinds and re.search(pattern, one.text, re.IGNORECASE)
    ]


@pytest.fixture(scope="module")
def strings() -> list[UserString]:
    return list(user_strings())


def test_the_list_holds_every_kind_and_place(strings: list[UserString]) -> None:
    assert {one.kind for one in strings} == set(EVERYWHERE)
    paths = {one.path for one in strings}
    for path in ("search/options.py", "results/report/template.html.j2", "README.md", "spaces/plateau.toml"):
        assert path in paths
    texts = {one.text for one in strings}
    assert "check in half a minute that the set-up is sound" in texts
    assert any("{} completed: {}{}; {}" in text for text in texts)


def test_no_string_breaks_a_rule(strings: list[UserString]) -> None:
    assert [line for one in strings for line in broken_rules(one)] == []


def test_a_rule_that_is_broken_is_named() -> None:
    line = UserString(path="a.py", line=1, kind="message", text="a val_loss that is no number at rung 0")
    assert [found.splitlines()[1].split(": ")[-1] for found in broken_rules(line)] == [
        "say non-finite",
        "say rung at 11 % of the budget",
    ]
    assert broken_rules(UserString(path="a.py", line=1, kind="docstring", text="at rung 0")) == []
