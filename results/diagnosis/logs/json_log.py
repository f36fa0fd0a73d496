"""Training logs that are JSON documents: trainer_state.json, a list of objects with a loss, TensorBoard's export."""

import json
from typing import Any

from results.diagnosis.logs.lines import MAX_LINE_BYTES, LogRow
from results.diagnosis.logs.named_values import TENSORBOARD_COLUMNS, row_of

_ANNOUNCED = {"max_steps": "total_steps", "num_train_epochs": "epochs"}


def json_rows(text: str, metric: str) -> tuple[list[LogRow], dict[str, str]] | None:
    """Return the rows of a JSON document and what it says of the configuration; None where it holds no log.

    metric: the third column's name in TensorBoard's export, lists of wall time, step and value.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    objects = document.get("log_history") if isinstance(document, dict) else document
    if not isinstance(objects, list):
        return None
    columns = (*TENSORBOARD_COLUMNS[:2], metric)
    named = [dict(zip(columns, one, strict=False)) if isinstance(one, list) else one for one in objects]
    rows = [row for values in named if isinstance(values, dict) and (row := row_of(values))]
    if not rows:
        return None
    return rows, _announced(document) if isinstance(document, dict) else {}


def json_line(line: bytes) -> LogRow | None:
    """Return the row of a line that is a JSON object, or ends with one behind a time stamp; None of any other."""
    start = line.find(b"{", 0, MAX_LINE_BYTES)
    if start < 0 or len(line) > MAX_LINE_BYTES or not line.rstrip().endswith(b"}"):
        return None
    try:
        values = json.loads(line[start:])
    except (ValueError, RecursionError):
        return None
    return row_of(values) if isinstance(values, dict) else None


def _announced(document: dict[str, Any]) -> dict[str, str]:
    return {
        name: str(int(document[key]))
        for key, name in _ANNOUNCED.items()
        if isinstance(document.get(key), int | float) and 0 < document[key] < 1e12
    }
