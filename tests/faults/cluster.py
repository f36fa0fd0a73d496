"""Nodes of a Ray cluster killed at random moments of a search: the same answer?

`python tests/faults/cluster.py [KILLS]`, 6 by default; about 4 minutes on two idle cores.
"""

import os
import random
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from results.study.folder import Study
from tests.faults.common import SPACE, Place, differences, has_begun, report
from tests.faults.nodes import Nodes, own_disks_are_possible


def nodes_killed(place: Place, kills: int, storage: Path, home: Path) -> None:
    """Take the one working node away so many times, another one in its place each time."""
    draw, lost, killed = random.Random(0), [], 0
    study = place.study("lost")
    hidden = place.path if own_disks_are_possible() else None
    print(f"nodes {'lack' if hidden else 'see'} the driver's disk", flush=True)
    with Nodes(home=home, hidden=hidden) as nodes:
        node_id = nodes.add()
        os.environ.update(nodes.drivers)
        running = place.start("run", "lost", ADDRESS=nodes.address, STORAGE=storage)
        running.wait_for(partial(has_begun, study, 1))
        while killed < kills and not running.ends_within(draw.uniform(3.0, 25.0)):
            new = nodes.add()
            nodes.lose(node_id)
            node_id, killed = new, killed + 1
            statuses = [row["status"] for row in study.trials()]
            print(f"kill {killed}: {len(statuses)} trials begun, {statuses.count('completed')} completed", flush=True)
        running.ended()
    if running.process.returncode != 0:
        lost.append(f"exit code {running.process.returncode}: {running.output[-500:]}")
    lost += differences(place.study("alone"), study)
    lost += [f"mirror: {one}" for one in differences(place.study("alone"), Study(storage / "lost"))]
    report("nodes killed", tried=killed, lost=lost)


def main() -> None:
    """Search alone, then on a cluster whose nodes are killed."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    place = Place(space=SPACE.replace("trials = 6", "trials = 10"))
    shared = place.path.with_name(place.path.name + "-shared")
    place.left_alone()
    nodes_killed(place, kills, shared, shared / ".home")


if __name__ == "__main__":
    main()
