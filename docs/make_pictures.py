"""Makes the README's pictures of a finished search: .venv/bin/python -m docs.make_pictures [STUDY=name STUDIES_DIR=...]

terminal.svg is the live screen as it stood in the middle of the search, from the times in the study's tables;
report.png the first screen of its report in a headless Chromium.
"""

import io
import sys
import tempfile
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from results.study.folder import Study, open_study
from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from results.study.tables import METRICS, TRIALS, write_table
from search.options import read_options
from search.terminal.live_view import StudyView, ending_words
from tests.results.report_chromium import Chromium, find_chromium
from trainable.config import config_from
from trainable.rows import ENDINGS

FOLDER = Path(__file__).parent
COLUMNS = 100
SHOWN_FRACS = [percent / 100 for percent in range(50, 71)]
"""Of these shares of the search's time the one with the most trials under way is drawn: between two a slot is empty."""
REPORT_WIDTH, REPORT_HEIGHT = 1400, 700
# As rich's own, without its fonts from the net.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>{lines}</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""

Row = dict[str, Any]


def rows_at(study: Study, now: datetime) -> tuple[list[Row], list[Row]]:
    """Return the rows of trials.parquet and metrics.parquet as they were at that time."""
    trials, metrics = [], []
    for row in study.trials():
        if row["purpose"] != "search" or row["started_at"] > now:
            continue
        own = [one for one in study.metrics() if one["trial_id"] == row["trial_id"]]
        if row["ended_at"] > now:
            # It trained at an even pace.
            done_frac = (now - row["started_at"]) / (row["ended_at"] - row["started_at"])
            own = [one for one in own if one["active_s"] <= done_frac * row["active_s"]]
            seen = own[-1] if own else {**row, "val_loss": None, "optimizer_steps": 0, "tokens_seen": 0}
            row |= {"status": "running", "verdict": None, "ended_at": None, "rung": None, "end_loss": None}
            row |= {name: seen[name] for name in ("val_loss", "optimizer_steps", "tokens_seen", "active_s")}
            row["best_val_loss"] = min((one["val_loss"] for one in own), default=None)
        trials.append(row)
        metrics += own
    return trials, metrics


def trained_then(rows: list[Row]) -> int:
    """Return how many of the trials had trained and not ended."""
    return sum(row["status"] == "running" and row["tokens_seen"] > 0 for row in rows)


def write_terminal(study: Study, path: Path) -> None:
    """Draw the live screen of the search as it was at one of SHOWN_FRACS of its time."""
    document, ended = study.document(), [row for row in study.trials() if row["purpose"] == "search"]
    begun_at = min(row["started_at"] for row in ended)
    whole_s = (max(row["ended_at"] for row in ended) - begun_at).total_seconds()
    elapsed_s, (trials, metrics) = max(
        ((frac * whole_s, rows_at(study, begun_at + timedelta(seconds=frac * whole_s))) for frac in SHOWN_FRACS),
        key=lambda then: trained_then(then[1][0]),
    )
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    with tempfile.TemporaryDirectory() as folder:
        then = Study(Path(folder) / study.name)
        then.path.mkdir()
        write_table(then.trials_path, trials, TRIALS)
        write_table(then.metrics_path, metrics, METRICS)
        ledger = Ledger(then)
        # A ledger takes the trials that it finds running for interrupted ones.
        for row in (row for row in trials if row["status"] == "running"):
            run = PlannedRun(trial_id=row["trial_id"], purpose="search", config=config_from(row))
            ledger.start_trial(run, started_at=row["started_at"])
        view = StudyView(
            study=then,
            ledger=ledger,
            trials_planned=document["trials_planned"],
            console=console,
        )
        view._started_at = view._trained_since = time.monotonic() - elapsed_s
        baseline = next((row for row in trials if row["is_baseline"]), None)
        over = sorted((row for row in trials if row["status"] in ENDINGS), key=lambda row: row["ended_at"])
        view.endings = [ending_words(row, baseline) for row in over]
        console.print(view.render())
    console.save_svg(str(path), title="make search SPACE=plateau", code_format=SVG)


def main(assignments: list[str]) -> None:
    """Write both pictures."""
    executable = find_chromium()
    if executable is None:
        raise SystemExit("error: no Chromium or Chrome is installed, which takes the picture of the report.")
    study = open_study(read_options(assignments).study or "latest")
    write_terminal(study, FOLDER / "terminal.svg")
    with Chromium(executable) as browser:
        browser.open(study.path / "report.html", width=REPORT_WIDTH, height=REPORT_HEIGHT)
        browser.picture(FOLDER / "report.png")


if __name__ == "__main__":
    main(sys.argv[1:])
