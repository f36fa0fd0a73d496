"""ADDRESS: joins an existing Ray cluster and checks its nodes before anything is trained."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from search import ROOT
from search.cluster.study_storage import probed, read_probe
from trainable.errors import UserError, count_words, full_reason

if TYPE_CHECKING:
    from trainable.device.device import DeviceInfo

PACKAGES = ("search", "trainable", "spaces", "results")
NOT_SENT = ("studies/", "__pycache__/")
NODE_CACHE = "~/.cache/gpt2-search"
CLIENT = "ray://"
CONNECT_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 20.0
NODE_TIMEOUT_S = 180.0
"""A node's first worker unpacks the packages and imports torch."""
SPIN_COUNT = "GOMP_SPINCOUNT"
"""How long OpenMP threads spin, see search/__main__.py; cluster nodes get the same value."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine that trials can run on, of a cluster or this one."""

    name: str
    """For a person."""
    cpus: int
    gpus: int
    is_ours: bool = False
    """Whether Ray is started on it just for the study."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster's nodes that can run trials."""

    address: str
    nodes: tuple[Node, ...]
    device_info: "DeviceInfo"
    """The workers' device; the driver's machine may have another."""

    @property
    def words(self) -> str:
        """A line for a person."""
        gpus = sum(node.gpus for node in self.nodes)
        return (
            f"Ray cluster at {self.address}: {count_words(len(self.nodes), 'node')}, "
            f"{sum(node.cpus for node in self.nodes)} CPUs"
            f"{f', {gpus} GPUs' if gpus else ''}; trials run on its {self.device_info.type} ({self.device_info.name})"
        )


def join(address: str, storage: str | None, *, device: str | None = None) -> Cluster:
    """Connect to the cluster and return its nodes; device: DEVICE, for its workers.

    Raises UserError when it does not answer, a node cannot run trials, or the nodes do not share STORAGE.
    """
    _check_answers(address)
    connect(address)
    import ray

    try:
        alive = [node for node in ray.nodes() if node["Alive"]]
        if len(alive) > 1 and storage is None:
            raise UserError(
                f"ADDRESS={address} has {len(alive)} nodes and STORAGE is not set: when a node is lost, its trials "
                "could not go on elsewhere. Set STORAGE to a folder that every node sees, or to s3://..."
            )
        working = [node for node in alive if node["Resources"].get("CPU", 0) >= 1]
        if not working:
            raise UserError(f"ADDRESS={address}: no node of the cluster has a CPU to give. Start a worker node.")
        found = _look_over(working, storage, device)
    except BaseException:
        ray.shutdown()
        raise
    able = [(node, info) for node, info in zip(working, found, strict=True) if not isinstance(info, str)]
    if not able:
        raise UserError(f"ADDRESS={address}: no node can run trials. {_name(working[0])}: {found[0]}")
    best = next(info for kind in ("cuda", "mps", "cpu") for _, info in able if info.type == kind)
    nodes = []
    for node, info in able:
        if info.type == best.type:
            gpus = int(node["Resources"].get("GPU", 0)) if best.type == "cuda" else 0
            nodes.append(Node(name=_name(node), cpus=int(node["Resources"]["CPU"]), gpus=gpus))
    return Cluster(address=address, nodes=tuple(nodes), device_info=best)


def keep_ray_off_stdout() -> None:
    """Have ray.init() start nothing that prints there, where --json writes: of a lost worker it would tell ten lines.

    log_to_driver=False leaves them; the recorder tells the same in a line.
    """
    import ray._private.worker

    ray._private.worker.listen_error_messages = lambda *_: None


def connect(address: str) -> None:
    """Connect this process to the cluster, unless it is. Raises UserError."""
    import ray

    if ray.is_initialized():
        return
    sigterm = signal.getsignal(signal.SIGTERM)
    keep_ray_off_stdout()
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            configure_logging=False,
            runtime_env={
                "py_modules": [str(ROOT / package) for package in PACKAGES],
                "excludes": list(NOT_SENT),
                # Ray hides GPUs from tasks that ask for none, and the check of a node should not wait for a free GPU.
                "env_vars": {
                    "CACHE_DIR": NODE_CACHE,
                    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
                    **{name: value for name, value in os.environ.items() if name == SPIN_COUNT},
                },
            },
        )
    except Exception as error:
        # Ray and gRPC raise many kinds, all of which mean that the cluster was not joined.
        raise _not_answered(address, full_reason(error)) from None
    finally:
        # Ray replaces the handler; until the trials start SIGTERM should end this process as usual.
        signal.signal(signal.SIGTERM, sigterm)


def check_port(address: str) -> None:
    """Raise UserError when nothing listens there: Ray would retry for minutes; and for an address of Ray's client."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if address.startswith(CLIENT):
        # Ray's client would run Tune there and its callbacks too, away from the study's files.
        raise UserError(
            f"ADDRESS={address}: a search runs on a machine of its cluster. Submit it from here: ray job submit "
            f"--address http://{host}:8265 --working-dir . -- python -m search run ADDRESS=auto STORAGE=s3://..."
        )
    try:
        if not host:
            raise ValueError("it names no port")
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise _not_answered(address, full_reason(error)) from None


def _check_answers(address: str) -> None:
    # ray.init() has no timeout: it waits minutes for any listener to answer as a Ray cluster.
    if address != "auto":
        check_port(address)
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=HEALTH_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise _not_answered(address, f"it says nothing in {HEALTH_TIMEOUT_S:.0f} s") from None
    if "AuthenticationError" in asked.stderr:
        raise UserError(
            f"ADDRESS={address}: the cluster asks for a token. Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to its own."
        )
    if asked.returncode != 0:
        words = [line for line in asked.stderr.splitlines() if line.strip()] or ["no reason"]
        raise _not_answered(address, words[-1][:200])


def _not_answered(address: str, why: str) -> UserError:
    return UserError(
        f"ADDRESS={address}: no Ray cluster answers there ({why}). Write auto or HOST:6379 of a cluster that runs. "
        "Start Ray on this machine too (ray start --address=HOST:PORT), with its Python, Ray and RAY_AUTH_MODE, or "
        "submit the command from outside (ray job submit, docs/cluster.md)."
    )


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerAddress']} ({node['NodeID'][:8]})"


def _look_over(nodes: Sequence[dict[str, Any]], storage: str | None, device: str | None) -> "list[DeviceInfo | str]":
    """Return each node's device, or why it lacks the requested one.

    Raises UserError naming the node that cannot run our code or does not see the storage.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=1)(node_facts)
    deadline = time.monotonic() + NODE_TIMEOUT_S
    found = []
    with probed(storage) if storage is not None else nullcontext((None, None)) as (probe, word):
        asked = [
            look.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote(
                storage, probe, device, bool(node["Resources"].get("GPU"))
            )
            for node in nodes
        ]
        for node, answer in zip(nodes, asked, strict=True):
            try:
                seen, info = ray.get(answer, timeout=max(1.0, deadline - time.monotonic()))
            except ray.exceptions.GetTimeoutError:
                raise UserError(
                    f"node {_name(node)} did not answer in {NODE_TIMEOUT_S:.0f} s. Look at it: it may be busy, or its "
                    "Python lies at a path with a space or a quote, where Ray starts no worker."
                ) from None
            except ray.exceptions.RayError as error:
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                why = (lines[-1] if lines else type(error).__name__)[:300].rstrip(".")
                raise UserError(f"node {_name(node)} cannot run trials: {why}. Install this project there.") from None
            if seen != word:
                raise UserError(
                    f"STORAGE={storage} is not shared: node {_name(node)} does not see what was written here. "
                    "Name a folder that every node mounts, or s3://..."
                )
            found.append(info)
    return found


def node_facts(
    storage: str | None, probe: str | None, device: str | None, has_gpu: bool
) -> "tuple[str | None, DeviceInfo | str]":
    """Return what this node reads of the probe, and its device or why it lacks the requested one."""
    from trainable.device.device import device_info, pick_device

    seen = read_probe(storage, probe) if storage is not None and probe is not None else None
    if device is not None and device.partition(":")[0] == "cuda" and not has_gpu:
        return seen, f"DEVICE={device}: Ray was started there without GPUs."
    try:
        # Do not use a GPU that Ray was not started with.
        return seen, device_info(pick_device(device or (None if has_gpu else "cpu")))
    except UserError as error:
        return seen, str(error)
