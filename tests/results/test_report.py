"""report.html and report.md: written in every case, escaped, offline, small; the browser's view is tested beside it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from results.report.facts.study_facts import report_facts
from results.report.page import fenced, markdown, report_html, write_reports
from results.study.folder import Study
from results.study.planned_run import Row
from results.study.tables import METRICS, TRIALS, write_table
from tests.results.report_study import make_report_study

MakeTrial = Callable[..., Row]
MakeDocument = Callable[..., dict[str, Any]]
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&`{{7*7}}"


class Page(HTMLParser):
    """The page's tags, its texts outside of scripts, and the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[tuple[str | None, str]] = []
        self._script: str | None = None
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._in_script, self._script = True, dict(attrs).get("id")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = self._in_script and tag != "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append((self._script, data))
        else:
            self.texts.append(data)

    def data(self, name: str) -> Any:
        return json.loads("".join(text for script, text in self.scripts if script == name))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("studies") / "<img src=x onerror=alert(3)>" / "plateau-1125-0310"
    space = {"name": HOSTILE, "path": HOSTILE, "description": HOSTILE, "toml": HOSTILE}
    document = {"space": space, "data_source": f"/data/{HOSTILE}.txt", "model": HOSTILE, "versions": {HOSTILE: HOSTILE}}
    return make_report_study(folder, document=document)


@pytest.fixture(scope="module")
def facts(study: Study) -> dict[str, Any]:
    return report_facts(study)


@pytest.fixture(scope="module")
def page(study: Study) -> Page:
    write_reports(study)
    path = study.path / "report.html"
    assert path == study.path / "report.html"
    assert [file.name for file in study.path.iterdir() if file.name.startswith(".")] == []
    return Page(path.read_text(encoding="utf-8"))


def test_markup_stays_text(page: Page) -> None:
    assert [attrs.get("type") for tag, attrs in page.tags if tag == "script"] == [
        "application/json", "application/json", None, None
    ]  # fmt: skip
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object", "embed", "form")]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert any("<img src=x onerror=alert(3)>/plateau-1125-0310" in text for text in page.texts)
    assert sum(HOSTILE in text for text in page.texts) >= 4  # description, model, data path, space file
    assert page.data("facts")["study"]["description"] == HOSTILE


def test_nothing_is_fetched_and_only_the_pages_scripts_run(page: Page) -> None:
    fetched = [
        (tag, name, value)
        for tag, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "srcset", "poster", "action", "href") and not (value or "").startswith(("#", "data:"))
    ]
    assert fetched == []
    policy = next(attrs["content"] or "" for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert "unsafe-eval" not in policy


def test_links_within_the_page_lead_somewhere(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {(attrs["href"] or "")[1:] for tag, attrs in page.tags if tag == "a"}
    assert targets <= set(ids)


def test_the_table_holds_the_tables_numbers(study: Study, page: Page) -> None:
    table = [dict(attrs) for tag, attrs in page.tags if tag == "tr" and (attrs.get("id") or "").startswith("trial-")]
    assert len(table) == len(study.trials())
    values = {attrs.get("data-value") for tag, attrs in page.tags if tag == "td"}
    for row in study.trials():
        # An unstable trial shows what it was ended at, not an evaluation of before.
        loss = row["end_loss"] if row["status"] == "unstable" else row["val_loss"]
        assert repr(loss) in values
        assert repr(row["learning_rate"]) in values
        assert repr(row["active_s"]) in values


def test_the_facts_in_the_page_are_the_facts(facts: dict[str, Any], page: Page) -> None:
    assert page.data("facts") == {name: value for name, value in facts.items() if name != "trials"}


def test_every_figure_has_its_place_and_words(page: Page) -> None:
    placed = [attrs for _, attrs in page.tags if "data-figure" in attrs]
    assert {attrs["data-figure"] for attrs in placed} == {figure["id"] for figure in page.data("data")["figures"]}
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in placed)


@pytest.mark.parametrize("kind", ["nothing", "one", "running", "interrupted", "failed", "baseline", "no baseline"])
def test_every_study_can_be_reported(
    tmp_path: Path, make_document: MakeDocument, make_trial: MakeTrial, kind: str
) -> None:
    baseline = make_trial(0, "completed", 5.0, tokens_seen=409_600, active_s=10.0)
    cut = {"tokens_seen": 4096, "optimizer_steps": 1}
    trials = {
        "nothing": [],
        "one": [baseline],
        "running": [make_trial(0, "running"), make_trial(1, "running", 6.0, **cut)],
        "interrupted": [make_trial(0, "interrupted", 6.0, **cut)],
        "failed": [make_trial(0, "failed"), make_trial(1, "out_of_memory"), make_trial(2, "unstable", verdict=HOSTILE)],
        "baseline": [baseline, make_trial(1, "completed", 5.5, batch_size=8, block_size=256)],
        "no baseline": [make_trial(1, "completed", 5.5), make_trial(2, "completed", 5.0, learning_rate=1e-3)],
    }[kind]
    (tmp_path / "s").mkdir()
    study = Study(tmp_path / "s")
    document = make_document("s", trials_planned=3, kind="baseline" if kind == "baseline" else "search")
    study.study_json.write_text(json.dumps(document))
    if trials:
        write_table(study.trials_path, trials, TRIALS)
        first = {"trial_id": trials[0]["trial_id"], "tokens_seen": 0, "optimizer_steps": 0, "val_loss": None}
        rest = {"train_loss": 7.0, "grad_norm": None, "learning_rate": 1e-5, "tokens_per_s": None, "active_s": 0.0}
        write_table(study.metrics_path, [{**first, **rest}], METRICS)
    facts = report_facts(study)
    page = Page(report_html(facts, {}))
    headline = facts["answer"]["headline"]
    assert headline in page.texts
    assert not [text for text in page.texts if re.search(r"Undefined|\bNone\b|\bnan\b", text)]
    assert headline in markdown(facts)


def test_the_markdown_is_for_a_pull_request(facts: dict[str, Any]) -> None:
    text = markdown(facts)
    winner, baseline = facts["answer"]["winner"], facts["answer"]["baseline"]
    assert text.startswith(f"## Study plateau-1125-0310: {facts['answer']['headline']}\n")
    assert "**one seed each, so not proven yet**" in text
    assert f"| trial {winner['trial_id']} | {winner['val_loss']:.4f} |" in text
    assert f"| baseline | {baseline['val_loss']:.4f} |" in text
    assert facts["answer"]["export"] in text
    assert "<script" not in text
    # The study's folder is called so, and a block of code shows it as it is.
    assert "<img" not in text.replace(fenced(facts["answer"]["export"]), "")
    for one in (text, markdown({**facts, "parameters": []})):
        tables = [block.splitlines() for block in one.split("\n\n") if block.startswith("|")]
        assert len(tables) >= 4
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_the_markdown_says_how_sure_an_importance_is(facts: dict[str, Any]) -> None:
    known = {"name": "dropout", "share": 0.984, "low": 0.015, "high": 0.989}
    unknown = {"name": "learning_rate", "share": 0.016, "low": None, "high": None}
    method = {"name": "PED-ANOVA", "trials": 12, "words": "", "shares": [known, unknown]}
    line = "- Importance (PED-ANOVA, 12 trials): dropout 98% (2% to 99%), learning rate 2%; in brackets 90 % of its res"
    assert line in markdown({**facts, "importance": {"reason": None, "methods": [method]}})


def test_the_markdown_holds_nothing_that_a_terminal_obeys(facts: dict[str, Any]) -> None:
    hostile = "d\x1b]0;owned\x07\x9b31m\u202e"
    text = markdown({**facts, "study": {**facts["study"], "description": hostile}})
    assert r"d\x1b" in text
    assert all(one.isprintable() or one == "\n" for one in text)


def test_200_trials_stay_under_8_mb(tmp_path: Path) -> None:
    from plotly.offline import get_plotlyjs

    study = make_report_study(tmp_path / "some", trials=20, early_stopping=False, evaluations=20)
    library = len(get_plotlyjs().encode())
    # A trial's trace is the larger the fewer there are, so ten times as many take less than ten times as much.
    write_reports(study)
    size_bytes = study.path.joinpath("report.html").stat().st_size
    assert library + 10 * (size_bytes - library) < 8e6


def test_the_reports_modules_are_light() -> None:
    code = (
        "import sys, results.report.page\n"
        "heavy = {'torch', 'ray', 'plotly', 'jinja2', 'optuna', 'scipy', 'numpy', 'pandas'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
