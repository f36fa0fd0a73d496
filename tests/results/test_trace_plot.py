import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from results.diagnosis.diagnose import diagnose
from results.diagnosis.logs.training_log import read_training_log
from results.diagnosis.run_view import Context
from results.diagnosis.trace import RunTrace
from results.diagnosis.trace_plot import plot_trace
from tests.results.owner_log import STORY, owner_log, recorded_run, story_step_s
from trainable.errors import UserError

PANELS = ("loss", "gradient norm", "learning rate", "steps/s")


@pytest.fixture
def story(tmp_path: Path) -> RunTrace:
    log = tmp_path / "training.log"
    log.write_text(owner_log(STORY, 5000, step_s=story_step_s))
    return read_training_log(log)


def drawn_text(path: Path, trace: RunTrace) -> list[str]:
    """Return the texts of the picture, which matplotlib writes as comments beside the letters' outlines."""
    plot_trace(trace, diagnose(trace, context=Context()), path)
    parser = ET.XMLParser(target=ET.TreeBuilder(insert_comments=True))
    root = ET.parse(path, parser=parser).getroot()
    return [(element.text or "").strip() for element in root.iter() if str(element.tag) == str(ET.Comment)]


def test_a_png(story: RunTrace, tmp_path: Path) -> None:
    path = tmp_path / "run.png"
    plot_trace(story, diagnose(story, context=Context()), path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["run.png", "training.log"]


def test_the_findings_are_listed_and_marked(story: RunTrace, tmp_path: Path) -> None:
    text = drawn_text(tmp_path / "run.svg", story)
    findings = diagnose(story, context=Context())
    assert len(findings) == 4
    for number in range(1, 5):
        # The badge over the panel, and the line of the list.
        assert str(number) in text
        assert any(line.startswith(f"{number}  ") for line in text)
    assert any(line.startswith("1  These losses cannot come from a correctly loaded") for line in text)
    assert "mean since the start, as printed" in text


def test_what_was_not_recorded_has_no_panel(story: RunTrace, tmp_path: Path) -> None:
    text = drawn_text(tmp_path / "run.svg", story)
    assert [panel for panel in PANELS if panel in text] == ["loss", "learning rate", "steps/s"]
    text = drawn_text(tmp_path / "all.svg", recorded_run("healthy_lr0.003_s0"))
    assert [panel for panel in PANELS if panel in text] == list(PANELS)
    assert "healthy_lr0.003_s0: nothing wrong found" in text


def test_losses_that_are_not_finite_are_crossed(tmp_path: Path) -> None:
    text = drawn_text(tmp_path / "run.svg", recorded_run("hot_ramp_s0"))
    assert "train not finite" in text


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf, 1e300])
def test_extreme_values_are_drawn(story: RunTrace, tmp_path: Path, value: float) -> None:
    rows = len(story.steps)
    trace = replace(
        story,
        train_loss=(value,) * rows,
        val_loss=(value,) * rows,
        grad_norm=(value,) * rows,
        learning_rate=(value,) * rows,
        step_time_s=(value or 1e-9,) * rows,
    )
    plot_trace(trace, [], tmp_path / "run.png")


def test_the_same_run_gives_the_same_file(story: RunTrace, tmp_path: Path) -> None:
    findings = diagnose(story, context=Context())
    for name in ("a.svg", "b.svg"):
        plot_trace(story, findings, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_a_run_without_numbers_is_refused(story: RunTrace, tmp_path: Path) -> None:
    nothing = (None,) * len(story.steps)
    columns = ("train_loss", "val_loss", "grad_norm", "learning_rate", "step_time_s")
    empty = story
    for column in columns:
        empty = replace(empty, **{column: nothing})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="nothing to draw"):
        plot_trace(empty, [], tmp_path / "run.png")
