"""Domains: what they hold, what stands for them, and the points they span."""

import pytest

from spaces.domains import (
    Choice,
    Condition,
    Domain,
    FloatRange,
    IntRange,
    SearchParameter,
    active_point,
    has_one_point,
    points,
)


@pytest.mark.parametrize(
    ("domain", "inside", "outside"),
    [
        (Choice((8, 16)), (8, 16), (4, "8", None, True)),
        (Choice((0, 1)), (0, 1), (True, False)),
        (Choice((True, False)), (True, False), (1, 0, "True", None)),
        (Choice(("linear", "wsd")), ("linear",), ("constant", 0)),
        (FloatRange(0.0, 0.5), (0.0, 0.25, 0.5), (-0.001, 0.501, "0.25", True, None)),
        (FloatRange(1e-6, 1e-1, log=True), (1e-6, 1e-5, 1e-1), (9e-7, 0.11, float("nan"))),
        (IntRange(2, 8, step=2), (2, 4, 8), (3, 0, 10, 4.0, True)),
        (IntRange(1, 100, log=True), (1, 100), (0, 101)),
    ],
)
def test_contains(domain: Domain, inside: tuple[object, ...], outside: tuple[object, ...]) -> None:
    assert [value for value in inside if not domain.contains(value)] == []
    assert [value for value in outside if domain.contains(value)] == []


def test_examples_are_all_choices_and_the_ends_and_middle_of_ranges() -> None:
    assert Choice((8, 16, 64)).examples() == (8, 16, 64)
    assert FloatRange(0.0, 0.5).examples() == (0.0, 0.25, 0.5)
    assert FloatRange(1e-6, 1e-2, log=True).examples() == pytest.approx((1e-6, 1e-4, 1e-2))
    assert IntRange(2, 12, step=5).examples() == (2, 7, 12)
    assert IntRange(1, 4).examples() == (1, 2, 4)


@pytest.mark.parametrize(
    ("domain", "value", "nearest"),
    [
        (Choice((8, 16, 64)), 20, 16),
        (Choice(("linear", "wsd")), "constant", "linear"),
        (Choice(("linear", "wsd")), "wsd", "wsd"),
        (FloatRange(0.01, 0.3), 0.0, 0.01),
        (FloatRange(0.01, 0.3), 0.2, 0.2),
        (FloatRange(1e-6, 1e-1, log=True), 1.0, 1e-1),
        (IntRange(2, 12, step=5), 9, 7),
        (IntRange(2, 12, step=5), 99, 12),
    ],
)
def test_nearest(domain: Domain, value: float | str, nearest: float | str) -> None:
    assert domain.nearest(value) == nearest  # type: ignore[arg-type]
    assert domain.contains(nearest)


SCHEDULE = SearchParameter("lr_schedule", Choice(("constant", "wsd")))
DECAY = SearchParameter("decay_frac", Choice((0.1, 0.2)), Condition("lr_schedule", ("wsd",)))
MIN_LR = SearchParameter("min_lr_frac", Choice((0.0, 0.5)), Condition("decay_frac", (0.2,)))


def test_points_leave_out_what_is_inactive() -> None:
    assert list(points((SCHEDULE, DECAY, MIN_LR), lambda parameter: parameter.domain.examples())) == [
        {"lr_schedule": "constant"},
        {"lr_schedule": "wsd", "decay_frac": 0.1},
        {"lr_schedule": "wsd", "decay_frac": 0.2, "min_lr_frac": 0.0},
        {"lr_schedule": "wsd", "decay_frac": 0.2, "min_lr_frac": 0.5},
    ]


def test_a_child_of_an_inactive_parent_is_inactive() -> None:
    values = {"lr_schedule": "constant", "decay_frac": 0.2, "min_lr_frac": 0.5}
    assert active_point((SCHEDULE, DECAY, MIN_LR), values) == {"lr_schedule": "constant"}


def test_one_point() -> None:
    assert has_one_point((SearchParameter("dropout", Choice((0.1,))),))
    assert not has_one_point((SearchParameter("dropout", Choice((0.1,))), SCHEDULE))
