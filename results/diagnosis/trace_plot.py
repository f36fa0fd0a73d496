"""The picture of a run: loss, gradient norm, learning rate and speed over the steps, with the findings marked."""

import io
import math
import statistics
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.diagnosis.findings import Diagnosis, capitalized
from results.diagnosis.run_view import evenly
from results.diagnosis.trace import Column, RunTrace
from results.study.atomic import write_atomic
from trainable.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_POINTS = 4000
FEW_POINTS = 60
"""Fewer are drawn as dots as well."""
MAX_CROSSES = 200
LOG_SCALE_RATIO = 6.0
WHOLE_RUN_FRAC = 0.9
_INK, _FAINT, _TRAIN, _VAL, _OTHER = "#1f2933", "#cbd2d9", "#3b7dbd", "#e08a2e", "#4a5b6c"
_MARKS = ("#c0392b", "#8e44ad", "#16806a", "#b7791f", "#34495e", "#7f5539")


def plot_trace(trace: RunTrace, diagnoses: Sequence[Diagnosis], path: Path) -> None:
    """Write the picture as `path`, a .png or .svg; the same run gives the same file.

    What was not recorded has no panel. Raises UserError for a trace without anything to draw, and OSError.
    """
    panels = [name for name, (*_, columns) in _PANELS.items() if any(trace.series(column)[0] for column in columns)]
    if not panels:
        raise UserError(f"{trace.source} records no loss, gradient norm, learning rate or speed: nothing to draw.")
    # No pyplot: it keeps figures and picks a window system. The salt makes an SVG's ids the same each time.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    marks = list(diagnoses[: len(_MARKS)])
    heading = _heading(trace, marks)
    heights = [_PANELS[name][0] for name in panels]
    heading_inches = 0.35 + 0.19 * sum(line.count("\n") + 1 for line, _ in heading)
    with rc_context({"svg.hashsalt": "trace", "font.size": 9.5, "text.parse_math": False}):
        height = sum(heights) + 0.6 + heading_inches
        figure = Figure(figsize=(11, height), facecolor="white")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
        axes = dict(zip(panels, grid[:, 0], strict=True))
        figure.subplots_adjust(
            left=0.085, right=0.985, bottom=0.5 / height, top=1 - (heading_inches + 0.2) / height, hspace=0.14
        )
        for name, panel in axes.items():
            _PANELS[name][1](panel, trace)
            _finish(panel, name)
        _mark(list(axes.values()), trace, marks)
        axes[panels[-1]].set_xlabel("optimizer step" if trace.unit == "step" else "row of the log")
        _write_heading(figure, heading, height)
        if "loss" in axes:
            # Beside the title: inside the panel it would hide the very rows that matter, the last ones.
            handles, labels = axes["loss"].get_legend_handles_labels()
            figure.legend(handles, labels, loc="upper right", frameon=False, fontsize=9, ncols=4, borderaxespad=0.2)
        file = io.BytesIO()
        undated = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(file, format=path.suffix[1:], dpi=130, metadata=undated)
    write_atomic(path, file.getvalue())


def _heading(trace: RunTrace, marks: Sequence[Diagnosis]) -> list[tuple[str, str]]:
    lines = [(trace.source if marks else f"{trace.source}: nothing wrong found", _INK)]
    for number, finding in enumerate(marks, start=1):
        text = textwrap.shorten(capitalized(finding.summary), 260, placeholder=" …")
        lines.append((textwrap.fill(f"{number}  {text}", 150, subsequent_indent="    "), _MARKS[number - 1]))
    return lines


def _write_heading(figure: Any, heading: Sequence[tuple[str, str]], height: float) -> None:
    y: float = 1 - 0.12 / height
    for index, (text, colour) in enumerate(heading):
        weight = "bold" if index == 0 else "normal"
        figure.text(0.012, y, text, color=colour, va="top", weight=weight, fontsize=9.5, linespacing=1.25)
        y -= (0.24 if index == 0 else 0.19 * (text.count("\n") + 1)) / height


def _finish(axes: "Axes", name: str) -> None:
    axes.set_ylabel(name)
    axes.grid(color=_FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    if name == "steps/s" and len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(loc="lower right", frameon=True, framealpha=0.85, edgecolor="none", fontsize=8.5, ncols=2)


def _mark(panels: "Sequence[Axes]", trace: RunTrace, marks: Sequence[Diagnosis]) -> None:
    first, last = trace.steps[0], trace.steps[-1]
    span = max(1, last - first)
    rows: list[float] = []
    for number, finding in enumerate(marks, start=1):
        if finding.steps is None:
            continue
        start, end = (min(max(step, first), last) for step in finding.steps)
        colour = _MARKS[number - 1]
        for axes in panels if end - start < WHOLE_RUN_FRAC * span else ():
            axes.axvspan(start, max(end, start + 0.002 * span), color=colour, alpha=0.10, linewidth=0, zorder=0)
            axes.axvline(start, color=colour, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        # A badge a line above the panel, moved aside when another is there.
        x: float = start
        while any(abs(x - other) < 0.022 * span for other in rows):
            x += 0.024 * span
        rows.append(x)
        panels[0].annotate(
            str(number), (x, 1.0), (0, 7), xycoords=("data", "axes fraction"), textcoords="offset points", ha="center",
            va="center", color="white", fontsize=8.5, weight="bold", annotation_clip=False,
            bbox={"boxstyle": "circle,pad=0.25", "facecolor": colour, "edgecolor": "none"},
        )  # fmt: skip


def _loss(axes: "Axes", trace: RunTrace) -> None:
    positive: list[float] = []
    curves: tuple[tuple[Column, str, str], ...] = (("train_loss", "train", _TRAIN), ("val_loss", "validation", _VAL))
    for column, label, colour in curves:
        steps, values = trace.finite(column)
        _line(axes, steps, values, label, colour)
        positive += [value for value in values if value > 0]
        bad = [step for step, value in zip(*trace.series(column), strict=True) if not math.isfinite(value)]
        if bad:
            crosses, height = evenly(bad, MAX_CROSSES), axes.get_xaxis_transform()
            axes.plot(
                crosses, [0.97] * len(crosses), "x", color=_MARKS[0], transform=height, label=f"{label} not finite"
            )
    if positive and max(positive) > LOG_SCALE_RATIO * min(positive):
        _log_scale(axes)


def _line(axes: "Axes", steps: Sequence[int], values: Sequence[float], label: str, colour: str) -> None:
    if not steps:
        return
    if len(steps) < FEW_POINTS:
        axes.plot(steps, values, "-o", color=colour, markersize=3.5, linewidth=1.3, label=label)
        return
    axes.plot(evenly(steps, MAX_POINTS), evenly(values, MAX_POINTS), color=colour, alpha=0.35, linewidth=0.7)
    window = max(5, len(values) // 100)
    centres = range(0, len(values), max(1, window // 2))
    smooth = [statistics.median(values[max(0, at - window // 2) : at + window // 2 + 1]) for at in centres]
    axes.plot([steps[at] for at in centres], smooth, color=colour, linewidth=1.6, label=label)


def _grad_norm(axes: "Axes", trace: RunTrace) -> None:
    steps, values = trace.finite("grad_norm")
    _line(axes, steps, values, "", _OTHER)
    if any(value > 0 for value in values):
        _log_scale(axes)


def _log_scale(axes: "Axes") -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log", nonpositive="mask")
    low, high = axes.get_ylim()
    few = high / max(low, 1e-300) < 30
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few else (1.0,)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _learning_rate(axes: "Axes", trace: RunTrace) -> None:
    steps, values = trace.finite("learning_rate")
    if not steps:
        return
    style = "-o" if len(steps) < FEW_POINTS else "-"
    axes.plot(evenly(steps, MAX_POINTS), evenly(values, MAX_POINTS), style, color=_OTHER, markersize=3.5, linewidth=1.3)
    top = max(values)
    if top > 0:
        axes.set_ylim(-0.05 * top, 1.15 * top)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-3, 3), useMathText=False)


def _speed(axes: "Axes", trace: RunTrace) -> None:
    steps, times_s = trace.finite("step_time_s")
    good = [(step, 1 / time_s) for step, time_s in zip(steps, times_s, strict=True) if time_s > 0]
    if not good:
        return
    printed_steps, printed = trace.finite("printed_steps_per_s")
    if trace.announced.get("printed_speed") == "mean" and len(printed) > 2:
        axes.plot(
            evenly(printed_steps[1:], MAX_POINTS), evenly(printed[1:], MAX_POINTS), "--", color="#b0b8c1",
            linewidth=1.1, label="mean since the start, as printed",
        )  # fmt: skip
    ends, speeds = [step for step, _ in good], [speed for _, speed in good]
    if len(good) < 400:
        # Each window reaches back to the one before.
        axes.plot(
            [trace.steps[0], *ends], [speeds[0], *speeds], color=_OTHER, linewidth=1.4, drawstyle="steps-pre",
            label="measured",
        )  # fmt: skip
    else:
        _line(axes, ends, speeds, "measured", _OTHER)
    high = sorted(speeds)[int(0.98 * (len(speeds) - 1))]
    axes.set_ylim(0, 1.25 * high)


_PANELS: dict[str, tuple[float, Callable[["Axes", RunTrace], None], tuple[Column, ...]]] = {
    "loss": (3.2, _loss, ("train_loss", "val_loss")),
    "gradient norm": (1.5, _grad_norm, ("grad_norm",)),
    "learning rate": (1.3, _learning_rate, ("learning_rate",)),
    "steps/s": (1.5, _speed, ("step_time_s",)),
}
"""By title: height in inches, what draws it, and the columns of which one at least must be recorded."""
