"""The checks of a search space as a whole: what no single key of its file can tell."""

from collections.abc import Iterator, Sequence
from itertools import islice
from math import prod
from typing import TYPE_CHECKING, Any

from spaces.domains import Choice, SearchParameter, has_one_point, points
from trainable.config import HYPERPARAMETERS, SCHEDULES_WITH_WARMUP
from trainable.errors import UserError

if TYPE_CHECKING:
    from spaces.space import SearchSpace

MAX_TOKENS = 10**12
MAX_TRIALS = 100_000
MAX_GRID_CELLS = 10_000
MAX_EVALUATIONS = 1_000
MAX_EVALUATION_TOKENS = 10**9

SIZES = ("batch_size", "block_size", "grad_accum_steps")
"""What a step's tokens are the product of."""


def check_numbers(space: "SearchSpace") -> None:
    """Raise UserError for a number out of bounds, or for a scheduler that has no rung."""
    evaluation, scheduler = space.evaluation, space.scheduler
    _check_bounds(space, "[budget] tokens", space.budget_tokens, 1, MAX_TOKENS)
    _check_bounds(space, "trials", space.trials, 1, MAX_TRIALS)
    block_bounds = HYPERPARAMETERS["block_size"].metadata
    _check_bounds(space, "[evaluation] block_size", evaluation.block_size, block_bounds["low"], block_bounds["high"])
    _check_bounds(space, "[evaluation] count", evaluation.count, 1, MAX_EVALUATIONS)
    if evaluation.tokens < evaluation.block_size:
        raise UserError(
            f"{space.where}: [evaluation] tokens is {evaluation.tokens}, less than one window of "
            f"block_size={evaluation.block_size}. Raise it to at least {evaluation.block_size}."
        )
    _check_bounds(space, "[evaluation] tokens", evaluation.tokens, 1, MAX_EVALUATION_TOKENS)
    _check_bounds(space, "[scheduler] reduction_factor", scheduler.reduction_factor, 2, 1_000)
    _check_bounds(space, "[scheduler] grace_tokens", scheduler.grace_tokens, 1, MAX_TOKENS)
    if scheduler.name == "asha" and not space.rung_tokens():
        raise UserError(
            f"{space.where}: [scheduler] a grace of {scheduler.grace_tokens} tokens leaves no rung below the budget of "
            f'{space.budget_tokens} tokens. Lower it (grace_frac follows the budget), or set name = "none".'
        )


def _check_bounds(space: "SearchSpace", key: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise UserError(f"{space.where}: {key} is {value}; it must be at least {low} and at most {high}.")


def check_search(space: "SearchSpace") -> None:
    """Raise UserError when there is one configuration only, or when a grid has ranges or too many cells."""
    if has_one_point(space.parameters) and not space.is_alone:
        raise UserError(f"{space.where}: [search] leaves one configuration only. Give a parameter a second value.")
    if space.searcher.name != "grid":
        return
    for parameter in space.parameters:
        if not isinstance(parameter.domain, Choice):
            raise UserError(
                f"{space.where}: [search] {parameter.name} is a range, and a grid takes values: use choice = [...], "
                'or [searcher] name = "random".'
            )
    if count_cells(space) > MAX_GRID_CELLS:
        raise UserError(
            f"{space.where}: [search] the grid has more than {MAX_GRID_CELLS} cells. Drop values, or set "
            '[searcher] name = "random" with a number of trials.'
        )


def count_cells(space: "SearchSpace") -> int:
    """Return the number of the grid's cells, the baseline's included, counted up to MAX_GRID_CELLS + 1."""
    cells = points(space.parameters, lambda parameter: parameter.domain.examples())
    return sum(1 for _ in islice(cells, MAX_GRID_CELLS + 1))


def check_sizes(space: "SearchSpace") -> None:
    """Raise UserError when a step does not fit before the first evaluation, or a warm-up into the run."""
    first = space.evaluation_tokens()[0]
    for point in _largest_points(space.parameters):
        values = {name: point.get(name, getattr(space.baseline, name)) for name in (*SIZES, "lr_schedule")}
        step_tokens = prod(values[name] for name in SIZES)
        sizes = " x ".join(f"{name}={values[name]}" for name in SIZES if values[name] > 1)
        if step_tokens > first:
            raise UserError(
                f"{space.where}: {sizes} is {step_tokens} tokens a step, more than the first evaluation waits for "
                f"({first} tokens). Raise the budget or the grace, lower [evaluation] count, or drop the largest sizes."
            )
        warmup_steps = point.get("warmup_steps", space.user_settings.get("WARMUP_STEPS", 0))
        steps = space.budget_tokens // step_tokens
        if values["lr_schedule"] in SCHEDULES_WITH_WARMUP and warmup_steps > steps:
            raise UserError(
                f"{space.where}: warmup_steps={warmup_steps} is longer than the run of {steps} steps at {sizes}. "
                "Lower it, raise the budget, or use warmup_frac, a share of the run."
            )


def _largest_points(parameters: Sequence[SearchParameter]) -> Iterator[dict[str, Any]]:
    """Yield the combinations that need the most tokens per step and the most warm-up steps.

    A parameter's values that make the same children active differ by their size only, so the largest of each such
    group stands for it: few combinations even where a space has millions.
    """
    by_name = {parameter.name: parameter for parameter in parameters}
    wanted = {name for name in (*SIZES, "warmup_steps", "lr_schedule") if name in by_name}
    for parameter in reversed(parameters):
        if parameter.name in wanted and parameter.condition is not None:
            wanted.add(parameter.condition.parent)
    chosen = [parameter for parameter in parameters if parameter.name in wanted]
    conditions = [p.condition for p in chosen if p.condition is not None]

    def largest(parameter: SearchParameter) -> list[Any]:
        values_of_children = [condition.values for condition in conditions if condition.parent == parameter.name]
        groups: dict[tuple[bool, ...], Any] = {}
        for value in parameter.domain.examples():
            group = (value in SCHEDULES_WITH_WARMUP, *(value in values for values in values_of_children))
            groups[group] = value if group not in groups or isinstance(value, str) else max(groups[group], value)
        return list(groups.values())

    return points(chosen, largest)


def check_baseline(space: "SearchSpace") -> None:
    """Raise UserError when the baseline lies outside an active domain."""
    point = space.baseline_params()
    for parameter in space.parameters:
        value = point.get(parameter.name)
        if value is None or parameter.domain.contains(value):
            continue
        remedy = f"Add {value} to the choice" if isinstance(parameter.domain, Choice) else "Widen the range to hold it"
        if parameter.condition is None and parameter.name.startswith("warmup_"):
            remedy = "Search it only where there is a warm-up, when = { lr_schedule = [...] }, or widen it"
        raise UserError(
            f"{space.where}: the baseline '{space.baseline_name}' has {parameter.name}={value}, outside [search] "
            f"{parameter.name}, {parameter.domain}. {remedy}, or change the baseline."
        )
