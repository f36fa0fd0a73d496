"""StabilityMonitor: tells from each step's loss, gradient norm and time whether a run is sound; it stops nothing."""

import math
from collections.abc import Sequence
from typing import Any

from trainable.errors import UserError
from trainable.stability.loss_level import LOSS_LIMIT, LevelWatch
from trainable.stability.rules import StabilityRules
from trainable.stability.watches import NEVER_S, Finding, SpeedWatch, SpikeWatch, dump, restore

GRAD_NORM_LIMIT = 1e100  # larger ones would overflow when squared
DEFAULT_RULES = StabilityRules()


class StabilityMonitor:
    """Judges a run step by step, at a constant cost a step (measured by tests/benchmarks/stability_cost.py).

    unigram_entropy in nats/token; NaN when unknown, which switches off what compares with it.
    from_scratch: the weights began random, so a loss at the unigram entropy means that nothing was learned.
    """

    def __init__(
        self, *, budget_steps: int, unigram_entropy: float, from_scratch: bool, rules: StabilityRules = DEFAULT_RULES
    ) -> None:
        self._rules = rules
        self._level = LevelWatch(
            rules, budget_steps=budget_steps, unigram_entropy=unigram_entropy, from_scratch=from_scratch
        )
        self._spike = SpikeWatch(rules)
        self._speed = SpeedWatch(rules)
        self._watches = {"level": self._level, "spike": self._spike, "speed": self._speed}
        self._skips = 0
        self._nonfinite = False

    def update(
        self, *, step: int, loss: float, grad_norm: float | None, step_time_s: float | None, skipped: bool = False
    ) -> tuple[Finding, ...]:
        """Return what this step newly shows; mostly nothing. A kind is reported once an episode, a stop once a run.

        step: optimizer steps done, this one included. loss: nats/token. grad_norm: before the clip. None: not recorded.
        skipped: a loss scaler left this step's update out, so that non-finite values do not count.
        """
        found: list[Finding] = []
        loss = float(loss)
        finite = math.isfinite(loss)
        usable_grad_norm = grad_norm if grad_norm is not None and math.isfinite(grad_norm) else None
        is_bad = not finite or usable_grad_norm != grad_norm
        self._skips = self._skips + 1 if skipped else 0
        if (is_bad and not skipped) or self._skips >= self._rules.max_skipped_steps:
            if not self._nonfinite:
                self._nonfinite = True
                evidence = f"loss {loss:g}" + ("" if grad_norm is None else f", gradient norm {grad_norm:g}")
                if self._skips:
                    evidence = f"the loss scaler has skipped {self._skips} steps in a row: loss {loss:g}"
                found.append(Finding("nonfinite", step, "stop", evidence))
        elif finite:
            loss = min(max(loss, -LOSS_LIMIT), LOSS_LIMIT)
            if usable_grad_norm is not None:
                usable_grad_norm = min(max(float(usable_grad_norm), 0.0), GRAD_NORM_LIMIT)
            clipped = self._spike.update(found, step, loss, usable_grad_norm, self._level.median)
            self._level.update(found, step, loss, clipped)
        if step_time_s is not None and 0 < step_time_s < NEVER_S:
            self._speed.update(found, step, float(step_time_s))
        return tuple(found)

    @property
    def first_loss(self) -> float:
        """The first finite loss, nats/token; -inf before there is one."""
        return self._level.first[0] if self._level.first else -math.inf

    def state_dict(self) -> dict[str, Any]:
        """Return all that later judgements depend on: dicts, lists, numbers and None."""
        watches = {name: dump(watch) for name, watch in self._watches.items()}
        return {**watches, "skips": self._skips, "nonfinite": self._nonfinite}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken, with the same rules. Raises UserError when another version wrote it."""
        try:
            for name, watch in self._watches.items():
                restore(watch, state[name])
            self._skips, self._nonfinite = state["skips"], state["nonfinite"]
        except KeyError as error:
            raise UserError(
                f"the checkpoint's stability state was written by another version (at {error}). Resume without it."
            ) from None


def judge_trace(
    loss: Sequence[float | str],
    grad_norm: Sequence[float | str | None] | None,
    step_time_s: Sequence[float | str | None] | None,
    *,
    budget_steps: int,
    unigram_entropy: float,
    from_scratch: bool,
    skipped: Sequence[bool] | None = None,
) -> list[Finding]:
    """Return what a StabilityMonitor finds in a recorded run, up to and with its first stop.

    One entry an optimizer step; a finding's step is its index + 1. Entries are numbers, or text such as 'nan', 'inf'.
    None, for an entry or the whole, is not recorded; NaN is really non-finite. skipped: steps a loss scaler left out.
    Raises ValueError when the lengths differ.
    """
    monitor = StabilityMonitor(budget_steps=budget_steps, unigram_entropy=unigram_entropy, from_scratch=from_scratch)
    findings: list[Finding] = []
    unknown, taken = [None] * len(loss), [False] * len(loss)
    columns = zip(loss, grad_norm or unknown, step_time_s or unknown, skipped or taken, strict=True)
    for step, (value, norm, time_s, is_skipped) in enumerate(columns, start=1):
        new = monitor.update(
            step=step,
            loss=float(value),
            grad_norm=None if norm is None else float(norm),
            step_time_s=None if time_s is None else float(time_s),
            skipped=is_skipped,
        )
        findings += new
        if any(finding.severity == "stop" for finding in new):
            break
    return findings
