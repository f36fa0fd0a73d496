"""A search on a real Ray cluster of this machine: what is refused, what a lost node costs, how slots are shared out."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from results.study.folder import Study
from search.options import KNOWN
from tests.faults.common import QUICK_SPACE, Place, differences, has_begun
from tests.faults.nodes import Nodes, own_disks_are_possible

ROOT = Path(__file__).parents[2]
JOIN = """
import sys
from search.cluster.connection import join
from trainable.errors import UserError
for storage in sys.argv[2:]:
    try:
        print(join(sys.argv[1], storage or None))
    except UserError as error:
        print(error)
"""


def joined(nodes: Nodes, *storages: str, **environment: str) -> list[str]:
    """Return what a driver on the head's machine is told, a line for each storage."""
    command = [sys.executable, "-c", JOIN, nodes.address, *storages]
    env = {**os.environ, **nodes.drivers, **environment}
    done = subprocess.run(command, env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_a_lost_nodes_trial_goes_on_on_another_to_the_same_answer(
    left_alone: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes that lack the driver's disk, where root may make such; one slot, so that the answer is exact."""
    driver, storage = tmp_path / "driver", tmp_path / "shared"
    driver.mkdir()
    place = Place(str(driver), QUICK_SPACE)
    private = own_disks_are_possible()
    with Nodes(home=tmp_path / "home", hidden=driver if private else None) as nodes:
        first = nodes.add()
        refused = joined(nodes, "", str(driver / "storage"))
        assert refused[0].startswith(f"ADDRESS={nodes.address} has 2 nodes and STORAGE is not set: ")
        assert joined(nodes, "", RAY_AUTH_TOKEN="0" * 64) == [
            f"ADDRESS={nodes.address}: the cluster asks for a token. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to its "
            "own."
        ]
        if private:
            assert f"STORAGE={driver}/storage is not shared: node " in refused[1]
            assert f" ({first[:8]}) does not see what was written here." in refused[1]
            assert not list((driver / "storage").iterdir())
        for name, text in nodes.drivers.items():
            monkeypatch.setenv(name, text)
        running = place.start("run", "lost", ADDRESS=nodes.address, STORAGE=storage)
        study = place.study("lost")
        [worker] = running.wait_for(lambda: running.workers() if has_begun(study, 1) else [])
        worker.suspend()  # a node that is lost between two trials takes no worker with it
        second = nodes.add()
        nodes.lose(first)
        running.ended(code=0)
    assert f"({first[:8]}) was lost" in running.output
    assert f"({second[:8]}) has joined" in running.output
    assert "lost its worker" in running.output
    assert "(raylet)" not in running.output
    assert differences(left_alone, study) == []
    assert differences(left_alone, Study(storage / "lost")) == []
    assert (storage / "lost" / "study.json").read_bytes() == study.study_json.read_bytes()
    assert list((storage / "lost" / "checkpoints" / "0").glob("step_*.pt"))
    assert not (study.path / "checkpoints").exists()
    assert bool(list((tmp_path / "home").rglob("tokens-*.npy"))) == private


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"ADDRESS": "127.0.0.1:1"}, "ADDRESS=127.0.0.1:1: no Ray cluster answers there"),
        ({"ADDRESS": "nonsense"}, "ADDRESS=nonsense: no Ray cluster answers there"),
        (
            {"ADDRESS": "ray://10.0.0.5:10001", "STORAGE": "/tmp"},
            "ADDRESS=ray://10.0.0.5:10001: a search runs on a machine of its cluster. Submit it from here: ray job "
            "submit --address http://10.0.0.5:8265 --working-dir . -- python -m search run ADDRESS=auto STORAGE=",
        ),
        ({"ADDRESS": "auto", "CONCURRENCY": "auto"}, "CONCURRENCY=auto measures this machine"),
        ({"STORAGE": "nowhere://x"}, "STORAGE=nowhere://x: "),
    ],
)
def test_what_is_not_there_is_one_line(variables: dict[str, Any], words: str, run_here: Any, studies: Path) -> None:
    refused = run_here("run", "SPACE=smoke", "STUDY=none", **variables)
    assert refused.code == 2
    assert f"error: {words}" in refused.output
    assert list(studies.iterdir()) == []


def test_a_port_that_is_not_rays_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from search.cluster import connection
    from trainable.errors import UserError

    monkeypatch.setattr(connection, "HEALTH_TIMEOUT_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"^ADDRESS={address}: no Ray cluster answers there \(it says nothing"):
            connection.join(address, None)


class Failed:
    """As much of a trial of Ray's as tells why it failed."""

    def __init__(self, path: Path, error: Any) -> None:
        from ray import cloudpickle

        self.max_failures = 2
        self.pickled_error_file = str(path)
        path.write_bytes(cloudpickle.dumps(error))


def test_a_lost_node_is_not_the_trials_failure(tmp_path: Path) -> None:
    from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError

    from search.cluster.node_watch import NodeWatch

    watch: Any = NodeWatch(None)
    errors = {
        ActorUnavailableError("RPC error: Socket closed", None): 3,
        RayActorError(error_msg="The actor died because its node has died. Node Id: 12"): 3,
        RayActorError(preempted=True): 3,
        ActorDiedError(): 2,
        ValueError("its own"): 2,
    }
    for error, allowed in errors.items():
        trial = Failed(tmp_path / "error.pkl", error)
        watch.on_trial_recover(trial=trial)
        assert trial.max_failures == allowed, error


def test_the_kuberay_file_is_a_ray_job_for_the_pinned_ray() -> None:
    """The fields that the operator's schema requires, and the version and the command that this project has."""
    import yaml

    job = yaml.safe_load((ROOT / "docs" / "kuberay-job.yaml").read_text(encoding="utf-8"))
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert job["metadata"]["name"]
    cluster = job["spec"]["rayClusterSpec"]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    assert cluster["authOptions"] == {"mode": "token"}
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
