"""CheckpointFacts: what was measured on a checkpoint, without torch, and the comparison of weights with their base's.

A pretrained model's loss at the next token stays below its loss at the one after it for long, whatever its labels are:
only a comparison with the base's own losses on the same windows tells of labels that were shifted twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

GAIN_SIGMAS = 4.0
MIN_GAIN_NATS = 0.01
"""4 steps of doubled labels: -1.6 at +1 and +3.0 at +2 for a model of 135M at LR 5e-4; -0.02 and +0.04 for a model of
100 thousand weights, hardly pretrained, at LR 3e-4."""
GAIN_PER_LOSS = 0.5
"""Too high a learning rate on right labels ruins +1 too, and makes a model that was sure of wrong tokens less so: -2.7
and +0.9 for the 135M after 2 steps at LR 2e-3. Doubled labels gain 0.7 to 2.5 at +2 for each nat lost at +1."""

CLOSED_FRAC = 0.25
"""Of the base's margin between +1 and +2. On a text of another kind than the base's, both gain, and doubled labels show
in the margin: 0.36 of it is gone after 4 steps at LR 1e-3. Right labels: 0.13 at most (135M, LR 5e-4, 2 steps)."""


@dataclass(frozen=True, kw_only=True)
class OffsetGain:
    """How much better than the base weights predict the token at an offset; below 0 they are worse."""

    base_nats: float
    nats: float
    error: float
    """Its standard error over the windows."""


def learned_doubled_labels(gains: Mapping[int, OffsetGain]) -> bool:
    """Return whether the loss rose at the next token and fell at the one after it, as doubly shifted labels do."""
    if 1 not in gains or 2 not in gains:
        return False
    first, second = gains[1], gains[2]
    unlearned = first.nats < -max(MIN_GAIN_NATS, GAIN_SIGMAS * first.error)
    closing = (second.nats - first.nats) / max(second.base_nats - first.base_nats, MIN_GAIN_NATS)
    gained = second.nats > max(MIN_GAIN_NATS, GAIN_SIGMAS * second.error, -GAIN_PER_LOSS * first.nats)
    return gained and (unlearned or closing > CLOSED_FRAC)


def gain_words(gains: Mapping[int, OffsetGain]) -> str:
    """Return the gains by offset as text."""
    return ", ".join(
        f"{offset:+d} {gain.nats:+.3f} (standard error {gain.error:.3f})" for offset, gain in gains.items()
    )


Scalar = str | int | float | bool


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Which token weights predict, and since when."""

    offset_losses: Mapping[int, float] = field(default_factory=dict)
    """Mean loss of predicting the token so many places on, nats; +1 is the next."""
    offset_tokens: int = 0
    """Tokens it was measured on."""
    no_profile: str = ""
    """Why there are no offset losses."""
    base_name: str = ""
    """The model that it was compared with as its base: the one that GPT2_MODEL_NAME or the file names."""
    base_gains: Mapping[int, OffsetGain] = field(default_factory=dict)
    """Against the base on the same tokens, by offset."""
    no_base: str = ""
    """Why it was not compared with a base."""


@dataclass(frozen=True, kw_only=True)
class CheckpointFacts(Profile):
    """One checkpoint file, measured. () and {} are none found; None is not measured."""

    name: str
    """The file, for a person."""
    optimizer_steps: int
    is_ours: bool
    vocab_size: int | None
    dtypes: Mapping[str, int]
    """Number of weights, tied ones once, by the type they are stored in: float32, bfloat16 ..."""
    bf16_valued_frac: float
    """Share of the float32 weights that are exactly bf16 numbers; chance gives 2^-16."""
    unmovable_frac: float | None
    """Share of weights that an update of one learning rate leaves as they are, rounded in their type."""
    nonfinite_tensors: tuple[str, ...]
    learning_rate: float | None
    """The optimizer's at saving, else the recorded hyperparameter."""
    hyperparameters: Mapping[str, Scalar] = field(default_factory=dict)
    optimizer_tensors: int = 0
    """Tensors the optimizer was made from; 0 where its state was not saved."""
    without_gradient: tuple[str, ...] = ()
    """Those of them that never had a gradient other than 0."""
    nonfinite_optimizer: bool = False
    zero_adapters: tuple[str, ...] = ()
    """LoRA's B matrices that are 0, as they are before the first step."""
    compared_with: str = ""
    """The checkpoint before it in the folder, of fewer steps."""
    unchanged_tensors: tuple[str, ...] = ()
    """Tensors equal in both."""
    compared_tensors: int = 0
