"""Nodes of a Ray cluster killed at random moments of a search, and a search through Ray's client: the same answer?

`python tests/faults/cluster.py [KILLS]`, 6 by default; about 6 minutes on two idle cores. The second part needs grpcio
(`pip install 'ray[client]'`) and is left out without it.
"""

import importlib.util
import os
import random
import socket
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

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
        os.environ.update(nodes.auth)
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


def through_the_client(place: Place, storage: Path, home: Path) -> None:
    """Search from outside the cluster, cut the search off, and go on, each time through ray://."""
    if importlib.util.find_spec("grpc") is None:
        print("ray://: left out, grpcio is not installed", flush=True)
        return
    lost: list[str] = []
    port = _free_port()
    with Nodes(home=home, client_port=port) as nodes:
        nodes.add()
        os.environ.update(nodes.auth)
        words: dict[str, Any] = {"ADDRESS": f"ray://127.0.0.1:{port}", "STORAGE": storage}
        place.start("run", "client", **words).ended(code=0)
        lost += [f"run: {one}" for one in differences(place.study("alone"), place.study("client"))]
        absent = place.start("resume", "absent", **words)
        if absent.ended().code != 2 or "error: no study named 'absent' in " not in absent.output:
            lost.append(f"absent: {absent.output[-500:]}")
        running = place.start("run", "cut", **words)
        mirrored = Study(storage / "cut")
        running.wait_for(lambda: mirrored.study_json.exists() and has_begun(mirrored, 2))
        running.signal(2)
        code = running.ended().code
        if code != 130:
            lost.append(f"Ctrl-C: exit code {code}: {running.output[-500:]}")
        place.start("resume", "cut", **words).ended(code=0)
        lost += [f"resume: {one}" for one in differences(place.study("alone"), place.study("cut"))]
        running = place.start("run", "gone", **words)
        mirrored = Study(storage / "gone")
        running.wait_for(lambda: mirrored.study_json.exists() and has_begun(mirrored, 2))
        running.kill()
        # Ray's client is waited for before what it started is ended.
        time.sleep(60)
        place.start("resume", "gone", **words).ended(code=0)
        lost += [f"client killed: {one}" for one in differences(place.study("alone"), place.study("gone"))]
    report("ray://: run, no such study, Ctrl-C, client killed", tried=4, lost=lost)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def main() -> None:
    """Do both."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    place = Place(space=SPACE.replace("trials = 6", "trials = 10"))
    shared = place.path.with_name(place.path.name + "-shared")
    place.left_alone()
    nodes_killed(place, kills, shared, shared / ".home")
    through_the_client(place, shared, shared / ".home")


if __name__ == "__main__":
    main()
