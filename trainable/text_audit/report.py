"""An audit for people in a terminal, and for programs as JSON."""

import json
import os
from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainable.text_audit.audit_values import AuditFinding, AuditReport, Place
from trainable.text_audit.clean import CleanSummary

SHOWN = 25
"""Findings listed in a terminal."""
FIGURES = {
    "entropy": ("token entropy", ".2f"),
    "bytes_per_token": ("bytes per token", ".2f"),
    "shift": ("distance from the whole", ".2f"),
    "non_ascii_frac": ("non-ASCII", ".1%"),
    "duplicate_frac": ("copied", ".1%"),
}
"""The profile's arrays: what to call each, and how its numbers are written."""
_STYLES = {"high": "bold red", "medium": "yellow", "low": "dim"}


def render(report: AuditReport) -> RenderableType:
    """Return the report for a terminal: what was read, the totals, and the worst findings with their excerpts."""
    where = f"; validation starts at token {report.train_tokens:,}" if report.train_tokens < report.tokens else ""
    where += "" if report.token_range is None else ", RANGE {:,}-{:,}".format(*report.token_range)
    one = len(report.files) == 1
    source = report.files[0].name if one else f"{len(report.files):,} files under {os.path.commonpath(report.files)}"
    head = Text(f"{source}: {report.tokens:,} tokens, {report.lines:,} lines, {report.bytes / 1e6:,.1f} MB{where}")
    if not report.findings:
        return Group(head, *_comparison(report), Text("Nothing wrong found.", style="bold green"))
    parts: list[RenderableType] = [head, *_comparison(report), Text(), _totals(report), Text()]
    for finding in report.findings[:SHOWN]:
        excerpt = Text(finding.excerpt, style="dim", overflow="fold")
        parts += [_headline(finding, report), Padding(excerpt, (0, 0, 0, 4))]
    left = sum(total.findings for total in report.totals.values()) - min(SHOWN, len(report.findings))
    if left > 0:
        parts.append(Text(f"... and {left:,} more; --json lists the largest 200 of each kind."))
    return Group(*parts)


def to_json(report: AuditReport) -> dict[str, Any]:
    """Return the report as JSON values: totals by kind, findings worst first, and the profile along the text."""
    return {
        "files": [str(path) for path in report.files],
        "text_fingerprint": report.text_fingerprint,
        "tokens": report.tokens,
        "train_tokens": report.train_tokens,
        "lines": report.lines,
        "bytes": report.bytes,
        "range": None if report.token_range is None else list(report.token_range),
        "range_against_rest": {name: list(pair) for name, pair in range_against_rest(report).items()},
        "totals": {kind: asdict(total) for kind, total in report.totals.items()},
        "findings": json.loads(json.dumps([asdict(finding) for finding in report.findings], default=str)),
        "profile": {
            "window_tokens": report.profile.window_tokens,
            **{name: [round(float(value), 4) for value in getattr(report.profile, name)] for name in FIGURES},
            "first_token": report.profile.first_token.tolist(),
        },
    }


def range_against_rest(report: AuditReport) -> dict[str, tuple[float, float]]:
    """Return each figure of the profile as its mean (within the report's range, in the rest); empty without a range."""
    if report.token_range is None:
        return {}
    middle = report.profile.first_token + report.profile.window_tokens // 2
    inside = (middle >= report.token_range[0]) & (middle < report.token_range[1])
    if not inside.any() or inside.all():
        return {}
    figures = {name: getattr(report.profile, name) for name in FIGURES}
    return {name: (float(one[inside].mean()), float(one[~inside].mean())) for name, one in figures.items()}


def render_clean(summary: CleanSummary) -> RenderableType:
    """Return for a terminal what a cleaned copy lacks."""
    less = summary.source_bytes - summary.bytes
    lines = [f"{summary.out}: {summary.bytes / 1e6:,.1f} MB, {less:,} bytes less than the source, which is untouched."]
    for kind, removed in summary.removed.items():
        lines.append(f"  removed {_counted(removed.lines)}, {removed.tokens:,} tokens: {_words(kind)}")
    if summary.repaired_lines:
        lines.append(f"  repaired {_counted(summary.repaired_lines)}: encoding debris")
    if not summary.removed and not summary.repaired_lines:
        lines.append("  nothing to remove or repair")
    if summary.kept_kinds:
        lines.append(f"  left in, for you to judge: {', '.join(_words(kind) for kind in summary.kept_kinds)}")
    return Text("\n".join(lines))


def _counted(lines: int) -> str:
    return f"{lines:,} line{'' if lines == 1 else 's'}"


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _comparison(report: AuditReport) -> list[RenderableType]:
    figures = []
    for name, (inside, rest) in range_against_rest(report).items():
        label, number = FIGURES[name]
        figures.append(f"{label} {inside:{number}} ({rest:{number}})")
    return [Text(f"in the range (and in the rest): {', '.join(figures)}")] if figures else []


def _totals(report: AuditReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("found", "places", "tokens", "share", "severity"):
        table.add_column(column, justify="left" if column in ("found", "severity") else "right")
    for kind, total in report.totals.items():
        of = " of validation" if kind == "train_val_overlap" and report.token_range is None else ""
        severity = Text(total.severity, style=_STYLES[total.severity])
        table.add_row(_words(kind), f"{total.findings:,}", f"{total.tokens:,}", f"{total.frac:.2%}{of}", severity)
    return table


def _headline(finding: AuditFinding, report: AuditReport) -> Text:
    text = Text.assemble(
        (f"{finding.severity:<6} ", _STYLES[finding.severity]),
        (_words(finding.kind), "bold"),
        f"  tokens {finding.first_token:,}-{finding.last_token:,}  {_lines(finding, report)}: {finding.summary}",
    )
    if (place := finding.copy_of) is not None:
        text.append(f"; also {_lines(place, report)} (tokens {place.first_token:,}-{place.last_token:,})")
    return text


def _lines(place: Place, report: AuditReport) -> str:
    lines = f"{place.first_line}" if place.first_line == place.last_line else f"{place.first_line}-{place.last_line}"
    one = len(report.files) == 1
    name = place.file.name if one else os.path.relpath(place.file, os.path.commonpath(report.files))
    return f"{name}:{lines}"
