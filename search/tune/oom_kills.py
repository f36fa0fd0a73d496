"""How many processes the kernel killed when memory ran out, where a worker runs: it tells such deaths from others."""

from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
PROC = Path("/proc")


@dataclass(frozen=True)
class OomCounter:
    """The kernel's count for a cgroup, or for the whole machine where there is none."""

    path: Path | None

    def kills(self) -> int:
        """Return the count; 0 where nobody counts."""
        return _count(self.path) or 0 if self.path else 0


NO_COUNTER = OomCounter(path=None)


def oom_counter_of(pid: int | None) -> OomCounter:
    """Return the counter of a process on this machine, of this one for None: a neighbour's kills are not in it."""
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
        # The local count: kills in groups below this one are others'.
        found += [CGROUPS / root / paths[""] / "memory.events.local" for root in ("", "unified")]
    if "memory" in paths:
        # In a container the path may be the host's, and the mount its own group.
        found += [CGROUPS / "memory" / path / "memory.oom_control" for path in (paths["memory"], "")]
    return found
