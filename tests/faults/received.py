"""Studies from somebody else: links, pipes, bombs, odd values and escape sequences. One line each, nothing outside?

`python tests/faults/received.py`; some seconds. `make test` runs the same cases.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import pyarrow as pa
import pyarrow.parquet as pq

from results.study.folder import Study
from results.study.lock import hold
from results.study.tables import TRIALS, read_rows, write_table
from tests.fuzz.commands import run
from tests.results.report_study import make_report_study
from trainable.errors import UserError

Harm = Callable[[Study, Path], None]
"""Changes a study; the folder beside it is not the study's."""
ESCAPE = "\x1b]0;owned\x07\x1b[2J\x9b31m"


@dataclass(frozen=True)
class Case:
    """What was done to a study, what is asked of it then, and words of the one line; None: it goes on."""

    name: str
    harm: Harm
    ask: Callable[[Study], Any]
    words: str | None


def write(study: Study) -> None:
    """Open the study for writing, as every command does that runs something into it."""
    with hold(study):
        pass


def command(*words: str) -> Callable[[Study], str]:
    """Return a function that runs a command."""
    return lambda study: run(*words)


def linked(name: str, target: str = "{outside}") -> Harm:
    """Put a link in a file's or folder's place."""

    def harm(study: Study, outside: Path) -> None:
        path = study.path / name
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target.format(outside=outside))

    return harm


def hard_linked(name: str) -> Harm:
    """Make a file of the study and one outside the same."""

    def harm(study: Study, outside: Path) -> None:
        (study.path / name).unlink(missing_ok=True)
        (study.path / name).hardlink_to(outside / "precious")

    return harm


def piped(name: str) -> Harm:
    """Put a pipe in a file's place: whoever opens it waits for its writer."""

    def harm(study: Study, outside: Path) -> None:
        (study.path / name).unlink(missing_ok=True)
        os.mkfifo(study.path / name)

    return harm


def bomb(*, rows: int, text: str) -> Harm:
    """Put a table of some kB that unpacks to GBs."""

    def harm(study: Study, outside: Path) -> None:
        values = {field.name: pa.nulls(rows, field.type) for field in TRIALS}
        values["verdict"] = pa.repeat(pa.scalar(text), rows)
        table = pa.table(values, schema=pa.schema([field.with_nullable(True) for field in TRIALS]))
        with pq.ParquetWriter(study.trials_path, table.schema, compression="zstd") as writer:
            for _ in range(8):
                writer.write_table(table)

    return harm


def copied(change: Harm) -> Harm:
    """Change the study and put a copy of it beside it, named two."""

    def harm(study: Study, outside: Path) -> None:
        change(study, outside)
        shutil.copytree(study.path, study.path.parent / "two")

    return harm


def row_changed(**values: Any) -> Harm:
    """Change a trial; the table is whole."""

    def harm(study: Study, outside: Path) -> None:
        rows = read_rows(study.trials_path, TRIALS)
        rows[1].update(values)
        write_table(study.trials_path, rows, TRIALS)

    return harm


def document_changed(**values: Any) -> Harm:
    """Change study.json."""

    def harm(study: Study, outside: Path) -> None:
        study.study_json.write_text(json.dumps({**json.loads(study.study_json.read_bytes()), **values}))

    return harm


def huge(study: Study, outside: Path) -> None:
    """Make study.json a terabyte of nothing."""
    os.truncate(study.study_json, 1 << 40)


LEADS_OUT, NO_FILE, POINT = (
    "leads out of the study's folder",
    "is neither a file nor a folder",
    "has a point that is not",
)
EXPORT, LIST = command("export", "STUDY=one"), command("list")
CASES = [
    *(
        Case(f"{name} is a link to a file outside", linked(name, "{outside}/precious"), write, LEADS_OUT)
        for name in (".holder.json", ".lock", "search.log", "steps/0.parquet", "checkpoints/0/step_00000001.pt")
    ),
    *(
        Case(f"{name} is a link to a folder outside", linked(name), write, LEADS_OUT)
        for name in ("checkpoints", "steps", "ray", "tensorboard")
    ),
    *(Case(f"{name} is a hard link", hard_linked(name), write, "a hard link") for name in (".lock", "search.log")),
    Case("trials.parquet is a hard link", hard_linked("trials.parquet"), write, None),
    Case("a link to nowhere outside", linked("best.env", "../../nowhere"), write, LEADS_OUT),
    Case("a link to itself", linked("best.env", "best.env"), write, LEADS_OUT),
    Case("a link that stays inside", linked("best.env", "study.json"), write, None),
    *(Case(f"{name} is a pipe", piped(name), write, NO_FILE) for name in ("search.log", ".lock", "trials.parquet")),
    Case("trials.parquet is a pipe, read", piped("trials.parquet"), EXPORT, "not a regular file"),
    Case("metrics.parquet is a pipe, read", piped("metrics.parquet"), Study.metrics, "not a regular file"),
    Case("study.json is a pipe, read", piped("study.json"), Study.document, "cannot be read (not a regular file)"),
    Case("study.json is a pipe, listed", piped("study.json"), LIST, None),
    Case("confirmation.json is a pipe", piped("confirmation.json"), EXPORT, "not a regular file"),
    Case("a table of 8 million rows", bomb(rows=1_000_000, text=""), EXPORT, "unpacks to more than the 256 MiB"),
    Case("a table of long texts", bomb(rows=8_000, text="x" * 20_000), EXPORT, "unpacks to more than the 256 MiB"),
    Case("a document of a terabyte", huge, Study.document, "larger than the 256 MiB"),
    Case("a point that is no JSON", row_changed(point="{"), EXPORT, POINT),
    Case("a point that is a list", row_changed(point="[1]"), EXPORT, POINT),
    Case("a point that is a number", row_changed(point="1e999"), EXPORT, POINT),
    Case("a point in a point", row_changed(point='{"batch_size": {"x": 1}}'), EXPORT, POINT),
    Case("a deep point", row_changed(point="[" * 100_000), EXPORT, POINT),
    Case("a deep object", row_changed(point='{"a":' * 100_000), EXPORT, POINT),
    Case(
        "escapes in a verdict", row_changed(status="unstable", verdict=ESCAPE), command("diagnose", "TARGET=one"), None
    ),
    Case("escapes in the model's name", document_changed(model=ESCAPE), LIST, None),
    Case(
        "escapes in the model's name, compared",
        copied(document_changed(model=ESCAPE)),
        command("compare", "STUDY=one,two"),
        None,
    ),
    Case("escapes for a kind", document_changed(kind=ESCAPE), EXPORT, "kind: "),
    Case("escapes for a status", row_changed(status=ESCAPE), EXPORT, "status="),
]


def state(folder: Path) -> Mapping[str, Any]:
    """Return what lies below a folder, content included."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def wrong(case: Case, folder: Path) -> list[str]:
    """Return what is wrong with how a case in an empty folder went."""
    outside = folder / "outside"
    (outside / "0").mkdir(parents=True)
    for name in ("precious", "step_00000001.pt", ".left.tmp", "0/step_00000001.pt", "0/.left.tmp"):
        (outside / name).write_text("precious")
    before = state(outside)
    os.environ["STUDIES_DIR"] = str(folder / "studies")
    study = make_report_study(folder / "studies" / "one", trials=5, budget_tokens=160_000, evaluations=4)
    case.harm(study, outside)
    try:
        printed, refused = str(case.ask(study)), None
    except UserError as error:
        printed, refused = "", str(error)
    except Exception as error:
        return [f"{case.name}: {type(error).__name__}: {error}"]
    found = []
    if state(outside) != before:
        found.append(f"{case.name}: something outside changed")
    if (refused is None) != (case.words is None) or (case.words or "") not in (refused or ""):
        found.append(f"{case.name}: {refused or 'not refused'}")
    if any((ord(one) < 32 and one != "\n") or 127 <= ord(one) < 160 for one in printed):
        found.append(f"{case.name}: printed raw: {printed!r}")
    return found


def main() -> None:
    """Try every case."""
    lost = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            lost += wrong(case, Path(folder))
    print(f"received from others: tried {len(CASES)}, right {len(CASES) - len(lost)}, wrong {len(lost)}")
    for line in lost:
        print(f"  {line}")
    sys.exit(bool(lost))


if __name__ == "__main__":
    main()
