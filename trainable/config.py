"""TrialConfig: every hyperparameter of a training run, once, with its variable name, unit and bounds."""

import math
import re
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import lru_cache
from typing import Any, cast

from trainable.errors import UserError, check_bounds, did_you_mean

LR_SCHEDULES = ("constant", "warmup_constant", "warmup_cosine", "linear", "wsd")
SCHEDULES_WITH_WARMUP = tuple(name for name in LR_SCHEDULES if name != "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
LORA_TARGETS = re.compile(r"[A-Za-z0-9_.-]+(,[A-Za-z0-9_.-]+)*")
KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
TRUE_WORDS, FALSE_WORDS = ("true", "1", "yes"), ("false", "0", "no")


def _hyperparameter(default: bool | int | float | str, *, env: str, unit: str, **bounds: Any) -> Any:
    unbounded = {"low": -math.inf, "high": math.inf, "low_open": False, "choices": (), "pattern": None}
    assert bounds.keys() <= unbounded.keys(), bounds
    return field(default=default, metadata={"env": env, "unit": unit, **unbounded, **bounds})


def checked_field(spec: Field[Any], value: Any, *, label: str, default: str) -> Any:
    """Return a value of the field's type, within the bounds, choices and pattern of its metadata.

    default: what its default is called. Raises UserError, which begins with `label`.
    """
    meta: Mapping[str, Any] = spec.metadata
    kind = cast(type, spec.type)
    # By type() and not isinstance(), for True is an int too.
    if type(value) is not kind and (kind, type(value)) != (float, int):
        raise UserError(f"{label} must be {KINDS[kind]}, not {value!r}; {default} is {spec.default}.")
    if meta.get("pattern") and not meta["pattern"].fullmatch(value):
        raise UserError(f"{label} is {value!r}; it must be {meta['unit']}, like {spec.default}.")
    if meta.get("choices") and value not in meta["choices"]:
        raise UserError(f"{label} has no choice {value!r}.{did_you_mean(value, meta['choices'])}")
    if kind in (int, float):
        note = f" ({meta['unit']}); {default} is {spec.default}"
        check_bounds(label, value, meta["low"], meta["high"], low_open=meta.get("low_open", False), note=note)
    return kind(value)


def _checked(spec: Field[Any], value: Any) -> Any:
    return checked_field(spec, value, label=f"{spec.name} ({spec.metadata['env']})", default="the documented value")


@dataclass(frozen=True, kw_only=True)
class TrialConfig:
    """One training run's hyperparameters; the defaults are `documented`, the built-in baseline.

    Raises UserError for a value of the wrong type or out of bounds, naming the field and its variable.
    """

    batch_size: int = _hyperparameter(32, env="BATCH_SIZE", unit="sequences per micro-batch", low=1, high=65_536)
    """Sequences in one micro-batch; an optimizer step sees batch_size * grad_accum_steps of them."""
    block_size: int = _hyperparameter(128, env="BLOCK_SIZE", unit="tokens per sequence", low=2, high=1_048_576)
    """Tokens in a training sequence (the context length)."""
    grad_accum_steps: int = _hyperparameter(
        1, env="GRAD_ACCUM_STEPS", unit="micro-batches per step", low=1, high=65_536
    )
    """Micro-batches whose gradients are averaged into one optimizer step."""
    learning_rate: float = _hyperparameter(
        1e-5, env="LEARNING_RATE", unit="the schedule's peak", low=0, high=100, low_open=True
    )
    lr_schedule: str = _hyperparameter("constant", env="LR_SCHEDULE", unit="name", choices=LR_SCHEDULES)
    """A name of trainable.schedule."""
    warmup_steps: int = _hyperparameter(0, env="WARMUP_STEPS", unit="optimizer steps", low=0, high=1e12)
    """Steps of linear warm-up from min_lr_frac * learning_rate; read only by the schedules that warm up."""
    min_lr_frac: float = _hyperparameter(0.1, env="MIN_LR_FRAC", unit="share of the peak", low=0, high=1)
    """Where a warm-up starts and a decay ends, as a share of the peak."""
    decay_frac: float = _hyperparameter(0.2, env="DECAY_FRAC", unit="share of the steps", low=0, high=1)
    """The last share of the run in which wsd decays."""
    training_steps: int = _hyperparameter(2000, env="TRAINING_STEPS", unit="optimizer steps", low=1, high=1e12)
    """The whole run, which is also the schedule's horizon."""
    grad_clip_norm: float = _hyperparameter(1.0, env="GRAD_CLIP_NORM", unit="L2 norm, 0 = off", low=0, high=1e6)
    """Gradients are scaled down to this global L2 norm; 0 switches the clip off."""
    weight_decay: float = _hyperparameter(0.01, env="WEIGHT_DECAY", unit="decoupled (AdamW)", low=0, high=10)
    dropout: float = _hyperparameter(0.1, env="DROPOUT", unit="probability", low=0, high=0.99)
    """Residual, embedding and attention dropout."""
    precision: str = _hyperparameter("fp32", env="PRECISION", unit="name", choices=PRECISIONS)
    """fp32, or autocast to bf16, or autocast to fp16 with a loss scaler; weights stay fp32."""
    use_lora: bool = _hyperparameter(False, env="USE_LORA", unit="True or False")
    """Whether LoRA adapters are trained and the model's own weights frozen; the other lora_ fields are read then."""
    lora_rank: int = _hyperparameter(8, env="LORA_RANK", unit="rank of the adapters", low=1, high=65_536)
    """Columns of an adapter's A and rows of its B."""
    lora_alpha: int = _hyperparameter(
        16, env="LORA_ALPHA", unit="adapters are scaled by alpha / rank", low=1, high=65_536
    )
    """An adapter's output is scaled by lora_alpha / lora_rank."""
    lora_dropout: float = _hyperparameter(0.0, env="LORA_DROPOUT", unit="probability", low=0, high=0.99)
    """Dropout of what the adapters read, beside the model's own."""
    lora_targets: str = _hyperparameter(
        "auto", env="LORA_TARGETS", unit="auto, all-linear, or layer names with commas between", pattern=LORA_TARGETS
    )
    """Layers that get adapters; auto is peft's choice for the model's type."""
    seed: int = _hyperparameter(
        0, env="SEED", unit="of weights, batches and dropout; never searched", low=0, high=2**31 - 1
    )
    """Seeds the initial weights of presets, the batches and the dropout masks. Never tuned."""

    def __post_init__(self) -> None:
        for spec in fields(self):
            object.__setattr__(self, spec.name, _checked(spec, getattr(self, spec.name)))
        if self.has_warmup and self.warmup_steps > self.training_steps:
            raise UserError(
                f"warmup_steps={self.warmup_steps} is longer than the run of training_steps={self.training_steps}. "
                "Shorten WARMUP_STEPS or lengthen TRAINING_STEPS."
            )

    @property
    def tokens_per_step(self) -> int:
        """Training tokens that one optimizer step sees."""
        return self.batch_size * self.block_size * self.grad_accum_steps

    @property
    def has_warmup(self) -> bool:
        """Whether the schedule reads warmup_steps."""
        return self.lr_schedule in SCHEDULES_WITH_WARMUP

    def reads(self, name: str) -> bool:
        """Return whether the run depends on a hyperparameter, or on warmup_frac: a constant rate has no warm-up."""
        if name.startswith("lora_"):
            return self.use_lora
        if name == "decay_frac":
            return self.lr_schedule == "wsd"
        return self.has_warmup or name not in ("warmup_steps", "warmup_frac", "min_lr_frac")


HYPERPARAMETERS: Mapping[str, Field[Any]] = {spec.name: spec for spec in fields(TrialConfig)}
"""Every hyperparameter by name; metadata: env, unit, low, high, low_open, choices."""

ENV_NAMES: Mapping[str, str] = {spec.metadata["env"]: name for name, spec in HYPERPARAMETERS.items()}
"""Hyperparameter name by environment variable."""


OTHER_NAMES: Mapping[str, str] = {
    "lr": "learning_rate",
    "bs": "batch_size",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "grad_accum_steps",
    "seq_len": "block_size",
    "context_length": "block_size",
    "wd": "weight_decay",
    "grad_clip": "grad_clip_norm",
    "max_grad_norm": "grad_clip_norm",
    "warmup_iters": "warmup_steps",
    "max_iters": "training_steps",
    "max_steps": "training_steps",
    "num_steps": "training_steps",
}
"""Hyperparameter by its name in nanoGPT and other programs."""


def meant_by(name: str) -> str:
    """Return the hyperparameter that a person means by a name of another program, else the name in lower case."""
    # Not in OTHER_NAMES, by which values are read too: epochs are not steps.
    epochs = dict.fromkeys(("epochs", "num_epochs", "num_train_epochs"), "training_steps")
    return {**OTHER_NAMES, **epochs}.get(name.lower(), name.lower())


def variable_of(name: str) -> str:
    """Return a hyperparameter's environment variable."""
    return str(HYPERPARAMETERS[name].metadata["env"])


DOCUMENTED = TrialConfig()
BEFORE = TrialConfig(
    batch_size=8, block_size=256, learning_rate=2e-5, lr_schedule="warmup_cosine", warmup_steps=500, training_steps=5000
)
BASELINES: Mapping[str, TrialConfig] = {"documented": DOCUMENTED, "before": BEFORE}
"""The two built-in configurations."""


def parse_hyperparameter(name: str, text: str) -> bool | int | float | str:
    """Return the value of hyperparameter `name` written as text, within its bounds.

    Raises UserError naming the environment variable.
    """
    spec = HYPERPARAMETERS[name]
    env, text = spec.metadata["env"], text.strip()
    if spec.type is bool:
        if text.lower() not in TRUE_WORDS + FALSE_WORDS:
            raise UserError(f"{env}={text!r} must be True or False.")
        return text.lower() in TRUE_WORDS
    try:
        value = cast(type, spec.type)(text)
    except ValueError:
        kind = f"{KINDS[cast(type, spec.type)]} ({spec.metadata['unit']})"
        raise UserError(f"{env}={text!r} is not {kind}. Unset it, or set it like {env}={spec.default}.") from None
    checked: int | float | str = _checked(spec, value)
    return checked


def make_config(base: TrialConfig, values: Mapping[str, Any]) -> TrialConfig:
    """Return `base` with the named values replaced. Raises UserError for an unknown name or a bad value."""
    for name in values:
        if name not in HYPERPARAMETERS:
            raise UserError(f"there is no hyperparameter '{name}'.{did_you_mean(meant_by(name), HYPERPARAMETERS)}")
    return replace(base, **values)


def config_from(values: Mapping[str, Any]) -> TrialConfig:
    """Return the configuration that a row or a document holds among other things. Raises KeyError, UserError."""
    return TrialConfig(**{name: values[name] for name in HYPERPARAMETERS})


@lru_cache(4096)  # asked of every trial at every proposal
def without_seed(config: TrialConfig) -> TrialConfig:
    """Return what two runs of the same configuration have in common: no seed, and nothing that neither reads."""
    unread = {name: getattr(DOCUMENTED, name) for name in HYPERPARAMETERS if not config.reads(name)}
    return replace(config, seed=0, **unread)


def shape_of(config: TrialConfig) -> TrialConfig:
    """Return what a step's time depends on, and everything else as documented."""
    names = ["batch_size", "block_size", "grad_accum_steps", "precision"]
    if config.use_lora:
        names += ["use_lora", "lora_rank", "lora_targets"]
    # How likely dropout is changes nothing of its cost.
    dropout = DOCUMENTED.dropout if config.dropout > 0 else 0.0
    lora_dropout = DOCUMENTED.dropout if config.use_lora and config.lora_dropout > 0 else 0.0
    return TrialConfig(**{name: getattr(config, name) for name in names}, dropout=dropout, lora_dropout=lora_dropout)
