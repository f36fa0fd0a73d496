"""Is a run sound? One monitor of every step's loss, gradient norm and time; its rules in one table. No torch."""

from trainable.stability.monitor import (
    STOP_KINDS,
    Finding,
    StabilityMonitor,
    StabilityRules,
    judge_trace,
    make_rules,
)

__all__ = ["STOP_KINDS", "Finding", "StabilityMonitor", "StabilityRules", "judge_trace", "make_rules"]
