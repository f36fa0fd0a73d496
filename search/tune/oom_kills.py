"""The kernel's count of out-of-memory kills in a worker's cgroup, to tell such a death from a crash."""

from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


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
    counters = (*_cgroup_counters(pid), PROC / "vmstat")
    return OomCounter(path=next((path for path in counters if _count(path) is not None), None))


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)


def _cgroup_counters(pid: int | None) -> list[Path]:
    try:
        lines = (PROC / ("self" if pid is None else str(pid)) / "cgroup").read_text().splitlines()
    except OSError:
        return []
    paths = {kinds: path.lstrip("/") for _, kinds, path in (line.split(":", 2) for line in lines)}
    found = []
    if "" in paths:
        # The local count, without kills in child groups.
        found += [CGROUPS / root / paths[""] / "memory.events.local" for root in ("", "unified")]
    if "memory" in paths:
        # In a container the path may be the host's, while the mount is the container's own group.
        found += [CGROUPS / "memory" / path / "memory.oom_control" for path in (paths["memory"], "")]
    return found
