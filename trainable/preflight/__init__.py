"""Is the set-up sound? The checks before training, and the tests for anybody's own training script."""

from typing import TYPE_CHECKING, Any

from trainable.preflight.check_result import Check
from trainable.preflight.label_check import check_labels
from trainable.preflight.offset_profile import offset_profile
from trainable.preflight.optimizer_check import check_optimizer
from trainable.preflight.preflight import run_preflight

if TYPE_CHECKING:
    from trainable.preflight.trainer_callback import PreflightCallback

__all__ = ["Check", "PreflightCallback", "check_labels", "check_optimizer", "offset_profile", "run_preflight"]


def __getattr__(name: str) -> Any:
    # transformers' Trainer imports every adapter of peft, which no command of ours needs.
    if name == "PreflightCallback":
        from trainable.preflight.trainer_callback import PreflightCallback

        return PreflightCallback
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
