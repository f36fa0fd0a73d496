"""Logs of nine trainers, healthy and faulty: read to the last row, and the first finding right."""

from pathlib import Path

import pytest

from results.diagnosis.logs.training_log import read_training_log
from results.diagnosis.render import Report, plain_text, report_of_trace
from results.diagnosis.run_view import Context
from tests.results.logs.formats import FORMATS, Run
from tests.results.logs.runs import PLANTED, Planted

CASES = [
    pytest.param(planted, name, id=f"{kind} - {name}")
    for kind, planted in PLANTED.items()
    for name in FORMATS
    if name not in planted.not_in and (not planted.only or name in planted.only)
]
FILE_NAMES = {"Lightning metrics.csv": "metrics.csv", "W&B CSV": "wandb_export.csv", "TensorBoard events": "events.out.tfevents.17.host",
              "trainer_state.json": "trainer_state.json"}  # fmt: skip


def report_of(folder: Path, data: bytes, name: str = "train.log") -> Report:
    path = folder / name
    path.write_bytes(data)
    return report_of_trace(read_training_log(path), context=Context())


@pytest.mark.parametrize(("planted", "form"), CASES)
def test_the_first_finding_of_a_planted_log(tmp_path: Path, planted: Planted, form: str) -> None:
    report = report_of(tmp_path, FORMATS[form](planted.run), FILE_NAMES.get(form, "train.log"))
    kinds = [finding.kind for finding in report.findings]
    if planted.first is None:
        assert kinds == []
        assert report.headline.startswith("Nothing wrong found in ")
        return
    assert kinds[:1] == [planted.first], plain_text(report)
    first = report.findings[0]
    assert planted.says in f"{first.summary} {first.evidence} {first.next_step}"


@pytest.mark.parametrize("form", FORMATS)
def test_every_row_is_read(tmp_path: Path, form: str) -> None:
    run: Run = PLANTED["healthy fine-tune"].run
    trace = report_of(tmp_path, FORMATS[form](run), FILE_NAMES.get(form, "train.log")).trace
    assert trace is not None
    train, val = ([row for row in run.rows if getattr(row, name) is not None] for name in ("train", "val"))
    if form == "mlx-lm":
        # It prints no training loss before the first step.
        train = train[1:]
    assert len(trace.series("train_loss")[0]) == len(train)
    assert len(trace.series("val_loss")[0]) == len(val)
    assert trace.unit == "step"
    assert trace.steps[-1] == run.rows[-1].step
