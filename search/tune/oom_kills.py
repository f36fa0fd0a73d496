"""The kernel's count of out-of-memory kills in a worker's cgroup, to tell such a death from a crash."""

from dataclasses import dataclass
from pathlib import Path

from trainable.device.device import cgroup_folders, text_of

OF_A_GROUP = ("memory.events.local", "memory.oom_control")
"""The file of a group's count, without kills in the groups below: version 2, and 1."""
OF_THE_MACHINE = Path("/proc/vmstat")


@dataclass(frozen=True)
class OomCounter:
    """The count of a cgroup, or of the whole machine without cgroups."""

    path: Path | None

    def kills(self) -> int:
        """Return the count; 0 without a counter."""
        return _count(self.path) or 0 if self.path else 0


NO_COUNTER = OomCounter(path=None)


def oom_counter_of(pid: int | None) -> OomCounter:
    """Return the counter of a process on this machine, None for this one; other cgroups' kills are not in it."""
    # In a container a group may be named as on the machine, where the container's own is at the root.
    counters = (folder / name for folder in cgroup_folders("memory", pid) for name in OF_A_GROUP)
    return OomCounter(path=next((path for path in (*counters, OF_THE_MACHINE) if _count(path) is not None), None))


def _count(path: Path) -> int | None:
    lines = text_of(path).splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
