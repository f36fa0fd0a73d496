"""SearchSpace: what a study searches, from where and within which budget, as one checked value. Reads no file."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from spaces.check import check_baseline, check_numbers, check_search, check_sizes, count_cells
from spaces.domains import Domain, SearchParameter, active_point, points
from spaces.overrides import overridden
from spaces.warmup import WARMUP_FRAC, warmup_share, with_warmup
from trainable.config import TrialConfig, make_config


@dataclass(frozen=True)
class Evaluation:
    """One protocol for every trial of a study."""

    block_size: int
    """Context length in tokens."""
    tokens: int
    """Held-out tokens scored per evaluation."""
    count: int
    """Evaluations per trial, about."""
    follows_baseline: bool = False
    """Whether block_size is the baseline's because the file does not name one."""


@dataclass(frozen=True)
class Scheduler:
    """Which trials are stopped early, and when the first one can be."""

    name: Literal["asha", "none"]
    grace_tokens: int
    reduction_factor: int
    grace_frac: float | None = None
    """grace_tokens as a share of the budget, when the file gives it so: it then follows the budget."""


@dataclass(frozen=True)
class Searcher:
    """Who proposes the trials."""

    name: Literal["tpe", "random", "grid"]


@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """A space file's content, checked as a whole whenever one is made.

    Raises UserError naming the file and the key.
    """

    name: str
    path: str
    """As shown to a person."""
    description: str
    baseline_name: str
    baseline: TrialConfig
    """Trial 0, with as many whole steps as fit into the budget."""
    parameters: tuple[SearchParameter, ...]
    """A parent stands before its children."""
    budget_tokens: int
    evaluation: Evaluation
    scheduler: Scheduler
    searcher: Searcher
    trials: int
    """The baseline included; with a grid, its number of cells."""
    stability: Mapping[str, Any] = field(default_factory=dict)
    """The file's [stability] table as it stands there."""
    baseline_warmup_frac: float | None = None
    """The baseline's warm-up as a share, free of the rounding to steps. None: as its steps have it."""
    toml: str = field(default="", compare=False, repr=False)
    """The file's text: what a study keeps of it, so that it need not be there any more."""
    user_settings: Mapping[str, Any] = field(default_factory=dict)
    """What the user's variables have changed, by variable name."""

    def __post_init__(self) -> None:
        check_numbers(self)
        check_search(self)
        check_sizes(self)
        share = self.baseline_warmup_frac
        if share is None:
            share = warmup_share(self.baseline, self.domain(WARMUP_FRAC))
            object.__setattr__(self, "baseline_warmup_frac", share)
        steps = self.user_settings.get("WARMUP_STEPS")
        baseline = with_warmup(self.baseline, self.budget_tokens, frac=share, steps=steps)
        object.__setattr__(self, "baseline", baseline)
        check_baseline(self)
        if self.searcher.name == "grid":
            object.__setattr__(self, "trials", count_cells(self))

    @property
    def where(self) -> str:
        """The file, and the user's variables that have changed what it says: an error's first words."""
        settings = " ".join(f"{name}={value}" for name, value in self.user_settings.items())
        return f"{self.path} with {settings}" if settings else self.path

    def domain(self, name: str) -> Domain | None:
        """Return the domain of a searched parameter, None for any other name."""
        return next((parameter.domain for parameter in self.parameters if parameter.name == name), None)

    def config_for(self, params: Mapping[str, Any]) -> TrialConfig:
        """Return the baseline with `params` in it and as many whole steps as fit into the budget.

        Inactive parameters are ignored; those not given are the baseline's. The warm-up is the one of an active
        warmup_frac or warmup_steps, else the user's WARMUP_STEPS, else the baseline's share.
        """
        values = {**self._baseline_values(), **params}
        assert len(values) == len(self.parameters), f"{set(params)} are not all parameters of {self.path}"
        point = active_point(self.parameters, values)
        steps = point.pop("warmup_steps", None)
        frac = point.pop(WARMUP_FRAC, None)
        if steps is None and frac is None:
            steps = self.user_settings.get("WARMUP_STEPS")
        config = make_config(replace(self.baseline, warmup_steps=0), point)
        share = self.baseline_warmup_frac if frac is None else frac
        assert share is not None
        return with_warmup(config, self.budget_tokens, frac=share, steps=steps)

    def baseline_params(self) -> dict[str, Any]:
        """Return the baseline as a point of the space: its active parameters."""
        return active_point(self.parameters, self._baseline_values())

    def _baseline_values(self) -> dict[str, Any]:
        names = [parameter.name for parameter in self.parameters]
        return {n: self.baseline_warmup_frac if n == WARMUP_FRAC else getattr(self.baseline, n) for n in names}

    def grid_points(self) -> list[dict[str, Any]]:
        """Return the baseline's point, then every other combination of the choices."""
        assert self.searcher.name == "grid", self.searcher
        baseline = self.baseline_params()
        cells = points(self.parameters, lambda parameter: parameter.domain.examples())
        return [baseline, *(cell for cell in cells if cell != baseline)]

    def rung_tokens(self) -> tuple[int, ...]:
        """Return the token counts at which the scheduler may stop a trial, increasing.

        A rung in the budget's last twentieth is left out: a trial that has as good as ended would count as stopped.
        """
        rungs: list[int] = []
        tokens = self.scheduler.grace_tokens
        while self.scheduler.name == "asha" and 20 * tokens <= 19 * self.budget_tokens:
            rungs.append(tokens)
            tokens *= self.scheduler.reduction_factor
        return tuple(rungs)

    def evaluation_tokens(self) -> tuple[int, ...]:
        """Return the token counts after which every trial is evaluated, increasing; the last is the budget.

        All rungs, and evenly spaced ones where no rung is near. A trial is evaluated at its last whole step whose
        tokens_seen does not exceed the count.
        """
        count, rungs = self.evaluation.count, self.rung_tokens()
        even = (self.budget_tokens * k // count for k in range(1, count))
        apart = (tokens for tokens in even if all(2 * count * abs(tokens - r) >= self.budget_tokens for r in rungs))
        return tuple(sorted({*rungs, *apart, self.budget_tokens}))

    @property
    def is_alone(self) -> bool:
        """Whether the baseline is all there is to run."""
        return self.trials == 1 and not self.parameters

    def baseline_alone(self) -> "SearchSpace":
        """Return the space with nothing to search: its sizes no longer ask for room in the budget."""
        return replace(self, parameters=(), trials=1, searcher=Searcher("random"))

    def pinned(self, values: Mapping[str, Any]) -> "SearchSpace":
        """Return the space with these hyperparameters fixed for every trial, the baseline included.

        Raises UserError when nothing is left to search.
        """
        return self.with_overrides(pins=values)

    def with_baseline(self, name: str, config: TrialConfig) -> "SearchSpace":
        """Return the space around another baseline: a choice gains its value, a range must hold it."""
        return self.with_overrides(baseline=(name, config))

    def with_overrides(
        self,
        *,
        trials: int | None = None,
        budget_tokens: int | None = None,
        pins: Mapping[str, Any] | None = None,
        baseline: tuple[str, TrialConfig] | None = None,
    ) -> "SearchSpace":
        """Return the space with all of the user's settings at once: only their sum has to be sound.

        Raises UserError naming the variable.
        """
        return overridden(self, trials=trials, budget_tokens=budget_tokens, pins=pins or {}, baseline=baseline)
