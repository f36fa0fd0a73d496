"""A Ray cluster on this machine whose nodes come and go; as root they lack a part of the driver's disk."""

import ctypes
import json
import os
import secrets
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from ray.cluster_utils import Cluster

from tests.patience import wait_until, with_mark
from tests.running import MARK, ROOT

NOTICED_SOON = {"RAY_health_check_period_ms": "1000", "RAY_health_check_initial_delay_ms": "2000"}
"""Of a lost node, after five seconds in place of fourteen; one that is only slow has as long to answer as ever."""
NEW_MOUNTS = 0x20000  # CLONE_NEWNS of sched.h


class Nodes:
    """A process that holds the cluster's nodes. The head has no CPUs; it ends with all nodes when the block does."""

    def __init__(self, *, home: Path, hidden: Path | None = None) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.hidden = hidden
        own = {name: text for name, text in os.environ.items() if not name.startswith(("RAY_", "CACHE_DIR"))}
        self._mark = secrets.token_hex(8)
        self.drivers = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), MARK: self._mark}
        """Variables for a driver: the token, and the mark by which whoever waits for it sees that the nodes work."""
        env = {**own, **self.drivers, **NOTICED_SOON, "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        # As docs/cluster.md starts them: nice by 15, which is Ray's default, they stand still beside a busy loop.
        env |= {"HOME": str(home), "RAY_worker_niceness": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.nodes", str(hidden or "")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=env,
            cwd=ROOT,
        )
        self.address: str = self._answer()
        """Of the head."""

    def add(self, cpus: int = 1) -> str:
        """Start a node; return its id."""
        return str(self._ask(f"add {cpus}"))

    def lose(self, node_id: str) -> None:
        """End all processes of a node at once."""
        self._ask(f"lose {node_id}")

    def __enter__(self) -> "Nodes":
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            wait_until(lambda: self._process.poll() is not None, self._family)
        finally:
            for process in self._family():
                with suppress(psutil.Error):
                    process.kill()
            self._process.wait()
            self._process.stdout.close()

    def _family(self) -> list[psutil.Process]:
        return with_mark(MARK, self._mark)

    def _ask(self, words: str) -> Any:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words}\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        # Ray writes there too.
        for line in self._process.stdout:
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError("the cluster has ended")


def own_disks_are_possible() -> bool:
    """Return whether this user may give a process mounts of its own."""
    try:
        return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def hold(hidden: str) -> None:
    """Do what stdin says until it ends."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    if hidden:
        # From here on: the head is as it was, what is started later sees an empty disk there.
        assert ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS) == 0
        for words in (["--make-rprivate", "/"], ["-t", "tmpfs", "tmpfs", hidden]):
            subprocess.run(["mount", *words], check=True)
    nodes: dict[str, Any] = {}
    _tell(cluster.address)
    for line in sys.stdin:
        word, _, rest = line.strip().partition(" ")
        if word == "add":
            node = cluster.add_node(num_cpus=int(rest))
            nodes[node.node_id] = node
            _tell(node.node_id)
        else:
            cluster.remove_node(nodes.pop(rest), allow_graceful=False)
            _tell(None)
    cluster.shutdown()


def _tell(answer: Any) -> None:
    print("answer", json.dumps(answer), flush=True)


if __name__ == "__main__":
    hold(*sys.argv[1:])
