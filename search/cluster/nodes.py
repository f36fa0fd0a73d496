"""Node: a machine of a Ray cluster, as far as sharing it out among trials needs to know it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster that trials can run on."""

    name: str
    """Its address, and the start of Ray's name for it."""
    cpus: int
    gpus: int
