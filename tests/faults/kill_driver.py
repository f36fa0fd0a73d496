"""Kill -9 of the driver at random moments of one study, SIGTERM and SIGINT, each time resumed: is the answer the same?

`python tests/faults/kill_driver.py [KILLS]`, 20 by default; about 8 minutes.
"""

import random
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from results.study import Study
from tests.faults.common import SPACE, Place, Running, differences, has_begun, report, says, strays


def starts_of_ray(study: Study) -> int:
    """Return how often Ray was started for the study so far."""
    return study.log_path.read_text().count("starting Ray") if study.log_path.exists() else 0


def outlives(running: Running, study: Study, draw: random.Random, starts: int) -> bool:
    """Wait for a random moment; return whether the command has ended before it."""
    # One in five is killed while it prepares, one while Ray starts, the others from the first trial to some later.
    phase, started_at = draw.randrange(5), time.time()
    if phase == 0:
        return running.ends_within(draw.uniform(0.5, 8.0))
    conditions: list[Callable[[], bool]] = [lambda: starts_of_ray(study) > starts]
    if phase > 1:
        conditions.append(lambda: study.metrics_path.exists() and study.metrics_path.stat().st_mtime > started_at)
    for condition in conditions:
        while not condition():
            if running.ends_within(0.05):
                return True
    return running.ends_within(draw.uniform(0.0, 6.0))


def killed_at_random(place: Place, kills: int) -> None:
    """Kill one study's driver so many times, or until it has ended, and resume it each time."""
    draw, lost, killed, command = random.Random(0), [], 0, "run"
    study = place.study("killed")
    while True:
        starts = starts_of_ray(study)
        running = place.start(command, "killed")
        if killed == kills or outlives(running, study, draw, starts):
            running.ended(code=0)
            break
        running.kill()
        killed += 1
        lost += [f"kill {killed}: left behind {one}" for one in running.orphans()]
        command = "resume" if study.study_json.exists() else "run"
        ended = [row["status"] for row in study.trials()]
        print(f"kill {killed}: {len(ended)} trials begun, {ended.count('completed')} completed", flush=True)
    lost += differences(place.study("alone"), study)
    lost += [f"stray {path}" for path in strays(place.studies)]
    report("kill -9 of the driver", tried=killed, lost=lost)


def told_to_end(place: Place) -> None:
    """Send the signals that ask, while Ray starts and while trials run, and resume."""
    lost, tried = [], 0
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        for moment in ("starting", "training"):
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
            ended = running.ended(timeout_s=60)
            if ended != code:
                lost.append(f"{name}: exit code {ended}: {running.output[-300:]}")
            lost += [f"{name}: left behind {one}" for one in running.orphans()]
            place.start("resume", name).ended(code=0)
            lost += [f"{name}: {one}" for one in differences(place.study("alone"), study)]
    report("SIGTERM and SIGINT", tried=tried, lost=lost)


def main() -> None:
    """Do both."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    place = Place(space=SPACE.replace("trials = 6", "trials = 14"))
    place.left_alone()
    killed_at_random(place, kills)
    told_to_end(place)


if __name__ == "__main__":
    main()
