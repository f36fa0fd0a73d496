"""An audit drawn along the text, by token position."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainable.text_audit.audit_values import KINDS, AuditReport

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#b2182b", "#d6604d", "#f4a582", "#8c510a", "#4d4d4d", "#542788", "#2166ac", "#1b7837", "#80b1d3")
"""Of KINDS, in their order."""
_CURVES = (
    ("entropy", "token entropy\nnats/token", False),
    ("bytes_per_token", "bytes\nper token", False),
    ("shift", "distance from\nthe whole text", True),
    ("non_ascii_frac", "non-ASCII\nshare", True),
    ("duplicate_frac", "copied\nshare", True),
)
MIN_WIDTH_FRAC = 0.0015
"""A finding is drawn at least so wide, or the short ones could not be seen."""


def plot_audit(report: AuditReport, path: Path) -> None:
    """Draw the findings as strips by kind and the profile as curves, by token position, as PNG or SVG by suffix.

    Raises OSError when `path` cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(12, 10), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1 + len(_CURVES), 1, sharex=True, height_ratios=[3.2, *[1.2] * len(_CURVES)])
    _draw_strips(axes[0], report)
    for axis, curve in zip(axes[1:], _CURVES, strict=True):
        _draw_curve(axis, report, *curve)
    for axis in axes:
        _draw_marks(axis, report)
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
    name, total = kind.replace("_", " "), report.totals.get(kind)
    if total is None:
        return name
    return f"{name}  ({total.findings:,} place{'s' if total.findings > 1 else ''}, {total.frac:.2%})"


def _draw_curve(axis: "Axes", report: AuditReport, name: str, label: str, is_share: bool) -> None:
    values = getattr(report.profile, name)
    edges = np.append(report.profile.first_token, report.tokens)
    axis.stairs(values, edges, color="#333333", linewidth=1.0, baseline=None)
    axis.set_ylabel(label, rotation=0, ha="right", va="center", size=9)
    most = 1.1 * float(values.max())
    if is_share:
        axis.set_ylim(0.0, min(max(most, 0.05), 1.05))
    else:
        axis.set_ylim(min(float(values.min()), 0.5 * float(np.median(values))), most + 0.1)


def _draw_marks(axis: "Axes", report: AuditReport) -> None:
    axis.axvline(report.train_tokens, color="#b2182b", linewidth=1.0, linestyle="--")
    if report.token_range is not None:
        axis.axvspan(*report.token_range, color="#fee08b", alpha=0.35, zorder=0, linewidth=0)
