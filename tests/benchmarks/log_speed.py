"""Prints time and peak memory of diagnosing generated logs: python tests/benchmarks/log_speed.py [MB, 200]."""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from results.diagnosis.diagnose import diagnose
from results.diagnosis.logs.training_log import read_training_log
from results.diagnosis.run_view import Context

EVAL_STEPS = 500
S_PER_STEP = 0.95
SLOW_FROM_FRAC = 0.6
SLOW_S_PER_STEP = 1.61


def owner_log(steps: int) -> Iterator[str]:
    """Yield a log in the owner's format, a progress line every step, that slows down after 60 % of the run."""
    elapsed_s = 17.5
    for step in range(steps):
        elapsed_s += SLOW_S_PER_STEP if step > SLOW_FROM_FRAC * steps else S_PER_STEP
        share = f"step {step}/{steps} ({100 * step / steps:.1f}%)"
        if step % EVAL_STEPS == 0:
            loss = 3.2 + 0.7 / (1 + step / 2000)
            said = f"train loss {loss:.4f}, val loss {loss + 0.1:.4f} | LR: 1.00e-05"
            yield f"{share}: {said} | {elapsed_s:.1f}s ({step / elapsed_s:.2f} steps/sec)\n"
        else:
            speed = step / elapsed_s
            yield f"{share} | {speed:.2f} steps/sec | ETA: {(steps - step) / speed / 60:.1f}m\n"


def nanogpt_log(steps: int) -> Iterator[str]:
    """Yield a log in nanoGPT's format, a loss every step."""
    for step in range(steps):
        loss = 3.2 + 7 / (1 + step / 2000) + 0.05 * ((step * 7919) % 97 / 97 - 0.5)
        yield f"iter {step}: loss {loss:.4f}, time {200 + step % 7:.2f}ms, mfu 12.34%\n"


def main() -> None:
    """Write each log, read it, print."""
    size_mb = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    with tempfile.TemporaryDirectory() as folder:
        for make in (owner_log, nanogpt_log):
            path = Path(folder) / "log.txt"
            bytes_per_line = sum(len(line) for line, _ in zip(make(4_000_000), range(1000), strict=False)) / 1000
            with path.open("w") as file:
                file.writelines(make(int(size_mb * 1e6 / bytes_per_line)))
            started = time.perf_counter()
            trace = read_training_log(path)
            read_s = time.perf_counter() - started
            found = diagnose(trace, context=Context())
            all_s = time.perf_counter() - started
            peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)
            kinds = ", ".join(finding.kind for finding in found) or "nothing wrong"
            print(
                f"{make.__name__}: {path.stat().st_size / 1e6:.0f} MB read in {read_s:.1f} s, diagnosed by "
                f"{all_s:.1f} s, "
                f"{len(trace.steps)} rows kept, peak memory {peak_mb:.0f} MB; found: {kinds}"
            )


if __name__ == "__main__":
    main()
