"""Kill -9 of the driver at random moments of one study, SIGTERM and SIGINT, each time resumed: is the answer the same?

`python tests/faults/kill_driver.py [KILLS]`, 20 by default; about 8 minutes.
"""

import random
import signal
import sys
import time
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.common import SPACE, Place, differences, has_begun, report, says, strays


def killed_at_random(place: Place, kills: int) -> None:
    """Kill one study's driver so many times, or until it has ended, and resume it each time."""
    draw, lost, killed, command = random.Random(0), [], 0, "run"
    study = place.study("killed")
    while True:
        running = place.start(command, "killed")
        # From before Ray has started to some trials later.
        if killed == kills or running.ends_within(draw.uniform(2.0, 15.0)):
            running.ended(code=0)
            break
        running.kill()
        killed += 1
        lost += [f"kill {killed}: left behind {one}" for one in running.orphans()]
        command = "resume" if study.study_json.exists() else "run"
        ended = [row["status"] for row in study.trials()]
        print(f"kill {killed}: {len(ended)} trials begun, {ended.count('completed')} completed", flush=True)
    lost += differences(place.study("alone"), study)
    lost += [f"stray {path}" for path in strays(place)]
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
