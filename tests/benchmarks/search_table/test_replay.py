"""The replay's own arithmetic: what a search is charged, when it hears of a loss, and what counts as found."""

from collections.abc import Sequence
from typing import Any

import pytest

from spaces.read.load import load_space
from tests.benchmarks.search_table.make_table import BATCH_DIVISOR, BUDGET_TOKENS, point_at, scaled
from tests.benchmarks.search_table.replay import CurveTable, Proposal, replay

BUDGET = 1000


def row(number: int, *, rate: float, losses: Sequence[float] = (5.0, 4.0, 3.0), **changes: Any) -> dict[str, Any]:
    """A run of 100 tokens a step and a second a step, evaluated after 1, 5 and 10 steps in half a second."""
    shape = {"batch_size": 10, "block_size": 10, "lr_schedule": "constant", "warmup_frac": None}
    found = {"eval_steps": [1, 5, 10][: len(losses)], "val_loss": list(losses), "status": "completed", "steps": 10}
    return {"number": number, "learning_rate": rate, **shape, **found, "step_s": 1.0, "eval_s": 0.5, **changes}


class Listed:
    """A search over a list of rates that stops nothing but those it is told to."""

    def __init__(self, rates: Sequence[float], *, stop: int | None = None, mark_tokens: Sequence[int] = (500,)) -> None:
        self.rates, self.stop, self.mark_tokens = list(rates), stop, mark_tokens
        self.heard: list[tuple[int, int, float | None]] = []
        self.count = 0

    def ask(self) -> Proposal:
        if not self.rates:
            raise StopIteration
        self.count += 1
        point = {"batch_size": 10, "block_size": 10, "lr_schedule": "constant", "learning_rate": self.rates.pop(0)}
        return Proposal(key=self.count - 1, point=point)

    def goes_on(self, key: int, mark_tokens: int, loss: float) -> bool:
        self.heard.append((key, mark_tokens, loss))
        return key != self.stop

    def end(self, key: int, loss: float | None) -> None:
        self.heard.append((key, BUDGET, loss))

    def counts(self, key: int) -> bool:
        return True


TABLE = CurveTable(
    [
        row(0, rate=1e-4),
        row(1, rate=1e-3, losses=(4.0, 2.0, 1.0)),
        row(2, rate=1e-2, losses=(9.0,), status="unstable", steps=3),
    ],
    BUDGET,
)


def test_a_search_is_charged_what_it_trained_and_told_what_was_measured() -> None:
    search = Listed([1.2e-4, 0.9e-3, 2e-2], stop=0)
    found = replay(search, TABLE, slots=1, most_tokens=1e9)
    # The first is stopped at half of the budget, the last breaks at its third step: one is left.
    assert search.heard == [(0, 500, 4.0), (1, 500, 2.0), (1, BUDGET, 1.0), (2, BUDGET, None)]
    assert [(one.tokens, one.wall_s, one.curve.number) for one in found] == [(1500, 5.5 + 11.0, 1)]


def test_two_slots_share_the_clock_and_both_are_charged() -> None:
    found = replay(Listed([1e-4, 1e-3], mark_tokens=()), TABLE, slots=2, most_tokens=1e9)
    assert [one.wall_s for one in found] == [10.5, 10.5]
    assert [one.tokens for one in found] == [2000, 2000]


def test_a_search_ends_with_its_tokens() -> None:
    assert len(replay(Listed([1e-4] * 9), TABLE, slots=1, most_tokens=2500)) == 3


def test_between_two_evaluations_a_loss_lies_between_theirs() -> None:
    assert TABLE.curves[0].loss_at(3) == pytest.approx(4.5)
    assert TABLE.best.number == 1


def test_a_number_is_always_the_same_configuration_and_each_cell_comes_once_before_one_comes_again() -> None:
    space = scaled(load_space("plateau"), BUDGET_TOKENS, BATCH_DIVISOR)
    points = [point_at(space, number) for number in range(120)]
    assert points[7] == point_at(space, 7)
    cells = [(point["batch_size"], point["block_size"], point["lr_schedule"]) for point in points]
    assert len(set(cells[:60])) == len(set(cells[60:])) == 60
    # The second time at the other half of the rates' range.
    first, second = (
        next(point["learning_rate"] for point, cell in zip(half, cells, strict=False) if cell == cells[0])
        for half in (points[:60], points[60:])
    )
    assert abs(first - second) > 0.1 * min(first, second)
