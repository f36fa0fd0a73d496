"""The script that Ray runs for each worker on this machine: has the fork server make it, in place of a new Python."""

import json
import os
import socket
import sys
from argparse import ArgumentParser
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Send this process's words, environment, folder and standard streams to the server, which does the rest."""
    ray = find_spec("ray")
    assert ray is not None
    assert ray.origin is not None
    script = str(Path(ray.origin).parent / "_private" / "workers" / "default_worker.py")
    words = [script, *sys.argv[1:]]
    parser = ArgumentParser()
    parser.add_argument("--temp-dir")
    folder = Path(parser.parse_known_args()[0].temp_dir)
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(str(folder / "workers.sock"))
        except OSError:
            # The server has ended: a worker starts as Ray starts it.
            os.execv(sys.executable, [sys.executable, *words])
        socket.send_fds(server, [b"x"], [0, 1, 2])
        server.sendall(json.dumps([script, words, str(Path.cwd()), dict(os.environ)]).encode())


if __name__ == "__main__":
    main()
