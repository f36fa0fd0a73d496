"""The report's figures as plotly.js traces and layouts, made from the facts. Colours are roles such as "@winner"."""

from collections.abc import Iterator, Sequence

from results.report.figures import marks
from results.report.figures.claims import attribution_bars, confirmation_intervals, importance_bars
from results.report.figures.curves import curves, parallel_coordinates
from results.report.figures.marks import Row
from results.report.figures.traces import short
from results.words import percent_words, range_words

LABEL_GAP_FRAC = 0.12
"""Of the range of speeds: of points of the Pareto front that are closer, as on a phone, only one has a label."""


def report_figures(facts: Row) -> dict[str, list[Row]]:
    """Return the figures by section, as marks.figure() makes them; a section with too little data has none.

    A trace with "view" is drawn in that view only. "customdata" holds trial_ids.
    """
    return {
        "confirmation": list(confirmation_intervals(facts)),
        "curves": list(curves(facts)),
        "parallel": list(parallel_coordinates(facts)),
        "settings": [*_lr_by_batch(facts), *_loss_by_setting(facts)],
        "stability": list(_stability_map(facts)),
        "speed": [*_pareto(facts), *curves(facts, by_time=True)],
        "importance": list(importance_bars(facts)),
        "attribution": list(attribution_bars(facts)),
    }


def views(facts: Row) -> list[str]:
    """Return the names of the views of the settings section: the full budget, then each rung that trials reached."""
    rungs, unit = _rungs_reached(facts), " tokens" if facts["protocol"]["device_s"] is None else ""
    shares = [(percent_words(rung["budget_frac"]), rung["at"]) for rung in rungs]
    return ["at the full budget", *(f"at {share} of the budget ({at}{unit})" for share, at in shares)]


def default_view(facts: Row) -> int:
    """Return the first view to show: the full budget, or the first rung where most trials did not complete."""
    completed = sum(trial["status"] == "completed" for trial in facts["trials"])
    return 0 if 2 * completed >= len(facts["trials"]) or len(views(facts)) == 1 else 1


def _view_losses(facts: Row) -> Iterator[tuple[int, list[tuple[Row, float]]]]:
    finals = [(t, t["val_loss"]) for t in facts["trials"] if t["status"] == "completed" and t["val_loss"] is not None]
    yield 0, finals
    for view, rung in enumerate(_rungs_reached(facts), 1):
        at = [(trial, trial["rung_losses"][rung["rung"]]) for trial in facts["trials"]]
        yield view, [(trial, loss) for trial, loss in at if loss is not None]


def _rungs_reached(facts: Row) -> list[Row]:
    return [rung for rung in facts["rungs"] if rung["rung"] is not None and rung["trials_reached"] >= 2]


def _loss_by_setting(facts: Row) -> Iterator[Row]:
    for parameter in facts["parameters"]:
        name = parameter["name"]
        traces, highest = [], []
        for view, rows in _view_losses(facts):
            reading = [(trial, loss) for trial, loss in rows if name in trial["searched"]]
            ceiling = marks.loss_ceiling(facts, [loss for _, loss in reading])
            highest.append(ceiling)
            losses = {trial["trial_id"]: loss for trial, loss in reading}
            for role, trials in marks.by_role([trial for trial, _ in reading]):
                places = [(t, marks.position(parameter, t["searched"][name], t["trial_id"])) for t in trials]
                points = [(trial, at, losses[trial["trial_id"]]) for trial, at in places]
                traces.append(marks.point_trace(role, points, ceiling, view=view, showlegend=False))
        if not any(trace["x"] for trace in traces):
            continue
        scale = marks.axis(parameter["label"])
        if parameter["values"] is not None:
            texts = [marks.short_words(value) for value in parameter["values"]]
            scale.update(tickvals=list(range(len(texts))), ticktext=texts, range=[-0.6, len(texts) - 0.4])
        else:
            tried = [trial["searched"][name] for trial in facts["trials"] if name in trial["searched"]]
            scale.update(range=marks.domain_range(parameter, tried))
            if parameter["log"]:
                scale.update(type="log", exponentformat="e", dtick=1, minor={"showgrid": False})
        yield marks.figure(
            f"by-{name}",
            f"Val loss against {parameter['label']}",
            f"Val loss of the trials against {parameter['label']}.",
            traces,
            {"xaxis": scale, "yaxis": marks.axis("val loss"), "showlegend": False},
            height=260,
        )


def _lr_by_batch(facts: Row) -> Iterator[Row]:
    batches = sorted({trial["batch_size"] for trial in facts["trials"]})
    if len({trial["learning_rate"] for trial in facts["trials"]}) < 2:
        return
    traces = []
    for view, rows in _view_losses(facts):
        ceiling = marks.loss_ceiling(facts, [loss for _, loss in rows])
        for index, batch in enumerate(batches):
            role = {
                "name": f"batch {batch}",
                "color": f"@seq{1 + round(index * 4 / max(1, len(batches) - 1))}",
                "symbol": ("circle", "square", "diamond", "triangle-up", "pentagon", "hexagon")[index % 6],
                "size": 9,
            }
            points = [(t, t["learning_rate"], loss) for t, loss in rows if t["batch_size"] == batch]
            traces.append(marks.point_trace(role, points, ceiling, view=view))
        for look, those in marks.baseline_and_best([trial for trial, _ in rows]):
            points = [(trial, trial["learning_rate"], loss) for trial, loss in rows if trial in those]
            ring = {**look, "symbol": "circle-open", "size": 18, "width": 3}
            traces.append(marks.point_trace(ring, points, ceiling, view=view))
    if not any(trace["x"] for trace in traces):
        return
    yield marks.figure(
        "lr-by-batch",
        "Learning rate against val loss, by batch size",
        "Val loss against learning rate, one colour and symbol per batch size.",
        traces,
        {
            "xaxis": marks.axis("learning rate", type="log", exponentformat="e", dtick=1, minor={"showgrid": False}),
            "yaxis": marks.axis("val loss (nats/token)"),
        },
        height=380,
    )


def _stability_map(facts: Row) -> Iterator[Row]:
    instability = facts["instability"]
    bins, cells = instability["lr_bins"], instability["cells"]
    if not cells or len(bins) < 2:
        return
    batches = sorted({cell["batch_size"] for cell in cells})
    found = {(cell["batch_size"], cell["lr_low"]): cell for cell in cells}
    grid = [[found.get((batch, low)) for low, _ in bins] for batch in batches]
    names = [range_words(low, high, "–<br>") for low, high in bins]
    yield marks.figure(
        "stability-map",
        "Unstable trials by learning rate and batch size",
        f"Share of unstable trials by learning rate and batch size: {instability['words']}.",
        [
            {
                "type": "heatmap",
                "x": names,
                "y": [f"batch {batch}" for batch in batches],
                "z": [[None if cell is None else short(cell["unstable_frac"]) for cell in row] for row in grid],
                "text": [
                    ["" if cell is None else f"{cell['unstable']} of {cell['trials']}" for cell in row] for row in grid
                ],
                "texttemplate": "%{text}",
                "hovertemplate": "%{y}, learning rate %{x}: %{text} unstable<extra></extra>",
                "hoverongaps": False,
                "zmin": 0,
                "zmax": 1,
                "colorscale": [[0, "@heat0"], [1, "@heat1"]],
                # Every cell has its counts as text.
                "showscale": False,
                "xgap": 2,
                "ygap": 2,
            }
        ],
        {
            "xaxis": marks.axis("learning rate", type="category", showgrid=False),
            "yaxis": {"type": "category", "showgrid": False},
        },
        height=120 + 46 * len(batches),
        min_width=110 + 62 * len(bins),
    )


def _pareto(facts: Row) -> Iterator[Row]:
    rows = [
        trial
        for trial in facts["trials"]
        if trial["status"] == "completed" and trial["val_loss"] is not None and trial["tokens_per_s"]
    ]
    if len(rows) < 2:
        return
    ceiling = marks.loss_ceiling(facts, [trial["val_loss"] for trial in rows])
    traces = [
        marks.point_trace(role, [(trial, trial["tokens_per_s"], trial["val_loss"]) for trial in trials], ceiling)
        for role, trials in marks.by_role(rows)
    ]
    front = pareto_front(rows)
    apart = spaced(
        front, LABEL_GAP_FRAC * (max(t["tokens_per_s"] for t in rows) - min(t["tokens_per_s"] for t in rows))
    )
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+text",
            "name": "Pareto front",
            "x": [short(trial["tokens_per_s"]) for trial in front],
            "y": [min(trial["val_loss"], ceiling) for trial in front],
            "text": [f"\u2002{trial['trial_id']}" if trial in apart else "" for trial in front],
            "textposition": "middle right",
            "line": {"color": "@muted", "width": 1.5, "dash": "dot", "shape": "hv"},
            "hoverinfo": "skip",
        }
    )
    yield marks.figure(
        "pareto",
        "Throughput against val loss",
        "Val loss of the completed trials against training tokens per second; the Pareto front is dotted.",
        traces,
        {"xaxis": marks.axis("training tokens/s"), "yaxis": marks.axis("val loss (nats/token)")},
        height=380,
    )


def spaced(trials: Sequence[Row], gap_tokens_per_s: float) -> list[Row]:
    """Return those of the trials, ordered from the fastest, whose labels do not overlap."""
    kept: list[Row] = []
    for trial in trials:
        if not kept or kept[-1]["tokens_per_s"] - trial["tokens_per_s"] > gap_tokens_per_s:
            kept.append(trial)
    return kept


def pareto_front(trials: Sequence[Row]) -> list[Row]:
    """Return the trials that no other one beats in both loss and tokens_per_s, the fastest first."""
    front: list[Row] = []
    for trial in sorted(trials, key=lambda row: (-row["tokens_per_s"], row["val_loss"])):
        if not front or trial["val_loss"] < front[-1]["val_loss"]:
            front.append(trial)
    return front
