"""The measurements of a search, and the parameters it searched. Pure; it reads no file and draws no conclusion."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from results.winner import Winner
from spaces.budget import Budget
from spaces.domains import Choice, Domain, FloatRange, SearchParameter, near_point
from spaces.overrides import space_of_document
from spaces.warmup import WARMUP_FRAC
from trainable.config import HYPERPARAMETERS, SCHEDULES_WITH_WARMUP, TrialConfig, config_from

Row = dict[str, Any]

BLOWN_UP_NATS = 1.0
"""Above the uniform loss: a loss of a run that blew up. The baseline's can be so large, because nothing ends it."""
MAX_CHOICES = 8
"""Where the space is not known, a number with more values than these is a range."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A search's trials and evaluations, and what they are judged by."""

    trials: Sequence[Row]
    """By trial_id, without runs that confirm or attribute."""
    winner: Winner
    evaluations: Mapping[int, Sequence[Row]]
    """By trial_id, tokens rising."""
    parameters: tuple[SearchParameter, ...]
    """The searched parameters, parents before their children."""
    domains_known: bool
    """Whether the domains are the space's; else they are the values of the trials."""
    budget: Budget
    rung_tokens: tuple[int, ...]
    uniform_loss: float
    """ln V, the loss of guessing."""

    def values(self, trial: Row) -> dict[str, Any]:
        """Return the trial's values of the searched parameters that it reads."""
        return self._values[trial["trial_id"]]

    @cached_property
    def _configs(self) -> dict[int, TrialConfig]:
        return {trial["trial_id"]: config_from(trial) for trial in self.trials}

    @cached_property
    def _values(self) -> dict[int, dict[str, Any]]:
        points = {trial["trial_id"]: near_point(self.parameters, parameter_values(trial)) for trial in self.trials}
        reads = {trial_id: config.reads for trial_id, config in self._configs.items()}
        return {key: {name: v for name, v in point.items() if reads[key](name)} for key, point in points.items()}

    @property
    def learning_rates(self) -> Domain | None:
        """The domain of the learning rate, None where it was fixed."""
        return next((one.domain for one in self.parameters if one.name == "learning_rate"), None)

    def loss_at(self, trial: Row, tokens: int) -> float | None:
        """Return the val_loss at the trial's last whole step within `tokens`, None where it was not evaluated there."""
        config = self._configs[trial["trial_id"]]
        own_tokens = self.budget.steps(config, tokens) * config.tokens_per_step
        rows = reversed(self.evaluations.get(trial["trial_id"], ()))
        return next((row["val_loss"] for row in rows if row["tokens_seen"] == own_tokens > 0), None)

    @property
    def initial_loss(self) -> float | None:
        """The study's start, else the median loss before the first step; None where neither was evaluated."""
        if self.winner.start_val_loss is not None:
            return self.winner.start_val_loss
        rows = [rows[0] for rows in self.evaluations.values() if rows and rows[0]["tokens_seen"] == 0]
        losses = [row["val_loss"] for row in rows if row["val_loss"] is not None]
        return statistics.median(losses) if losses else None

    @property
    def loss_limit(self) -> float | None:
        """The highest loss that a figure has to show, None where nothing is known to measure it by.

        The highest of start, baseline and best trial, and as much again above it as the lowest loss lies below: a trial
        that made the model worse is shown, and one that blew up or was stopped far above does not flatten all others.
        """
        bound = self.uniform_loss + BLOWN_UP_NATS
        start = [] if self.initial_loss is None else [self.initial_loss]
        seen, measures, ends = [*start], [*start], []
        for trial in self.trials:
            rows = self.evaluations.get(trial["trial_id"], ())
            within = [row["val_loss"] for row in rows if row["val_loss"] is not None and row["val_loss"] <= bound]
            if within and trial["status"] != "unstable":
                seen += within
                ends.append(within[-1])
                measures += within[-1:] if trial["is_baseline"] else []
        measures += sorted(ends)[:1]
        return 2 * max(measures) - min(seen) if measures else None


def parameter_values(trial: Row) -> Row:
    """Return a trial's hyperparameters, and its warm-up as a share too."""
    steps = trial["training_steps"]
    return {**{name: trial[name] for name in HYPERPARAMETERS}, WARMUP_FRAC: trial["warmup_steps"] / max(1, steps)}


def searched_parameters(document: Row, trials: Sequence[Row]) -> tuple[tuple[SearchParameter, ...], bool]:
    """Return the searched parameters, and whether the study's space names them: else they are those that differ."""
    if document["kind"] == "search":
        try:
            return space_of_document(document)[0].parameters, True
        except (KeyError, TypeError, ValueError):
            pass  # Another version's space: the trials still show what differs among them.
    return _differing(trials), False


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
