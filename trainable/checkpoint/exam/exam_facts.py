"""CheckpointFacts: what was measured on a checkpoint, without judgement and without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from trainable.checkpoint.exam.base_change import OffsetGain

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
