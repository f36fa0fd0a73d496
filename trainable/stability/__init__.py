"""Is a run sound? One monitor of every step's loss, gradient norm and time; its rules in one table. No torch."""

from trainable.stability.monitor import DEFAULT_RULES, StabilityMonitor, judge_trace
from trainable.stability.rules import StabilityRules, make_rules
from trainable.stability.watches import STOP_KINDS, Finding

__all__ = ["DEFAULT_RULES", "STOP_KINDS", "Finding", "StabilityMonitor", "StabilityRules", "judge_trace", "make_rules"]
