"""One seed on 1, 2 and 4 slots, trials of random speeds, driver and workers killed: is the answer that of one slot?

`python tests/faults/one_answer.py [KILLS [SEEDS]]`, 20 kills of a driver, by default with one seed; about 15 minutes on
an idle core. Equal have to be configurations, endings, losses, steps and best.json, to the last digit.
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from results.study.folder import Study
from tests.faults.common import SPACE, Place, asked, differences
from tests.faults.kill_driver import killed_at_random
from tests.faults.kill_worker import fault, injecting

TRIALS = 30
"""More than the places after which a proposal waits for an end."""
MOST_DELAY_S = 0.1
"""After each of a trial's 15 to 31 steps; some trials then take a hundred times as long as others."""


def small_space(trials: int) -> str:
    """Return a space whose trials end in every way but for want of memory."""
    changes = {
        "trials = 6": f"trials = {trials}",
        "tokens = 40_000": "tokens = 8_000",
        "count = 12": "count = 4",
        "[1e-4, 1.0]": "[1e-5, 3.0]",
    }
    space = SPACE
    for old, new in changes.items():
        space = space.replace(old, new)
    return space


def left_alone(place: Place, seed: int = 0) -> Study:
    """Return the study as one slot makes it, when nothing happens to it."""
    place.start("run", f"alone-{seed}", SEED=seed).ended(code=0)
    return place.study(f"alone-{seed}")


def wrong(place: Place, name: str, *, trials: int, kills: int, slots: int, seed: int = 0) -> list[str]:
    """Run the study `alone` again on so many slots, with slow workers, a fifth of them killed; return what differs."""
    draw = random.Random(name)
    struck = [fault(trial_id, "die", step=draw.randrange(2, 12)) for trial_id in range(0, trials, 5)]
    environment = {**injecting(place, name, struck), "FAULTS_MOST_DELAY_S": str(MOST_DELAY_S)}
    options = {"CONCURRENCY": slots, "SEED": seed, "SKIP_PREFLIGHT": 1}
    killed, _ = killed_at_random(place, kills, name, environment=environment, **options)
    deaths = len(list((place.path / f"inject-{name}").glob("struck-*")))
    found = differences(place.study(f"alone-{seed}"), place.study(name), one_slot=slots == 1)
    words = "; ".join(found[:5]) or "the same answer"
    print(f"{slots} slots, seed {seed}: driver killed {killed} times, workers {deaths} times: {words}", flush=True)
    return found


def main() -> None:
    """Compare, and print tried, right, wrong."""
    kills, seeds = asked(__doc__, kills=20, seeds=1)
    place, outcomes = Place(space=small_space(TRIALS)), []
    for seed in range(seeds):
        endings = [row["status"] for row in left_alone(place, seed).trials()]
        print({ending: endings.count(ending) for ending in sorted(set(endings))}, flush=True)
        for slots, share in ((1, kills // 4), (2, 0), (2, kills // 4), (4, kills - 2 * (kills // 4))):
            name = f"slots-{slots}-{share}-{seed}"
            outcomes.append(wrong(place, name, trials=TRIALS, kills=share, slots=slots, seed=seed))
    right = sum(not found for found in outcomes)
    print(f"one answer for one seed: tried {len(outcomes)}, right {right}, wrong {len(outcomes) - right}", flush=True)
    print(f"the studies are in {place.path}")
    sys.exit(right < len(outcomes))


if __name__ == "__main__":
    main()
