"""Parts that the report's figures share: roles with colour and symbol, the top of the loss axis, a figure's frame."""

import html
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from results.report.figures.traces import short
from results.words import STATUS_LABELS, value_words

Row = dict[str, Any]

ENDINGS_DRAWN: Mapping[str, Row] = {
    "completed": {"color": "@completed", "symbol": "circle", "size": 8},
    "stopped": {"color": "@stopped", "symbol": "circle-open", "size": 7, "width": 1.5},
    "unstable": {"color": "@unstable", "symbol": "x", "size": 9},
    "out_of_memory": {"color": "@memory", "symbol": "square-open", "size": 9, "width": 2},
    "failed": {"color": "@failed", "symbol": "cross", "size": 9},
    "running": {"color": "@running", "symbol": "circle-open", "size": 8, "width": 2},
    "interrupted": {"color": "@running", "symbol": "triangle-right", "size": 9},
}
"""Every ending has its own symbol too, for readers who cannot tell the colours apart."""


def by_role(trials: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Yield the trials in groups with their look: by ending, then the baseline and the best, which are drawn on top."""
    for status, look in ENDINGS_DRAWN.items():
        those = [t for t in trials if t["status"] == status and not t["is_baseline"] and not t["is_best"]]
        if those:
            yield {"name": STATUS_LABELS[status], **look}, those
    yield from baseline_and_best(trials)


def baseline_and_best(trials: Sequence[Row]) -> Iterator[tuple[Row, list[Row]]]:
    """Yield the baseline, then the best where that is another trial; a look's name is that of a legend."""
    for trial in trials:
        if trial["is_baseline"]:
            name = "baseline (best)" if trial["is_best"] else "baseline"
            yield {"name": name, "color": "@baseline", "symbol": "diamond", "size": 13}, [trial]
    for trial in trials:
        if trial["is_best"] and not trial["is_baseline"]:
            name = f"best (trial {trial['trial_id']})"
            yield {"name": name, "color": "@winner", "symbol": "star", "size": 16}, [trial]


def loss_ceiling(facts: Row, losses: Sequence[float]) -> float:
    """Return the top of the loss axis: higher losses are drawn at it, so that one blown-up trial flattens no others.

    It is the highest of `losses` up to the facts' loss_limit.
    """
    limit = math.inf if facts["loss_limit"] is None else facts["loss_limit"]
    inside = [loss for loss in losses if loss <= limit]
    if not inside:
        return max(losses, default=1.0)
    return max(inside) + 0.02 * (max(inside) - min(inside) or 1.0)


def point_trace(
    role: Row,
    points: Sequence[tuple[Row, Any, float]],
    ceiling: float,
    *,
    view: int | None = None,
    showlegend: bool = True,
) -> Row:
    """Return (trial, x, loss) as markers; a loss above `ceiling` is drawn there as a triangle that points up."""
    trace: Row = {
        "type": "scatter",
        "mode": "markers",
        "name": role["name"],
        "x": [short(x) if isinstance(x, float) else x for _, x, _ in points],
        "y": [short(min(loss, ceiling), 6) for _, _, loss in points],
        "customdata": [trial["trial_id"] for trial, _, _ in points],
        "marker": {
            "color": role["color"],
            "size": role["size"],
            "symbol": ["triangle-up-open" if loss > ceiling else role["symbol"] for _, _, loss in points],
            "line": {"width": role.get("width", 1), "color": role["color"] if role.get("width") else "@paper"},
        },
        "hover": "trial",
        "showlegend": showlegend,
    }
    return trace if view is None else {**trace, "view": view}


def line_trace(name: str, lines: Iterable[tuple[int, Sequence[Any], Sequence[Any]]], look: Row, **others: Any) -> Row:
    """Return lines of (trial_id, x, y) as one trace with gaps: a trace per trial would slow down legend and page."""
    x: list[Any] = []
    y: list[Any] = []
    ids: list[int | None] = []
    for trial_id, xs, ys in lines:
        x += [*xs, None]
        y += [*ys, None]
        ids += [trial_id] * len(xs) + [None]
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": x[:-1],
        "y": y[:-1],
        "customdata": ids[:-1],
        "line": look,
        **others,
    }


def across(y: float, *, dash: str | None = None, **place: Any) -> Row:
    """Return a horizontal line over the whole width of a figure."""
    line = {"color": "@muted", "width": 1} | ({"dash": dash} if dash else {})
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": line, **place}


def note(x: float, y: float, text: str, **place: Any) -> Row:
    """Return a small text in a figure."""
    return {"x": x, "y": y, "text": text, "showarrow": False, "font": {"size": 11, "color": "@muted"}, **place}


def whiskers(up: Sequence[float], down: Sequence[float], **look: Any) -> Row:
    """Return error bars of these lengths along x."""
    lengths = {"array": [short(length) for length in up], "arrayminus": [short(length) for length in down]}
    return {"type": "data", "symmetric": False, **lengths, "color": "@muted", **look}


def axis(title: str, **others: Any) -> Row:
    """Return an axis with a title."""
    return {"title": {"text": title}, **others}


def position(parameter: Row, value: Any, trial_id: int) -> Any:
    """Return a value's position on its parameter's axis; points of a choice are spread so that none hides another."""
    if parameter["values"] is None:
        return value
    return parameter["values"].index(value) + spread(trial_id, 0.3) if value in parameter["values"] else None


def domain_range(parameter: Row, values: Sequence[float]) -> list[float | None]:
    """Return the ends of a range's axis: the domain and the values tried, so that even a single point has an extent."""
    scale = math.log10 if parameter["log"] else float
    return padded([scale(value) for value in (parameter["low"], parameter["high"], *values)])


def padded(values: Sequence[float]) -> list[float | None]:
    """Return the ends of an axis that shows all values with a little room on both sides."""
    low, high = min(values), max(values)
    pad = 0.04 * (high - low or 1.0)
    return [short(low - pad, 6), short(high + pad, 6)]


def spread(trial_id: int, width: float) -> float:
    """Return an offset within +-width/2, always the same for a trial."""
    # Multiples of the golden ratio fill an interval evenly, whatever their number and whichever are missing.
    return short((trial_id * 0.6180339887 % 1 - 0.5) * width, 3) or 0.0


def short_words(value: Any) -> str:
    """Return a value as a tick's text, a word a line, with plotly's markup escaped."""
    return html.escape(value_words(value)).replace("_", "<br>")


def figure(
    key: str, title: str, alt: str, traces: Sequence[Row], layout: Row, *, height: int, min_width: int | None = None
) -> Row:
    """Return a figure as the page draws it; below min_width (px) it scrolls and does not shrink."""
    return {
        "id": key,
        "title": title,
        "alt": alt,
        "height": height,
        "min_width": min_width,
        "traces": list(traces),
        "layout": layout,
    }
