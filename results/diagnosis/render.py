"""A diagnosis as a person or a program reads it: text for a terminal, lines for a pipe, JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from results.diagnosis.diagnose import diagnose
from results.diagnosis.findings import Diagnosis, capitalized, confidence_word
from results.diagnosis.rules.time import missing_rows
from results.diagnosis.run_view import Context, view
from results.diagnosis.trace import Column, RunTrace
from trainable.errors import count_words

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was diagnosed and what was found, the finding that explains most first."""

    target: str
    about: str
    """What the target holds, in a line."""
    findings: tuple[Diagnosis, ...]
    notes: tuple[str, ...] = ()
    missing: str | None = None
    """What of the run is not recorded."""
    trace: RunTrace | None = None
    """What a picture can be drawn of."""

    @property
    def is_healthy(self) -> bool:
        """Whether nothing was found against the run."""
        return not self.findings

    @property
    def headline(self) -> str:
        """The report in one line."""
        if self.is_healthy and self.missing:
            return f"Nothing wrong found in what {self.target} holds; {self.missing.partition(':')[0]}."
        if self.is_healthy:
            return f"Nothing wrong found in {self.target}."
        return f"{capitalized(self.findings[0].summary)}."


def report_of_trace(trace: RunTrace, *, context: Context) -> Report:
    """Return the report of a run, and of the runs before it in the same log as far as they add something."""
    findings: list[Diagnosis] = []
    runs = len(trace.earlier_runs) + 1
    for number, one in [(runs, trace), *enumerate(trace.earlier_runs, start=1)]:
        where = f"in run {one.run or f'{number} of the {runs} in this log'}: "
        known = {finding.kind for finding in findings}
        findings += [
            finding
            if runs == 1 or (number == runs and not one.run)
            else replace(finding, summary=where + finding.summary)
            for finding in diagnose(one, context=context)
            if finding.kind not in known
        ]
    notes = list(trace.notes)
    if runs > 1:
        notes.append(
            f"the log holds {runs} runs from the start; this is of the last{trace.run and f' ({trace.run})'}, "
            "earlier ones where they add something"
        )
    if trace.restarts:
        notes.append(f"the log starts again at {trace.unit} {', '.join(str(step) for step in trace.restarts[:8])}")
    missing = missing_rows(view(trace, context)) if trace.steps else None
    notes += [missing] if missing else []
    return Report(
        target=trace.source,
        about=_about(trace),
        findings=tuple(findings),
        notes=tuple(notes),
        missing=missing,
        trace=trace,
    )


def to_json(report: Report) -> dict[str, Any]:
    """Return the report as plain values for json.dumps; no NaN is among them."""
    return {
        "target": report.target,
        "about": report.about,
        "healthy": report.is_healthy,
        "headline": report.headline,
        "findings": [_finding_to_json(finding) for finding in report.findings],
        "notes": list(report.notes),
    }


def _finding_to_json(finding: Diagnosis) -> dict[str, Any]:
    values = asdict(finding)
    first, last = values.pop("steps") or (None, None)
    values |= {"confidence": round(finding.confidence, 2), "confidence_word": confidence_word(finding.confidence)}
    return {**values, "first_step": first, "last_step": last}


def plain_text(report: Report) -> str:
    """Return the report for a pipe or a file: one line a thought, unbroken."""
    lines = [report.headline, report.about]
    for number, finding in enumerate(report.findings, start=1):
        lines += ["", _title(report, number)]
        lines += [f"   {label + ':':<9} {text}" for label, text in _rows(finding, number)]
    lines += ["", *(f"note: {note}" for note in report.notes)] if report.notes else []
    return "\n".join(lines) + "\n"


def render(report: Report) -> "RenderableType":
    """Return the report for a terminal of any width."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [
        Text(report.headline, style="bold green" if report.is_healthy else "bold red"),
        Text(report.about, style="dim"),
    ]
    for number, finding in enumerate(report.findings, start=1):
        colour = "red" if finding.confidence >= 0.9 else "yellow"
        parts.append(Text(f"\n{_title(report, number)}", style=f"bold {colour}"))
        grid = Table.grid(padding=(0, 1))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text in _rows(finding, number):
            grid.add_row(Text(label), Text(text))
        parts.append(Padding(grid, (0, 0, 0, 3)))
    notes = "\n".join(f"note: {note}" for note in report.notes)
    return Group(*parts, Text(f"\n{notes}", style="dim")) if notes else Group(*parts)


def _title(report: Report, number: int) -> str:
    finding = report.findings[number - 1]
    unit = report.trace.unit if report.trace else "step"
    where = ""
    if finding.steps:
        first, last = finding.steps
        where = f", {unit} {first}" if first == last else f", {unit}s {first} to {last}"
    return f"{number}. {finding.kind.replace('_', ' ')} ({confidence_word(finding.confidence)}{where})"


def _rows(finding: Diagnosis, number: int) -> Sequence[tuple[str, str]]:
    rows = (
        ("what", capitalized(finding.summary)),
        ("evidence", capitalized(finding.evidence)),
        ("next", capitalized(finding.next_step)),
    )
    # What the first one is, the headline has just said.
    return rows if number > 1 else rows[1:]


def _about(trace: RunTrace) -> str:
    until = f" of {trace.total_steps}" if trace.total_steps else ""
    columns: tuple[tuple[str, Column], ...] = (
        ("evaluation", "val_loss"),
        ("training loss", "train_loss"),
        ("gradient norm", "grad_norm"),
    )
    counts = [
        count_words(len(steps), name, "training losses" if column == "train_loss" else None)
        for name, column in columns
        if (steps := trace.series(column)[0])
    ]
    what = "log" if trace.origin == "log" else "recorded run"
    until += " (a resumed run)" if "resumed" in trace.announced else ""
    return f"{what} of {trace.unit}s {trace.steps[0]} to {trace.steps[-1]}{until}: {', '.join(counts) or 'no losses'}"
