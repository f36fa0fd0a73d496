"""What changed between two configurations, and which combinations of the changes to run."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from trainable.config import HYPERPARAMETERS, TrialConfig, make_config
from trainable.errors import UserError

MAX_CHANGES = 12

Coalition = frozenset[int]
"""Which of the changes are made, by their place in the settings."""

_SCHEDULE_FIELDS = ("lr_schedule", "warmup_steps", "min_lr_frac", "decay_frac")
_LORA_FIELDS = ("use_lora", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "batch_size": ("batch_size", "grad_accum_steps"),
    "schedule": _SCHEDULE_FIELDS,
    "lora": _LORA_FIELDS,
}
_NO_SETTINGS = ("seed", "training_steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Hyperparameters that are changed together, because one makes no sense without the other."""

    name: str
    fields: tuple[str, ...]
    before: str
    after: str
    """Their values, for a person."""


def changed_settings(before: TrialConfig, after: TrialConfig) -> tuple[Setting, ...]:
    """Return the settings in which the two differ, in TrialConfig's order.

    The schedule with all its fields is one setting, so is LoRA with its own, and so is batch_size with
    grad_accum_steps. A field that neither side reads is no difference, nor is a warm-up of the same share of the run;
    seed and training_steps are no settings.
    """
    grouped = {field: name for name, fields in _GROUPS.items() for field in fields}
    names = dict.fromkeys(grouped.get(field, field) for field in HYPERPARAMETERS if field not in _NO_SETTINGS)
    settings = []
    for name in names:
        fields = _GROUPS.get(name, (name,))
        if any(_differs(field, before, after) for field in fields):
            old, new = _value_text(name, before, after), _value_text(name, after, before)
            settings.append(Setting(name=name, fields=fields, before=old, after=new))
    return tuple(settings)


def _differs(field: str, before: TrialConfig, after: TrialConfig) -> bool:
    if field in _SCHEDULE_FIELDS[1:] + _LORA_FIELDS[1:]:
        reads = [_reads(config, field) for config in (before, after)]
        if not all(reads):
            return False
    if field == "warmup_steps" and before.training_steps != after.training_steps:
        # Half a step on either side is the rounding to whole steps.
        rounding = 0.5 / before.training_steps + 0.5 / after.training_steps
        return abs(_warmup_share(before) - _warmup_share(after)) > rounding
    return bool(getattr(before, field) != getattr(after, field))


def _reads(config: TrialConfig, field: str) -> bool:
    if field in _LORA_FIELDS:
        return config.use_lora
    return config.lr_schedule == "wsd" if field == "decay_frac" else config.has_warmup


def _warmup_share(config: TrialConfig) -> float:
    return config.warmup_steps / config.training_steps


def _value_text(name: str, config: TrialConfig, other: TrialConfig) -> str:
    if name == "schedule":
        text = config.lr_schedule
        if config.has_warmup:
            text += f", warm-up {100.0 * _warmup_share(config):.3g} %"
        for field in ("min_lr_frac", "decay_frac"):
            if _reads(config, field) and _differs(field, config, other):
                text += f", {field} {getattr(config, field):g}"
        return text
    if name == "lora":
        if not config.use_lora:
            return "all weights"
        text = f"LoRA rank {config.lora_rank}, alpha {config.lora_alpha}"
        for field in ("lora_dropout", "lora_targets"):
            if _differs(field, config, other):
                text += f", {field.removeprefix('lora_')} {getattr(config, field)}"
        return text
    if name == "batch_size":
        accumulates = config.grad_accum_steps > 1 or other.grad_accum_steps > 1
        return f"{config.batch_size}" + (f" x {config.grad_accum_steps}" if accumulates else "")
    value = getattr(config, name)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def config_of(
    before: TrialConfig, after: TrialConfig, settings: Sequence[Setting], coalition: Iterable[int]
) -> TrialConfig:
    """Return `before` with the coalition's settings from `after`; seed and training_steps are `before`'s.

    A warm-up keeps its share of the run it comes from. At an equal budget the number of steps depends on the batch, so
    bring the result to the budget afterwards (Budget.sized).
    """
    fields = [field for index in coalition for field in settings[index].fields]
    values = {field: getattr(after, field) for field in fields}
    if "warmup_steps" in values:
        values["warmup_steps"] = round(_warmup_share(after) * before.training_steps)
    # One call: a warm-up and the schedule that reads it are valid together only.
    config = make_config(before, values)
    return config if config.has_warmup else replace(config, warmup_steps=0)


def combination_text(settings: Sequence[Setting], coalition: Iterable[int]) -> str:
    """Return the names of the changes made, joined by +; "none" before any."""
    return " + ".join(settings[change].name for change in sorted(coalition)) or "none"


def coalitions(k: int, *, limit_full: int = 5, samples: int | None = None, seed: int = 0) -> list[Coalition]:
    """Return the combinations of k changes to run: all of them up to k = limit_full, else `samples` of them.

    Always with none, all, each change alone and all but each, and each combination with its complement, so every
    change is made in exactly half of them. `samples` defaults to what determines all interactions of two changes,
    2 + k (k + 1); the pairs beyond the smallest sizes are drawn from the Shapley kernel without replacement.
    Raises UserError when `samples` is too few.
    """
    check_changes(k)
    everything = frozenset(range(k))
    if k <= limit_full:
        return [frozenset(some) for size in range(k + 1) for some in combinations(range(k), size)]
    samples = 2 + k * (k + 1) if samples is None else samples
    if samples < 2 * k + 2:
        raise UserError(f"SAMPLES={samples} is too few for {k} changes: give at least {2 * k + 2} combinations.")
    chosen: list[Coalition] = []
    by_size = [halves_of(k, size) for size in range(1, k // 2 + 1)]
    room = samples // 2 - 1
    while by_size and len(by_size[0]) <= room:
        chosen += by_size[0]
        room -= len(by_size.pop(0))
    chosen += _draw(k, [half for halves in by_size for half in halves], room, seed)
    pairs = [(half, everything - half) for half in chosen]
    return sorted({frozenset(), everything, *(c for pair in pairs for c in pair)}, key=lambda c: (len(c), sorted(c)))


def check_changes(k: int) -> None:
    if not 1 <= k <= MAX_CHANGES:
        raise UserError(f"{k} settings differ; at least 1 and at most {MAX_CHANGES} can be told apart.")


def halves_of(k: int, size: int) -> list[Coalition]:
    """Return one of each pair of a combination of `size` changes and its complement."""
    found = [frozenset(some) for some in combinations(range(k), size)]
    return [half for half in found if 2 * size < k or 0 in half]


def _draw(k: int, halves: Sequence[Coalition], number: int, seed: int) -> list[Coalition]:
    import numpy as np

    if not halves or number < 1:
        return []
    kernel = np.array([1.0 / (math.comb(k, len(half)) * len(half) * (k - len(half))) for half in halves])
    places = np.random.default_rng(seed).choice(
        len(halves), size=min(number, len(halves)), replace=False, p=kernel / kernel.sum()
    )
    return [halves[place] for place in places]
