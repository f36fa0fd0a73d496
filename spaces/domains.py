"""Domains and conditions of single hyperparameters, and the points they span. No files, no samplers."""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Choice:
    """A list of values without an order."""

    values: tuple[Any, ...]

    def contains(self, value: object) -> bool:
        """Return whether `value` is one of the values."""
        # True equals 1, and is none of the numbers.
        return any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in self.values)

    def examples(self) -> tuple[Any, ...]:
        """Return every value."""
        return self.values

    def nearest(self, value: Any) -> Any:
        """Return the value next to a number, or the first one for a name."""
        if not _is_number(value):
            return value if value in self.values else self.values[0]
        return min(self.values, key=lambda known: abs(known - value))

    def __str__(self) -> str:
        return f"choice [{', '.join(map(str, self.values))}]"


@dataclass(frozen=True)
class FloatRange:
    """The numbers from low to high, equally likely; with log each decade is (and low is above 0)."""

    low: float
    high: float
    log: bool = False

    def contains(self, value: Any) -> bool:
        """Return whether `value` lies between the ends, both included."""
        return _is_number(value) and self.low <= value <= self.high

    def examples(self) -> tuple[float, ...]:
        """Return the ends and the middle."""
        if self.log:
            return (self.low, math.exp((math.log(self.low) + math.log(self.high)) / 2), self.high)
        return (self.low, self.low + (self.high - self.low) / 2, self.high)

    def nearest(self, value: float) -> float:
        """Return `value`, moved to the nearer end when it lies outside."""
        return min(max(value, self.low), self.high)

    def __str__(self) -> str:
        return f"{'log_uniform' if self.log else 'uniform'} [{self.low:g}, {self.high:g}]"


@dataclass(frozen=True)
class IntRange:
    """The whole numbers low, low + step, ..., high; with log each decade is equally likely (and step is 1)."""

    low: int
    high: int
    step: int = 1
    log: bool = False

    def contains(self, value: Any) -> bool:
        """Return whether `value` is one of the whole numbers."""
        return (
            isinstance(value, int)
            and not isinstance(value, bool)
            and self.low <= value <= self.high
            and (value - self.low) % self.step == 0
        )

    def examples(self) -> tuple[int, ...]:
        """Return the ends and the middle."""
        return (self.low, self.low + (self.high - self.low) // self.step // 2 * self.step, self.high)

    def nearest(self, value: float) -> int:
        """Return the member next to `value`."""
        return self.low + round((min(max(value, self.low), self.high) - self.low) / self.step) * self.step

    def __str__(self) -> str:
        step = f" in steps of {self.step}" if self.step > 1 else ""
        return f"int [{self.low}, {self.high}]{step}{', log' if self.log else ''}"


Domain: TypeAlias = Choice | FloatRange | IntRange


@dataclass(frozen=True)
class Condition:
    """A parameter is active only when its parent is active and has one of `values`."""

    parent: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class SearchParameter:
    """A hyperparameter that is searched."""

    name: str
    domain: Domain
    condition: Condition | None = None

    def is_active(self, point: Mapping[str, Any]) -> bool:
        """Return whether the parameter is read at `point`, which holds active parameters only."""
        condition = self.condition
        return condition is None or (condition.parent in point and point[condition.parent] in condition.values)

    def __str__(self) -> str:
        words = f"{self.name} {self.domain}"
        if (condition := self.condition) is not None:
            words += f", where {condition.parent} is {' or '.join(map(str, condition.values))}"
        return words


def points(
    parameters: Sequence[SearchParameter], values_of: Callable[[SearchParameter], Sequence[Any]]
) -> Iterator[dict[str, Any]]:
    """Yield every combination of the parameters' values, inactive parameters left out.

    `parameters` stand in topological order; `values_of` names the values to combine.
    """
    if not parameters:
        yield {}
        return
    *earlier, last = parameters
    for point in points(earlier, values_of):
        if last.is_active(point):
            for value in values_of(last):
                yield {**point, last.name: value}
        else:
            yield point


def every_point(parameters: Sequence[SearchParameter]) -> Iterator[dict[str, Any]]:
    """Yield points() of the domains' examples: of choices every combination."""
    return points(parameters, lambda parameter: parameter.domain.examples())


def with_parents(parameters: Sequence[SearchParameter], names: Collection[str]) -> list[SearchParameter]:
    """Return the named parameters and those on which they depend. `parameters` stand in topological order."""
    wanted = {*names}
    for parameter in reversed(parameters):
        if parameter.name in wanted and parameter.condition is not None:
            wanted.add(parameter.condition.parent)
    return [parameter for parameter in parameters if parameter.name in wanted]


def active_point(parameters: Sequence[SearchParameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `values` that belong to active parameters. `parameters` stand in topological order."""
    point: dict[str, Any] = {}
    for parameter in parameters:
        if parameter.is_active(point):
            point[parameter.name] = values[parameter.name]
    return point


def near_point(parameters: Sequence[SearchParameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return active_point() of the values, each moved to the nearest of its domain.

    A warm-up share computed from whole steps may lie just outside its domain, or between two choices.
    """
    return active_point(parameters, {one.name: one.domain.nearest(values[one.name]) for one in parameters})


def has_one_point(parameters: Sequence[SearchParameter]) -> bool:
    """Return whether no parameter has a second value."""
    return all(len(parameter.domain.examples()) == 1 for parameter in parameters)
