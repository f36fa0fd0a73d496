"""Whatever the files of a study hold, every command that reads it ends in a result or one line, and nothing runs."""

import json
import os
import pickle
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from results.study.folder import Study
from results.study.ledger import Ledger
from results.study.tables import read_rows, write_table
from search.setup.study_record import asked_of, study_document
from spaces.read.load import load_space
from tests.fuzz.commands import run
from tests.fuzz.outcome import EXAMPLES, attempt
from tests.fuzz.studies import TABLES, Files, damaged, nullable, put, whole_study
from trainable.device.device import DeviceInfo
from trainable.errors import UserError
from trainable.evaluation import EvalProtocol

FOUND = [Phase.explicit, Phase.generate]
"""Without making a failing one smaller: with a file written or a picture drawn each time it takes minutes."""
FEW = settings(max_examples=max(30, EXAMPLES // 10), phases=FOUND)
SLOW = settings(max_examples=max(10, EXAMPLES // 50), phases=FOUND)
"""A report or a picture each."""
READERS: dict[str, Callable[[Study], Any]] = {
    "trials": Study.trials,
    "metrics": Study.metrics,
    "ledger": Ledger,
    "list": lambda study: run("list", "--json"),
    "export": lambda study: run("export", "STUDY=one"),
    "compare": lambda study: run("compare", "STUDY=one,two"),
}
PICTURES: dict[str, Callable[[Study], Any]] = {
    "report": lambda study: run("report", "STUDY=one"),
    "diagnose": lambda study: run("diagnose", "TARGET=one"),
    "diagnose a trial": lambda study: run("diagnose", "TARGET=one/0"),
}


@pytest.fixture(scope="module")
def whole(own_environment: Path) -> tuple[Study, Files]:
    """A small study and its files, and another beside it."""
    study, files = whole_study(own_environment)
    other = Study(study.path.with_name("two"))
    (other.path / "steps").mkdir(parents=True)
    put(other, files)
    return study, files


def readers(of: dict[str, Callable[[Study], Any]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("reader", list(of))


how = pytest.mark.parametrize("well_formed", [False, True], ids=["damaged", "odd"])


def check(reader: str, well_formed: bool, whole: tuple[Study, Files], folder: Path, data: st.DataObject) -> None:
    study, files = whole
    put(study, data.draw(damaged(files, folder, well_formed=well_formed)))
    kind = "odd" if well_formed else "damaged"
    attempt(f"study {kind}: {reader}", lambda: {**READERS, **PICTURES}[reader](study))


@readers(READERS)
@how
@FEW
@given(data=st.data())
def test_changed_files_are_read_or_refused(
    whole: tuple[Study, Files], own_environment: Path, reader: str, well_formed: bool, data: st.DataObject
) -> None:
    check(reader, well_formed, whole, own_environment, data)


@readers(PICTURES)
@how
@SLOW
@given(data=st.data())
def test_changed_files_are_drawn_or_refused(
    whole: tuple[Study, Files], own_environment: Path, reader: str, well_formed: bool, data: st.DataObject
) -> None:
    check(reader, well_formed, whole, own_environment, data)


def row_changed(table: str, index: int, **values: Any) -> Callable[[Study], None]:
    def change(study: Study) -> None:
        path = study.path / table
        rows = read_rows(path, TABLES[table])
        rows[index].update(values)
        write_table(path, rows, nullable(TABLES[table]))

    return change


def key_changed(*keys: str, **value: Any) -> Callable[[Study], None]:
    def change(study: Study) -> None:
        document = json.loads(study.study_json.read_bytes())
        at = document
        for key in keys[:-1]:
            at = at[key]
        if value:
            at[keys[-1]] = value["to"]
        else:
            del at[keys[-1]]
        study.study_json.write_text(json.dumps(document))

    return change


def steps_of_text(study: Study) -> None:
    path = study.steps_path(0)
    table = pq.read_table(path)
    at = table.column_names.index("train_loss")
    pq.write_table(table.set_column(at, "train_loss", pa.array(["x"] * len(table))), path)


def times_of(value_us: int) -> Callable[[Study], None]:
    def change(study: Study) -> None:
        table = pq.read_table(study.trials_path)
        at = table.column_names.index("started_at")
        times = pa.array([value_us] * len(table)).cast(table.schema.field("started_at").type)
        pq.write_table(table.set_column(at, "started_at", times), study.trials_path)

    return change


KNOWN: dict[str, tuple[str, Callable[[Study], None]]] = {
    "steps of text": ("report", steps_of_text),
    "no trial_id": ("list", row_changed("trials.parquet", 1, trial_id=None)),
    "an unknown status": ("export", row_changed("trials.parquet", 1, status="x")),
    "no batch_size": ("compare", row_changed("trials.parquet", 1, status="stopped", batch_size=None)),
    "no tokens_seen": ("metrics", row_changed("metrics.parquet", 1, tokens_seen=None)),
    "no optimizer_steps": ("diagnose", row_changed("steps/0.parquet", 1, optimizer_steps=None)),
    "a time no clock shows": ("list", times_of(2**62)),
    "the year 1": ("list", times_of(-62_135_596_800_000_000)),
    "seconds whose sum overflows": ("compare", row_changed("trials.parquet", 1, active_s=-1e308)),
    "a rate no axis holds": ("diagnose", row_changed("steps/0.parquet", 1, learning_rate=-1e308)),
    "a rate an axis holds": ("diagnose", row_changed("steps/0.parquet", 1, learning_rate=-1e38)),
    "no model": ("list", key_changed("model")),
    "a list for a model": ("list", key_changed("model", to=[])),
    "a number for a time": ("list", key_changed("created_at", to=5)),
    "no budget": ("compare", key_changed("budget_tokens")),
    "a word for a corpus": ("compare", key_changed("corpus", to="x")),
}
"""What was found by the tests above, made small."""


@pytest.mark.parametrize("name", list(KNOWN))
def test_an_odd_value_is_named(whole: tuple[Study, Files], name: str) -> None:
    study, files = whole
    put(study, files)
    reader, change = KNOWN[name]
    change(study)
    attempt(f"study odd: {reader}", lambda: {**READERS, **PICTURES}[reader](study))


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_pickle_named_like_a_table_runs_nothing(whole: tuple[Study, Files], tmp_path: Path, name: str) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, ...]]:
            return os.mkdir, (str(tmp_path / "ran"),)

    study, files = whole
    put(study, {**files, name: pickle.dumps(Bomb())})
    for read in (*READERS.values(), PICTURES["diagnose"]):
        with suppress(UserError):
            read(study)
    assert not (tmp_path / "ran").exists()
    pickle.loads((study.path / name).read_bytes())
    assert (tmp_path / "ran").exists()


SECRET = "hunter2-is-nobodys-business"


def test_a_document_holds_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from search.options import read_options
    from search.setup.settings import read_settings

    for name in (
        "HF_TOKEN",
        "OWN_PASSWORD",
        "AWS_SECRET_ACCESS_KEY",
        "WANDB_API_KEY",
        "PATH_TO_X",
        "SSH_AUTH_SOCK",
    ):
        monkeypatch.setenv(name, f"mysql://me:{SECRET}@host/db")
    monkeypatch.setattr("importlib.util.find_spec", lambda _: True)
    trackers = [
        f"OPTUNA_STORAGE=sqlite:///{tmp_path}/o.db?key={SECRET}",
        f"MLFLOW=https://me:{SECRET}@host",
        "WANDB=project",
    ]
    variables = read_options(["TRIALS=4", *trackers])
    settings_, _ = read_settings(variables)
    device = DeviceInfo(type="cpu", name="x86_64", count=1)
    corpus = {"fingerprint": "0" * 64, "train_tokens": 9, "val_tokens": 1, "vocab_size": 2048, "unigram_entropy": 6.0}
    protocol = EvalProtocol(block_size=128, tokens=256)
    loaded: Any = SimpleNamespace(
        facts={"model": "tiny", "corpus": corpus},
        device_info=device,
        spec=SimpleNamespace(protocol=protocol, stability={}),
        inputs=SimpleNamespace(options=variables),
    )
    space = load_space("plateau")
    document = study_document(
        "one", asked_of("search", space, settings_, trials_planned=4), loaded=loaded, slots={"slots": 1}
    )
    text = json.dumps(document)
    assert json.loads(text)["settings"]["trials"] == 4
    assert SECRET not in text
    # Where the space lies is told, and that may well be below the folder one is in.
    untold = {name: value for name, value in os.environ.items() if not document["space"]["path"].startswith(value)}
    assert not [name for name, value in untold.items() if len(value) > 12 and value in text]
