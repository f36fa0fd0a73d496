"""Kill -9 of the driver at random moments of one study, SIGTERM and SIGINT, each time resumed: is the answer the same?

`python tests/faults/kill_driver.py [KILLS]`, 20 by default; about 15 minutes on an idle core.
"""

import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from results.study.folder import Study
from tests.faults.common import SPACE, Place, asked, differences, has_begun, report, says, strays
from tests.running import Running


def starts_of_ray(study: Study) -> int:
    """Return how often Ray was started for the study so far."""
    return study.log_path.read_text().count("starting Ray") if study.log_path.exists() else 0


def outlives(running: Running, study: Study, draw: random.Random, starts: int) -> bool:
    """Wait for a random moment; return whether the command has ended before it."""
    # One in five is killed while it prepares, one while Ray starts, the others once a trial trains.
    phase, started_at = draw.randrange(5), time.time()
    if phase == 0:
        return running.ends_within(draw.uniform(0.5, 8.0))
    conditions: list[Callable[[], bool]] = [lambda: starts_of_ray(study) > starts]
    if phase > 1:
        conditions.append(lambda: any(path.stat().st_mtime > started_at for path in study.path.glob("steps/*.parquet")))
    for condition in conditions:
        while not condition():
            if running.ends_within(0.05):
                return True
    return running.ends_within(draw.uniform(0.0, 6.0))


def killed_at_random(place: Place, kills: int, name: str = "killed", **options: Any) -> tuple[int, list[str]]:
    """Kill one study's driver so many times, or until it has ended, resumed each time.

    Return how often, and what was left behind. options: of Place.start().
    """
    draw, lost, killed, command = random.Random(name), [], 0, "run"
    study = place.study(name)
    while True:
        starts = starts_of_ray(study)
        running = place.start(command, name, **options)
        if killed == kills or outlives(running, study, draw, starts):
            running.ended(code=0)
            break
        running.kill()
        killed += 1
        lost += [f"kill {killed}: left behind {one}" for one in running.orphans()]
        command = "resume" if study.study_json.exists() else "run"
        ended = [row["status"] for row in study.trials()]
        print(f"kill {killed}: {len(ended)} trials begun, {ended.count('completed')} completed", flush=True)
    return killed, lost + [f"stray {path}" for path in strays(place.studies)]


def told_to_end(place: Place) -> tuple[int, list[str]]:
    """Send the signals that ask, while Ray starts, while trials run, and twice in a row; resume. Return as above."""
    lost, tried = [], 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        for moment in ("starting", "training", "twice"):
            tried += 1
            name = f"{moment}-{code}"
            running = place.start("run", name)
            study = place.study(name)
            if moment == "starting":
                running.wait_for(partial(says, study, "starting Ray"))
                time.sleep(1.5)
            else:
                running.wait_for(partial(has_begun, study, 2))
            running.signal(number)
            if moment == "twice":
                time.sleep(0.1)
                running.signal(number)
            ended = running.ended().code
            # The second one ends the process as the system would.
            if ended not in ((code, -number) if moment == "twice" else (code,)) or "Traceback" in running.output:
                lost.append(f"{name}: exit code {ended}: {running.output[-300:]}")
            print(f"{name}: exit code {ended}, {[row['status'] for row in study.trials()]}", flush=True)
            lost += [f"{name}: left behind {one}" for one in running.orphans()]
            place.start("resume", name).ended(code=0)
            lost += [f"{name}: {one}" for one in differences(place.study("alone"), study)]
    return tried, lost


def main() -> None:
    """Do both."""
    (kills,) = asked(__doc__, kills=20)
    place = Place(space=SPACE.replace("trials = 6", "trials = 30"))
    place.left_alone()
    killed, lost = killed_at_random(place, kills)
    lost += differences(place.study("alone"), place.study("killed"))
    print(f"kill -9: {killed} times, lost {len(lost)}", flush=True)
    told, lost_too = told_to_end(place)
    report("kill -9, SIGTERM and SIGINT of the driver", tried=killed + told, lost=[*lost, *lost_too])


if __name__ == "__main__":
    main()
