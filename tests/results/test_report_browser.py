"""The report in a real headless browser: no console error, nothing fetched, the Parquet's numbers, clicks."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results.report.page import write_reports
from results.study.folder import Study
from tests.results.report_chromium import Chromium, find_chromium
from tests.results.report_study import make_report_study

EXECUTABLE = find_chromium()
pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium or Chrome is installed")
A4_PX = 688
"""Its width less the margins."""
HOSTILE = "<script>window.ran = 1</script><img src='https://example.invalid/x.png' onerror='window.ran = 2'>"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    space = {"name": "plateau", "path": "spaces/plateau.toml", "description": HOSTILE, "toml": ""}
    document = {"data_source": f"/data/{HOSTILE}", "space": space}
    study = make_report_study(tmp_path_factory.mktemp("studies") / "plateau-1125-0310", document=document)
    write_reports(study)
    return study


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    assert EXECUTABLE is not None
    with Chromium(EXECUTABLE) as page:
        yield page


@pytest.fixture(scope="module")
def opened(browser: Chromium, study: Study) -> Chromium:
    """The page as it opens: for tests that only look, before those that click."""
    browser.open(study.path / "report.html")
    return browser


@pytest.fixture
def page(browser: Chromium, study: Study) -> Chromium:
    browser.console.clear()
    browser.requests.clear()
    browser.open(study.path / "report.html")
    return browser


def rows_shown(page: Chromium) -> list[int]:
    found: list[int] = page.value(
        "[...document.querySelectorAll('#trial-table tbody tr:not([hidden])')].map(row => +row.id.slice(6))"
    )
    return found


def test_it_draws_everything_without_a_word_to_the_console(opened: Chromium) -> None:
    drawn, placed = opened.value(
        "[document.querySelectorAll('.plot .main-svg').length > 0"
        " && [...document.querySelectorAll('.plot')].every(plot => plot.querySelector('.main-svg')),"
        " document.querySelectorAll('.plot').length]"
    )
    assert drawn
    assert placed >= 10
    assert opened.console == []


def test_it_fetches_nothing_and_markup_stays_text(opened: Chromium) -> None:
    assert [url for url in opened.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert opened.value("window.ran === undefined")
    assert opened.value("document.querySelector('.description').textContent") == HOSTILE
    assert opened.value("document.querySelectorAll('img').length") == 0


def test_the_first_screen_answers(opened: Chromium) -> None:
    bottom = opened.value("document.querySelector('.export').getBoundingClientRect().bottom")
    assert bottom <= 900


def test_the_numbers_shown_are_the_tables(opened: Chromium, study: Study) -> None:
    trials = {row["trial_id"]: row for row in study.trials()}
    done = [row for row in trials.values() if row["status"] == "completed"]
    best = min(done, key=lambda row: row["val_loss"])
    difference = best["val_loss"] - trials[0]["val_loss"]
    shown: dict[str, Any] = opened.value(
        "Object.fromEntries([...document.querySelectorAll('[data-fact]')].map("
        "node => [node.dataset.fact, [Number(node.dataset.value), node.textContent]]))"
    )
    assert shown == {
        "winner_val_loss": [best["val_loss"], f"{best['val_loss']:.4f}"],
        "baseline_val_loss": [trials[0]["val_loss"], f"{trials[0]['val_loss']:.4f}"],
        "val_loss_difference": [difference, f"{difference:+.4f}".replace("-", "−")],
    }
    columns: list[str] = opened.value("[...document.querySelectorAll('#trial-table thead th')].map(h => h.dataset.key)")
    table: list[list[str]] = opened.value(
        "[...document.querySelectorAll('#trial-table tbody tr')].map(row => [...row.cells].map(c => c.dataset.value))"
    )
    assert len(table) == len(trials)
    for cells in table:
        row = dict(zip(columns, cells, strict=True))
        trial = trials[int(row["trial_id"])]
        for name in ("val_loss", "tokens_seen", "tokens_per_s", "active_s", "learning_rate", "batch_size"):
            # An unstable trial shows what it was ended at.
            value = trial["end_loss"] if name == "val_loss" and trial["status"] == "unstable" else trial[name]
            assert float(row[name]) == value, name


def test_the_points_drawn_are_the_tables(opened: Chromium, study: Study) -> None:
    metrics = [(row["tokens_seen"], row["val_loss"]) for row in study.metrics() if row["trial_id"] == 0]
    drawn = opened.value(
        "(trace => trace.x.map((x, i) => [x, trace.y[i]]))"
        "(document.querySelector('[data-figure=curves]').data.find(t => t.name === 'baseline'))"
    )
    assert [x for x, _ in drawn] == [tokens for tokens, _ in metrics]
    assert [y for _, y in drawn] == pytest.approx([loss for _, loss in metrics], rel=1e-5)


def test_the_table_sorts_and_filters(page: Chromium, study: Study) -> None:
    trials = {row["trial_id"]: row for row in study.trials()}
    click = "document.querySelector('th[data-key=learning_rate] button').click()"
    page.value(click)
    rates = [trials[trial_id]["learning_rate"] for trial_id in rows_shown(page)]
    assert rates == sorted(rates)
    page.value(click)
    assert [trials[trial_id]["learning_rate"] for trial_id in rows_shown(page)] == rates[::-1]
    assert page.value("document.querySelector('th[data-key=learning_rate]').getAttribute('aria-sort')") == "descending"
    page.value("document.querySelector('.ending[value=stopped]').click()")
    assert {trials[trial_id]["status"] for trial_id in rows_shown(page)} == {"completed", "unstable"}
    page.value(
        "document.getElementById('filter').value = 'wsd completed';"
        "document.getElementById('filter').dispatchEvent(new Event('input'))"
    )
    wanted = {i for i, row in trials.items() if row["status"] == "completed" and row["lr_schedule"] == "wsd"}
    assert set(rows_shown(page)) == wanted
    assert page.value("document.getElementById('shown').textContent") == f"{len(wanted)} of {len(trials)} shown"


def test_a_trials_link_shows_its_own_trace(page: Chromium, study: Study) -> None:
    unstable = next(row for row in study.trials() if row["status"] == "unstable")
    page.value(f"document.querySelector('#trial-{unstable['trial_id']} a').click()")
    title = "document.getElementById('trace-title').textContent"
    page.wait(f"{title} === 'Trial {unstable['trial_id']}'")
    assert unstable["verdict"] in page.value("document.getElementById('trace-words').textContent")
    steps = page.value(
        "document.getElementById('trace-plot').data"
        ".find(trace => trace.name.startsWith('trial') && trace.yaxis === 'y2').x.length"
    )
    assert steps == unstable["optimizer_steps"]
    page.value("document.getElementById('trace-before').click()")
    assert page.value(title) != f"Trial {unstable['trial_id']}"
    assert page.console == []


def test_a_view_changes_what_is_compared(page: Chromium) -> None:
    count = (
        "document.querySelector('[data-figure=by-learning_rate]').data.reduce((sum, trace) => sum + trace.x.length, 0)"
    )
    at_rung = page.value(count)
    page.value("document.querySelector('input[name=view][value=\"0\"]').click()")
    assert page.value(count) < at_rung


def test_dark_light_and_print_have_their_own_colours(page: Chromium, tmp_path: Path) -> None:
    colors = (
        "(plot => [getComputedStyle(document.body).backgroundColor, plot.layout.font.color,"
        " plot.data.find(t => t.name === 'baseline').line.color])(document.querySelector('[data-figure=curves]'))"
    )
    light = page.value(colors)
    page.dark(True)
    page.wait(f"JSON.stringify({colors}) !== {str(light)!r}")
    page.wait(f"{colors}[1] !== '{light[1]}'")
    dark = page.value(colors)
    assert all(a != b for a, b in zip(light, dark, strict=True))
    page.print_pdf(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes().startswith(b"%PDF")
    assert page.value(colors) == dark
    assert page.console == []


def test_it_fits_a_phone(browser: Chromium, study: Study) -> None:
    browser.console.clear()
    browser.open(study.path / "report.html", width=390, height=844)
    assert browser.value("document.documentElement.scrollWidth") <= 390
    on_first_screen = (
        "['headline', 'export'].every(id => document.getElementById(id).getBoundingClientRect().bottom <= 844)"
    )
    assert browser.value(on_first_screen)
    assert browser.console == []


OVERLAPS = """
(() => {
  const found = [];
  const shown = (box) => box.width > 1 && box.height > 1;
  const name = (node) => node.textContent.trim().slice(0, 40);
  for (const plot of document.querySelectorAll(".plot")) {
    const outer = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("text")]
      .filter((text) => text.textContent.trim() && !text.closest(".hoverlayer"))
      .map((text) => [text, text.getBoundingClientRect()]).filter(([, box]) => shown(box));
    for (const [text, box] of texts)
      if (Math.min(box.left - outer.left, outer.right - box.right, box.top - outer.top, outer.bottom - box.bottom) < -2)
        found.push(`${plot.dataset.figure ?? plot.id}: ${name(text)} is cut off`);
    texts.forEach(([a, p], index) => texts.slice(index + 1).forEach(([b, q]) => {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 2 && high > 2) found.push(`${plot.dataset.figure ?? plot.id}: ${name(a)} lies on ${name(b)}`);
    }));
  }
  const frame = document.documentElement.clientWidth;
  const tags = "h1, h2, h3, p, li, td, th, dt, dd, label, button, code, summary, figcaption";
  for (const node of document.querySelectorAll(tags)) {
    const box = node.getBoundingClientRect();
    if (!shown(box)) continue;
    const hides = !["visible", "auto"].includes(getComputedStyle(node).overflowX);
    if (hides && node.clientWidth && node.scrollWidth > node.clientWidth + 1) found.push(`${name(node)} is clipped`);
    if (box.right > frame + 1 && !node.closest(".scroll, nav, pre, code"))
      found.push(`${name(node)} is beyond the page`);
  }
  return found;
})()
"""


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Study]:
    folder = tmp_path_factory.mktemp("boxes")
    made = {trials: make_report_study(folder / f"study-{trials}", trials=trials) for trials in (5, 24, 200)}
    for one in made.values():
        write_reports(one)
    return made


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("trials", [5, 24, 200])
def test_no_text_lies_on_another_or_is_cut_off(
    browser: Chromium, studies: dict[int, Study], trials: int, width: int
) -> None:
    browser.open(studies[trials].path / "report.html", width=width, height=900 if width > 600 else 844)
    assert browser.value(OVERLAPS) == []


@pytest.mark.parametrize("trials", [5, 24, 200])
def test_a_printed_page_is_whole(browser: Chromium, studies: dict[int, Study], trials: int) -> None:
    browser.open(studies[trials].path / "report.html", width=A4_PX)
    browser.call("Emulation.setEmulatedMedia", media="print")
    beyond = (
        "[...document.querySelectorAll('td, th, p, pre, li')].filter(one => one.getBoundingClientRect().right > "
        f"{A4_PX} + 1).map(one => one.textContent.slice(0, 40))"
    )
    assert browser.value(beyond) == []
    # What sorts the table on a screen is its head on paper.
    assert "Why it ended" in browser.value("document.querySelector('.trials thead').innerText")
    # Chromium leaves the box of a form control out of a header that it repeats on the next page.
    assert browser.value("getComputedStyle(document.querySelector('.trials th button')).display") == "contents"
    browser.call("Emulation.setEmulatedMedia", media="")


def test_texts_on_each_other_would_be_seen(page: Chromium) -> None:
    page.value(
        "(text => { const twin = text.cloneNode(true); text.after(twin); })"
        "(document.querySelector('[data-figure=curves] .xtick text'))"
    )
    assert any("lies on" in line for line in page.value(OVERLAPS))


def test_a_page_that_errs_or_fetches_would_be_seen(page: Chromium) -> None:
    page.value("console.error('planted'); fetch('https://example.invalid/x').catch(() => 0)")
    assert any(line == "error: planted" for line in page.console)
    assert any("Content Security Policy" in line for line in page.console)
