"""One shell in which commands are typed as a person types them, make included, and what each of them printed next."""

import json
import os
import re
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from results.study.folder import Study
from tests.patience import left_behind, wait_until, with_mark
from tests.running import MARK, ROOT

NEXT = re.compile(r"^  (\S.*?)(?: {4}.*)?$")
"""A line below `next:`: a command, then four blanks and what it is for."""

SPACE = """
description = "Three quick trials around a small baseline"
trials = 3

[baseline]
from = "documented"
batch_size = 4
block_size = 32
learning_rate = 1e-5

[budget]
tokens = 6_144

[evaluation]
tokens = 512
count = 3

[scheduler]
name = "none"

[searcher]
name = "random"

[search]
learning_rate = { log_uniform = [1e-5, 1e-2] }
lr_schedule = { choice = ["constant", "linear"] }
"""


@dataclass(frozen=True)
class Said:
    """What one line typed into the shell printed, and how it ended."""

    line: str
    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """All that was printed."""
        return self.stdout + self.stderr

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        document: dict[str, Any] = json.loads(self.stdout)
        return document

    @property
    def next_lines(self) -> list[str]:
        """The commands printed below the last `next:`, as they stand there."""
        _, _, after = self.output.rpartition("\nnext:\n")
        lines = []
        for text in after.splitlines():
            found = NEXT.match(text)
            if found is None:
                break
            lines.append(found[1])
        return lines


class Shell:
    """One bash; what a line exports or changes is there for the next."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.studies = Path(environment["STUDIES_DIR"])
        self._mark = secrets.token_hex(8)
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile"],
            cwd=ROOT,
            env={**environment, MARK: self._mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._typed = 0

    def type(self, line: str) -> "Typed":
        """Type a line and return at once."""
        self._typed += 1
        typed = Typed(line, self.folder / f"typed-{self._typed}", self._family)
        assert self._bash.stdin is not None
        files = f"> '{typed.path}.out' 2> '{typed.path}.err' < /dev/null"
        self._bash.stdin.write(
            f"{{ {line}\n}} {files}; echo $? > '{typed.path}.part'; mv '{typed.path}.part' '{typed.path}.code'\n"
        )
        self._bash.stdin.flush()
        return typed

    def __call__(self, line: str, *, code: int | None = 0) -> Said:
        """Type a line and return what it said; its exit code must be `code` unless that is None."""
        said = self.type(line).said()
        assert code is None or said.code == code, (line, said.code, said.output)
        assert "Traceback" not in said.output, said.output
        return said

    def study(self, name: str) -> Study:
        """Return the study of that name."""
        return Study(self.studies / name)

    def close(self) -> None:
        """End the shell and whatever still runs in it."""
        self._bash.kill()
        self._bash.wait()
        for process in self._family():
            process.kill()

    def _family(self) -> list[psutil.Process]:
        return with_mark(MARK, self._mark)


class Typed:
    """A line that runs."""

    def __init__(self, line: str, path: Path, family: Callable[[], list[psutil.Process]]) -> None:
        self.line = line
        self.path = path
        self._family = family

    def said(self) -> Said:
        """Wait for the line's end and return what it said."""
        code = Path(f"{self.path}.code")
        wait_until(code.exists, self._family)
        out, err = (Path(f"{self.path}.{end}").read_text(errors="replace") for end in ("out", "err"))
        return Said(self.line, int(code.read_text()), out, err)

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait until `condition` holds; fail when the line ends before."""

        def holds() -> bool:
            if condition():
                return True
            assert not Path(f"{self.path}.code").exists(), self.said().output
            return False

        wait_until(holds, self._family)

    def interrupt(self) -> None:
        """Press Ctrl-C: the terminal sends it to all that runs in the foreground; the shell itself goes on."""
        for process in self._family():
            if process.name() not in ("bash", "raylet", "gcs_server") and process.ppid() != 1:
                process.send_signal(signal.SIGINT)


@pytest.fixture
def shell(tmp_path: Path, journey_cache: Path, journey_text: Path) -> Iterator[Shell]:
    """A shell at the top of the checkout, with studies of its own."""
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
    environment = {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "STUDIES_DIR": str(tmp_path / "studies"),
        "CACHE_DIR": str(journey_cache),
        "TRAINING_DATA_SOURCE": str(journey_text),
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }
    folder = tmp_path / "shell"
    folder.mkdir()
    opened = Shell(folder, environment)
    yield opened
    opened.close()
    assert left_behind(opened._family) == []
    time.sleep(0)
