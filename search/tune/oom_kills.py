"""The kernel's count of out-of-memory kills in a worker's cgroup, to tell such a death from a crash."""

from pathlib import Path

from trainable.device.device import cgroup_folders, text_of

OF_A_GROUP = ("memory.events.local", "memory.oom_control")
"""The file of a group's count, without kills in the groups below: version 2, and 1."""
OF_THE_MACHINE = Path("/proc/vmstat")


def oom_counter_of(pid: int | None) -> Path:
    """Return the file of the count for a process on this machine, None for this one; without cgroups the machine's."""
    # In a container a group may be named as on the machine, where the container's own is at the root.
    counters = (folder / name for folder in cgroup_folders("memory", pid) for name in OF_A_GROUP)
    return next((path for path in counters if _count(path) is not None), OF_THE_MACHINE)


def oom_kills(counter: Path | None) -> int:
    """Return the count; 0 without a counter."""
    return _count(counter) or 0 if counter else 0


def _count(path: Path) -> int | None:
    lines = text_of(path).splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
