"""Node: a machine, of a cluster or this one, as far as sharing it out among trials needs to know it."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine that trials can run on."""

    name: str
    """For a person."""
    cpus: int
    gpus: int
    is_ours: bool = False
    """Whether Ray is started on it for the study alone."""
