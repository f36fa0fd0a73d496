"""The picture of an attribution: a waterfall from before to after, and each change against the others."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from results.attribution.attribution_values import Attribution, Estimate
from results.attribution.sentences import unknown_word
from results.study.atomic import write_atomic
from trainable.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Blue and orange differ for every kind of colour vision.
_BETTER, _WORSE, _UNPROVEN, _INK, _FAINT = "#3b7dbd", "#e08a2e", "#9aa5b1", "#1f2933", "#cbd2d9"
_LONG_TEXT = 26
_BAR_HEIGHT = 0.52


def write_plot(attribution: Attribution, path: Path) -> None:
    """Write the picture as a PNG. Raises UserError for an attribution without Shapley values, and OSError."""
    shapley = [effect.shapley for effect in attribution.effects if effect.shapley is not None]
    if len(shapley) < len(attribution.effects):
        raise UserError("there is nothing to draw: too few combinations completed to attribute the difference.")
    # Not pyplot, which keeps figures and picks a window system.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    k = len(attribution.settings)
    with rc_context({"font.size": 10, "text.parse_math": False}):
        side = max(4.4, 1.7 + 0.8 * k)
        height = max(3.4, 2.0 + 0.62 * k)
        figure = Figure(figsize=(7.4 + (side if k > 1 else 0.0), height), layout="constrained", facecolor="white")
        axes = figure.subplots(1, 2, width_ratios=(7.4, side)) if k > 1 else [figure.subplots()]
        _waterfall(axes[0], attribution, shapley)
        if k > 1:
            _matrix(axes[1], attribution)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=160)
    write_atomic(path, file.getvalue())


def _waterfall(axes: "Axes", attribution: Attribution, shapley: Sequence[Estimate]) -> None:
    assert attribution.loss_before is not None
    assert attribution.loss_after is not None
    seeds = len(attribution.seeds)
    order = sorted(range(len(shapley)), key=lambda change: -abs(shapley[change].mean))
    level, last = attribution.loss_before, len(order) + 1
    seen = [level, attribution.loss_after]
    for row, change in enumerate(order, start=1):
        value = shapley[change]
        low = value.mean if value.low is None else value.low
        high = value.mean if value.high is None else value.high
        axes.plot([level, level], [row - 1, row - _BAR_HEIGHT / 2], color=_FAINT, zorder=1)
        axes.barh(row, value.mean, left=level, height=_BAR_HEIGHT, color=_colour(value, seeds=seeds), zorder=2)
        if low < high:
            axes.plot([level + low, level + high], [row, row], color=_INK, linewidth=1.4, marker="|", zorder=3)
        _label(axes, max(level, level + high), row, f"{value.mean:+.4f}")
        seen += [level + low, level + high]
        level += value.mean
    axes.plot([level, level], [last - 1 + _BAR_HEIGHT / 2, last], color=_FAINT, zorder=1)
    for row, loss in ((0, attribution.loss_before), (last, attribution.loss_after)):
        axes.plot([loss], [row], "D", color=_INK, zorder=3)
        _label(axes, loss, row, f"{loss:.4f}", weight="bold")
    span = (max(seen) - min(seen)) or 1.0
    # Room on the right for the furthest label.
    axes.set(xlim=(min(seen) - 0.06 * span, max(seen) + 0.2 * span), ylim=(last + 0.6, -0.6))
    names = [attribution.before_name, *(_change_words(attribution, change) for change in order), attribution.after_name]
    axes.set_yticks(range(last + 1), names)
    axes.set_xlabel("validation loss, nats/token (lower is better)")
    interval = f"line: 95 % interval, {seeds} seeds; grey: it holds 0" if seeds > 1 else "one seed: no interval"
    axes.set_title(f"What each change did (Shapley values)\n{interval}", loc="left", fontsize=10)
    axes.grid(axis="x", color=_FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def _colour(estimate: Estimate, *, seeds: int) -> str:
    if seeds > 1 and not estimate.is_proven:
        return _UNPROVEN
    return _BETTER if estimate.mean < 0.0 else _WORSE


def _label(axes: "Axes", loss: float, row: int, text: str, weight: str = "normal") -> None:
    axes.annotate(text, (loss, row), (8, 0), textcoords="offset points", va="center", weight=weight, color=_INK)


def _change_words(attribution: Attribution, change: int) -> str:
    setting = attribution.settings[change]
    long = len(setting.before) + len(setting.after) > _LONG_TEXT
    return f"{setting.name}\n{setting.before}{chr(10) if long else ' '}→ {setting.after}"


def _matrix(axes: "Axes", attribution: Attribution) -> None:
    k = len(attribution.settings)
    cells: dict[tuple[int, int], tuple[Estimate, bool]] = {}
    for change, effect in enumerate(attribution.effects):
        if effect.alone is not None:
            cells[change, change] = (effect.alone, effect.alone.is_proven)
    for entry in attribution.interactions:
        cells[entry.second, entry.first] = (entry.estimate, entry.named)
    largest = max((abs(estimate.mean) for estimate, _ in cells.values()), default=0.0) or 1.0
    for row in range(k):
        for column in range(row + 1):
            estimate, is_clear = cells.get((row, column), (None, False))
            text = unknown_word(attribution, row) if row == column else "unknown"
            if estimate is not None:
                text = f"{estimate.mean:+.3f}"
                # At most 0.6, so that dark figures can be read on it.
                strength = 0.6 * abs(estimate.mean) / largest
                colour = _BETTER if estimate.mean < 0.0 else _WORSE
                axes.fill_between([column, column + 1], row, row + 1, color=colour, alpha=strength, linewidth=0)
            axes.plot([column, column + 1, column + 1, column, column], [row, row, row + 1, row + 1, row], color=_FAINT)
            weight, ink = "bold" if is_clear else "normal", _INK if estimate is not None else "#616e7c"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", weight=weight, color=ink)
    names = [setting.name for setting in attribution.settings]
    axes.set(xlim=(-0.02, k + 0.02), ylim=(k + 0.02, -0.02), aspect="equal", anchor="NW")
    axes.set_xticks([change + 0.5 for change in range(k)], names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks([change + 0.5 for change in range(k)], names)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    bold = "bold: not 0" if len(attribution.seeds) > 1 else "bold: large"
    axes.set_title(
        f"Diagonal: one change alone. Below: what\ntwo do together beyond their sum ({bold})", loc="left", fontsize=10
    )
