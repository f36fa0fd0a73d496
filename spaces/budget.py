"""The budget of a trial: training tokens, or device time, which the measured speed of its shape turns into steps.

A budget of time is counted in the baseline's tokens too. Rungs and milestones thus have the same numbers for every
trial, and are the same shares of each trial's own run.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from spaces.domains import Choice, Domain
from trainable.config import DOCUMENTED, TrialConfig, make_config, shape_of
from trainable.errors import UserError

RANGE_NODES = 5
Milestones = tuple[tuple[int, int], ...]
"""(tokens of the budget, the optimizer step at which a trial has used them), increasing."""

UNITS_S = {"h": 3600, "m": 60, "s": 1}
MAX_DEVICE_S = 60 * 10**6
MAX_TOKENS = 10**12
"""Stands for a budget of time too until speeds are measured, so that nothing is refused too early."""
MEASURED_SIZES = ("batch_size", "block_size", "grad_accum_steps", "lora_rank")
"""The sizes that a step's time grows with. Between two measured sizes the time is interpolated linearly: a step has a
constant part and one proportional to sequences, tokens, micro-batches or rank."""


def parse_duration(text: str) -> float:
    """Return the seconds in a text such as 10m, 90s, 2h, 1h30m or 600. Raises ValueError."""
    number = r"(\d+(?:\.\d+)?)"
    match = re.fullmatch(rf"(?:{number}h)?(?:{number}m)?(?:{number}s)?|{number}", text.lower())
    units_s = (*UNITS_S.values(), 1)
    parts = match.groups() if match else ()
    seconds = math.fsum(float(part) * unit_s for part, unit_s in zip(parts, units_s, strict=False) if part)
    if not 0 < seconds <= MAX_DEVICE_S:
        raise ValueError("is not a time of more than 0 and at most 10^6 minutes")
    return seconds


def duration_text(seconds: float) -> str:
    """Return seconds as parse_duration() reads them, in the largest unit that divides them."""
    unit = next((unit for unit, unit_s in UNITS_S.items() if seconds % unit_s == 0), "s")
    return f"{seconds / UNITS_S[unit]:.15g}{unit}"


@dataclass(frozen=True, kw_only=True)
class Speeds:
    """How long a step and an evaluation take on a study's device, while all of the study's slots train."""

    step_s: Mapping[TrialConfig, float]
    """By shape_of(): a grid of the shapes that were measured."""
    evaluation_s: float

    def seconds_a_step(self, config: TrialConfig) -> float:
        """Return the time of a step of the configuration. Raises UserError for a shape outside the measured grid."""
        shape = shape_of(config)
        try:
            return self._between(shape, MEASURED_SIZES)
        except (KeyError, ValueError):
            raise UserError(
                f"no speed is known of batch_size={shape.batch_size} x block_size={shape.block_size} x "
                f"grad_accum_steps={shape.grad_accum_steps} in {shape.precision}. Start a new study, which measures it."
            ) from None

    def _between(self, shape: TrialConfig, sizes: Sequence[str]) -> float:
        """Return the time interpolated along `sizes`. Raises KeyError or ValueError outside the measured grid."""
        if shape in self.step_s or not sizes:
            return self.step_s[shape]
        name, *rest = sizes
        value = getattr(shape, name)
        nodes = {getattr(one, name) for one in self.step_s if _but_sizes(one) == _but_sizes(shape)}
        low, high = max(node for node in nodes if node <= value), min(node for node in nodes if node >= value)
        at_low, at_high = (self._between(replace(shape, **{name: node}), rest) for node in (low, high))
        return at_low + (at_high - at_low) * ((value - low) / (high - low) if high > low else 0.0)


def size_nodes(name: str, domain: Domain) -> list[Any]:
    """Return the values of a size at which speeds are measured; between them speeds are interpolated."""
    ends = sorted(domain.examples())
    low, high = ends[0], ends[-1]
    if name in ("grad_accum_steps", "lora_rank"):
        # Each further micro-batch or rank adds the same time.
        return [low, high]
    if isinstance(domain, Choice):
        return ends
    # By equal factors: caches and kernels change with the order of magnitude.
    return [domain.nearest(low * (high / low) ** (k / (RANGE_NODES - 1))) for k in range(RANGE_NODES)]


def _but_sizes(shape: TrialConfig) -> tuple[Any, ...]:
    return shape.precision, shape.dropout, shape.use_lora, shape.lora_dropout, shape.lora_targets


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every trial of a study may use."""

    tokens: int
    """Training tokens of a full-length trial; where the budget is time, of the baseline."""
    device_s: float | None = None
    """Seconds of training and evaluation; None where the budget is tokens."""
    evaluations: int = 0
    """Evaluations that device_s has to pay for; 0 where the budget is tokens."""
    speeds: Speeds | None = None
    """None where the budget is tokens, or before anything was measured."""

    @property
    def setting(self) -> str:
        """The variable that asks for this budget, with its value: BUDGET_TOKENS=400000 or BUDGET_TIME=10m."""
        if self.device_s is None:
            return f"BUDGET_TOKENS={self.tokens}"
        return f"BUDGET_TIME={duration_text(self.device_s)}"

    def asked(self, tokens: int | None, device_s: float | None) -> "Budget":
        """Return the budget with BUDGET_TOKENS or BUDGET_TIME in its place, or itself where neither is set.

        Raises UserError for a time where no speeds were measured.
        """
        if tokens is not None:
            return Budget(tokens=tokens)
        if device_s is None:
            return self
        if self.device_s is None:
            # No speeds were measured that turn time into steps.
            raise UserError(f"BUDGET_TIME={duration_text(device_s)}: the budget is in tokens. Set BUDGET_TOKENS.")
        return replace(self, tokens=round(self.tokens * device_s / self.device_s), device_s=device_s)

    def steps(self, config: TrialConfig, tokens: int | None = None) -> int:
        """Return how many steps of the configuration fit into the budget, or into `tokens` of it."""
        if self.speeds is None or self.device_s is None:
            return (self.tokens if tokens is None else tokens) // config.tokens_per_step
        share = 1.0 if tokens is None else tokens / self.tokens
        training_s = self.device_s - self.evaluations * self.speeds.evaluation_s
        return max(0, int(share * training_s / self.speeds.seconds_a_step(config)))

    def sized(self, config: TrialConfig) -> TrialConfig:
        """Return the configuration with as many steps as fit; its warm-up keeps its share of the run.

        Raises UserError when not even one step fits.
        """
        steps, shape = self.steps(config), f"batch_size={config.batch_size} x block_size={config.block_size}"
        if steps < 1 and self.speeds is None:
            raise UserError(
                f"a budget of {self.tokens} tokens is less than one step of {config.tokens_per_step} tokens "
                f"({shape} x grad_accum_steps={config.grad_accum_steps}). Raise BUDGET_TOKENS."
            )
        if steps < 1:
            raise UserError(f"{self.setting} is less than one step of {shape} and the evaluations. Raise BUDGET_TIME.")
        warmup_steps = round(config.warmup_steps / config.training_steps * steps)
        return replace(config, training_steps=steps, warmup_steps=warmup_steps)

    def milestones(self, config: TrialConfig, milestones_tokens: Sequence[int]) -> Milestones:
        """Return each milestone with the step at which a trial of the configuration has used as much."""
        return tuple((tokens, self.steps(config, tokens)) for tokens in milestones_tokens)

    def to_json(self) -> dict[str, Any] | None:
        """Return study.json's "device_time", a row per shape of what differs from the documented values; None for a
        budget of tokens."""
        if self.speeds is None:
            return None
        shapes = [
            {name: v for name, v in asdict(shape).items() if name in MEASURED_SIZES or v != getattr(DOCUMENTED, name)}
            | {"step_s": step_s}
            for shape, step_s in self.speeds.step_s.items()
        ]
        of_evaluations = {"evaluations": self.evaluations, "evaluation_s": self.speeds.evaluation_s}
        return {"device_s": self.device_s, **of_evaluations, "shapes": shapes}


def budget_of(document: Mapping[str, Any]) -> Budget:
    """Return the budget in a study.json. Raises KeyError, UserError."""
    time = document.get("device_time")
    if time is None:
        return Budget(tokens=document["budget_tokens"])
    step_s = {
        make_config(DOCUMENTED, {name: value for name, value in row.items() if name != "step_s"}): row["step_s"]
        for row in time["shapes"]
    }
    return Budget(
        tokens=document["budget_tokens"],
        device_s=time["device_s"],
        evaluations=time["evaluations"],
        speeds=Speeds(step_s=step_s, evaluation_s=time["evaluation_s"]),
    )
