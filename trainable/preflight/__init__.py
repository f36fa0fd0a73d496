"""Is the set-up sound? The checks before training, and the tests for anybody's own training script."""

from trainable.preflight.check_result import Check
from trainable.preflight.label_check import check_labels
from trainable.preflight.offset_profile import offset_profile
from trainable.preflight.optimizer_check import check_optimizer
from trainable.preflight.preflight import run_preflight
from trainable.preflight.trainer_callback import PreflightCallback

__all__ = ["Check", "PreflightCallback", "check_labels", "check_optimizer", "offset_profile", "run_preflight"]
