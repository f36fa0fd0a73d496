"""By what other processes, here or on another machine, know the process that writes a study."""

import os
import socket
from collections.abc import Mapping
from typing import Any


def this_process() -> dict[str, Any]:
    """Return by what another process, here or on another machine, knows this one."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


def may_be_there(process: Mapping[str, Any]) -> bool:
    """Return whether the process that this_process() told of is there; on another machine it is taken to be."""
    import psutil

    if process.get("host") != socket.gethostname():
        return True
    pid = process.get("pid")
    try:
        # By psutil, which knows another user's process too. A zombie has ended, though nobody has reaped it.
        return isinstance(pid, int) and bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except (psutil.NoSuchProcess, ValueError, OverflowError):
        return False
