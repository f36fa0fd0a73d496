"""samples.json, and how the report shows it: whatever a model writes stays text."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from results.report.facts.study_facts import report_facts
from results.report.page import fenced, markdown, report_html
from results.samples import Sample, Samples, load_samples, samples_json, to_json, write_samples
from results.study.folder import Study
from tests.results.report_study import make_report_study
from tests.results.test_report import Page
from trainable.errors import UserError

HOSTILE = "\n</pre><script>alert(1)</script>\n```\n## no heading\n````\n\x1b[31mred\x00 & {{7*7}}"
SAMPLES = Samples(
    prompt="The import statement",
    seed=3,
    tokens=40,
    temperature=0.8,
    start=Sample(text=" of of of"),
    baseline=Sample(why="trial 0 of study s: no checkpoint of its step 9 was kept.", trial_id=0),
    best=Sample(text=HOSTILE, trial_id=4),
)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    return make_report_study(tmp_path_factory.mktemp("studies") / "s", trials=8, evaluations=2)


@pytest.fixture
def sampled(study: Study) -> Any:
    write_samples(study, SAMPLES)
    yield study
    (study.path / "samples.json").unlink()


def test_samples_come_back_as_they_were_written(sampled: Study) -> None:
    assert load_samples(sampled) == SAMPLES
    document = json.loads((sampled.path / "samples.json").read_text())
    assert document == samples_json(sampled) == to_json(SAMPLES)
    assert {name: document[name] for name in ("prompt", "seed", "tokens")} == {
        "prompt": "The import statement", "seed": 3, "tokens": 40
    }  # fmt: skip
    assert document["samples"]["start"] == {"text": " of of of"}
    assert document["samples"]["best"] == {"trial_id": 4, "text": HOSTILE}


def test_the_page_shows_the_prompt_once_and_every_continuation_as_text(sampled: Study) -> None:
    page = Page(report_html(report_facts(sampled), {}))
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert "samples" in ids
    assert ("a", {"href": "#samples"}) in page.tags
    texts = [text for text in page.texts if text.strip()]
    assert sum("The import statement" in text for text in texts) == 1
    assert sum("of of of" in text for text in texts) == 1
    # HTML drops the first of two newlines after <pre>; a terminal's codes are shown and not obeyed.
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\x00", "\\x00")
    assert f"\n{shown}" in texts
    assert any("no checkpoint of its step 9 was kept" in text for text in texts)
    assert len([tag for tag, _ in page.tags if tag == "script"]) == 4
    assert page.data("facts")["samples"]["continuations"][2]["text"] == HOSTILE


def test_in_markdown_no_continuation_leaves_its_block(sampled: Study) -> None:
    text = markdown(report_facts(sampled))
    section = text[text.index("### What it writes") :]
    assert section.count("The import statement") == 1
    blocks = re.findall(r"^(`{3,})text\n(.*?)\n\1$", section, re.DOTALL | re.MULTILINE)
    assert [block for _, block in blocks] == [
        "The import statement", " of of of", HOSTILE.replace("\x1b", "\\x1b").replace("\x00", "\\x00")
    ]  # fmt: skip
    assert "Baseline:\n\n(none: trial 0 of study s: no checkpoint of its step 9" in section
    assert "Best, trial 4:" in section
    assert "\x1b" not in text


def test_a_fence_is_longer_than_every_run_of_backticks() -> None:
    assert fenced("a") == "```text\na\n```"
    assert fenced("`````\n``") == "``````text\n`````\n``\n``````"


def test_the_best_is_shown_once_where_it_is_the_baseline(study: Study, sampled: Study) -> None:
    same = Sample(text=" the same", trial_id=0)
    write_samples(study, replace(SAMPLES, baseline=same, best=same))
    assert [one["name"] for one in report_facts(study)["samples"]["continuations"]] == ["start", "baseline"]


def test_without_samples_there_is_no_section(study: Study) -> None:
    facts = report_facts(study)
    assert facts["samples"] is None
    assert samples_json(study) is None
    assert "What it writes" not in report_html(facts, {})
    assert "What it writes" not in markdown(facts)


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("samples"),
        lambda document: document["samples"].pop("best"),
        lambda document: document["samples"].update(other={"text": ""}),
        lambda document: document["samples"]["best"].pop("text"),
        lambda document: document["samples"]["best"].update(why="both"),
        lambda document: document["samples"]["best"].update(text=["no text"]),
        lambda document: document["samples"]["best"].update(trial_id="7"),
        lambda document: document.update(prompt=None),
        lambda document: document.update(seed="3"),
        lambda document: document.update(temperature=float("nan")),
        lambda document: document.update(samples=[]),
    ],
)
def test_a_damaged_file_is_one_line(sampled: Study, change: Change) -> None:
    document = to_json(SAMPLES)
    change(document)
    path: Path = sampled.path / "samples.json"
    path.write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"samples\.json: not samples of a study .* Move it away") as refused:
        report_facts(sampled)
    assert "\n" not in str(refused.value)


def test_samples_of_an_earlier_winner_are_not_called_the_best(sampled: Study) -> None:
    facts = report_facts(sampled)
    winner = facts["answer"]["winner"]["trial_id"]
    write_samples(sampled, replace(SAMPLES, best=Sample(text="x", trial_id=winner + 1)))
    names = [one["name"] for one in report_facts(sampled)["samples"]["continuations"]]
    assert names == ["start", "baseline", f"an earlier best, trial {winner + 1}"]
    write_samples(sampled, replace(SAMPLES, best=Sample(text="x", trial_id=winner)))
    assert [one["name"] for one in report_facts(sampled)["samples"]["continuations"]] == ["start", "baseline", "best"]
