"""The lines of `make train`, with the speed of the last steps."""

import time
from collections import deque
from collections.abc import Callable

from trainable.rows import MetricsRow, StepRow, Verdict
from trainable.stability import Finding

PROGRESS_INTERVAL_STEPS = 25
SPEED_WINDOW_STEPS = 100


class TrainLog:
    """Turns the rows of one run into lines for `say`."""

    def __init__(self, training_steps: int, *, say: Callable[[str], None]) -> None:
        self._training_steps = training_steps
        self._say = say
        self._started_at = time.monotonic()
        # A window, because one stall lowers a mean since the start for the rest of the run.
        self._step_times_s: deque[float] = deque(maxlen=SPEED_WINDOW_STEPS)

    def tell(self, row: StepRow | MetricsRow | Finding | Verdict) -> None:
        """Print the lines of a row."""
        match row:
            case StepRow(optimizer_steps=step):
                self._step_times_s.append(row.step_time_s)
                if step % PROGRESS_INTERVAL_STEPS == 0:
                    left_m = (self._training_steps - step) / self._steps_per_s() / 60
                    self._say(
                        f"{self._at(step)} | {self._steps_per_s():.2f} steps/sec | ETA: {left_m:.1f}m | "
                        f"loss {row.train_loss:.4f} | grad norm {row.grad_norm:.4f}"
                    )
            case MetricsRow():
                self._say(
                    f"{self._at(row.optimizer_steps)}: train loss {row.train_loss:.4f}, val loss {row.val_loss:.4f} | "
                    f"LR: {row.learning_rate:.2e} | {time.monotonic() - self._started_at:.1f}s "
                    f"({self._steps_per_s():.2f} steps/sec)"
                )
            case Finding():
                self._say(f"step {row.step}: {row.kind}: {row.evidence}")
            case Verdict():
                self._say(f"step {row.step}: stopped, {row.reason}: {row.evidence}")

    def _at(self, step: int) -> str:
        return f"step {step}/{self._training_steps} ({100 * step / self._training_steps:.1f}%)"

    def _steps_per_s(self) -> float:
        return len(self._step_times_s) / sum(self._step_times_s) if self._step_times_s else 0.0
