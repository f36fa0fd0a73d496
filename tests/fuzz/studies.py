"""A small study, and what can befall the files in its folder."""

import io
import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st

from results.study.folder import Study
from results.study.tables import METRICS, STEPS, TRIALS, read_rows, write_table
from tests.results.report_study import make_report_study

TABLES = {"trials.parquet": TRIALS, "metrics.parquet": METRICS, "steps/0.parquet": STEPS}
Files = dict[str, bytes | None]
"""By path in the study's folder; None is a file that is not there."""


def nullable(schema: Any) -> Any:
    """Return the schema with no column that must hold a value."""
    return pa.schema([field.with_nullable(True) for field in schema])


def whole_study(folder: Path) -> tuple[Study, Files]:
    """Return a study of five trials and its files."""
    study = make_report_study(folder / "studies" / "one", trials=5, budget_tokens=160_000, evaluations=4)
    return study, {name: (study.path / name).read_bytes() for name in (*TABLES, "study.json")}


def put(study: Study, files: Files) -> None:
    """Write the files into the study's folder, and take away what an earlier example left there."""
    for path in [*study.path.iterdir(), *(study.path / "steps").iterdir()]:
        if path.is_file() and path.name not in ("1.parquet", "2.parquet", "3.parquet", "4.parquet"):
            path.unlink()
    for name, data in files.items():
        if data is not None:
            (study.path / name).write_bytes(data)


odd = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from([-1, 0, 2**62, math.inf, "[/x]", "a\nb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


@st.composite
def odd_documents(draw: st.DrawFn, document: bytes) -> bytes:
    """Return study.json with some values taken away or replaced, at any depth, or with other bytes in it."""
    content = json.loads(document)
    for _ in range(draw(st.integers(0, 3))):
        at: Any = content
        key = draw(st.sampled_from(sorted(at)))
        while isinstance(at[key], dict) and at[key] and draw(st.booleans()):
            at = at[key]
            key = draw(st.sampled_from(sorted(at)))
        if draw(st.booleans()):
            del at[key]
        else:
            at[key] = draw(odd)
        if not content:
            break
    return draw(cut(json.dumps(content).encode())) if draw(st.integers(0, 4)) == 0 else json.dumps(content).encode()


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> bytes:
    """Return the data with a hole and other bytes in it."""
    at = draw(st.integers(0, len(data)))
    return data[:at] + draw(st.binary(max_size=12)) + data[at + draw(st.integers(0, 40)) :]


def _cells(kind: Any) -> st.SearchStrategy[Any]:
    if pa.types.is_floating(kind):
        return st.none() | st.floats()
    if pa.types.is_boolean(kind):
        return st.none() | st.booleans()
    if pa.types.is_integer(kind):
        return st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 6)
    if pa.types.is_string(kind):
        words = [
            "completed",
            "stopped",
            "running",
            "interrupted",
            "unstable",
            "failed",
            "out_of_memory",
            "fp32",
            "linear",
        ]
        return st.none() | st.sampled_from(words) | st.text(max_size=6)
    return st.none()


@st.composite
def odd_tables(draw: st.DrawFn, data: bytes, schema: Any, folder: Path) -> bytes:
    """Return a sound table of the right columns with some values replaced, rows repeated or gone."""
    path = folder / "odd.parquet"
    path.write_bytes(data)
    rows = read_rows(path, schema)
    if draw(st.booleans()):
        rows = draw(st.lists(st.sampled_from(rows).map(dict), max_size=6))
    for _ in range(draw(st.integers(0, 3)) if rows else 0):
        field = draw(st.sampled_from(list(schema)))
        draw(st.sampled_from(rows))[field.name] = draw(_cells(field.type))
    write_table(path, rows, nullable(schema))
    return path.read_bytes()


@st.composite
def other_tables(draw: st.DrawFn, data: bytes) -> bytes:
    """Return a Parquet file of other columns: some left out, renamed, or of another type."""
    table = pq.read_table(pa.BufferReader(data))
    names = list(table.column_names)
    gone = draw(st.sampled_from(names))
    match draw(st.sampled_from(["drop", "rename", "retype", "nothing", "other"])):
        case "drop":
            table = table.drop_columns([gone])
        case "rename":
            table = table.rename_columns([name if name != gone else "x" for name in names])
        case "retype":
            table = table.set_column(
                names.index(gone), gone, pa.array([draw(st.sampled_from(["x", [1], {"a": 1}, b"x", 1.5]))] * len(table))
            )
        case "nothing":
            table = table.slice(0, 0)
        case _:
            table = pa.table(
                draw(
                    st.dictionaries(
                        st.text(max_size=5), st.lists(st.integers(0, 9), min_size=2, max_size=2), max_size=3
                    )
                )
            )
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def damaged(files: Files, folder: Path, *, well_formed: bool) -> st.SearchStrategy[Files]:
    """Return the study's files with one or more of them changed; well_formed: each alone can be read."""
    choices = []
    for name, schema in TABLES.items():
        data = files[name]
        assert data is not None
        kinds = (
            [odd_tables(data, schema, folder)]
            if well_formed
            else [cut(data), other_tables(data), st.binary(max_size=64), st.none()]
        )
        choices.append(st.fixed_dictionaries({name: st.one_of(kinds)}))
    document = files["study.json"]
    assert document is not None
    other = (
        [odd_documents(document)]
        if well_formed
        else [cut(document), st.binary(max_size=64), st.none(), odd.map(lambda v: json.dumps(v).encode())]
    )
    choices.append(st.fixed_dictionaries({"study.json": st.one_of(other)}))
    return st.lists(st.one_of(choices), min_size=1, max_size=2).map(
        lambda changed: {**files, **{k: v for one in changed for k, v in one.items()}}
    )
