"""The script that Ray runs for each worker on this machine: has the fork server make it, in place of a new Python."""

import json
import os
import resource
import socket
import sys
from argparse import ArgumentParser
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Send the server what this process has of its own, and end once a worker has it, or become the worker."""
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    script = str(Path(ray.origin).parent / "_private" / "workers" / "default_worker.py")
    words = [script, *sys.argv[1:]]
    parser = ArgumentParser()
    parser.add_argument("--temp-dir")
    folder = Path(parser.parse_known_args()[0].temp_dir)
    request = [script, words, str(Path.cwd()), dict(os.environ), resource.getrlimit(resource.RLIMIT_NOFILE)]
    with socket.socket(socket.AF_UNIX) as server, suppress(OSError):
        server.connect(str(folder / "workers.sock"))
        socket.send_fds(server, [b"x"], [0, 1, 2])
        server.sendall(json.dumps(request).encode())
        server.shutdown(socket.SHUT_WR)
        if server.recv(1):
            return
    # The server has ended, or could not fork: the worker starts as Ray starts it.
    os.execv(sys.executable, [sys.executable, *words])


if __name__ == "__main__":
    main()
