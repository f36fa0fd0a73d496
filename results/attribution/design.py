"""The changes between two configurations, and the combinations of them to run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from results.words import value_words
from trainable.config import HYPERPARAMETERS, TrialConfig, make_config
from trainable.errors import UserError

MAX_CHANGES = 12
MAX_FULL = 5
"""Of more changes not every combination is run."""

Coalition = frozenset[int]
"""The changes that are made, by their index in the settings."""

_GROUPS: Mapping[str, tuple[str, ...]] = {
    "batch_size": ("batch_size", "grad_accum_steps"),
    "schedule": ("lr_schedule", "warmup_steps", "min_lr_frac", "decay_frac"),
    "lora": ("use_lora", "lora_rank", "lora_alpha", "lora_dropout", "lora_targets"),
}
_NO_SETTINGS = ("seed", "training_steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Hyperparameters that are changed together because they depend on each other."""

    name: str
    fields: tuple[str, ...]
    before: str
    after: str
    """Their values in words."""


def changed_settings(before: TrialConfig, after: TrialConfig) -> tuple[Setting, ...]:
    """Return the settings in which the two differ, in TrialConfig's order.

    The fields of the schedule are one setting, so are those of LoRA, and batch_size with grad_accum_steps. Fields that
    one side does not read and warm-ups of the same share of the run do not differ. seed and training_steps are no
    settings.
    """
    grouped = {field: name for name, fields in _GROUPS.items() for field in fields}
    names = dict.fromkeys(grouped.get(field, field) for field in HYPERPARAMETERS if field not in _NO_SETTINGS)
    settings = []
    for name in names:
        fields = _GROUPS.get(name, (name,))
        if any(differs(field, before, after) for field in fields):
            old, new = _value_text(name, before, after), _value_text(name, after, before)
            settings.append(Setting(name=name, fields=fields, before=old, after=new))
    return tuple(settings)


def differs(field: str, before: TrialConfig, after: TrialConfig) -> bool:
    """Return whether both read the field and it differs; a warm-up as a share of the run, but for whole steps."""
    if not (before.reads(field) and after.reads(field)):
        return False
    if field == "warmup_steps" and before.training_steps != after.training_steps:
        # Rounding to whole steps moves either by half a step.
        rounding = 0.5 / before.training_steps + 0.5 / after.training_steps
        return abs(_warmup_share(before) - _warmup_share(after)) > rounding
    return bool(getattr(before, field) != getattr(after, field))


def _warmup_share(config: TrialConfig) -> float:
    return config.warmup_steps / config.training_steps


def _value_text(name: str, config: TrialConfig, other: TrialConfig) -> str:
    if name == "schedule":
        text = config.lr_schedule
        if config.has_warmup:
            text += f", warm-up {100.0 * _warmup_share(config):.3g} %"
        for field in ("min_lr_frac", "decay_frac"):
            if differs(field, config, other):
                text += f", {field} {getattr(config, field):g}"
        return text
    if name == "lora":
        if not config.use_lora:
            return "all weights"
        text = f"LoRA rank {config.lora_rank}, alpha {config.lora_alpha}"
        for field in ("lora_dropout", "lora_targets"):
            if differs(field, config, other):
                text += f", {field.removeprefix('lora_')} {getattr(config, field)}"
        return text
    if name == "batch_size":
        accumulates = config.grad_accum_steps > 1 or other.grad_accum_steps > 1
        return f"{config.batch_size}" + (f" x {config.grad_accum_steps}" if accumulates else "")
    value = getattr(config, name)
    return value_words(value) if isinstance(value, float) else str(value)


def config_of(
    before: TrialConfig, after: TrialConfig, settings: Sequence[Setting], coalition: Iterable[int]
) -> TrialConfig:
    """Return `before` with the coalition's settings from `after`; seed and training_steps are `before`'s.

    A warm-up keeps its share of the run it comes from. The number of steps depends on the batch, so size the result to
    the budget afterwards (Budget.sized).
    """
    fields = [field for index in coalition for field in settings[index].fields]
    values = {field: getattr(after, field) for field in fields}
    if "warmup_steps" in values:
        values["warmup_steps"] = round(_warmup_share(after) * before.training_steps)
    # All at once: a warm-up and the schedule that reads it are valid only together.
    config = make_config(before, values)
    return config if config.has_warmup else replace(config, warmup_steps=0)


def combination_text(settings: Sequence[Setting], coalition: Iterable[int]) -> str:
    """Return the names of the changes made, joined by +; "none" before any."""
    return " + ".join(settings[change].name for change in sorted(coalition)) or "none"


def coalitions(k: int) -> list[Coalition]:
    """Return the combinations of k changes to run: all of them up to MAX_FULL changes.

    Of more changes, those of none, one and two and their complements: 2 + k (k + 1), which determine all interactions
    of two changes, and make every change in exactly half of the combinations.
    """
    check_changes(k)
    sizes = range(k + 1) if k <= MAX_FULL else (0, 1, 2, k - 2, k - 1, k)
    return [frozenset(some) for size in sizes for some in combinations(range(k), size)]


def check_changes(k: int) -> None:
    """Raise UserError for more changes than can be told apart, or none."""
    if not 1 <= k <= MAX_CHANGES:
        raise UserError(f"{k} settings differ; at least 1 and at most {MAX_CHANGES} can be told apart.")
