"""The figures with a line per trial: learning curves by tokens and by time, and parallel coordinates."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from results.report.figures import marks
from results.report.figures.marks import Row
from results.report.figures.traces import short
from results.words import STATUS_LABELS, loss_words, percent_words
from trainable.errors import count_words

MAX_CURVE_POINTS = 24_000
"""Of all curves together: as many as a browser draws without a pause."""
LOSS_CLASSES = 5
CLOCK_WORDS = {"tokens_seen": "%{x:,} tokens", "active_s": "%{x:.1f} s"}
_NOT_READ = -0.16


def _rung_marks(facts: Row, are_here: bool) -> tuple[list[Row], list[Row]]:
    """Return the rungs' lines and labels; none where the figure's axis is not the budget's kind."""
    device_s = facts["protocol"]["device_s"]
    rungs = [rung for rung in facts["rungs"] if rung["rung"] is not None and are_here]
    places = [rung["tokens"] if device_s is None else rung["budget_frac"] * device_s for rung in rungs]
    # At the bottom, below the curves.
    look = {"yref": "paper", "yanchor": "bottom", "xanchor": "left", "xshift": 3, "bgcolor": "@veil"}
    words = [
        marks.note(x, 0, percent_words(rung["budget_frac"]), **look) for x, rung in zip(places, rungs, strict=True)
    ]
    line = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "@muted", "width": 1, "dash": "dot"}}
    return [{**line, "x0": x, "x1": x} for x in places], words


def curves(facts: Row, *, by_time: bool = False) -> Iterator[Row]:
    """Yield val loss by tokens seen, a line per trial with a mark at its end that says why it ended.

    by_time: by device time in their place, seconds of training and evaluation.
    """
    key, clock, words = "curves", "tokens_seen", "training tokens seen"
    if by_time:
        key, clock, words = "curves-by-time", "active_s", "device time (s)"
    shapes, annotations = _rung_marks(facts, by_time == (facts["protocol"]["device_s"] is not None))
    trials = [trial for trial in facts["trials"] if any(v is not None for v in trial["evaluations"]["val_loss"])]
    if not trials:
        return
    start, losses = facts["initial_loss"], [v for t in trials for v in t["evaluations"]["val_loss"] if v is not None]
    ceiling = marks.loss_ceiling(facts, losses)
    each = max(8, MAX_CURVE_POINTS // len(trials))
    traces = [_lines(role, rows, each, clock) for role, rows in marks.by_role(trials)]
    traces += [
        mark for role, rows in marks.by_role(facts["trials"]) if (mark := _ends(role, rows, ceiling, clock)) is not None
    ]
    lowest = min(losses if start is None else [start, *losses])
    of_start = [] if start is None else [marks.note(1, start, "start", xref="paper", xanchor="right", yanchor="bottom")]
    yield marks.figure(
        key,
        f"Val loss by {words}",
        f"Val loss of {count_words(len(trials), 'trial')} by {words}.",
        traces,
        {
            "xaxis": marks.axis(words, rangemode="tozero"),
            "yaxis": marks.axis("val loss (nats/token)", range=marks.padded((lowest, ceiling))),
            "shapes": [*shapes, *([] if start is None else [marks.across(start, dash="dash")])],
            "annotations": [*annotations, *of_start],
        },
        height=440,
    )


def _lines(role: Row, trials: Sequence[Row], each: int, clock: str) -> Row:
    strong = role["name"].startswith(("baseline", "best"))
    return marks.line_trace(
        role["name"],
        ((trial["trial_id"], *_line(trial, each, clock)) for trial in trials),
        {"color": role["color"], "width": 3.5 if strong else 1.2},
        opacity=1 if strong else 0.75,
        legendgroup=role["name"],
        hovertemplate=f"trial %{{customdata}}: %{{y:.4f}} at {CLOCK_WORDS[clock]}<extra></extra>",
    )


def _line(trial: Row, each: int, clock: str) -> tuple[list[float | None], list[float | None]]:
    evaluations = trial["evaluations"]
    pairs = zip(evaluations[clock], evaluations["val_loss"], strict=True)
    kept = thinned([(at, loss) for at, loss in pairs if loss is not None], each)
    if trial[clock] > kept[-1][0]:
        # It trained on after its last evaluation, so the line goes on to its end at the last known loss.
        kept.append((trial[clock], kept[-1][1]))
    return [short(at, 9) for at, _ in kept], [short(loss, 6) for _, loss in kept]


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """Return at most `most` of the rows, evenly spaced, with the first and the last."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(k * (len(rows) - 1) / (most - 1))] for k in range(most)]


def _ends(role: Row, trials: Sequence[Row], ceiling: float, clock: str) -> Row | None:
    ends = []
    for trial in trials:
        losses = [loss for loss in trial["evaluations"]["val_loss"] if loss is not None]
        if trial["tokens_seen"] or losses:
            ends.append((trial, trial[clock], min(losses[-1] if losses else ceiling, ceiling)))
    if not ends:
        return None
    return {**marks.point_trace(role, ends, ceiling, showlegend=False), "legendgroup": role["name"]}


def parallel_coordinates(facts: Row) -> Iterator[Row]:
    """Yield a line per trial across the searched hyperparameters to its loss, shaded by it; stopped ones are thin."""
    parameters, trials = facts["parameters"], facts["trials"]
    completed = [trial for trial in trials if trial["status"] == "completed" and trial["val_loss"] is not None]
    if not parameters or len(trials) < 2:
        return
    losses = [trial["val_loss"] for trial in completed]
    ceiling = marks.loss_ceiling(facts, losses)
    low = min(losses, default=0.0)
    ordered = sorted((t for t in completed if not t["is_best"] and not t["is_baseline"]), key=lambda t: -t["val_loss"])
    others = [t for t in trials if t["status"] != "completed" and not t["is_baseline"]]
    traces = []
    for status, look in marks.ENDINGS_DRAWN.items():
        those = [trial for trial in others if trial["status"] == status]
        traces.append(_parallel_trace(STATUS_LABELS[status], those, look["color"], 1, facts, low, ceiling))
    for index in range(LOSS_CLASSES):
        part = ordered[len(ordered) * index // LOSS_CLASSES : len(ordered) * (index + 1) // LOSS_CLASSES]
        if part:
            name = " to ".join(sorted({loss_words(part[-1]["val_loss"]), loss_words(part[0]["val_loss"])}))
            name = f"trial {part[0]['trial_id']}, {name}" if len(part) == 1 else name
            traces.append(_parallel_trace(name, part, f"@seq{LOSS_CLASSES - index}", 1.8, facts, low, ceiling))
    for look, those in marks.baseline_and_best(trials):
        traces.append(_parallel_trace(look["name"], those, look["color"], 4, facts, low, ceiling))
    # Axes one below the other, because a phone has the height for them and not the width.
    axes = [*(parameter["label"] for parameter in parameters), "val loss"]
    ends = [_mark(place, len(parameters), loss_words(loss)) for place, loss in ((0.0, low), (1.0, ceiling))]
    yield marks.figure(
        "parallel",
        "Parallel coordinates",
        f"A line per trial across {', '.join(parameter['label'] for parameter in parameters)} and val loss.",
        [trace for trace in traces if trace["x"]],
        {
            "xaxis": {"visible": False, "range": [-0.3, 1.08]},
            "yaxis": {
                "tickvals": list(range(len(axes))),
                "ticktext": [name.replace(" ", "<br>") for name in axes],
                "range": [len(axes) - 0.4, -0.3],
                "showgrid": False,
                "zeroline": False,
            },
            "shapes": [marks.across(k, x0=0, x1=1, xref="x", layer="below") for k in range(len(axes))],
            "annotations": [*_axis_words(parameters, trials), *(ends if losses else [])],
        },
        height=110 + 68 * len(axes),
    )


def _parallel_trace(
    name: str, trials: Sequence[Row], color: str, width: float, facts: Row, low: float, ceiling: float
) -> Row:
    lines = []
    for trial in trials:
        places = [
            place_of(parameter, trial["searched"].get(parameter["name"]), trial["trial_id"])
            for parameter in facts["parameters"]
        ]
        if trial["status"] == "completed" and trial["val_loss"] is not None:
            places.append(short((min(trial["val_loss"], ceiling) - low) / (ceiling - low or 1.0), 4) or 0.0)
        lines.append((trial["trial_id"], places, range(len(places))))
    look = {"color": color, "width": width}
    return marks.line_trace(name, lines, look, opacity=0.55 if width == 1 else 1, hover="trial")


def place_of(parameter: Row, value: Any, trial_id: int) -> float:
    """Return a value's position on its axis, 0 to 1; below 0 for a parameter that the trial does not read."""
    values = parameter["values"]
    if value is None or (values is not None and value not in values):
        return _NOT_READ
    if values is not None:
        return short(_place(values, value) + marks.spread(trial_id, 0.05), 4) or 0.0
    scale = math.log if parameter["log"] else float
    low, high = scale(parameter["low"]), scale(parameter["high"])
    return short((scale(value) - low) / (high - low or 1.0), 4) or 0.0


def _place(values: Sequence[Any], value: Any) -> float:
    return values.index(value) / (len(values) - 1) if len(values) > 1 else 0.5


def _axis_words(parameters: Sequence[Row], trials: Sequence[Row]) -> Iterator[Row]:
    for index, parameter in enumerate(parameters):
        values = parameter["values"]
        if values is not None:
            tick_values = [(_place(values, value), value) for value in values]
        else:
            tick_values = [(0.0, parameter["low"]), (1.0, parameter["high"])]
        for place, value in tick_values:
            yield _mark(place, index, marks.short_words(value))
        if any(parameter["name"] not in trial["searched"] for trial in trials):
            yield marks.note(_NOT_READ, index, "not read", yanchor="bottom", yshift=4, bgcolor="@veil")


def _mark(x: float, y: float, text: str) -> Row:
    return marks.note(x, y, text, yanchor="top", yshift=-4, bgcolor="@veil")
