"""Checks of a search space as a whole, beyond its single keys. SearchSpace puts the file's name before each message."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from math import ceil
from typing import Any

from spaces.budget import MAX_DEVICE_S, MAX_TOKENS, Budget, duration_text
from spaces.domains import Choice, SearchParameter, every_point, has_one_point, points, with_parents
from spaces.protocol import Evaluation, Scheduler, Searcher
from trainable.config import HYPERPARAMETERS, SCHEDULES_WITH_WARMUP, TrialConfig, variable_of
from trainable.errors import UserError, check_bounds

MAX_TRIALS = 100_000
MAX_GRID_CELLS = 10_000
MAX_EVALUATIONS = 1_000
MAX_EVALUATION_TOKENS = 10**9

SIZES = ("batch_size", "block_size", "grad_accum_steps")
"""Their product is the number of tokens in a step."""


def check_numbers(budget_tokens: int, trials: int, evaluation: Evaluation, scheduler: Scheduler) -> None:
    """Raise UserError for a number out of bounds, or for a scheduler that has no rung."""
    check_bounds("[budget] tokens", budget_tokens, 1, MAX_TOKENS)
    check_bounds("trials", trials, 1, MAX_TRIALS)
    block_bounds = HYPERPARAMETERS["block_size"].metadata
    check_bounds("[evaluation] block_size", evaluation.block_size, block_bounds["low"], block_bounds["high"])
    check_bounds("[evaluation] count", evaluation.count, 1, min(MAX_EVALUATIONS, budget_tokens))
    # One window at least.
    check_bounds("[evaluation] tokens", evaluation.tokens, evaluation.block_size, MAX_EVALUATION_TOKENS)
    check_bounds("[scheduler] reduction_factor", scheduler.reduction_factor, 2, 1_000)
    check_bounds("[scheduler] grace_tokens", scheduler.grace_tokens, 1, MAX_TOKENS)
    if scheduler.name == "asha" and not scheduler.rung_tokens(budget_tokens):
        raise UserError(
            f"[scheduler] a grace of {scheduler.grace_tokens} tokens leaves no rung below the budget of "
            f'{budget_tokens} tokens. Lower it (grace_frac follows the budget), or set name = "none".'
        )


def check_time(budget: Budget, shapes: Sequence[TrialConfig], evaluation: Evaluation, scheduler: Scheduler) -> None:
    """Raise UserError for a budget of time with a rung in tokens, or one too short for a step before an evaluation.

    The second check needs the measured speeds and is skipped without them.
    """
    assert budget.device_s is not None
    check_bounds("[budget] device_minutes", budget.device_s / 60, 0, MAX_DEVICE_S / 60, low_open=True)
    if scheduler.name == "asha" and scheduler.grace_frac is None:
        raise UserError("[scheduler] has grace_tokens, and the budget is time. Set grace_frac, a share of the budget.")
    if budget.speeds is None:
        return
    slowest = max(shapes, key=budget.speeds.seconds_a_step)
    step_s, evaluations_s = budget.speeds.seconds_a_step(slowest), budget.evaluations * budget.speeds.evaluation_s
    rung_frac = scheduler.grace_frac if scheduler.name == "asha" else None
    first_frac = min(rung_frac or 1.0, 1 / evaluation.count)
    # A little more than one step, for milestones are rounded to the baseline's tokens.
    needed_s = evaluations_s + 1.01 * step_s / first_frac
    if budget.device_s < needed_s:
        smaller = smaller_words(slowest, is_searched=len({shape.tokens_per_step for shape in shapes}) > 1)
        raise UserError(
            f"as measured, a step of {size_words(slowest)} takes {step_s:.2g} s, the evaluations of a trial "
            f"{evaluations_s:.2g} s, and every trial is first evaluated after {first_frac:.0%} of "
            f"{duration_text(budget.device_s)}. Set BUDGET_TIME={_rounded_up_time(needed_s)} or more, or {smaller}."
        )


def size_words(config: TrialConfig) -> str:
    return " x ".join(f"{name}={getattr(config, name)}" for name in _multiplied(config))


def smaller_words(config: TrialConfig, *, is_searched: bool, is_own: bool = False) -> str:
    """Return the remedy beside a larger budget.

    is_searched: the space has several sizes. is_own: the file is wrong by itself and has to be edited, so its own keys
    are named; else the variables.
    """
    if is_searched:
        return "drop the largest sizes"
    return f"lower {' or '.join(name if is_own else variable_of(name) for name in _multiplied(config))}"


def _multiplied(config: TrialConfig) -> list[str]:
    return [name for name in SIZES if getattr(config, name) > 1]


def _rounded_up_time(seconds: float) -> str:
    """Return a time as BUDGET_TIME takes it, rounded up to two digits."""
    unit_s = next(unit_s for unit_s in (3600, 60, 1) if seconds >= 2 * unit_s or unit_s == 1)
    return duration_text(unit_s * ceil(10 * seconds / unit_s) / 10)


def check_search(
    parameters: Sequence[SearchParameter], searcher: Searcher, *, is_alone: bool, ends_early: bool
) -> None:
    """Raise UserError for a single configuration, or for a grid that has ranges, too many cells or no fixed end."""
    if has_one_point(parameters) and not is_alone:
        raise UserError("[search] leaves one configuration only. Give a parameter a second value.")
    if searcher != "grid":
        return
    if ends_early:
        raise UserError("trials is auto, and the cells of a grid are all run. Drop it, or set another [searcher].")
    for parameter in parameters:
        if not isinstance(parameter.domain, Choice):
            remedy = 'Use choice = [...], or [searcher] name = "random"'
            raise UserError(f"[search] {parameter.name} is a range, and a grid takes values. {remedy}.")
    if sum(1 for _ in islice(every_point(parameters), MAX_GRID_CELLS + 1)) > MAX_GRID_CELLS:
        raise UserError(f"[search] the grid has more than {MAX_GRID_CELLS} cells. Drop values, or search at random.")


def rounded_up(tokens: int) -> int:
    """Return a token count rounded up to three digits."""
    scale: int = 10 ** max(0, len(str(tokens)) - 3)
    return -(-tokens // scale) * scale


def largest_points(parameters: Sequence[SearchParameter], names: Collection[str]) -> Iterator[dict[str, Any]]:
    """Yield the combinations of the largest values of the named parameters, with those on which they depend.

    Values of a parameter that make the same children active differ in size only. The largest of each such group stands
    for it, so that there are few combinations even in a space of millions.
    """
    chosen = with_parents(parameters, names)
    conditions = [p.condition for p in chosen if p.condition is not None]

    def largest(parameter: SearchParameter) -> list[Any]:
        values_of_children = [condition.values for condition in conditions if condition.parent == parameter.name]
        groups: dict[tuple[bool, ...], Any] = {}
        for value in parameter.domain.examples():
            group = (value in SCHEDULES_WITH_WARMUP, *(value in values for values in values_of_children))
            groups[group] = value if group not in groups or isinstance(value, str) else max(groups[group], value)
        return list(groups.values())

    return points(chosen, largest)


def check_baseline(point: Mapping[str, Any], parameters: Sequence[SearchParameter], *, baseline_name: str) -> None:
    """Raise UserError when the baseline, given as a point of the space, lies outside an active domain."""
    for parameter in parameters:
        value = point.get(parameter.name)
        if value is None or parameter.domain.contains(value):
            continue
        remedy = f"Add {value} to the choice" if isinstance(parameter.domain, Choice) else "Widen the range to hold it"
        if parameter.condition is None and parameter.name.startswith("warmup_"):
            remedy = "Search it only where there is a warm-up, when = { lr_schedule = [...] }, or widen it"
        raise UserError(
            f"the baseline '{baseline_name}' has {parameter.name}={value}, outside [search] "
            f"{parameter.name}, {parameter.domain}. {remedy}, or change the baseline."
        )
