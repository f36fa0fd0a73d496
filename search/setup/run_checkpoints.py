"""The checkpoints that `make train` keeps: the newest ones, and that of the lowest validation loss."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from results.model_card import Row, best_evaluation
from results.study.paths import shown
from results.winner import is_worse, worse_words
from trainable.checkpoint.checkpoint_path import checkpoint_name

if TYPE_CHECKING:
    from trainable.state import TrainState

NEWEST_KEPT = 3


@dataclass(kw_only=True)
class RunCheckpoints:
    """The checkpoints of one run on disk; every method raises OSError."""

    folder: Path
    interval_steps: int | None
    """None keeps nothing."""
    model_name: str
    corpus_fingerprint: str
    evaluations: Sequence[Row] = ()
    """So far, as metrics.parquet has them."""
    _newest: list[int] = field(default_factory=list)
    _saved: set[int] = field(default_factory=set)

    def after_step(self, state: "TrainState") -> None:
        """Save if the interval is over."""
        if self.interval_steps and state.optimizer_steps % self.interval_steps == 0:
            self._keep(state, as_newest=True)

    def after_evaluation(self, state: "TrainState", evaluations: Sequence[Row]) -> None:
        """Save if the last evaluation is the run's lowest loss."""
        self.evaluations = evaluations
        if self.interval_steps and self.best_step == state.optimizer_steps:
            self._keep(state, as_newest=False)

    def at_end(self, state: "TrainState", *, begun_at_step: int) -> None:
        """Save the last step, if there was one."""
        if self.interval_steps and state.optimizer_steps > begun_at_step:
            self._keep(state, as_newest=True)

    @property
    def best_step(self) -> int | None:
        """The step of the lowest validation loss, where there is one."""
        best = best_evaluation(self.evaluations)
        return None if best is None else best["optimizer_steps"]

    @property
    def best_path(self) -> Path | None:
        """The checkpoint of the lowest validation loss; None without one."""
        return None if self.best_step is None or not self.interval_steps else self._path(self.best_step)

    @property
    def words(self) -> str | None:
        """A line on the lowest validation loss and its checkpoint; None before there is one."""
        best = best_evaluation(self.evaluations)
        if best is None:
            return None
        place = f": {shown(self.best_path)}" if self.best_path else ""
        return f"lowest validation loss {best['val_loss']:.4f} at step {best['optimizer_steps']}{place}"

    @property
    def warning(self) -> str | None:
        """A line for a run that ended no lower than it started; None for any other."""
        best = best_evaluation(self.evaluations)
        if best is None:
            return None
        start, end = (self.evaluations[place]["val_loss"] for place in (0, -1))
        worse = worse_words("the run", end, start)
        if worse is None:
            return None
        if is_worse(best["val_loss"], start):
            return f"{worse}, and no evaluation was below the start"
        return f"{worse}; at step {best['optimizer_steps']} it was better, {best['val_loss']:.4f}"

    def _keep(self, state: "TrainState", *, as_newest: bool) -> None:
        from trainable.checkpoint.checkpoint import save_checkpoint

        step = state.optimizer_steps
        if step not in self._saved:
            path, fingerprint = self._path(step), self.corpus_fingerprint
            save_checkpoint(state, path, model_name=self.model_name, corpus_fingerprint=fingerprint)
            self._saved.add(step)
        if as_newest and step not in self._newest:
            self._newest = [*self._newest, step][-NEWEST_KEPT:]
        for other in self._saved - {*self._newest, self.best_step}:
            self._path(other).unlink(missing_ok=True)
            self._saved.remove(other)

    def _path(self, step: int) -> Path:
        return self.folder / checkpoint_name(step)
