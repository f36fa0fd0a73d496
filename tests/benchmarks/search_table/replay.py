"""A search replayed on recorded curves, in simulated slots. It trains nothing and knows no searcher."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

DECADES_APART: Mapping[str, float] = {"batch_size": 0.2, "block_size": 0.2, "lr_schedule": 0.3, "warmup_frac": 0.5}
"""How far apart configurations count, in decades of the learning rate: for each doubling of batch and block, another
schedule, and a warm-up longer by the whole run."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One recorded run."""

    number: int
    tokens_per_step: int
    steps: int
    """Done when it ended."""
    eval_steps: Sequence[int]
    val_loss: Sequence[float]
    is_unstable: bool
    step_s: float
    eval_s: float

    @property
    def final_loss(self) -> float:
        """After the whole budget; infinite where it never got there."""
        return math.inf if self.is_unstable else self.val_loss[-1]

    def loss_at(self, steps: int) -> float:
        """Return the validation loss after so many steps, linear between two evaluations."""
        return float(np.interp(steps, self.eval_steps, self.val_loss)) if self.eval_steps else 10.0


class CurveTable:
    """The curves of one kind at one budget, found by configuration."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], budget_tokens: int) -> None:
        self.budget_tokens = budget_tokens
        # The speed belongs to the shape: a single run's may have been measured on a busy machine.
        step_s, eval_s = _medians(rows, "step_s"), _medians(rows, "eval_s")
        self.curves = [
            Curve(
                number=row["number"],
                tokens_per_step=row["batch_size"] * row["block_size"],
                steps=row["steps"],
                eval_steps=row["eval_steps"],
                val_loss=row["val_loss"],
                is_unstable=row["status"] == "unstable",
                step_s=step_s[_shape(row)],
                eval_s=min(eval_s.values()),
            )
            for row in rows
        ]
        self._places = np.array([_place(row) for row in rows])
        self._schedules = np.array([row["lr_schedule"] for row in rows])
        self.best = min(self.curves, key=lambda curve: curve.final_loss)
        gentlest = min(rows, key=lambda row: row["learning_rate"])
        self.start_loss = float(gentlest["val_loss"][0])
        """About what it is before any step: the smallest rate has hardly moved it at its first evaluation."""
        full = [curve.step_s * budget_tokens / curve.tokens_per_step for curve in self.curves]
        self.full_trial_s = sum(full) / len(full)
        """Of a run of the whole budget, the mean over the table."""

    def nearest(self, point: Mapping[str, Any]) -> Curve:
        """Return the curve of the configuration next to a proposed one, the same for every searcher."""
        apart = np.abs(self._places - _place(point)).sum(axis=1)
        apart += DECADES_APART["lr_schedule"] * (self._schedules != point["lr_schedule"])
        return self.curves[int(apart.argmin())]


def _shape(row: Mapping[str, Any]) -> tuple[int, int]:
    return row["batch_size"], row["block_size"]


def _medians(rows: Sequence[Mapping[str, Any]], name: str) -> dict[tuple[int, int], float]:
    by_shape: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        by_shape.setdefault(_shape(row), []).append(row[name])
    return {shape: float(np.nanmedian(values)) for shape, values in by_shape.items()}


def _place(point: Mapping[str, Any]) -> list[float]:
    warmup = point.get("warmup_frac") if point["lr_schedule"] != "constant" else None
    return [
        math.log10(point["learning_rate"]),
        DECADES_APART["batch_size"] * math.log2(point["batch_size"]),
        DECADES_APART["block_size"] * math.log2(point["block_size"]),
        DECADES_APART["warmup_frac"] * (warmup or 0.0),
    ]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """What a search wants trained."""

    key: Any
    point: Mapping[str, Any]
    from_tokens: int = 0
    """Trained before, by a proposal that this one goes on from."""
    to_tokens: int | None = None
    """None: the whole budget."""


class Search(Protocol):
    """A searcher and its scheduler, as the replay sees them."""

    @property
    def mark_tokens(self) -> Sequence[int]:
        """After which it is told of a trial's loss."""

    def ask(self) -> Proposal | None:
        """Return what is to be trained next, None while it waits for results. Raises StopIteration at its end."""

    def goes_on(self, key: Any, mark_tokens: int, loss: float) -> bool:
        """Take a loss; return whether the trial goes on."""

    def end(self, key: Any, loss: float | None) -> None:
        """Take how a trial that nobody stopped ended: its last loss, or None for an unstable one."""

    def counts(self, key: Any) -> bool:
        """Return whether a trial that was trained in full is among the search's results."""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A configuration that has been trained in full."""

    key: Any
    """The search's own."""
    tokens: int
    """All that was trained by then, in all slots."""
    wall_s: float
    curve: Curve


@dataclass(kw_only=True)
class _Trial:
    proposal: Proposal
    curve: Curve
    steps: int
    end_steps: int
    began_s: float = 0.0
    marks: list[tuple[int, int]] = field(default_factory=list)
    """(steps, mark_tokens) that are still to come."""

    @property
    def next_steps(self) -> int:
        return self.marks[0][0] if self.marks else self.end_steps

    @property
    def next_s(self) -> float:
        return self.began_s + (self.next_steps - self.steps) * self.curve.step_s + self.curve.eval_s

    def tokens_at(self, now_s: float) -> float:
        share = min(1.0, (now_s - self.began_s) / (self.next_s - self.began_s))
        return (self.steps + share * (self.next_steps - self.steps)) * self.curve.tokens_per_step


def replay(search: Search, table: CurveTable, *, slots: int, most_tokens: float) -> list[Completed]:
    """Return what a search completes on the table, in order, until it has trained `most_tokens` or is over."""
    running: list[_Trial] = []
    completed: list[Completed] = []
    ended_tokens, now_s, is_over = 0.0, 0.0, False

    def spent() -> float:
        begun = sum(trial.tokens_at(now_s) - trial.proposal.from_tokens for trial in running)
        return ended_tokens + begun

    while True:
        while not is_over and len(running) < slots:
            try:
                proposal = search.ask()
            except StopIteration:
                is_over = True
                break
            if proposal is None:
                assert running, "the search waits, and nothing runs"
                break
            running.append(_begin(proposal, table, search.mark_tokens, now_s))
        if not running:
            break
        trial = min(running, key=lambda one: one.next_s)
        now_s, trial.steps, trial.began_s = trial.next_s, trial.next_steps, trial.next_s
        key, curve = trial.proposal.key, trial.curve
        if trial.marks:
            steps, mark_tokens = trial.marks.pop(0)
            if search.goes_on(key, mark_tokens, curve.loss_at(steps)):
                continue
        elif curve.is_unstable and trial.end_steps == curve.steps:
            search.end(key, None)
        else:
            search.end(key, curve.loss_at(trial.end_steps))
            if trial.proposal.to_tokens in (None, table.budget_tokens):
                completed.append(Completed(key=key, tokens=round(spent()), wall_s=now_s, curve=curve))
        ended_tokens += trial.steps * curve.tokens_per_step - trial.proposal.from_tokens
        running.remove(trial)
        if spent() >= most_tokens:
            break
    return [one for one in completed if search.counts(one.key)]


def _begin(proposal: Proposal, table: CurveTable, mark_tokens: Sequence[int], now_s: float) -> _Trial:
    curve = table.nearest(proposal.point)
    to_tokens = table.budget_tokens if proposal.to_tokens is None else proposal.to_tokens
    steps, end_steps = (tokens // curve.tokens_per_step for tokens in (proposal.from_tokens, to_tokens))
    end_steps = min(max(1, end_steps), curve.steps)
    marks = {tokens // curve.tokens_per_step: tokens for tokens in sorted(mark_tokens)}
    return _Trial(
        proposal=proposal,
        curve=curve,
        steps=min(steps, end_steps),
        end_steps=end_steps,
        began_s=now_s,
        marks=[(at, tokens) for at, tokens in marks.items() if steps < at < end_steps],
    )
