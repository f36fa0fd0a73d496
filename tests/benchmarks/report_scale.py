"""How long and how large: the report of 1,000 trials with 100 evaluations each, and the page's size at 200 trials.

python tests/benchmarks/report_scale.py
"""

import os
import resource
import sys
import tempfile
import time
from pathlib import Path

# One thread: what is measured is the report, not the machine's idle cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parents[2]))

from results.report.page import write_reports
from tests.results.report_study import make_report_study

LIMIT_S, LIMIT_GIB, LIMIT_MB = 20.0, 2.0, 8.0


def main() -> int:
    """Print the figures; return 1 when one is over its limit."""
    with tempfile.TemporaryDirectory() as folder:
        small = make_report_study(Path(folder) / "small", trials=200, early_stopping=False, evaluations=20)
        write_reports(small)
        size_mb = (small.path / "report.html").stat().st_size / 1e6
        # Enough tokens that a trial of the largest step has room for 100 evaluations.
        large = make_report_study(
            Path(folder) / "large", trials=1000, early_stopping=False, evaluations=100, budget_tokens=2_000_000
        )
        rows = len(large.metrics())
        wall, cpu = time.monotonic(), time.process_time()
        write_reports(large)
        wall_s, cpu_s = time.monotonic() - wall, time.process_time() - cpu
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"200 trials: {size_mb:.1f} MB (limit {LIMIT_MB:g})")
        print(
            f"1,000 trials, {rows:,} evaluations: {wall_s:.1f} s on the clock, {cpu_s:.1f} s of CPU "
            f"(limit {LIMIT_S:g}), peak of the process {peak_gib:.2f} GiB (limit {LIMIT_GIB:g}), "
            f"{(large.path / 'report.html').stat().st_size / 1e6:.1f} MB"
        )
    return int(size_mb >= LIMIT_MB or wall_s >= LIMIT_S or peak_gib >= LIMIT_GIB)


if __name__ == "__main__":
    sys.exit(main())
