"""TrialLog: what a search knows of its trials, and ASHA's verdicts on them in the order of their numbers. No Ray."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from search.tune.early_end import EarlyEnd
from search.tune.history import KnownTrial
from trainable.config import TrialConfig, without_seed
from trainable.rows import TrialStatus


class TrialLog:
    """The trials of a search, kept up to date with every proposal, evaluation and ending, and the verdicts on them.

    A trial that is not among the best 1/reduction_factor at a rung is stopped there (ASHA, Li et al. 2020). It is
    compared with the trials numbered before it, not with those that were faster: verdicts and proposals are therefore
    the same on any number of slots, at any speed, and after any kill. While one of those has not reached the rung, the
    trial trains on; if it is stopped in the end, its results are cut at the rung.
    """

    def __init__(
        self,
        trials: Iterable[KnownTrial] = (),
        *,
        rung_tokens: tuple[int, ...] = (),
        reduction_factor: int = 3,
        baseline: TrialConfig | None = None,
        ends_early: bool = False,
    ) -> None:
        self.rung_tokens = rung_tokens
        self.reduction_factor = reduction_factor
        self._baseline = baseline and without_seed(baseline)
        self.recorded: list[dict[int, float]] = [{} for _ in rung_tokens]
        """Objective by trial_id, for each rung, of this study's own trials only: losses of a longer run would stop its
        best trials."""
        self._trials: dict[int, KnownTrial] = {}
        """As they ran, also beyond the rung of a late verdict."""
        self._passed: set[tuple[int, int]] = set()
        """(trial_id, rung) where a trial may go on."""
        self._stopped: dict[int, int] = {}
        """The rung where a trial is stopped, by trial_id."""
        self._new_stops: list[int] = []
        self.ends_early = ends_early
        self.early_end: EarlyEnd | None = None
        """Set when more trials would gain too little; then none is begun."""
        for trial in trials:
            self.begin(trial)
            for tokens, loss in trial.losses:
                self._record(trial.trial_id, tokens, loss)
            if trial.status == "stopped" and trial.losses:
                # Taken from the earlier process, which had the same information.
                rung = self.rung_of(trial.losses[-1][0])
                self._stopped |= {} if rung is None else {trial.trial_id: rung}
        self._judge()

    @property
    def trials(self) -> list[KnownTrial]:
        """The trials by trial_id, each with its results up to the rung it was stopped at."""
        return [self[trial_id] for trial_id in sorted(self._trials)]

    def __getitem__(self, trial_id: int) -> KnownTrial:
        trial, rung = self._trials[trial_id], self._stopped.get(trial_id)
        if rung is None:
            return trial
        return self._as_of(trial, rung)

    def begin(self, trial: KnownTrial) -> None:
        """Add a proposed trial."""
        self._trials[trial.trial_id] = trial

    def evaluate(self, trial_id: int, tokens: int, loss: float) -> bool:
        """Add an evaluation, unless a trial that went back to its checkpoint repeats it; return whether it goes on."""
        # Verdicts compare with <, which is False for NaN: a NaN trial would pass every rung.
        if not math.isfinite(loss):
            return self.is_baseline(trial_id)
        trial = self._trials[trial_id]
        if not trial.losses or tokens > trial.losses[-1][0]:
            self._trials[trial_id] = replace(trial, losses=(*trial.losses, (tokens, loss)))
            self._record(trial_id, tokens, loss)
            self._judge()
        rung = self.stopped_at(trial_id)
        # A trial that lost its worker may repeat evaluations that its row lacks, up to the rung of the verdict.
        return rung is None or tokens < self.rung_tokens[rung]

    def end(
        self, trial_id: int, status: TrialStatus, val_loss: float | None, part_losses: Sequence[float] = ()
    ) -> None:
        """Set how a trial ended, and its last evaluation."""
        ending: dict[str, Any] = {"status": status, "val_loss": val_loss, "part_losses": tuple(part_losses)}
        self._trials[trial_id] = replace(self._trials[trial_id], **ending)
        self._judge()

    def is_baseline(self, trial_id: int) -> bool:
        """Return whether the trial runs the baseline, which goes on whatever its losses."""
        return without_seed(self._trials[trial_id].config) == self._baseline

    def rung_of(self, fidelity_tokens: int) -> int | None:
        """Return the index of the highest rung at or below `fidelity_tokens`, or None."""
        return max((index for index, tokens in enumerate(self.rung_tokens) if fidelity_tokens >= tokens), default=None)

    def stopped_at(self, trial_id: int) -> int | None:
        """Return the rung at which the trial is stopped, None for one that is not."""
        return self._stopped.get(trial_id)

    def take_stops(self) -> list[int]:
        """Return the trials stopped since the last call."""
        stops, self._new_stops = self._new_stops, []
        return stops

    def is_settled(self, trial_id: int) -> bool:
        """Return whether the trial has ended and no verdict can change how."""
        if trial_id in self._stopped:
            return True
        return self._trials[trial_id].ended and not self._undecided(trial_id, len(self.rung_tokens))

    def at_first_rung(self, trial_id: int) -> KnownTrial | None:
        """Return the trial as of its first rung, or how it ended before one; None if neither is known yet."""
        first = next((rung for rung, recorded in enumerate(self.recorded) if trial_id in recorded), None)
        trial = self._trials[trial_id]
        if first is None:
            return trial if trial.ended else None
        return self._as_of(trial, first)

    def _as_of(self, trial: KnownTrial, rung: int) -> KnownTrial:
        """Return the trial as if it were stopped at the rung."""
        count = next(n for n, (tokens, _) in enumerate(trial.losses, start=1) if self.rung_of(tokens) == rung)
        return replace(trial, status="stopped", losses=trial.losses[:count], val_loss=trial.losses[count - 1][1])

    def _record(self, trial_id: int, tokens: int, loss: float) -> None:
        # Only at the highest rung: a large batch passes several rungs in a step, and its late loss must not be compared
        # with early losses of others.
        rung = self.rung_of(tokens)
        if rung is not None and math.isfinite(loss):
            self.recorded[rung].setdefault(trial_id, loss)

    def _judge(self) -> None:
        """Make the verdicts that can be made, in order: each may depend on those before it."""
        for trial_id in sorted(self._trials):
            if trial_id in self._stopped:
                continue
            for rung in self._undecided(trial_id, len(self.rung_tokens)):
                goes_on = self._goes_on(trial_id, rung)
                if goes_on:
                    self._passed.add((trial_id, rung))
                    continue
                if goes_on is False:
                    self._stopped[trial_id] = rung
                    self._new_stops.append(trial_id)
                break

    def _undecided(self, trial_id: int, below: int) -> list[int]:
        """Return the reached rungs lower than `below` that have no verdict yet."""
        reached = (rung for rung in range(below) if trial_id in self.recorded[rung])
        return [rung for rung in reached if (trial_id, rung) not in self._passed]

    def _goes_on(self, trial_id: int, rung: int) -> bool | None:
        """Return the verdict on a trial at a rung; None while it depends on a trial that has not got there."""
        if self.is_baseline(trial_id):
            return True
        objective = self.recorded[rung][trial_id]
        unknown = sum(self._may_yet_count(other, rung) for other in self._trials if other < trial_id)
        known = [
            loss
            for other, loss in self.recorded[rung].items()
            if other < trial_id and self._stopped.get(other, rung) >= rung and not self._may_yet_count(other, rung)
        ]
        better = sum(loss < objective for loss in known)
        count = len(known) + 1
        # The unknown ones may all turn out better, or all worse: a verdict that holds in both cases holds in any.
        if better + unknown < self._kept(count + unknown):
            return True
        return False if better >= self._kept(count + unknown) else None

    def _kept(self, count: int) -> int:
        return max(1, count // self.reduction_factor)

    def _may_yet_count(self, trial_id: int, rung: int) -> bool:
        """Return whether the trial may still count at the rung with an objective that is not known yet."""
        if trial_id in self._stopped:
            return False
        if self._undecided(trial_id, rung):
            return True
        trial = self._trials[trial_id]
        has_passed = bool(trial.losses) and (self.rung_of(trial.losses[-1][0]) or -1) > rung
        return trial_id not in self.recorded[rung] and not trial.ended and not has_passed
