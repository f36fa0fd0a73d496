"""Kill -9 while a study is confirmed, attributed or summed up, and the same words again: is the answer the same?

`python tests/faults/kill_analysis.py`; about 3 minutes.
"""

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from results.study.folder import Study
from tests.faults.common import STEADY, Place, differences, has_begun, report
from tests.running import Running


def killed_once(running: Running, moment: Callable[[], Any]) -> list[str]:
    """Kill the command at its moment; return what it left behind."""
    running.wait_for(moment)
    running.kill()
    return [f"left behind {one}" for one in running.orphans()]


def documents_differ(expected: Study, found: Study, name: str) -> list[str]:
    """Return in what two documents of that name differ."""
    if not (found.path / name).exists():
        return [f"{found.name}: no {name}"]
    wanted, got = (json.loads((study.path / name).read_text()) for study in (expected, found))
    return [
        f"{found.name}: {name}: {key}: {got.get(key)} instead of {wanted[key]}"
        for key in wanted
        if got.get(key) != wanted[key]
    ]


def confirmed(place: Place) -> list[str]:
    """Kill a search in its confirmation, then the confirmation that goes on, and resume."""
    place.start("run", "alone", CONFIRM=1, TOP=1, SEEDS=2).ended(code=0)
    study, alone = place.study("killed"), place.study("alone")
    running = place.start("run", "killed", CONFIRM=1, TOP=1, SEEDS=2)
    lost = killed_once(running, lambda: len(study.trials()) > 4)
    running = place.start("resume", "killed")
    lost += killed_once(running, lambda: len(study.trials()) > 6)
    place.start("resume", "killed").ended(code=0)
    return [*lost, *differences(alone, study), *documents_differ(alone, study, "confirmation.json")]


def summed_up(place: Place) -> list[str]:
    """Kill a search right after its last trial, while it writes what people read."""
    study, alone = place.study("late"), place.study("alone")
    lost = killed_once(place.start("run", "late"), lambda: study.best_env.exists())
    for path in (study.best_json, study.path / "report.html"):
        path.unlink(missing_ok=True)
    place.start("resume", "late").ended(code=0)
    written = [path.name for path in (study.best_json, study.best_env, study.path / "report.html") if path.exists()]
    rows = [row["val_loss"] for row in study.trials()] == [
        row["val_loss"] for row in alone.trials()[: len(study.trials())]
    ]
    return lost + ([] if len(written) == 3 and rows else [f"late: {written}, the same losses: {rows}"])


def attributed(place: Place) -> list[str]:
    """Kill an attribution twice, and say it again."""
    words: dict[str, Any] = {
        "SKIP_PREFLIGHT": 1,
        "FROM": "before",
        "TO": "documented",
        "SEEDS": 1,
        "BUDGET_TOKENS": "20k",
    }
    there = Place(str(place.path / "there"))
    there.start("attribute", None, **words).ended(code=0)
    name = "attribute-before-documented-20000"
    study, expected = place.study(name), there.study(name)
    lost = []
    for trials in (4, 10):
        running = place.start("attribute", None, **words)
        lost += killed_once(running, partial(has_begun, study, trials))
    place.start("attribute", None, **words).ended(code=0)
    return [*lost, *differences(expected, study), *documents_differ(expected, study, "attribution.json")]


def main() -> None:
    """Do them all."""
    place = Place(space=STEADY.replace("trials = 6", "trials = 4"))
    lost = [*confirmed(place), *summed_up(place), *attributed(place)]
    report("kill -9 of the analyses", tried=5, lost=lost)


if __name__ == "__main__":
    main()
