"""A search on a real two-node Ray cluster of this machine, one node lost on the way; and storage that is none."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from results.study import Study
from search.variables import KNOWN
from tests.faults.common import Place, has_begun

ROOT = Path(__file__).parents[2]
CLUSTER = """
import os, sys, time
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
other = cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
sys.stdin.readline()
cluster.remove_node(other, allow_graceful=False)
print("removed", flush=True)
sys.stdin.readline()
cluster.shutdown()
"""


@pytest.fixture
def cluster() -> Iterator[subprocess.Popen[str]]:
    """Two nodes of a CPU each; a line on stdin takes one away."""
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=env, cwd=ROOT
    ) as process:
        yield process
        process.communicate("\n\n", timeout=60)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_search_goes_on_when_a_node_is_lost(
    cluster: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    address = line_of(cluster)
    place, storage = Place(str(tmp_path)), tmp_path / "shared"
    refused = place.start("run", "none", ADDRESS=address)
    assert refused.ended() == 2
    assert f"error: ADDRESS={address} has 2 nodes and STORAGE is not set" in refused.output
    assert not place.study("none").path.exists()
    running = place.start("run", "lost", ADDRESS=address, STORAGE=storage, CONCURRENCY=2)
    study = place.study("lost")
    running.wait_for(lambda: has_begun(study, 2))
    time.sleep(2)
    assert cluster.stdin is not None
    cluster.stdin.write("\n")
    cluster.stdin.flush()
    assert line_of(cluster) == "removed"
    running.ended(code=0, timeout_s=200)
    assert "lost its worker" in running.output
    rows = study.trials()
    assert len(rows) == 6
    assert {row["status"] for row in rows} <= {"completed", "stopped", "unstable"}
    assert rows[0]["status"] == "completed"
    mirrored = Study(storage / "lost")
    assert mirrored.trials() == rows
    assert mirrored.study_json.read_bytes() == study.study_json.read_bytes()
    assert list((storage / "lost" / "checkpoints" / "0").glob("step_*.pt"))
    assert not (study.path / "checkpoints").exists()


def test_a_place_that_a_node_does_not_see_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The probe's answers stand in for a node with another file system: this machine has but one."""
    import ray

    from search.cluster import check_shared
    from trainable.errors import UserError

    monkeypatch.setattr(ray, "get", lambda reference, timeout: "no such file")
    monkeypatch.setattr(ray, "remote", lambda **options: lambda function: Remote())
    nodes = [{"NodeID": "0" * 56, "NodeManagerAddress": "10.0.0.2"}]
    with pytest.raises(UserError, match=r"is not shared: node 10\.0\.0\.2 \(00000000\) does not see"):
        check_shared(str(tmp_path), nodes)
    assert list(tmp_path.iterdir()) == []


class Remote:
    def options(self, **options: Any) -> "Remote":
        return self

    def remote(self, *arguments: Any) -> None:
        return None


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ADDRESS": "127.0.0.1:1"}, "ADDRESS=127.0.0.1:1: no Ray cluster answers there"),
        ({"STORAGE": "nowhere://x"}, "STORAGE=nowhere://x: "),
    ],
)
def test_what_is_not_there_is_one_line(variables: dict[str, str], words: str, tmp_path: Path) -> None:
    place = Place(str(tmp_path))
    refused = place.start("run", "none", **variables)
    assert refused.ended() == 2
    assert f"error: {words}" in refused.output
    assert not place.studies.exists()


def test_the_kuberay_file_is_a_ray_job_for_the_pinned_ray() -> None:
    """The fields that the operator's schema requires, and the version and the command that this project has."""
    import yaml

    job = yaml.safe_load((ROOT / "docs" / "kuberay-job.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"]
    cluster = job["spec"]["rayClusterSpec"]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        assert isinstance(group["rayStartParams"], dict)
        [container] = group["template"]["spec"]["containers"]
        assert container["name"]
        assert container["image"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
    for group in cluster["workerGroupSpecs"]:
        assert group["groupName"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    words = job["spec"]["entrypoint"].split()
    assert words[:4] == ["python", "-m", "search", "run"]
    assert all(word.partition("=")[0] in KNOWN for word in words[4:])
