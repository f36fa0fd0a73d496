"""One shell in which commands are typed as a person types them, make included, and what each of them printed next."""

import json
import os
import re
import secrets
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from results.export import export_env, export_json
from results.report.facts.study_facts import report_facts
from results.study.folder import Study
from results.winner import headline, winner_of
from tests.patience import left_behind, wait_until, with_mark
from tests.running import MARK, ROOT, Ran

NEXT = re.compile(r"^  (\S.*)$")
"""A command below `next:`; the line after it says what it is for."""
MAKE_TOLD = re.compile(r"make: \*\*\* .*(?:Error (\d+)|(Interrupt|Terminated|Killed))")

SPACE = """
description = "Three quick trials around a small baseline"
trials = 3

[baseline]
from = "documented"
batch_size = 4
block_size = 32
learning_rate = 1e-5

[budget]
tokens = 3_072

[evaluation]
tokens = 512
count = 3

[scheduler]
name = "none"

[searcher]
name = "random"

[search]
learning_rate = { log_uniform = [1e-5, 0.4] }
lr_schedule = { choice = ["constant", "linear"] }
"""
WILD_SPACE = SPACE.replace("[1e-5, 0.4]", "[1e-5, 1e2]")
"""No rate of its trials beats the baseline's."""


@dataclass(frozen=True)
class Said(Ran):
    """What a line typed into the shell printed, and how it ended."""

    @property
    def own_code(self) -> int:
        """The exit code of the command, in whose place make returns 2."""
        told = MAKE_TOLD.findall(self.stderr) if self.code else []
        number, word = told[-1] if told else (f"{self.code}", "")
        return int(number) if number else {"Interrupt": 130, "Terminated": 143, "Killed": 137}[word]

    @property
    def next_lines(self) -> list[str]:
        """The commands printed below the last `next:`, as they stand there."""
        _, _, after = self.output.rpartition("\nnext:\n")
        lines = []
        for text in after.splitlines():
            found = NEXT.match(text)
            if found is not None:
                lines.append(found[1])
            elif not text.startswith("      "):  # what a command is for
                break
        return lines


def study_agrees(study: Study) -> None:
    """Check that the study names one winner everywhere, that its checkpoint is there, and that purposes are right."""
    winner, rows = winner_of(study), study.trials()
    assert winner.trial is not None
    trial_id = winner.trial["trial_id"]
    assert json.loads(export_json(study))["trial_id"] == trial_id
    assert json.loads(study.best_json.read_text())["trial_id"] == trial_id
    assert study.best_env.read_text() == export_env(study)
    facts = report_facts(study)
    assert facts["answer"]["winner"]["trial_id"] == trial_id
    assert facts["answer"]["headline"] == headline(winner)
    assert headline(winner) in (study.path / "report.md").read_text()
    for kept in {trial_id, winner.baseline["trial_id"] if winner.baseline else trial_id}:
        assert list(study.checkpoint_dir(kept).glob("step_*.pt")), f"trial {kept} has no checkpoint"
    for row in rows:
        assert (row["of_trial"] is not None) == (row["purpose"] == "confirmation"), row
        assert (row["combination"] is not None) == (row["purpose"] == "attribution"), row
        assert row["is_baseline"] == (row is rows[0]), row


def purposes(study: Study) -> Counter[str]:
    """Return how many runs the study has of each purpose."""
    return Counter(row["purpose"] for row in study.trials())


class Shell:
    """One bash; what a line exports or changes is there for the next."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.studies = Path(environment["STUDIES_DIR"])
        self._mark = secrets.token_hex(8)
        self._bash = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-m"],
            cwd=ROOT,
            env={**environment, MARK: self._mark},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        assert self._bash.stdin is not None
        # A shell that reads a script ends itself when Ctrl-C ended what it ran; one at a terminal goes on, as this one.
        self._bash.stdin.write("trap : INT\n")
        self._typed = 0

    def type(self, line: str) -> "Typed":
        """Type a line and return at once."""
        self._typed += 1
        typed = Typed(self.folder / f"typed-{self._typed}", self.family)
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
        self._bash.communicate()
        for process in self.family():
            process.kill()

    def family(self) -> list[psutil.Process]:
        """Return what runs in the shell and what was left by it, without the shell itself."""
        return [process for process in with_mark(MARK, self._mark) if process.pid != self._bash.pid]


class Typed:
    """A line that runs."""

    def __init__(self, path: Path, family: Callable[[], list[psutil.Process]]) -> None:
        self.path = path
        self.family = family

    def has_ended(self) -> bool:
        """Return whether the shell waits for another line."""
        return Path(f"{self.path}.code").exists()

    def said(self) -> Said:
        """Wait for the line's end and return what it said."""
        wait_until(self.has_ended, self.family)
        code, out, err = (Path(f"{self.path}.{end}").read_text(errors="replace") for end in ("code", "out", "err"))
        return Said(int(code), out, err)

    def wait_for(self, condition: Callable[[], Any]) -> None:
        """Wait until `condition` holds; fail when the line ends before."""

        def holds() -> bool:
            if condition():
                return True
            assert not self.has_ended(), self.said().output
            return False

        wait_until(holds, self.family)

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Press Ctrl-C: a terminal sends it to the whole foreground job, make and its command, and not to the shell.

        Another signal goes to the command alone.
        """
        [command] = [one for one in self.family() if "-m search" in " ".join(one.cmdline()) and one.ppid() != 1][:1]
        if number == signal.SIGINT:
            os.killpg(os.getpgid(command.pid), number)
        else:
            command.send_signal(number)


@pytest.fixture(scope="session")
def journey_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens, made once for all journeys."""
    return tmp_path_factory.mktemp("journeys-cache")


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """A space file that takes seconds."""
    path = tmp_path / "small.toml"
    path.write_text(SPACE, encoding="utf-8")
    return path


def shell_environment(studies: Path, cache: Path, model: Path) -> dict[str, str]:
    """Return the environment of a shell with studies of its own."""
    kept = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "STUDIES_DIR": str(studies),
        "CACHE_DIR": str(cache),
        "GPT2_MODEL_NAME": str(model),
        "DEVICE": "cpu",
        "CONCURRENCY": "1",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "160",
    }


@pytest.fixture
def shell(tmp_path: Path, journey_cache: Path, narrow: Path) -> Iterator[Shell]:
    """A shell at the top of the checkout, with studies of its own."""
    folder = tmp_path / "shell"
    folder.mkdir()
    opened = Shell(folder, shell_environment(tmp_path / "studies", journey_cache, narrow))
    yield opened
    opened.close()
    assert left_behind(opened.family) == []
