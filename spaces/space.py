"""SearchSpace: the searched parameters, the baseline and the budget of a study, checked together. It reads no file."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from math import ceil
from typing import Any

from spaces.budget import MEASURED_SIZES, Budget, Milestones, size_nodes
from spaces.check import (
    SIZES,
    check_baseline,
    check_numbers,
    check_search,
    check_time,
    largest_points,
    rounded_up,
    size_words,
    smaller_words,
)
from spaces.domains import Domain, SearchParameter, active_point, every_point
from spaces.protocol import Evaluation, Scheduler, Searcher
from spaces.warmup import WARMUP_FRAC, searched_steps, warmup_share, with_warmup
from trainable.config import SCHEDULES_WITH_WARMUP, TrialConfig, make_config, shape_of, without_seed
from trainable.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A space file's content. Making one checks it as a whole and raises UserError naming the file and the key."""

    name: str
    path: str
    """As shown to a person."""
    description: str
    baseline_name: str
    baseline: TrialConfig
    """Trial 0, with as many whole steps as fit into the budget."""
    parameters: tuple[SearchParameter, ...]
    """Parents come before their children."""
    budget: Budget
    evaluation: Evaluation
    scheduler: Scheduler
    searcher: Searcher
    trials: int
    """With the baseline; in a grid the number of cells."""
    ends_early: bool = False
    """Whether `trials` is the most, and the search ends once more would gain less than the evaluation's noise."""
    stability: Mapping[str, Any] = field(default_factory=dict)
    """The file's [stability] table, unchanged."""
    baseline_warmup_frac: float | None = None
    """The baseline's warm-up share before rounding to steps; None takes it from warmup_steps."""
    toml: str = field(default="", compare=False, repr=False)
    """The file's text, which a study keeps: the file may be moved or deleted. Noted once the file is found sound."""
    user_settings: Mapping[str, Any] = field(default_factory=dict)
    """What the user's variables have changed, by variable name."""

    def __post_init__(self) -> None:
        with self._placed():
            if self.budget.device_s is not None:
                budget = replace(self.budget, evaluations=self.evaluation.count)
                check_time(budget, self.shapes(), self.evaluation, self.scheduler)
                if budget.speeds is not None:
                    budget = replace(budget, tokens=budget.steps(self.baseline) * self.baseline.tokens_per_step)
                # A frozen dataclass has no other way to set a field that follows from others.
                object.__setattr__(self, "budget", budget)
            if self.scheduler.grace_frac is not None:
                grace_tokens = ceil(self.scheduler.grace_frac * self.budget.tokens)
                object.__setattr__(self, "scheduler", replace(self.scheduler, grace_tokens=grace_tokens))
            # The numbers first: the other checks divide by them.
            check_numbers(self.budget.tokens, self.trials, self.evaluation, self.scheduler)
            check_search(self.parameters, self.searcher, is_alone=self.is_alone, ends_early=self.ends_early)
            self._check_sizes()
        share = self.baseline_warmup_frac
        if share is None:
            share = warmup_share(self.baseline, self.domain(WARMUP_FRAC))
            object.__setattr__(self, "baseline_warmup_frac", share)
        own_steps = searched_steps(self.baseline, self.domain("warmup_steps"))
        steps = self.user_settings.get("WARMUP_STEPS", own_steps)
        baseline = with_warmup(self.baseline, self.budget, frac=share, steps=steps)
        object.__setattr__(self, "baseline", baseline)
        with self._placed():
            check_baseline(self.baseline_params(), self.parameters, baseline_name=self.baseline_name)
        if self.searcher == "grid":
            object.__setattr__(self, "trials", len(self.grid_points()))

    def _check_sizes(self) -> None:
        """Raise UserError when a step does not fit before the first evaluation, or a warm-up into the run."""
        budget, first_tokens = self.budget, self.evaluation_tokens()[0]
        is_own = not (self.toml or self.user_settings)
        # Where the budget is time, a slower shape has fewer steps.
        shapes = self.shapes() if budget.speeds is not None else []
        for point in largest_points(self.parameters, (*SIZES, "warmup_steps", "lr_schedule")):
            plain = replace(self.baseline, warmup_steps=0, **{name: point[name] for name in SIZES if name in point})
            step_tokens, sizes = plain.tokens_per_step, size_words(plain)
            if budget.speeds is None and step_tokens > first_tokens:
                smaller = smaller_words(plain, is_searched=any(map(self.domain, SIZES)), is_own=is_own)
                # The first evaluation may be rounded up by a token.
                needed = ceil(budget.tokens * step_tokens / max(1, first_tokens - 1))
                least = f"{'[budget] tokens = ' if is_own else 'BUDGET_TOKENS='}{rounded_up(needed)}"
                if self.scheduler.grace_frac is None and first_tokens in self.rung_tokens():
                    # grace_tokens do not follow the budget.
                    least = f"[scheduler] grace_tokens = {step_tokens}"
                raise UserError(
                    f"{sizes} is {step_tokens} tokens a step, and every trial is first evaluated after {first_tokens}. "
                    f"Set {least} or more, or {smaller}."
                )
            # Of a trial whose warm-up is not searched it is the user's.
            warmup = point.get("warmup_steps", self.user_settings.get("WARMUP_STEPS", 0))
            alike = [shape for shape in shapes if all(getattr(shape, name) == getattr(plain, name) for name in SIZES)]
            slowest = min([plain, *alike], key=budget.steps)
            steps = budget.steps(slowest)
            if point.get("lr_schedule", self.baseline.lr_schedule) in SCHEDULES_WITH_WARMUP and warmup > steps:
                raise UserError(
                    f"warmup_steps={warmup} is longer than the run of {steps} steps at {sizes}"
                    f"{f' in {slowest.precision}' if alike else ''}. "
                    "Lower it, raise the budget, or use warmup_frac, a share of the run."
                )

    @contextmanager
    def _placed(self) -> Iterator[None]:
        """Put the file's name, and the variables that change its content, before an error of a check."""
        try:
            yield
        except UserError as error:
            settings = " ".join(f"{name}={value}" for name, value in self.user_settings.items())
            raise UserError(f"{self.path}{settings and f' with {settings}'}: {error}") from None

    def domain(self, name: str) -> Domain | None:
        """Return the domain of a searched parameter, None for any other name."""
        return next((parameter.domain for parameter in self.parameters if parameter.name == name), None)

    def config_for(self, params: Mapping[str, Any]) -> TrialConfig:
        """Return the baseline with `params` in it and as many whole steps as fit into the budget.

        Inactive parameters are ignored; missing ones are the baseline's. The warm-up comes from an active warmup_frac
        or warmup_steps, else from the user's WARMUP_STEPS, else it is the baseline's share.
        """
        values = {**self._baseline_values(), **params}
        assert len(values) == len(self.parameters), f"{set(params)} are not all parameters of {self.path}"
        point = active_point(self.parameters, values)
        steps = point.pop("warmup_steps", None)
        frac = point.pop(WARMUP_FRAC, None)
        if steps is None and frac is None:
            steps = self.user_settings.get("WARMUP_STEPS")
        # The baseline's warm-up may be longer than this point's run, so it is left out here and put back as a share.
        config = make_config(replace(self.baseline, warmup_steps=0), point)
        share = self.baseline_warmup_frac if frac is None else frac
        assert share is not None
        return with_warmup(config, self.budget, frac=share, steps=steps)

    def milestones(self, config: TrialConfig) -> Milestones:
        """Return evaluation_tokens() with the steps at which a trial of the configuration is evaluated."""
        return self.budget.milestones(config, self.evaluation_tokens())

    def shapes(self) -> list[TrialConfig]:
        """Return the shapes, as shape_of() does, from whose speeds those of every possible trial follow.

        Conditions are ignored: an attribution combines values that no trial combines.
        """
        values: dict[str, list[Any]] = {}
        for name, domain in ((parameter.name, parameter.domain) for parameter in self.parameters):
            if name in MEASURED_SIZES:
                values[name] = size_nodes(name, domain)
            elif name in ("precision", "dropout", "use_lora", "lora_dropout", "lora_targets"):
                values[name] = list(domain.examples())
            else:
                continue
            # An inactive parameter has the baseline's value, also outside of its domain; without LoRA nobody reads it.
            own = getattr(self.baseline, name)
            if domain.contains(own) or not name.startswith("lora_"):
                values[name].append(own)
        grid = (dict(zip(values, point, strict=True)) for point in product(*values.values()))
        return list(dict.fromkeys(shape_of(replace(self.baseline, **point)) for point in ({}, *grid)))

    def baseline_params(self) -> dict[str, Any]:
        """Return the baseline as a point of the space: its active parameters."""
        return active_point(self.parameters, self._baseline_values())

    def baseline_with(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the baseline's point with `values` in it; what they make active is near to the baseline's."""
        own = self._baseline_values()
        near = {parameter.name: parameter.domain.nearest(own[parameter.name]) for parameter in self.parameters}
        return active_point(self.parameters, {**near, **values})

    def _baseline_values(self) -> dict[str, Any]:
        names = [parameter.name for parameter in self.parameters]
        return {n: self.baseline_warmup_frac if n == WARMUP_FRAC else getattr(self.baseline, n) for n in names}

    def grid_points(self, run: Iterable[TrialConfig] = ()) -> list[dict[str, Any]]:
        """Return the baseline's point, then every other combination of the choices, without those that have `run`.

        Of cells whose runs would be the same, such as warm-ups of a constant rate, the first stands for all.
        """
        assert self.searcher == "grid", self.searcher
        has_run = set(map(without_seed, run))
        return [cell for config, cell in self._cells.items() if config not in has_run]

    def planned_trials(self, run: Collection[TrialConfig]) -> int:
        """Return how many trials a search has in the end that began with `run`: a grid, those and its other cells."""
        return len(run) + len(self.grid_points(run)) if self.searcher == "grid" else self.trials

    @cached_property
    def _cells(self) -> Mapping[TrialConfig, dict[str, Any]]:
        cells: dict[TrialConfig, dict[str, Any]] = {}
        for cell in (self.baseline_params(), *every_point(self.parameters)):
            cells.setdefault(without_seed(self.config_for(cell)), cell)
        return cells

    def rung_tokens(self) -> tuple[int, ...]:
        """Return the token counts at which the scheduler may stop a trial, increasing."""
        return self.scheduler.rung_tokens(self.budget.tokens)

    def evaluation_tokens(self) -> tuple[int, ...]:
        """Return the token counts after which every trial is evaluated, increasing; the last is the budget.

        They are all rungs, and evenly spaced counts where no rung is near. A trial is evaluated at its last whole step
        whose tokens_seen does not exceed the count; under a budget of time, at the same share of its own tokens.
        """
        budget_tokens, count, rungs = self.budget.tokens, self.evaluation.count, self.rung_tokens()
        even = (budget_tokens * k // count for k in range(1, count))
        apart = (tokens for tokens in even if all(2 * count * abs(tokens - r) >= budget_tokens for r in rungs))
        return tuple(sorted({*rungs, *apart, budget_tokens}))

    @property
    def is_alone(self) -> bool:
        """Whether only the baseline is run."""
        return self.trials == 1 and not self.parameters

    def baseline_alone(self) -> "SearchSpace":
        """Return the space with nothing to search: only the baseline has to fit into the budget."""
        return replace(self, parameters=(), trials=1, ends_early=False, searcher="random")
