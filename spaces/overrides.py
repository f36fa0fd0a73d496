"""A search space with the user's variables applied: pinned hyperparameters, budget, trials, another baseline."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, InstanceOf, TypeAdapter, with_config

from spaces.budget import MAX_TOKENS, Budget, Speeds, budget_of, duration_text
from spaces.domains import (
    Choice,
    Condition,
    Domain,
    IntRange,
    SearchParameter,
    active_point,
    every_point,
    has_one_point,
    with_parents,
)
from spaces.protocol import AUTO
from spaces.read.load import space_from_toml
from spaces.read.space_files import shown_path
from spaces.space import SearchSpace
from spaces.warmup import WARMUP_FRAC, searched_steps, warmup_share, with_warmup
from trainable.config import DOCUMENTED, ENV_NAMES, TrialConfig, make_config, variable_of
from trainable.errors import UserError, check_bounds

Positive = Annotated[int, Field(strict=True, ge=1)]
Seconds = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class ConfirmAtEnd:
    """CONFIRM=1: what a search confirms once its trials have ended, in this process or a later one."""

    top: Positive
    seeds: Positive | None
    attempt: Positive = 1
    """Nothing is left to confirm once so many attempts have their verdicts."""

    def __post_init__(self) -> None:
        if self.seeds == 1:
            raise UserError("SEEDS=1: one seed has no scatter, so it proves nothing. Set SEEDS to 2 or more.")


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class Settings:
    """The user's changes to a space file, and what is to follow its trials; study.json keeps what asdict() gives."""

    trials: Positive | Literal["auto"] | None = None
    budget_tokens: Positive | None = None
    device_s: Seconds | None = None
    """A budget of time."""
    pins: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters fixed for every trial, the baseline included."""
    baseline: tuple[InstanceOf[str], TrialConfig] | None = None
    """Another baseline; domains are widened to hold it, as far as they can be."""
    compare: Literal["before", "documented"] | None = None
    """make baseline: the built-in configuration that runs beside the baseline."""
    confirm: ConfirmAtEnd | None = None


SETTINGS = TypeAdapter(Settings)
"""Reads and checks those of a study.json."""


def space_of_document(document: Mapping[str, Any]) -> tuple[SearchSpace, Settings]:
    """Return the space that a study.json says was searched, and the settings in it.

    Raises KeyError, TypeError or ValueError where the document does not hold it: another version wrote it.
    """
    settings, file = SETTINGS.validate_python(document["settings"]), document["space"]
    space = space_from_toml(file["toml"], name=file["name"], path=shown_path(Path(file["path"])))
    return space_of_kind(space, settings, document["kind"], budget_of(document).speeds), settings


def space_of_kind(space: SearchSpace, settings: Settings, kind: str, speeds: Speeds | None = None) -> SearchSpace:
    """Return the space as a study of that kind runs it, with the settings applied as by with_overrides()."""
    if kind == "baseline":
        space, settings = space.baseline_alone(), replace(settings, trials=None)
    return with_overrides(space, settings, speeds)


def with_overrides(space: SearchSpace, settings: Settings, speeds: Speeds | None = None) -> SearchSpace:
    """Return the space with all of the user's settings applied at once: only the result has to be valid.

    speeds: for a budget of time, which without them counts as endless. Raises UserError naming the variable, or when
    nothing is left to search.
    """
    trials, budget_tokens, device_s = settings.trials, settings.budget_tokens, settings.device_s
    # Earlier pins hold against the values that another baseline brings.
    earlier = {ENV_NAMES[name]: value for name, value in space.user_settings.items() if name in ENV_NAMES}
    pins = {**earlier, **_checked_pins(settings.pins)}
    budget = space.budget
    if budget_tokens is not None:
        check_bounds("BUDGET_TOKENS", budget_tokens, 1, MAX_TOKENS)
        budget = Budget(tokens=budget_tokens)
    elif device_s is not None:
        count = space.evaluation.count
        budget = Budget(tokens=MAX_TOKENS, device_s=device_s, evaluations=count, speeds=budget.speeds)
    if budget.device_s is not None and speeds is not None:
        budget = replace(budget, speeds=speeds)
    around = _around(space, pins, budget=budget, baseline=settings.baseline)
    evaluation = space.evaluation
    if evaluation.follows_baseline:
        evaluation = replace(evaluation, block_size=around["baseline"].block_size)
    given = {
        "TRIALS": trials,
        "BUDGET_TOKENS": budget_tokens,
        "BUDGET_TIME": None if device_s is None else duration_text(device_s),
    }
    result = replace(
        space,
        **around,
        budget=budget,
        evaluation=evaluation,
        trials=trials if isinstance(trials, int) else space.trials,
        ends_early=space.ends_early if trials is None else trials == AUTO,
        user_settings={
            **space.user_settings,
            **{variable_of(name): value for name, value in pins.items()},
            **{name: value for name, value in given.items() if value is not None},
        },
    )
    if isinstance(trials, int) and result.trials != trials:
        raise UserError(f"TRIALS={trials}: {space.path} is a grid, and all of its {result.trials} cells run. Unset it.")
    return result


def _around(
    space: SearchSpace, pins: Mapping[str, Any], *, budget: Budget, baseline: tuple[str, TrialConfig] | None
) -> dict[str, Any]:
    """Return SearchSpace's fields of the baseline, with the pins applied, and of the parameters that are left, with
    domains that contain it."""
    name, config = baseline or (space.baseline_name, space.baseline)
    share = space.baseline_warmup_frac if baseline is None else warmup_share(config, space.domain(WARMUP_FRAC))
    assert share is not None
    active = active_point(space.parameters, {**asdict(config), WARMUP_FRAC: share})
    # A warm-up in steps that is not read is 0 all the same.
    was_read = [key for key in active if config.reads(key) or key == "warmup_steps"]
    steps = searched_steps(config, space.domain("warmup_steps"))
    fixed = {key: value for key, value in pins.items() if key != "warmup_steps"}
    if any(getattr(config, key) != value for key, value in fixed.items() if key != "seed"):
        name = f"{name.removesuffix(', changed')}, changed"
    config = make_config(replace(config, warmup_steps=0), fixed)
    # Too short a time is refused where the space is checked, which names the least that works.
    if budget.speeds is None or budget.steps(config) >= 1:
        steps = None if steps is None else min(steps, budget.steps(config))
        config = with_warmup(config, budget, frac=share, steps=steps)
    parameters, new = _settled(
        _without_pinned(space, pins),
        {**asdict(config), WARMUP_FRAC: share},
        was_read=was_read,
        widen=baseline is not None,
    )
    share = new.pop(WARMUP_FRAC, share)
    config = make_config(config, new)
    return {"baseline_name": name, "baseline": config, "baseline_warmup_frac": share, "parameters": parameters}


def _checked_pins(pins: Mapping[str, Any]) -> dict[str, Any]:
    if "training_steps" in pins:
        raise UserError("TRAINING_STEPS is not for a search, whose trials get the same tokens. Set BUDGET_TOKENS.")
    return {name: getattr(make_config(DOCUMENTED, {name: value}), name) for name, value in pins.items()}


def _without_pinned(space: SearchSpace, pins: Mapping[str, Any]) -> tuple[SearchParameter, ...]:
    """Return the parameters that are not pinned, their conditions on pinned parents resolved."""
    dropped = {*pins, WARMUP_FRAC} if "warmup_steps" in pins else {*pins}
    pinned_conditions: dict[str, Condition | None] = {}
    inactive: set[str] = set()
    left = []
    for parameter in space.parameters:
        condition = parameter.condition
        if condition is not None and condition.parent in pinned_conditions:
            if pins[condition.parent] not in condition.values:
                inactive.add(parameter.name)
                continue
            condition = pinned_conditions[condition.parent]
        elif condition is not None and condition.parent in inactive:
            inactive.add(parameter.name)
            continue
        if parameter.name in dropped:
            pinned_conditions[parameter.name] = condition
        else:
            left.append(replace(parameter, condition=condition))
    if pins and has_one_point(left) and not space.is_alone:
        names = [variable_of(name) for name in pins if name in pinned_conditions or name == "warmup_steps"]
        one_of = "one of " if len(names) > 1 else ""
        raise UserError(f"{space.path}: nothing is left to search. Unset {one_of}{', '.join(names)}.")
    return tuple(left)


def _settled(
    parameters: Sequence[SearchParameter], values: Mapping[str, Any], *, was_read: Collection[str], widen: bool
) -> tuple[tuple[SearchParameter, ...], dict[str, Any]]:
    """Return the parameters, and the baseline's new values for those that a pin has made active.

    The baseline never read those, so it takes the nearest value of the domain. A value that it did read stays: with
    `widen` the domain gains it, without it the space's check refuses it.
    """
    new: dict[str, Any] = {}
    point: dict[str, Any] = {}
    settled = []
    for parameter in parameters:
        value = values[parameter.name]
        if parameter.is_active(point):
            if not parameter.domain.contains(value):
                if parameter.name not in was_read:
                    value = new[parameter.name] = parameter.domain.nearest(value)
                elif widen:
                    parameter = replace(parameter, domain=_widened(parameter.domain, value))
            point[parameter.name] = value
        settled.append(parameter)
    return tuple(settled), new


def _widened(domain: Domain, value: Any) -> Domain:
    """Return the domain widened to `value`, or unchanged where that is off its steps or not above 0 on a log scale."""
    if isinstance(domain, Choice):
        return Choice((*domain.values, value))
    off = isinstance(domain, IntRange) and (value - domain.low) % domain.step != 0
    if off or (domain.log and value <= 0):
        return domain
    return replace(domain, low=min(domain.low, value), high=max(domain.high, value))


def unread_words(space: SearchSpace) -> list[str]:
    """Return a line for each parameter that is searched and that no trial reads."""
    lines = []
    for name in (parameter.name for parameter in space.parameters):
        parent = "use_lora" if name.startswith("lora_") else "lr_schedule"
        chosen = with_parents(space.parameters, (name, parent))
        active = [point for point in every_point(chosen) if name in point]
        values = dict.fromkeys(point.get(parent, getattr(space.baseline, parent)) for point in active)
        if not any(replace(space.baseline, warmup_steps=0, **{parent: value}).reads(name) for value in values):
            words = " or ".join(map(str, values))
            lines.append(f"{name} is searched, and no trial reads it: {parent} is {words}")
    return lines


def widening_words(before: SearchSpace, after: SearchSpace) -> list[str]:
    """Return a line for each domain that was widened for the baseline."""
    was = {parameter.name: parameter.domain for parameter in before.parameters}
    return [
        f"{parameter.name} is searched in {parameter.domain} instead of {was[parameter.name]}, to hold the baseline"
        for parameter in after.parameters
        if was.get(parameter.name, parameter.domain) != parameter.domain
    ]
