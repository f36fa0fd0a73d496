"""PlannedRun: a run before it starts; and which runs of a plan a study has already. It runs nothing."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count, islice
from typing import Any

from trainable.config import HYPERPARAMETERS, TrialConfig, config_from
from trainable.rows import ENDINGS, Purpose

Row = dict[str, Any]
"""A table's row: value by column name; null is None, a time is aware and in UTC."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of a study: its configuration with the seed, and its purpose."""

    config: TrialConfig
    purpose: Purpose
    trial_id: int = -1
    """Negative until the run is numbered. Columns of trials.parquet: see tables.TRIALS."""
    is_baseline: bool = False
    of_trial: int | None = None
    attempt: int | None = None
    combination: str | None = None
    point: Mapping[str, Any] | None = None

    def columns(self) -> dict[str, Any]:
        """Return the run as columns of trials.parquet."""
        assert self.trial_id >= 0, self
        columns = asdict(self)
        point = None if self.point is None else json.dumps(self.point)
        return {**columns.pop("config"), **columns, "point": point}


def has_result(row: Row | None) -> bool:
    """Return whether a run has ended with a result. One that failed, by a fault of the machine or the program, has none
    and is run again."""
    return row is not None and row["status"] in ENDINGS and row["status"] != "failed"


def rows_by_config(trials: Iterable[Row], purpose: Purpose) -> dict[TrialConfig, Row]:
    """Return a purpose's rows by configuration with seed; of several runs of one, the row that did not fail."""
    found: dict[TrialConfig, Row] = {}
    for row in trials:
        if row["purpose"] == purpose:
            config = config_from(row)
            if config not in found or found[config]["status"] == "failed":
                found[config] = row
    return found


def runs_left(plan: Sequence[PlannedRun], trials: Sequence[Row]) -> list[PlannedRun]:
    """Return the runs of the plan that have no result yet, numbered.

    An interrupted run goes on in its own row, a failed one is run again in a new one. Runs are matched by purpose and
    configuration, never by number.
    """
    next_id = max((row["trial_id"] for row in trials), default=-1) + 1
    held = {purpose: rows_by_config(trials, purpose) for purpose in {run.purpose for run in plan}}
    left: dict[TrialConfig, PlannedRun] = {}
    for run in plan:
        row = held[run.purpose].get(run.config)
        if run.config in left or has_result(row):
            continue
        if row is not None and row["status"] not in ENDINGS:
            left[run.config] = replace(run, trial_id=row["trial_id"])
        else:
            left[run.config], next_id = replace(run, trial_id=next_id), next_id + 1
    return list(left.values())


def fresh_seeds(number: int, *, above: int, taken: Collection[int]) -> tuple[int, ...]:
    """Return the lowest seeds above `above`, after the highest from 0 on, that are not taken: no trial was chosen by
    its loss on them."""
    seeds = int(HYPERPARAMETERS["seed"].metadata["high"]) + 1
    return tuple(islice((seed for one in count(above + 1) if (seed := one % seeds) not in taken), number))
