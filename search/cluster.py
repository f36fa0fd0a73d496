"""ADDRESS: an existing Ray cluster, joined and checked before anything is trained."""

import os
import secrets
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search.storage import files_and_path
from trainable.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NOT_SENT = (
    ".git",
    ".venv",
    ".cache",
    "results/studies",
    ".mypy_cache",
    ".ruff_cache",
    ".pytest_cache",
    "docs",
    "tests",
)
CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a cluster has to run trials on."""

    cpus: int
    gpus: int
    nodes: int


def join(address: str, storage: str | None) -> Cluster:
    """Connect to the cluster and return what it has.

    Raises UserError when it does not answer, or its nodes do not share a place for checkpoints.
    """
    import ray

    if address.startswith("ray://"):
        raise UserError(
            f"ADDRESS={address}: a study is held by the process that runs it, which Ray's client would put elsewhere. "
            "Say the same command on the cluster: ray job submit --working-dir . -- python -m search run ADDRESS=auto "
            "STORAGE=...; or name the head node's own host:port."
        )
    try:
        # Ray itself tries a silent address for minutes, and then ends the process.
        host, colon, port = address.rpartition(":")
        if colon:
            socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
        if not ray.is_initialized():
            ray.init(
                address=address,
                log_to_driver=False,
                configure_logging=False,
                runtime_env={"working_dir": str(ROOT), "excludes": list(NOT_SENT), "env_vars": _worker_environment()},
            )
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"ADDRESS={address}: no Ray cluster answers there ({reason}). Start one with ray start --head, or unset it."
        ) from None
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) > 1 and storage is None:
        raise UserError(
            f"ADDRESS={address} has {len(alive)} nodes and STORAGE is not set: when a node is lost, its trials could "
            "not go on elsewhere. Set STORAGE to a folder that every node sees, or to s3://..."
        )
    if storage is not None:
        check_shared(storage, alive)
    resources = ray.cluster_resources()
    return Cluster(cpus=int(resources.get("CPU", 1)), gpus=int(resources.get("GPU", 0)), nodes=len(alive))


def _worker_environment() -> dict[str, str]:
    # What the code reads from the environment, and nothing else of it.
    return {name: os.environ[name] for name in ("CACHE_DIR",) if os.environ.get(name)}


def check_shared(storage: str, nodes: list[dict[str, Any]]) -> None:
    """Raise UserError when the storage cannot be written here, or a node does not see what was written."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    files, root = files_and_path(storage)
    probe, word = f"{root}/.probe-{secrets.token_hex(4)}", secrets.token_hex(8)
    try:
        files.create_dir(root, recursive=True)
        with files.open_output_stream(probe) as stream:
            stream.write(word.encode())
    except OSError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"STORAGE={storage} cannot be written: {reason}. Name another place.") from None

    @ray.remote(num_cpus=0)  # type: ignore[untyped-decorator]
    def seen(place: str, path: str) -> str:
        try:
            there, _ = files_and_path(place)
            with there.open_input_stream(path) as stream:
                return str(stream.read().decode())
        except Exception as error:
            return f"{error}"

    try:
        for node in nodes:
            pinned = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            answer = ray.get(seen.options(scheduling_strategy=pinned).remote(storage, probe), timeout=PROBE_TIMEOUT_S)
            if answer != word:
                raise UserError(
                    f"STORAGE={storage} is not shared: node {node['NodeManagerAddress']} ({node['NodeID'][:8]}) does "
                    "not see what was written here. Name a folder that every node mounts, or s3://..."
                )
    finally:
        files.delete_file(probe)
