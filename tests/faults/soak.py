"""Hundreds of short trials in one study: do memory, file handles and the CPU time of a trial stay flat?

`python tests/faults/soak.py [TRIALS [PLOT.png]]`, 300 by default; about 4 minutes.
"""

import statistics
import sys
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import matplotlib as mpl
import psutil

mpl.use("agg")
import matplotlib.pyplot as plt

from tests.faults.common import STEADY, Place, report
from tests.patience import cpu_s

SAMPLE_S = 0.5
GROWTH = 1.1
"""From the first third to the last; the very first trials, which fill caches, are left out."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The processes at a moment."""

    trials: int
    driver_mib: float
    workers_mib: float
    driver_files: int
    worker_files: int
    cpu_s: float
    """Of driver and workers, from their beginning."""


def sample(process: psutil.Process, workers: list[psutil.Process], trials: int) -> Sample:
    """Return what the processes hold now."""
    return Sample(
        trials=trials,
        # Its own pages alone would grow without a leak: it shares them with the server that was forked off it.
        driver_mib=process.memory_info().rss / (1 << 20),
        workers_mib=sum(one.memory_full_info().uss for one in workers) / (1 << 20),
        driver_files=process.num_fds(),
        worker_files=sum(one.num_fds() for one in workers),
        cpu_s=cpu_s([process, *workers]),
    )


def thirds(values: list[float]) -> float:
    """Return the median of the last third over that of the first."""
    third = max(1, len(values) // 3)
    return statistics.median(values[-third:]) / statistics.median(values[:third])


def main() -> None:
    """Run, watch, print, plot."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 300
    # Every trial completes and has the same batch size: all cost the same.
    space = STEADY.replace("trials = 6", f"trials = {trials}").replace("tokens = 40_000", "tokens = 6_000")
    place = Place(space=space.replace("choice = [4, 8]", "choice = [8]").replace("count = 12", "count = 3"))
    running = place.start("run", "soak")
    study, samples = place.study("soak"), []
    driver = psutil.Process(running.process.pid)
    while running.process.poll() is None:
        begun = len(study.trials()) if study.trials_path.exists() else 0
        workers = [one for one in driver.children(recursive=True) if one.name().startswith("ray::")]
        try:
            if begun > trials // 20 and workers:
                samples.append(sample(driver, workers, begun))
        except psutil.Error:
            continue  # it ended meanwhile
        time.sleep(SAMPLE_S)
    running.ended(code=0)
    rows = study.trials()
    by_tens = list({one.trials // 10: one for one in reversed(samples)}.values())[::-1]
    series = {
        "driver memory, MiB": [one.driver_mib for one in samples],
        "workers' memory, MiB": [one.workers_mib for one in samples],
        "driver file handles": [float(one.driver_files) for one in samples],
        "workers' file handles": [float(one.worker_files) for one in samples],
        "CPU seconds a trial": [(two.cpu_s - one.cpu_s) / (two.trials - one.trials) for one, two in pairwise(by_tens)],
    }
    figure, axes = plt.subplots(len(series), 1, figsize=(8, 11), layout="constrained")
    for axis, (name, values) in zip(axes, series.items(), strict=True):
        axis.plot(values, linewidth=0.8)
        axis.set_ylim(bottom=0)
        axis.set_title(f"{name}: last third / first third {thirds(values):.3f}", fontsize=9)
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else place.path / "soak.png"
    figure.savefig(path, dpi=110)
    for name, values in series.items():
        ends = f"{statistics.median(values[:20]):.3g} at first, {statistics.median(values[-20:]):.3g} at last"
        print(f"{name}: {ends}; last third / first third {thirds(values):.3f}")
    print(f"plot: {path}")
    lost = [f"{name} grew {thirds(values):.2f} times" for name, values in series.items() if thirds(values) > GROWTH]
    lost += [] if len(rows) == trials else [f"{trials - len(rows)} trials are missing"]
    report(f"soak of {len(rows)} trials", tried=len(series), lost=lost)


if __name__ == "__main__":
    main()
