"""A search as it was measured, and what it searched. Pure; it reads no file and draws no conclusion."""

import math
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from results.winner import Winner
from spaces.budget import Budget, budget_of
from spaces.domains import Choice, Domain, FloatRange, SearchParameter, active_point
from spaces.overrides import with_overrides
from spaces.read.load import space_from_tables
from spaces.warmup import WARMUP_FRAC
from trainable.config import HYPERPARAMETERS, SCHEDULES_WITH_WARMUP, TrialConfig, config_from
from trainable.errors import UserError

Row = dict[str, Any]

BLOWN_UP_NATS = 1.0
"""Above guessing: a loss that only a run that went wrong has, the baseline's among them, which nothing ends."""
MAX_CHOICES = 8
"""A number with more values than these is a range, where the space does not say."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A search as it was measured."""

    trials: Sequence[Row]
    """By trial_id; runs that confirm or attribute are not among them."""
    winner: Winner
    evaluations: Mapping[int, Sequence[Row]]
    """By trial_id, tokens rising."""
    parameters: tuple[SearchParameter, ...]
    """What was searched; a parent stands before its children."""
    domains_known: bool
    """Whether the domains are the space's; else they are what the trials happen to span."""
    budget: Budget
    rung_tokens: tuple[int, ...]
    uniform_loss: float = math.inf
    """ln V: what guessing costs."""

    def values(self, trial: Row) -> dict[str, Any]:
        """Return the trial's values of the searched parameters that it reads."""
        return active_point(self.parameters, parameter_values(trial))

    def domain_of(self, name: str) -> Domain | None:
        """Return what was searched of a parameter, None where it was fixed."""
        return next((parameter.domain for parameter in self.parameters if parameter.name == name), None)

    def loss_at(self, trial: Row, tokens: int) -> float | None:
        """Return the val_loss at the trial's last whole step within `tokens`, None where it was not evaluated there."""
        config = config_from(trial)
        own_tokens = self.budget.steps(config, tokens) * config.tokens_per_step
        rows = reversed(self.evaluations.get(trial["trial_id"], ()))
        return next((row["val_loss"] for row in rows if row["tokens_seen"] == own_tokens > 0), None)

    def final_loss(self, trial: Row) -> float | None:
        """Return the loss at the full budget, None for a trial that did not complete."""
        return trial["val_loss"] if trial["status"] == "completed" else None

    @property
    def initial_loss(self) -> float | None:
        """The study's start, else the median loss before the first step; None when nobody evaluated there."""
        if self.winner.start_val_loss is not None:
            return self.winner.start_val_loss
        rows = [rows[0] for rows in self.evaluations.values() if rows and rows[0]["tokens_seen"] == 0]
        losses = [row["val_loss"] for row in rows if row["val_loss"] is not None]
        return statistics.median(losses) if losses else None

    @property
    def loss_limit(self) -> float | None:
        """The highest loss that tells something: the start's, or a sound trial's above it; None without a start.

        A trial that makes the model worse is shown; one that blew up is not let flatten all others.
        """
        if self.initial_loss is None:
            return None
        sound = [trial["trial_id"] for trial in self.trials if trial["status"] != "unstable"]
        losses: list[float | None] = [row["val_loss"] for one in sound for row in self.evaluations.get(one, ())]
        bound = self.uniform_loss + BLOWN_UP_NATS
        return max([self.initial_loss, *(loss for loss in losses if loss is not None and loss <= bound)])


def parameter_values(trial: Row) -> Row:
    """Return a trial's hyperparameters, and its warm-up as a share too."""
    steps = trial["training_steps"]
    return {**{name: trial[name] for name in HYPERPARAMETERS}, WARMUP_FRAC: trial["warmup_steps"] / max(1, steps)}


def searched_parameters(document: Row, trials: Sequence[Row]) -> tuple[tuple[SearchParameter, ...], bool]:
    """Return what a study searched, and whether its space says so; else the parameters in which its trials differ."""
    space = document.get("space") or {}
    if document.get("kind", "search") == "search" and isinstance(space.get("toml"), str):
        try:
            tables = tomllib.loads(space["toml"])
            loaded = space_from_tables(tables, name=str(space.get("name")), path=str(space.get("path")))
            base = {name: value for name, value in document["baseline"].items() if name in HYPERPARAMETERS}
            return with_overrides(
                loaded,
                **_budget_of(document),
                pins=(document.get("settings") or {}).get("pins") or {},
                baseline=(str(document["baseline"].get("name", "")), TrialConfig(**base)),
            ).parameters, True
        except (UserError, tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError):
            pass  # Another version's space: the trials still show what differs among them.
    return _differing(trials), False


def _budget_of(document: Row) -> dict[str, Any]:
    budget = budget_of(document)
    if budget.device_s is None:
        return {"budget_tokens": budget.tokens}
    return {"device_s": budget.device_s, "speeds": budget.speeds}


def _differing(trials: Sequence[Row]) -> tuple[SearchParameter, ...]:
    rows = [parameter_values(trial) for trial in trials]
    for row in rows:
        row[WARMUP_FRAC] = row[WARMUP_FRAC] if row["lr_schedule"] in SCHEDULES_WITH_WARMUP else 0.0
    found = []
    for name in (*HYPERPARAMETERS, WARMUP_FRAC):
        values = sorted({row[name] for row in rows})
        if name in ("training_steps", "warmup_steps", "seed") or len(values) < 2:
            continue
        low, high = values[0], values[-1]
        domain: Domain
        if isinstance(low, str) or len(values) <= MAX_CHOICES:
            domain = Choice(tuple(values))
        else:
            domain = FloatRange(low, high, log=low > 0 and high / low > 30)
        found.append(SearchParameter(name, domain))
    return tuple(found)
