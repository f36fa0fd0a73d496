"""History: the trials that a search knows before it starts, from its own tables and another study's."""

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import ConfigDict, with_config

from spaces.budget import Milestones
from trainable.config import TrialConfig, config_from
from trainable.rows import ENDINGS, TrialStatus, fidelity_tokens, objective


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class KnownTrial:
    """A trial as the searcher and the rungs know it."""

    trial_id: int
    status: TrialStatus
    config: TrialConfig
    point: Mapping[str, Any] | None
    """The searcher's proposal; None for a planned run."""
    losses: tuple[tuple[int, float], ...] = ()
    """(fidelity_tokens, objective) of every evaluation before the final one, in order."""
    val_loss: float | None = None
    """Of the last evaluation."""
    part_losses: tuple[float, ...] = ()
    """Of a completed trial: val_loss on equal parts of the held-out windows."""

    @property
    def ended(self) -> bool:
        """Whether the trial has ended; any other goes on from its last checkpoint."""
        return self.status in ENDINGS


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """Trials of another study for the searcher. They enter no rung and no table of this study."""

    source: str
    told: Sequence[KnownTrial] = ()
    """Numbered below 0. Only those with comparable losses; those of a smaller budget count as stopped there."""
    first_points: Sequence[Mapping[str, Any]] = ()
    """The source's best as points of this space; they run right after the baseline."""

    @property
    def words(self) -> str:
        """A line for a person."""
        told = (
            f"{len(self.told)} of its results are told to the searcher"
            if self.told
            else "its losses cannot be compared"
        )
        best = len(self.first_points)
        if not best and not self.told:
            return f"nothing is learned from study {self.source}: {told}"
        return f"learning from study {self.source}: {told}{f'; its best {best} run after the baseline' if best else ''}"


@dataclass(frozen=True, kw_only=True)
class History:
    """What a search knows before its first proposal; nothing for a new one."""

    trials: Sequence[KnownTrial] = ()
    """The search's own, by trial_id."""
    other_ids: Collection[int] = ()
    """The numbers of the study's other runs, such as confirmations."""
    warm_start: WarmStart | None = None


NO_HISTORY = History()


def known_trials(
    trials: Sequence[Mapping[str, Any]],
    metrics: Sequence[Mapping[str, Any]],
    *,
    milestones: Callable[[TrialConfig], Milestones],
    part_losses: Mapping[int, Sequence[float]] = MappingProxyType({}),
) -> list[KnownTrial]:
    """Return the trials of a search's rows, by trial_id. Raises KeyError for rows without a column.

    milestones: of a configuration.
    """
    rows_of: dict[int, list[Mapping[str, Any]]] = {row["trial_id"]: [] for row in trials}
    for one in metrics:
        if one["trial_id"] in rows_of:
            rows_of[one["trial_id"]].append(one)
    found = []
    for row in trials:
        config = config_from(row)
        found.append(
            KnownTrial(
                trial_id=row["trial_id"],
                status=row["status"],
                config=config,
                point=json.loads(row["point"]) if row["point"] else None,
                losses=tuple(_losses(row, rows_of[row["trial_id"]], milestones(config))),
                val_loss=row["val_loss"],
                part_losses=tuple(part_losses.get(row["trial_id"], ())),
            )
        )
    return found


def _losses(
    row: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], milestones: Milestones
) -> Iterator[tuple[int, float]]:
    reached = -1
    for one in metrics:
        if one["optimizer_steps"] >= row["training_steps"]:
            # The final evaluation is the trial's value and belongs to no rung.
            return
        tokens = fidelity_tokens(milestones, optimizer_steps=one["optimizer_steps"])
        if tokens > reached:
            reached = tokens
            yield tokens, objective(one["val_loss"])
