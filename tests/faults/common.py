"""A small study that is broken on purpose, and the question whether its answer is that of one left alone."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from results.study.folder import Study
from results.study.tables import STEPS, read_rows
from tests import running
from tests.running import Running, search

SPACE = """
description = "Some seconds a trial: completed, stopped and unstable ones"
trials = 6
[baseline]
from = "documented"
batch_size = 8
block_size = 64
learning_rate = 3e-4
[budget]
tokens = 40_000
[evaluation]
tokens = 256
count = 12
[search]
batch_size = { choice = [4, 8] }
learning_rate = { log_uniform = [1e-4, 1.0] }
"""
STEADY = SPACE.replace("[1e-4, 1.0]", "[3e-4, 3e-3]") + '[scheduler]\nname = "none"\n[searcher]\nname = "random"\n'
"""All trials complete, and one beats the baseline."""
CLOCKS = {"active_s", "tokens_per_s", "started_at", "ended_at"}
SPENT = {"tokens_seen", "optimizer_steps"}
"""With several slots a verdict may come late: what a stopped trial trained beyond its rung is cost and not result."""


QUICK_SPACE = SPACE.replace("trials = 6", "trials = 2").replace("tokens = 40_000", "tokens = 20_000")


class Place:
    """A temporary folder with the space, the studies and a cache that all runs share."""

    def __init__(self, folder: str | None = None, space: str = SPACE) -> None:
        self.path = Path(folder or tempfile.mkdtemp(prefix="faults-"))
        self.path.mkdir(parents=True, exist_ok=True)
        self.space = self.path / "small.toml"
        self.space.write_text(space)
        self.studies = self.path / "studies"

    def study(self, name: str) -> Study:
        """Return the study of that name."""
        return Study(self.studies / name)

    def words(self, command: str, name: str | None, **variables: Any) -> tuple[str, ...]:
        """Return the words of run, resume or another command on a study, on one slot."""
        words = {"CONCURRENCY": 1, "CHECKPOINT_INTERVAL_S": 1, **variables}
        words |= {"STUDY": name} if name else {}
        if command == "run":
            words = {"SPACE": self.space, "SKIP_PREFLIGHT": 1, **words}
        words = {"STUDIES_DIR": self.studies, "CACHE_DIR": self.path / "cache", **words}
        return command, *(f"{name}={value}" for name, value in words.items())

    def start(
        self, command: str, name: str | None, *, environment: Mapping[str, str] | None = None, **variables: Any
    ) -> Running:
        """Start what words() says in a process of its own."""
        return running.start(
            search(*self.words(command, name, **variables)),
            {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            preexec_fn=_on_one_core,
        )

    def left_alone(self, name: str = "alone") -> Study:
        """Return the study as it ends when nothing happens to it."""
        self.start("run", name).ended(code=0)
        return self.study(name)


def asked(description: str | None, **defaults: int) -> list[int]:
    """Return the numbers on a script's command line, the defaults in place of those left out."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in defaults.items():
        parser.add_argument(name, metavar=name.upper(), type=int, nargs="?", default=default, help=f"default {default}")
    return list(vars(parser.parse_args()).values())


def _on_one_core() -> None:
    # A trial then has one thread, without which nothing is equal to the last digit.
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def says(study: Study, words: str) -> bool:
    """Return whether the study's log holds the words."""
    return study.log_path.exists() and words in study.log_path.read_text()


def has_begun(study: Study, trials: int) -> bool:
    """Return whether so many trials have begun."""
    return len(study.trials()) >= trials


def differences(expected: Study, found: Study, *, one_slot: bool = True) -> list[str]:
    """Return in what the two studies' answers differ: every trial, every evaluation, all but the clocks.

    one_slot: both ran on one, so that not even what a stopped trial spent may differ.
    """
    told = []
    pairs = (("trial", expected.trials(), found.trials()), ("evaluation", expected.metrics(), found.metrics()))
    for what, wanted, got in pairs:
        if len(wanted) != len(got):
            told.append(f"{len(got)} {what}s instead of {len(wanted)}")
        for one, other in zip(wanted, got, strict=False):
            told += [
                f"{what} {one['trial_id']}: {name} {other[name]} instead of {one[name]}"
                for name in one
                if name not in CLOCKS and one[name] != other[name]
                if one_slot or what == "evaluation" or one["status"] != "stopped" or name not in SPENT
            ]
    for row in expected.trials():
        traces = [_trace(study, row["trial_id"]) for study in (expected, found)]
        if not one_slot and row["status"] == "stopped":
            traces[1] = traces[1][: len(traces[0])]
        if traces[0] != traces[1]:
            told.append(f"trial {row['trial_id']}: {len(traces[1])} steps, unlike the {len(traces[0])} expected")
    bests = [json.loads(study.best_json.read_text()) if study.best_json.exists() else {} for study in (expected, found)]
    return told + [
        f"best.json: {name} {bests[1].get(name)} instead of {value}"
        for name, value in bests[0].items()
        if name not in {*CLOCKS, "study", "notes", "env"} and value != bests[1].get(name)
    ]


def _trace(study: Study, trial_id: int) -> list[tuple[Any, ...]]:
    path = study.steps_path(trial_id)
    rows = read_rows(path, STEPS) if path.exists() else []
    # As text: a high rate makes losses that are no numbers, and those are equal to nothing.
    return [tuple(str(value) for name, value in row.items() if name != "step_time_s") for row in rows]


def strays(studies: Path) -> list[str]:
    """Return the files below a folder of studies that no study and no table accounts for."""
    hidden = [path for path in studies.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    known = (".lock", ".previous", ".json")
    return [str(path) for path in hidden if not path.name.endswith(known)] + [
        str(path) for path in studies.glob("*/ray")
    ]


def report(what: str, *, tried: int, lost: list[str]) -> None:
    """Print the count and end with exit code 1 when something was lost."""
    print(f"{what}: tried {tried}, survived {tried - len(lost)}, lost {len(lost)}", flush=True)
    for line in lost:
        print(f"  {line}")
    if lost:
        sys.exit(1)
