"""What a StabilityMonitor costs a step. Run: python tests/benchmarks/stability_cost.py"""

import os
import platform
import random
import time
from pathlib import Path
from statistics import median

from trainable.stability import StabilityMonitor

STEPS = 5000
ROUNDS = 15


def cost_us(*, level: float) -> list[float]:
    """Return CPU microseconds a step, one figure a round, for a run whose loss sits at `level`."""
    draws = random.Random(0)
    steps = [
        (level + draws.gauss(0, 0.1), draws.lognormvariate(0, 0.2), draws.uniform(0.1, 0.12)) for _ in range(STEPS)
    ]
    rounds = []
    for _ in range(ROUNDS):
        monitor = StabilityMonitor(budget_steps=STEPS, unigram_entropy=5.66, from_scratch=True)
        began = time.process_time()
        for step, (loss, grad_norm, step_time_s) in enumerate(steps, 1):
            monitor.update(step=step, loss=loss, grad_norm=grad_norm, step_time_s=step_time_s)
        rounds.append((time.process_time() - began) / STEPS * 1e6)
    return rounds


def machine() -> str:
    """Return the processor's name, its cores and the Python."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores, Python {platform.python_version()}"


def main() -> None:
    """Print the median and the range over the rounds."""
    print(machine())
    for name, level in (("healthy", 4.0), ("collapsed", 5.8)):
        rounds = cost_us(level=level)
        spread = f"median of {ROUNDS} rounds of {STEPS} steps; {min(rounds):.1f} to {max(rounds):.1f}"
        print(f"{name}: {median(rounds):.1f} us a step ({spread})")


if __name__ == "__main__":
    main()
