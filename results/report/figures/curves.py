"""The two figures with a line per trial: learning curves by tokens, and parallel coordinates."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from results.report.figures.marks import (
    BASELINE,
    BEST,
    ENDINGS_DRAWN,
    across,
    axis,
    by_role,
    figure,
    line_trace,
    loss_ceiling,
    note,
    point_trace,
    short_words,
    spread,
    upright,
)
from results.report.figures.traces import short
from results.words import STATUS_LABELS, loss_words

Row = dict[str, Any]

MAX_CURVE_POINTS = 24_000
"""Of all curves together: what a browser draws without a pause."""
LOSS_CLASSES = 5
_NOT_READ = -0.14


def curves(facts: Row) -> Iterator[Row]:
    """Yield val loss by tokens seen, a line a trial; the ends of trials that did not complete are marked with why."""
    trials = [trial for trial in facts["trials"] if any(v is not None for v in trial["evaluations"]["val_loss"])]
    if not trials:
        return
    start = facts["initial_loss"]
    ceiling = loss_ceiling(facts, [v for t in trials for v in t["evaluations"]["val_loss"] if v is not None])
    each = max(8, MAX_CURVE_POINTS // len(trials))
    traces = [_lines(role, rows, each) for role, rows in by_role(trials)]
    traces += [mark for role, rows in by_role(facts["trials"]) if (mark := _ends(role, rows, ceiling)) is not None]
    lowest = min(v for v in (start, *(v for t in trials for v in t["evaluations"]["val_loss"])) if v is not None)
    rungs = [rung for rung in facts["rungs"] if rung["rung"] is not None]
    yield figure(
        "curves",
        "Val loss by training tokens seen",
        f"Val loss of {len(trials)} trials by training tokens seen.",
        traces,
        {
            "xaxis": axis("training tokens seen", rangemode="tozero"),
            "yaxis": axis("val loss (nats/token)", range=_padded(lowest, ceiling)),
            "shapes": [
                *(upright(rung["tokens"], dash="dot", yref="paper") for rung in rungs),
                *([] if start is None else [across(start, dash="dash")]),
            ],
            "annotations": [
                *(note(rung["tokens"], 1, f"rung {rung['rung']}", yref="paper", yanchor="bottom") for rung in rungs),
                *([] if start is None else [note(1, start, "start", xref="paper", xanchor="right", yanchor="bottom")]),
            ],
        },
        height=440,
    )


def _padded(low: float, high: float) -> list[float | None]:
    pad = 0.04 * (high - low or 1.0)
    return [short(low - pad, 6), short(high + pad, 6)]


def _lines(role: Row, trials: Sequence[Row], each: int) -> Row:
    strong = role["name"].startswith(("baseline", "best"))
    return line_trace(
        role["name"],
        ((trial["trial_id"], *_line(trial, each)) for trial in trials),
        {"color": role["color"], "width": 3.5 if strong else 1.2},
        opacity=1 if strong else 0.75,
        legendgroup=role["name"],
        hovertemplate="trial %{customdata}: %{y:.4f} at %{x:,} tokens<extra></extra>",
    )


def _line(trial: Row, each: int) -> tuple[list[int], list[float | None]]:
    evaluations = trial["evaluations"]
    pairs = zip(evaluations["tokens_seen"], evaluations["val_loss"], strict=True)
    kept = thinned([(tokens, loss) for tokens, loss in pairs if loss is not None], each)
    if trial["tokens_seen"] > kept[-1][0]:
        # It went on after its last evaluation: the line leads to where it ended, at the last loss that is known.
        kept.append((trial["tokens_seen"], kept[-1][1]))
    return [tokens for tokens, _ in kept], [short(loss, 6) for _, loss in kept]


def thinned(rows: Sequence[Any], most: int) -> list[Any]:
    """Return at most about `most` of the rows, evenly, the first and the last among them."""
    if len(rows) <= most:
        return list(rows)
    return [rows[round(k * (len(rows) - 1) / (most - 1))] for k in range(most)]


def _ends(role: Row, trials: Sequence[Row], ceiling: float) -> Row | None:
    ends = []
    for trial in trials:
        losses = [loss for loss in trial["evaluations"]["val_loss"] if loss is not None]
        if trial["tokens_seen"] or losses:
            ends.append((trial, trial["tokens_seen"], min(losses[-1] if losses else ceiling, ceiling)))
    if not ends:
        return None
    return {**point_trace(role, ends, ceiling, showlegend=False), "legendgroup": role["name"]}


def parallel_coordinates(facts: Row) -> Iterator[Row]:
    """Yield a line a trial across the searched hyperparameters to its loss, shaded by it; stopped ones are thin."""
    parameters, trials = facts["parameters"], facts["trials"]
    completed = [trial for trial in trials if trial["status"] == "completed" and trial["val_loss"] is not None]
    if not parameters or len(trials) < 2:
        return
    losses = [trial["val_loss"] for trial in completed]
    ceiling = loss_ceiling(facts, losses)
    low = min(losses, default=0.0)
    ordered = sorted((t for t in completed if not t["is_best"] and not t["is_baseline"]), key=lambda t: -t["val_loss"])
    others = [t for t in trials if t["status"] != "completed" and not t["is_baseline"]]
    traces = [
        _parallel_trace(
            STATUS_LABELS[status], [t for t in others if t["status"] == status], look["color"], 1, facts, low, ceiling
        )
        for status, look in ENDINGS_DRAWN.items()
    ]
    for index in range(LOSS_CLASSES):
        part = ordered[len(ordered) * index // LOSS_CLASSES : len(ordered) * (index + 1) // LOSS_CLASSES]
        if part:
            name = " to ".join(sorted({loss_words(part[-1]["val_loss"]), loss_words(part[0]["val_loss"])}))
            traces.append(_parallel_trace(name, part, f"@seq{LOSS_CLASSES - index}", 1.8, facts, low, ceiling))
    for flag, look in (("is_baseline", BASELINE), ("is_best", BEST)):
        those = [trial for trial in trials if trial[flag]]
        traces.append(_parallel_trace(look["name"], those, look["color"], 4, facts, low, ceiling))
    axes = len(parameters) + 1
    yield figure(
        "parallel",
        "Parallel coordinates",
        f"A line per trial across {', '.join(parameter['label'] for parameter in parameters)} and val loss.",
        [trace for trace in traces if trace["x"]],
        {
            "xaxis": {
                "tickvals": list(range(axes)),
                "ticktext": [*(parameter["label"] for parameter in parameters), "val loss"],
                "range": [-0.35, axes - 0.45],
                "side": "top",
                "showgrid": False,
                "zeroline": False,
            },
            "yaxis": {"visible": False, "range": [-0.2, 1.06]},
            "shapes": [upright(k, layer="below") for k in range(axes)],
            "annotations": [*_axis_words(parameters), *_loss_words(axes - 1, low, ceiling, bool(losses))],
            "legend": {"y": -0.02, "yanchor": "top"},
        },
        height=460,
        min_width=120 * axes,
    )


def _parallel_trace(
    name: str, trials: Sequence[Row], color: str, width: float, facts: Row, low: float, ceiling: float
) -> Row:
    lines = []
    for trial in trials:
        heights = [
            height_of(parameter, trial["searched"].get(parameter["name"]), trial["trial_id"])
            for parameter in facts["parameters"]
        ]
        if trial["status"] == "completed" and trial["val_loss"] is not None:
            heights.append(short((min(trial["val_loss"], ceiling) - low) / (ceiling - low or 1.0), 4) or 0.0)
        lines.append((trial["trial_id"], range(len(heights)), heights))
    look = {"color": color, "width": width}
    return line_trace(name, lines, look, opacity=0.55 if width == 1 else 1, hover="trial")


def height_of(parameter: Row, value: Any, trial_id: int) -> float:
    """Return a value's height on its axis, 0 to 1; below 0 for a parameter that the trial does not read."""
    if value is None:
        return _NOT_READ
    values = parameter["values"]
    if values is not None:
        if value not in values:
            return _NOT_READ
        return short(_place(values, value) + spread(trial_id, 0.05), 4) or 0.0
    scale = math.log if parameter["log"] else float
    low, high = scale(parameter["low"]), scale(parameter["high"])
    return short((scale(value) - low) / (high - low or 1.0), 4) or 0.0


def _place(values: Sequence[Any], value: Any) -> float:
    return values.index(value) / (len(values) - 1) if len(values) > 1 else 0.5


def _axis_words(parameters: Sequence[Row]) -> Iterator[Row]:
    for index, parameter in enumerate(parameters):
        values = parameter["values"]
        if values is not None:
            marks = [(_place(values, value), value) for value in values]
        else:
            marks = [(0.0, parameter["low"]), (1.0, parameter["high"])]
        for height, value in marks:
            yield _mark(index, height, short_words(value))
        if parameter["condition"] is not None:
            yield _mark(index, _NOT_READ, "not read")


def _loss_words(index: int, low: float, ceiling: float, known: bool) -> list[Row]:
    return [_mark(index, 0.0, loss_words(low)), _mark(index, 1.0, loss_words(ceiling))] if known else []


def _mark(x: float, y: float, text: str) -> Row:
    return note(x, y, text, xanchor="right", xshift=-5, bgcolor="@veil")
