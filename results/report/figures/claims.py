"""The report's figures with bars and intervals: importance, confirmation, attribution."""

import html
from collections.abc import Iterator, Sequence

from results.report.figures.marks import Row, axis, figure, whiskers
from results.report.figures.traces import short
from results.words import difference_words, label, percent_words


def importance_bars(facts: Row) -> Iterator[Row]:
    methods = facts["importance"]["methods"]
    if not methods:
        return
    order = sorted(methods[0]["shares"], key=lambda row: row["share"])
    traces = []
    for method, color in reversed(list(zip(methods, ("@completed", "@stopped"), strict=False))):
        shares = {row["name"]: row for row in method["shares"]}
        rows = [shares[row["name"]] for row in order if row["name"] in shares]
        trace: Row = {
            "type": "bar",
            "orientation": "h",
            "name": method["name"],
            "y": [label(row["name"]) for row in rows],
            "x": [short(row["share"]) for row in rows],
            "marker": {"color": color},
            "hovertemplate": "%{y}: %{x:.1%}<extra>%{fullData.name}</extra>",
        }
        if all(row["low"] is not None for row in rows):
            up = [max(0.0, row["high"] - row["share"]) for row in rows]
            trace["error_x"] = whiskers(up, [max(0.0, row["share"] - row["low"]) for row in rows], thickness=1.5)
        traces.append(trace)
    first = order[-1]
    yield figure(
        "importance",
        "Importance of the searched hyperparameters",
        f"Importance by {' and '.join(method['name'] for method in methods)}. By {methods[0]['name']} "
        f"{label(first['name'])} has most, {percent_words(first['share'])}.",
        traces,
        {
            "barmode": "group",
            "xaxis": axis("share", tickformat=".0%", rangemode="tozero"),
            "yaxis": {
                "type": "category",
                "categoryorder": "array",
                "categoryarray": [label(row["name"]) for row in order],
                "showgrid": False,
            },
            "legend": {"traceorder": "reversed"},
        },
        height=110 + 50 * len(order),
    )


def confirmation_intervals(facts: Row) -> Iterator[Row]:
    attempts = (facts["confirmation"] or {}).get("attempts", ())
    rows = [
        (f"trial {row['trial_id']}" + (f", attempt {attempt['number']}" if len(attempts) > 1 else ""), row)
        for attempt in attempts
        for row in attempt["verdicts"]
        if row["mean_difference"] is not None
    ][::-1]
    if rows:
        title = "Difference from the baseline on fresh seeds"
        names = [name for name, _ in rows]
        yield _intervals("confirmation-intervals", title, names, [row for _, row in rows], "mean_difference")


def attribution_bars(facts: Row) -> Iterator[Row]:
    rows = [row for row in (facts["attribution"] or {}).get("settings", ()) if row["shapley"] is not None]
    if not rows:
        return
    rows.sort(key=lambda row: -row["shapley"])
    names = [label(row["name"]) for row in rows]
    title = "What each change did to the val loss"
    drawn = _intervals("attribution-shapley", title, [html.escape(name) for name in names], rows, "shapley")
    alone = [
        (html.escape(name), row["alone"]) for name, row in zip(names, rows, strict=True) if row["alone"] is not None
    ]
    drawn["traces"][0]["name"] = "share of the whole (Shapley)"
    drawn["layout"]["showlegend"] = True
    drawn["traces"].append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "changed alone",
            "x": [short(value) for _, value in alone],
            "y": [name for name, _ in alone],
            "marker": {"symbol": "diamond-open", "size": 10, "color": "@ink"},
            "hovertemplate": "%{y} alone: %{x:+.4f}<extra></extra>",
        }
    )
    yield drawn


def _intervals(key: str, title: str, names: Sequence[str], rows: Sequence[Row], value: str) -> Row:
    trace: Row = {
        "type": "scatter",
        "mode": "markers",
        "x": [short(row[value]) for row in rows],
        "y": list(names),
        "marker": {"size": 11, "color": [_side_color(row) for row in rows]},
        "hovertemplate": "%{y}: %{x:+.4f}<extra></extra>",
    }
    bounds = [abs(row[side] - row[value]) for row in rows for side in ("low", "high") if row[side] is not None]
    if bounds:
        # A side without a bound is drawn three times as long as the longest bound, so that it leaves the figure.
        far = 3 * max(bounds)
        up = [far if row["high"] is None else row["high"] - row[value] for row in rows]
        trace["error_x"] = whiskers(up, [far if row["low"] is None else row[value] - row["low"] for row in rows])
    said = "; ".join(f"{name} {difference_words(row[value])}" for name, row in zip(names, rows, strict=True))
    return figure(
        key,
        title,
        f"{title}, nats/token, negative is better: {said}.",
        [trace],
        {
            "showlegend": False,
            "xaxis": axis("nats/token; negative is better", zeroline=True, zerolinecolor="@baseline"),
            "yaxis": {"type": "category", "automargin": True, "range": [-0.6, len(rows) - 0.4]},
        },
        height=120 + 44 * len(rows),
    )


def _side_color(row: Row) -> str:
    if row["high"] is not None and row["high"] < 0:
        return "@winner"
    return "@unstable" if row["low"] is not None and row["low"] > 0 else "@completed"
