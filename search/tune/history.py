"""What an earlier run of a search left in its tables, as the searcher and the rungs saw it then. It decides nothing."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainable.config import TrialConfig, config_from
from trainable.fidelity import fidelity_tokens, objective
from trainable.rows import ENDINGS, TrialStatus


@dataclass(frozen=True, kw_only=True)
class KnownTrial:
    """A trial that is known from before."""

    trial_id: int
    status: TrialStatus
    config: TrialConfig
    point: Mapping[str, Any]
    """What the searcher proposed."""
    losses: tuple[tuple[int, float], ...]
    """(fidelity_tokens, objective) of every evaluation that was judged, in order."""
    val_loss: float | None
    """The last one of all."""

    @property
    def ended(self) -> bool:
        """Whether the trial is over; one that is not goes on from its last checkpoint."""
        return self.status in ENDINGS


@dataclass(frozen=True, kw_only=True)
class History:
    """All that a search knows before its first proposal; nothing for a new one."""

    trials: Sequence[KnownTrial] = ()
    """The search's own, by trial_id."""
    next_trial_id: int = 0
    lessons: Sequence[KnownTrial] = ()
    """Another study's, with negative numbers: the searcher learns from them, nobody runs them again."""
    first_points: Sequence[Mapping[str, Any]] = ()
    """Points to run after the baseline, before anything is searched."""


NO_HISTORY = History()


def known_trials(
    trials: Sequence[Mapping[str, Any]], metrics: Sequence[Mapping[str, Any]], *, milestones_tokens: Sequence[int]
) -> list[KnownTrial]:
    """Return the trials of a search's rows, by trial_id. Raises KeyError for rows without a column."""
    rows_of: dict[int, list[Mapping[str, Any]]] = {row["trial_id"]: [] for row in trials}
    for one in metrics:
        if one["trial_id"] in rows_of:
            rows_of[one["trial_id"]].append(one)
    return [
        KnownTrial(
            trial_id=row["trial_id"],
            status=row["status"],
            config=config_from(row),
            point=json.loads(row["point"] or "{}"),
            losses=tuple(_judged(row, rows_of[row["trial_id"]], milestones_tokens)),
            val_loss=row["val_loss"],
        )
        for row in trials
    ]


def _judged(
    row: Mapping[str, Any], metrics: Sequence[Mapping[str, Any]], milestones_tokens: Sequence[int]
) -> Iterator[tuple[int, float]]:
    # The evaluation that completes a trial is its value and no rung's; an interrupted trial passes its last one again.
    judged = metrics if row["status"] in ("stopped", "unstable", "out_of_memory", "failed") else metrics[:-1]
    tokens_per_step = row["batch_size"] * row["block_size"] * row["grad_accum_steps"]
    for one in judged:
        tokens = fidelity_tokens(
            milestones_tokens, tokens_per_step=tokens_per_step, optimizer_steps=one["optimizer_steps"]
        )
        yield tokens, objective(one["val_loss"])
