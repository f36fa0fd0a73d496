"""A small space file's tables to vary: 128 tokens per step of the baseline, 100 steps."""

from collections.abc import Callable
from typing import Any

import pytest

from spaces.read.load import space_from_tables
from spaces.space import SearchSpace

MakeSpace = Callable[..., SearchSpace]


@pytest.fixture
def make_space() -> MakeSpace:
    """Return a function that makes a space of the search table, other tables replaced by keyword."""

    def make(search: dict[str, Any], **others: Any) -> SearchSpace:
        tables: dict[str, Any] = {
            "trials": 4,
            "baseline": {"batch_size": 4, "block_size": 32},
            "budget": {"tokens": 12_800},
            "evaluation": {"tokens": 256, "count": 4},
            "search": search,
        }
        kept = {key: value for key, value in (tables | others).items() if value is not None}
        return space_from_tables(kept, name="small", path="small.toml")

    return make
