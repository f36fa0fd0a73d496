"""PlannedRun: a run before it starts, and what it is for; which of a plan's runs a study holds. It runs nothing."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any

from trainable.config import TrialConfig, config_from
from trainable.rows import ENDINGS, Purpose

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of a study: its configuration, seed included, and what it belongs to."""

    config: TrialConfig
    purpose: Purpose
    trial_id: int = -1
    """Its row in trials.parquet; negative until the run is numbered."""
    is_baseline: bool = False
    """Whether it is the one run that the study's trials are compared with."""
    of_trial: int | None = None
    """Of a confirmation run: the trial whose configuration it repeats."""
    attempt: int | None = None
    """Of a confirmation run: the attempt at a proof, from 1."""
    combination: str | None = None
    """Of an attribution run: which changes are made, joined by +."""
    point: Mapping[str, Any] | None = None
    """What a searcher proposed."""

    def columns(self) -> dict[str, Any]:
        """Return the run as columns of trials.parquet."""
        assert self.trial_id >= 0, self
        return {
            "trial_id": self.trial_id,
            "purpose": self.purpose,
            "is_baseline": self.is_baseline,
            "of_trial": self.of_trial,
            "attempt": self.attempt,
            "combination": self.combination,
            "point": None if self.point is None else json.dumps(self.point),
            **asdict(self.config),
        }


def rows_by_config(trials: Iterable[Row], purpose: Purpose) -> dict[TrialConfig, Row]:
    """Return a purpose's rows by configuration, seed included: where one was run again, the row that did not fail."""
    found: dict[TrialConfig, Row] = {}
    for row in trials:
        if row["purpose"] == purpose:
            config = config_from(row)
            if config not in found or found[config]["status"] == "failed":
                found[config] = row
    return found


def runs_left(plan: Sequence[PlannedRun], trials: Sequence[Row]) -> list[PlannedRun]:
    """Return, numbered, the runs of the plan that have yet to end; one that was cut off goes on in its own row.

    A run that failed, by a fault of the machine or the program, says nothing of its configuration: it is run again,
    in a new row. Runs are matched by purpose and configuration, never by number.
    """
    next_id = max((row["trial_id"] for row in trials), default=-1) + 1
    held = {purpose: rows_by_config(trials, purpose) for purpose in {run.purpose for run in plan}}
    left: dict[TrialConfig, PlannedRun] = {}
    for run in plan:
        row = held[run.purpose].get(run.config)
        if run.config in left or (row is not None and row["status"] in ENDINGS and row["status"] != "failed"):
            continue
        if row is not None and row["status"] not in ENDINGS:
            left[run.config] = replace(run, trial_id=row["trial_id"])
        else:
            left[run.config], next_id = replace(run, trial_id=next_id), next_id + 1
    return list(left.values())


def fresh_seeds(number: int, *, above: int, taken: Collection[int]) -> tuple[int, ...]:
    """Return the lowest seeds above `above` that are not taken: nothing was chosen by what happened on them."""
    return tuple(islice((seed for seed in count(above + 1) if seed not in taken), number))
