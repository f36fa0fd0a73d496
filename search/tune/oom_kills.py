"""How many processes the system has killed for want of memory: what tells such a death from any other."""

from pathlib import Path


def oom_kills() -> int:
    """Return the kernel's count since it started; 0 where it keeps none (not Linux)."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)
