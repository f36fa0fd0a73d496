"""Training logs that are documents, not lines: trainer_state.json, a list of objects with a loss, TensorBoard's JSON;
tables of Lightning (metrics.csv), W&B, TensorBoard (as CSV) and notebooks."""

import csv
import json
import re
from collections.abc import Iterator
from typing import Any

from results.diagnosis.logs.lines import MAX_LINE_BYTES, LogRow
from results.diagnosis.logs.named_values import TENSORBOARD_COLUMNS, field_of, has_columns, number_of, row_of

_ANNOUNCED = {"max_steps": "total_steps", "num_train_epochs": "epochs"}
HEADER_LINES = 40
"""A table begins within so many lines, or the file is none."""
_COLUMN_GAP = "  "
_APART = re.compile(r"\S+(?:\s\S+)*")
_DELIMITERS = (",", "\t", ";", "|", _COLUMN_GAP, " ")
_MARKDOWN_RULE = re.compile(r"[\s|:+-]*-[\s|:+-]*")
_BOX = {code: "|" if chr(code) in "│┃║╎╏┆┇┊┋" else "-" for code in range(0x2500, 0x2580)}
"""The lines that rich and tabulate draw, as markdown has them."""


def json_rows(text: str, metric: str) -> tuple[list[LogRow], dict[str, str]] | None:
    """Return the rows of a JSON document and what it says of the configuration; None where it holds no log.

    metric: the third column's name in TensorBoard's export, lists of wall time, step and value.
    """
    try:
        document = _loaded(text)
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


def _loaded(text: str) -> Any:
    """The document; of one that was cut short, as where a disk was full, what is whole. Raises ValueError."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        # JSON lines fail at their second.
        if error.pos < len(text) - MAX_LINE_BYTES:
            raise
        whole = text[: text.rfind("}") + 1]
        return json.loads(whole + ("]}" if text.lstrip()[:1] == "{" else "]"))


def json_line(line: bytes) -> LogRow | None:
    """Return the row of a line that is a JSON object, or ends with one behind a time stamp; None of any other."""
    start = line.find(b"{", 0, MAX_LINE_BYTES)
    if start < 0 or len(line) > MAX_LINE_BYTES or not line.rstrip().endswith(b"}"):
        return None
    try:
        values = json.loads(line[start:])
    except (ValueError, RecursionError):
        return None
    row = row_of(values) if isinstance(values, dict) else None
    # A rate alone is of the configuration.
    return row if row and (row.step is not None or row.has_loss) else None


def _announced(document: dict[str, Any]) -> dict[str, str]:
    return {
        name: str(int(document[key]))
        for key, name in _ANNOUNCED.items()
        if isinstance(document.get(key), int | float) and 0 < document[key] < 1e12
    }


def table_header(text: str, metric: str) -> tuple[int, str, list[str]] | None:
    """Return (its line, the delimiter, the columns' names) of the table that a text begins with, None where none does.

    metric: what TensorBoard's exported CSV calls "Value".
    """
    lines = text.translate(_BOX).splitlines()[:HEADER_LINES]
    for number, line in enumerate(lines):
        for delimiter in _DELIMITERS:
            if delimiter not in line or (delimiter == " " and not _are_numbers(lines[number + 1 :][:1], line)):
                continue
            columns = _cells(line, delimiter)
            if tuple(column.lower() for column in columns) == TENSORBOARD_COLUMNS:
                columns[2] = metric
            # A line that holds a number is no header: a word of it, where spaces part the columns.
            words = line.split() if delimiter == _COLUMN_GAP else columns
            if has_columns(columns) and not any(word.replace(".", "").isdigit() for word in words):
                return number, delimiter, columns
    return None


def table_rows(text: str, header: tuple[int, str, list[str]]) -> Iterator[LogRow]:
    """Yield the rows of a table, those of several runs one run after the other.

    A header that comes again is left out.
    """
    skipped, delimiter, columns = header
    header_line, *lines = text.translate(_BOX).splitlines()[skipped:]
    lines = [line for line in lines if line.strip() and not _MARKDOWN_RULE.fullmatch(line)]
    if delimiter == _COLUMN_GAP:
        table = [_cells_below(header_line, line) for line in lines]
    else:
        table = [cells for line in lines if (cells := _cells(line, delimiter))]
    numbers = [cell for cells in table for cell in cells if cell[:1].isdigit()]
    if not any("." in cell for cell in numbers):
        # Half of the world writes 3,21: where no point is in sight, a comma is one. Of a step it is thousands.
        counts = [(field_of(name) or ("",))[0] in ("step", "total_steps") for name in columns]
        table = [
            [cell if is_count else cell.replace(",", ".") for cell, is_count in zip(cells, counts, strict=False)]
            for cells in table
        ]
    shared = [index for index, name in enumerate(columns) if not _run_of(name)]
    for run in sorted({_run_of(name) for name in columns if _run_of(name)}) or [""]:
        chosen = sorted({*shared, *(index for index, name in enumerate(columns) if _run_of(name) == run)})
        for cells in table:
            if row := row_of({columns[index]: cells[index] for index in chosen if index < len(cells)}):
                row.run = run
                yield row


def _are_numbers(below: list[str], header: str) -> bool:
    """Whether the line below is a number for each word of a header: a sentence has words of a log in it too."""
    cells = below[0].split() if below else []
    return len(cells) == len(header.split()) and all(number_of(cell) is not None for cell in cells)


def _cells(line: str, delimiter: str) -> list[str]:
    if delimiter == _COLUMN_GAP:
        return _APART.findall(line)
    if delimiter == " ":
        return line.split()
    if delimiter == "|":
        line = line.strip().strip("|")
    # The module refuses a longer cell, and so may a longer line be one.
    line = line[: csv.field_size_limit()]
    return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]


def _cells_below(header: str, line: str) -> list[str]:
    """The cells of a line whose columns stand apart: where some are empty, each by the name that it is flush with."""
    names, cells = list(_APART.finditer(header)), list(_APART.finditer(line))
    if len(cells) >= len(names):
        # As pandas prints a table: its rows begin with a number that the header does not name.
        return [cell[0] for cell in cells][len(cells) == len(names) + 1 :]
    row = [""] * len(names)
    for cell in cells:
        nearest = min(
            range(len(names)),
            key=lambda at: min(abs(names[at].start() - cell.start()), abs(names[at].end() - cell.end())),
        )
        row[nearest] = cell[0]
    return row


def _run_of(column: str) -> str:
    """The run of a column of W&B's export ("run - train/loss"), "" for the columns of all runs."""
    run, dash, _ = column.rpartition(" - ")
    return run if dash and field_of(column) else ""
