"""Logs of nine trainers, healthy and faulty: read to the last row, and the first finding right."""

import random
import re
from dataclasses import replace
from pathlib import Path

import pytest

from results.diagnosis.findings import confidence_word
from results.diagnosis.logs.training_log import read_training_log
from results.diagnosis.render import Report, plain_text, report_of_trace
from results.diagnosis.run_view import Context
from results.diagnosis.trace_plot import plot_trace
from tests.results.logs.formats import FORMATS, Run
from tests.results.logs.runs import PLANTED, Planted, changed, course, plus

CASES = [
    pytest.param(planted, name, id=f"{kind} - {name}")
    for kind, planted in PLANTED.items()
    for name in FORMATS
    if name not in planted.not_in and (not planted.only or name in planted.only)
]
FILE_NAMES = {
    "Lightning metrics.csv": "metrics.csv",
    "W&B CSV": "wandb_export.csv",
    "TensorBoard events": "events.out.tfevents.17.host",
    "trainer_state.json": "trainer_state.json",
}


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


@pytest.mark.parametrize("kind", ["healthy fine-tune", "nan"])
@pytest.mark.parametrize("form", FORMATS)
def test_every_row_is_read(tmp_path: Path, form: str, kind: str) -> None:
    run: Run = PLANTED[kind].run
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


def console(losses: list[float], *, rate: float = 2e-5) -> bytes:
    """A Trainer's dicts without a bar, as a notebook keeps them: no line names a step."""
    return "".join(
        f"{{'loss': {loss:.4f}, 'learning_rate': {rate}, 'epoch': {index / 100:.2f}}}\n"
        for index, loss in enumerate(losses, start=1)
    ).encode()


def test_rows_without_steps_are_rows_in_words_and_pictures(tmp_path: Path) -> None:
    gauss = random.Random(0).gauss
    report = report_of(tmp_path, console([7.3 + gauss(0, 0.03) for _ in range(60)]))
    assert report.findings[0].kind == "plateau"
    assert report.trace is not None
    words = plain_text(report)
    assert "log of rows 1 to 60" in words
    assert "from row " in words
    assert ", rows " in words
    assert not re.search(r"\bsteps? \d", words)
    picture = tmp_path / "run.svg"
    plot_trace(report.trace, report.findings, picture)
    assert "row of the log" in picture.read_text()
    assert "optimizer step" not in picture.read_text()


def test_missing_rows_are_a_note_below_what_is_wrong(tmp_path: Path) -> None:
    run = PLANTED["nan"].run
    report = report_of(tmp_path, FORMATS["trainer_state.json"](replace(run, total_steps=6000)), "trainer_state.json")
    assert [finding.kind for finding in report.findings] == ["nonfinite"]
    assert any(note.startswith("the log ends at step 2000 of 6000 (33 %)") for note in report.notes)
    assert report.headline.startswith("The training loss is nan")


@pytest.mark.parametrize("name", ["train_gpt2.log", "train.log"])
def test_a_name_alone_makes_no_run_from_scratch_wrong(tmp_path: Path, name: str) -> None:
    assert report_of(tmp_path, FORMATS["nanoGPT"](PLANTED["healthy from scratch"].run), name).is_healthy


def test_a_file_named_after_a_fine_tune_starts_as_one(tmp_path: Path) -> None:
    run = course(9.4, 3.9, peak=3e-4)
    (first, *_) = report_of(tmp_path, FORMATS["nanoGPT"](run), "gpt2_finetune.log").findings
    assert first.kind == "impossible_initial_loss"
    assert confidence_word(first.confidence) == "certain"
    # Of weights and vocabulary nothing is known: random ones may start there.
    (first, *_) = report_of(tmp_path, FORMATS["nanoGPT"](run)).findings
    assert confidence_word(first.confidence) == "likely"


def test_a_mean_over_many_steps_is_no_initial_loss(tmp_path: Path) -> None:
    run = course(9.3, 3.9, total=10_000, every=500, first=500, eval_every=10_000, peak=6e-4, header="model: gpt2")
    for form in ("nanoGPT", "Trainer console"):
        assert report_of(tmp_path, FORMATS[form](run)).is_healthy


def test_a_spike_at_a_moderate_rate_leads_to_the_text_and_one_at_a_high_rate_does_not(tmp_path: Path) -> None:
    advice = {
        kind: report_of(tmp_path, FORMATS["nanoGPT"](PLANTED[kind].run)).findings[0].next_step
        for kind in ("a spike", "a spike at a high rate")
    }
    assert "text" in advice["a spike"]
    assert "text" not in advice["a spike at a high rate"]


def test_evaluations_of_three_decimals_are_equal_by_chance(tmp_path: Path) -> None:
    def text(values: list[float]) -> bytes:
        rows = [f"step {100 * index} val_loss {value:.3f} lr 1e-5\n" for index, value in enumerate(values)]
        return "".join(rows).encode()

    assert report_of(tmp_path, text([3.4, 3.3, 3.2, 3.15, 3.13, 3.122, 3.121, 3.121, 3.121, 3.121])).is_healthy
    (first, *_) = report_of(tmp_path, text([3.4, 3.3, 3.121, *[3.121] * 7])).findings
    assert first.kind == "precision_stall"


@pytest.mark.parametrize("every", [5, 20, 100])
@pytest.mark.parametrize("noise", [0.01, 0.05])
def test_thin_and_dense_logs_alike(tmp_path: Path, every: int, noise: float) -> None:
    def seen(run: Run) -> list[str]:
        report = report_of(tmp_path, FORMATS["trainer_state.json"](run), "trainer_state.json")
        return [finding.kind for finding in report.findings][:1]

    run = course(3.9, 3.2, every=every, eval_every=200, noise=noise)
    assert seen(run) == []
    assert seen(changed(run, lambda row: plus(row, 4 * max(0, row.step - 1000) / 2000))) == ["divergence"]
    assert seen(changed(run, lambda row: plus(row, 2.5 if 1200 <= row.step <= 1300 else 0.0))) == ["spike"]
    jump = changed(run, lambda row: replace(row, rate=2e-5 if row.step < 1000 else 2e-3))
    assert seen(changed(jump, lambda row: plus(row, 2.0 if row.step >= 1000 else 0.0))) == ["learning_rate_jump"]
