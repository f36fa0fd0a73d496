"""What trainable.stability finds in the recorded runs: stops, false stops, spikes, flags.

Run: python tests/benchmarks/stability_rates.py. The 71 runs of tests/data/traces.json.gz are 600 steps of a tiny GPT-2
from scratch, vocabulary 1,024, good ones and ones that were spoilt on purpose.
"""

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from trainable.stability import Finding, judge_trace

TRACES = Path(__file__).parents[1] / "data" / "traces.json.gz"
BUDGET_STEPS = 600

# Measured on the runs' corpus, which is not kept with them. They agree: runs that learn nothing but token frequencies
# (LR 0.3) sit at 5.79 and above, and doubly shifted labels pause at 5.73. Any value from 5.5 to 5.9 stops no good run.
UNIGRAM_ENTROPY = 5.66

COLLAPSED = ("hot_lr0.1_", "hot_lr0.3_", "hot_nowarm_noclip_lr0.1_")
DIVERGING = ("hot_lr1.0_", "hot_ramp_", "hot_rewarm_", "gradfault1e+06_")
SPOILT = (
    "gradfault1000_",
    "plateau_",
    "bf16_params_lr1e-5_",
)  # stable, but no good: neither must be stopped nor spared
SHOWS_SPIKE = ("rand", "ngram", "domain", "gradfault")
SPIKE_WITHIN_STEPS = 20
FLAGS = ("spike", "plateau", "slow", "stall", "poisoned_optimizer")


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A recorded run and what was found in it."""

    name: str
    truth: str
    """good, spoilt, nonfinite, diverging or collapsed."""
    steps: int
    """Judged, that is up to the stop."""
    stop: Finding | None
    flags: tuple[Finding, ...]
    spike_at: int | None
    """Step of a planted spike."""
    onset: int
    """Of a diverging run the step of its best median of 20 losses, of a non-finite one the first such step, else 0."""


def load_traces() -> list[dict[str, Any]]:
    """Return the runs: name, kind, cfg, and per step loss, gn, lr, dt ('nan' and 'inf' as text)."""
    traces: list[dict[str, Any]] = json.loads(gzip.decompress(TRACES.read_bytes()))
    return traces


def truth_of(trace: dict[str, Any]) -> str:
    """Return what kind of run this is, from its set-up and not from its judgement."""
    name = trace["name"]
    if name.startswith(DIVERGING):
        return "diverging"
    if any(isinstance(value, str) for value in trace["loss"]):
        return "nonfinite"
    if name.startswith(COLLAPSED):
        return "collapsed"
    return "spoilt" if name.startswith(SPOILT) else "good"


def judge(trace: dict[str, Any], *, unigram_entropy: float = UNIGRAM_ENTROPY, from_scratch: bool = True) -> Judged:
    """Return what is found in one run."""
    findings = judge_trace(
        trace["loss"],
        trace["gn"],
        trace["dt"],
        budget_steps=BUDGET_STEPS,
        unigram_entropy=unigram_entropy,
        from_scratch=from_scratch,
    )
    stop = next((finding for finding in findings if finding.severity == "stop"), None)
    steps = stop.step if stop else len(trace["loss"])
    return Judged(
        name=trace["name"],
        truth=truth_of(trace),
        steps=steps,
        stop=stop,
        flags=tuple(finding for finding in findings if finding.severity == "flag"),
        spike_at=trace["cfg"]["at"] + 1 if trace["cfg"]["inject"] in SHOWS_SPIKE else None,
        onset=_onset(trace, steps),
    )


def _onset(trace: dict[str, Any], steps: int) -> int:
    truth = truth_of(trace)
    if truth == "nonfinite":
        return next(at for at in range(1, steps + 1) if "nan" in (trace["loss"][at - 1], trace["gn"][at - 1]))
    if truth != "diverging":
        return 0
    losses = [float(value) for value in trace["loss"][:steps]]
    return min(range(20, steps + 1), key=lambda at: median(losses[at - 20 : at]))


def spike_found(run: Judged) -> bool:
    """Return whether a spike is reported where one was planted."""
    at = run.spike_at
    return at is not None and any(f.kind == "spike" and at <= f.step < at + SPIKE_WITHIN_STEPS for f in run.flags)


def stops_table(runs: list[Judged]) -> Table:
    """Return stops by truth, and after how many steps."""
    table = Table(
        title="Stops",
        caption="delay in steps: diverging from the best median, nonfinite from the first one, others from the start",
    )
    for column in ("run is", "runs", "nonfinite", "divergence", "floor", "not stopped", "median delay", "worst"):
        table.add_column(column, justify="left" if column == "run is" else "right")
    for truth in ("good", "spoilt", "nonfinite", "diverging", "collapsed"):
        group = [run for run in runs if run.truth == truth]
        kinds = Counter(run.stop.kind if run.stop else None for run in group)
        delays = [run.steps - run.onset for run in group if run.stop]
        counts = [kinds["nonfinite"], kinds["divergence"], kinds["floor"], kinds[None]]
        ends = (f"{median(delays):.0f}", f"{max(delays)}") if delays else ("", "")
        table.add_row(truth, str(len(group)), *(str(count) for count in counts), *ends)
    return table


def flags_table(runs: list[Judged]) -> Table:
    """Return flags per 1,000 judged steps by truth."""
    table = Table(title="Flags per 1,000 steps", caption="the machine was shared: slow and stall are mostly real")
    for column in ("run is", "steps", *FLAGS, "planted spikes found", "spikes elsewhere"):
        table.add_column(column, justify="left" if column == "run is" else "right")
    for truth in ("good", "spoilt", "nonfinite", "diverging", "collapsed"):
        group = [run for run in runs if run.truth == truth]
        steps = sum(run.steps for run in group)
        kinds = Counter(finding.kind for run in group for finding in run.flags)
        planted = [run for run in group if run.spike_at]
        found = sum(spike_found(run) for run in planted)
        rates = [f"{1000 * kinds[kind] / steps:.2f}" for kind in FLAGS]  # type: ignore[index]
        elsewhere = f"{1000 * (kinds['spike'] - found) / steps:.2f}"
        table.add_row(truth, str(steps), *rates, f"{found}/{len(planted)}" if planted else "", elsewhere)
    return table


def main() -> None:
    """Print both tables and every run that is not as it should be."""
    runs = [judge(trace) for trace in load_traces()]
    console = Console(width=140)
    console.print(stops_table(runs))
    console.print(flags_table(runs))
    for run in runs:
        if (run.truth == "good") == (run.stop is not None) and run.truth != "spoilt":
            console.print(f"{run.name} is {run.truth}: {run.stop.evidence if run.stop else 'not stopped'}")


if __name__ == "__main__":
    main()
