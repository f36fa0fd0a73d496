"""Bits flipped and bytes cut off between a kill and the resumption: noticed, told, and the good copy before it taken?

`python tests/faults/damage.py`; about 3 minutes.
"""

import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from results.study.folder import Study
from results.study.tables import previous_path
from tests.faults.common import SPACE, Place, differences, report
from trainable.checkpoint.checkpoint_path import checkpoint_name

LAST = 4
"""The trial in whose middle the study is killed."""
Harm = Callable[[Path], None]


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Leave two thirds of it."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def checkpoints(study: Study) -> list[Path]:
    """Return the last trial's, the newest first."""
    return sorted(study.checkpoint_dir(LAST).glob("step_*.pt"), reverse=True)


def tables(study: Study) -> list[Path]:
    """Return the tables that the resumption needs."""
    return [study.trials_path, study.metrics_path, study.steps_path(LAST)]


def _newest_is_known(study: Study) -> bool:
    # A checkpoint of steps that no table holds yet is dropped unread by the resumption.
    row = study.trials()[LAST]
    return checkpoint_name(row["optimizer_steps"]) >= checkpoints(study)[0].name


def resumed(place: Place, harmed: Sequence[Path], harm: Harm, alone: Study, *said: str) -> list[str]:
    """Harm the files of a study, resume it; return what is wrong with how it went on."""
    name = harmed[0].relative_to(place.studies).parts[0]
    for path in harmed:
        harm(path)
    running = place.start("resume", name)
    running.ended()
    what = f"{harm.__name__} {', '.join(path.name for path in harmed)}"
    print(f"{what}: exit code {running.process.returncode}", flush=True)
    if running.process.returncode != 0:
        return [f"{what}: exit code {running.process.returncode}: {running.output[-600:]}"]
    everything = running.output + place.study(name).log_path.read_text()
    lost = [f"{what}: {one}" for one in differences(alone, place.study(name))]
    return lost + [f"{what}: not said: {words}" for words in said if words not in everything]


def refused(place: Place, harmed: Sequence[Path], harm: Harm) -> list[str]:
    """Harm the files of a study beyond repair; return what is wrong with how its resumption was refused."""
    name = harmed[0].relative_to(place.studies).parts[0]
    for path in harmed:
        harm(path)
    running = place.start("resume", name)
    code, lines = running.ended().code, running.output.splitlines()
    what = f"{harm.__name__} {', '.join(path.name for path in harmed)}"
    told = [line for line in lines if line.startswith("error: ") and harmed[0].name in line]
    if code != 2 or len(told) != 1 or "Traceback" in running.output:
        return [f"{what}: exit code {code}: {running.output[-600:]}"]
    print(f"{what}: {told[0]}", flush=True)
    return []


def main() -> None:
    """Kill a study once, and harm a copy of what it left at a time."""
    # The last trial must last for some checkpoints.
    place = Place(space=SPACE.replace("trials = 6", "trials = 5").replace("tokens = 40_000", "tokens = 120_000"))
    alone = place.left_alone()
    running, killed = place.start("run", "killed"), place.study("killed")
    while True:
        running.wait_for(lambda: len(checkpoints(killed)) == 2 and _newest_is_known(killed))
        running.kill()
        running.orphans()  # a worker that outlives the driver for a moment may save once more
        if _newest_is_known(killed):
            break
        running = place.start("resume", "killed")
    copies = 0

    def copy() -> Study:
        nonlocal copies
        copies += 1
        shutil.copytree(killed.path, place.studies / f"copy-{copies}")
        return place.study(f"copy-{copies}")

    lost = []
    for harm in (flip, cut):
        lost += resumed(place, checkpoints(copy())[:1], harm, alone, f"of trial {LAST} is damaged; going on from step_")
        for number, table in enumerate(tables(killed)):
            path = tables(copy())[number]
            words = f"{table.name} is damaged and now {table.name}.damaged; its previous copy took its place"
            lost += resumed(place, [path], harm, alone, words)
    lost += resumed(place, checkpoints(copy()), cut, alone, "there is no earlier one to go on from")
    lost += resumed(
        place, tables(copy())[1:2], Path.unlink, alone, "metrics.parquet is missing; its previous copy took"
    )
    for number in range(len(tables(killed))):
        path = tables(copy())[number]
        lost += refused(place, [path, previous_path(path)], cut)
    lost += refused(place, [copy().study_json], cut)
    report("damage", tried=copies, lost=lost)


if __name__ == "__main__":
    main()
