"""An audit for people, in a terminal and drawn along the text, and for programs as JSON."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from trainable.data.corpus import size_words
from trainable.errors import count_words
from trainable.text_audit.audit_findings import MAX_FINDINGS
from trainable.text_audit.audit_values import KINDS, AuditFinding, AuditReport, Place
from trainable.text_audit.clean import CleanSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes


SHOWN, LOW_SHOWN = 25, 3
"""Findings listed in a terminal, and where all of them are low."""
FIGURES = {
    "entropy": ("token entropy", ".2f", "token entropy\nnats/token", False),
    "bytes_per_token": ("bytes per token", ".2f", "bytes\nper token", False),
    "shift": ("distance from the whole", ".2f", "distance from\nthe whole text", True),
    "non_ascii_frac": ("non-ASCII", ".1%", "non-ASCII\nshare", True),
    "duplicate_frac": ("copied", ".1%", "copied\nshare", True),
}
"""The profile's arrays: what to call each, how its numbers are written, its curve's label, and whether it is a
share."""
_STYLES = {"high": "bold red", "medium": "yellow", "low": "dim"}
_COLOURS = ("#b2182b", "#d6604d", "#f4a582", "#8c510a", "#4d4d4d", "#542788", "#2166ac", "#1b7837", "#80b1d3")
"""Of KINDS, in their order."""
MIN_WIDTH_FRAC = 0.0015
"""A finding is drawn at least so wide, or the short ones could not be seen."""


def render(report: AuditReport) -> RenderableType:
    """Return the report for a terminal: what was read, the totals, and the findings that matter with their excerpts."""
    where = f"; validation starts at token {report.train_tokens:,}" if report.train_tokens < report.tokens else ""
    where += "" if report.token_range is None else ", RANGE {:,}-{:,}".format(*report.token_range)
    one = len(report.files) == 1
    source = report.files[0].name if one else f"{len(report.files):,} files under {os.path.commonpath(report.files)}"
    head = Text(
        f"{source}: {report.tokens:,} tokens, {count_words(report.lines, 'line')}, {size_words(report.bytes)}{where}"
    )
    if not report.findings:
        return Group(head, *_comparison(report), Text("Nothing wrong found.", style="bold green"))
    parts: list[RenderableType] = [head, *_comparison(report), Text(), _totals(report), Text()]
    grave = [finding for finding in report.findings if finding.severity != "low"]
    shown = grave[:SHOWN] or report.findings[:LOW_SHOWN]
    for finding in shown:
        excerpt = Text(finding.excerpt, style="dim", overflow="fold")
        parts += [_headline(finding, report), Padding(excerpt, (0, 0, 0, 4))]
    left = sum(total.findings for total in report.totals.values()) - len(shown)
    if left > 0:
        low = ", low ones" if len(grave) <= SHOWN else ""
        how = f"RANGE= shows those of a part, --json lists the largest {MAX_FINDINGS} of each kind"
        parts.append(Text(f"... and {left:,} more{low}: {how}."))
    return Group(*parts)


def to_json(report: AuditReport) -> dict[str, Any]:
    """Return the report as JSON values: totals by kind, findings worst first, and the profile along the text."""
    return {
        "files": [str(path) for path in report.files],
        **{name: getattr(report, name) for name in ("text_fingerprint", "tokens", "train_tokens", "lines", "bytes")},
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
    lines = [f"{summary.out}: {size_words(summary.bytes)}, {less:,} bytes less than the source, which is untouched."]
    for kind, removed in summary.removed.items():
        lines.append(f"  removed {count_words(removed.lines, 'line')}, {removed.tokens:,} tokens: {_words(kind)}")
    if summary.repaired_lines:
        lines.append(f"  repaired {count_words(summary.repaired_lines, 'line')}: encoding debris")
    if not summary.removed and not summary.repaired_lines:
        lines.append("  nothing to remove or repair")
    if summary.kept_kinds:
        lines.append(f"  left in, for you to judge: {', '.join(_words(kind) for kind in summary.kept_kinds)}")
    return Text("\n".join(lines))


def _words(kind: str) -> str:
    return kind.replace("_", " ")


def _comparison(report: AuditReport) -> list[RenderableType]:
    figures = []
    for name, (inside, rest) in range_against_rest(report).items():
        label, number, *_ = FIGURES[name]
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


def plot_audit(report: AuditReport, path: Path) -> None:
    """Draw the findings as strips by kind and the profile as curves, by token position, as PNG or SVG by suffix.

    Raises OSError when `path` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(12, 10), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1 + len(FIGURES), 1, sharex=True, height_ratios=[3.2, *[1.2] * len(FIGURES)])
    _draw_strips(axes[0], report)
    for axis, (name, (_, _, label, is_share)) in zip(axes[1:], FIGURES.items(), strict=True):
        _draw_curve(axis, report, name, label, is_share=is_share)
    for axis in axes:
        axis.axvline(report.train_tokens, color="#b2182b", linewidth=1.0, linestyle="--")
        if report.token_range is not None:
            axis.axvspan(*report.token_range, color="#fee08b", alpha=0.35, zorder=0, linewidth=0)
        axis.spines[["top", "right"]].set_visible(False)
    if report.train_tokens < report.tokens:
        above = axes[0].get_xaxis_transform()
        axes[0].text(report.train_tokens, 1.01, " validation", transform=above, va="bottom", size=9)
    axes[-1].set_xlim(0, report.tokens)
    axes[-1].set_xlabel("token position")
    axes[-1].xaxis.set_major_formatter(EngFormatter(sep=""))  # 2.5M, as a RANGE is written
    name = report.files[0].name if len(report.files) == 1 else f"{len(report.files)} files"
    seen = "" if report.token_range is None else "; RANGE {:,}-{:,}".format(*report.token_range)
    figure.suptitle(f"{name}: {report.tokens:,} tokens{seen}", x=0.01, ha="left", size=12)
    figure.savefig(path, dpi=120)


def _draw_strips(axis: "Axes", report: AuditReport) -> None:
    least = MIN_WIDTH_FRAC * report.tokens
    for row, (kind, colour) in enumerate(reversed(list(zip(KINDS, _COLOURS, strict=True)))):
        axis.axhspan(row - 0.4, row + 0.4, color="#f3f3f3", zorder=0, linewidth=0)
        if kind in report.spans:
            bars = [(first, max(end - first, least)) for first, end in report.spans[kind].tolist()]
            axis.broken_barh(bars, (row - 0.4, 0.8), color=colour, linewidth=0)
    axis.set_yticks(range(len(KINDS)), [_label(kind, report) for kind in reversed(KINDS)])
    axis.set_ylim(-0.6, len(KINDS) - 0.4)
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def _label(kind: str, report: AuditReport) -> str:
    total = report.totals.get(kind)
    if total is None:
        return _words(kind)
    return f"{_words(kind)}  ({count_words(total.findings, 'place')}, {total.frac:.2%})"


def _draw_curve(axis: "Axes", report: AuditReport, name: str, label: str, *, is_share: bool) -> None:
    values = getattr(report.profile, name)
    edges = np.append(report.profile.first_token, report.tokens)
    axis.stairs(values, edges, color="#333333", linewidth=1.0, baseline=None)
    axis.set_ylabel(label, rotation=0, ha="right", va="center", size=9)
    most = 1.1 * float(values.max())
    if is_share:
        axis.set_ylim(0.0, min(max(most, 0.05), 1.05))
    else:
        axis.set_ylim(min(float(values.min()), 0.5 * float(np.median(values))), most + 0.1)
