"""A real search that is killed, damaged, resumed, extended and taken further: its answer is that of one left alone.

The long forms of these are the scripts in tests/faults.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from results.study.folder import Study
from tests.faults.common import differences, strays

SPACE = """
description = "A baseline, two that diverge and one that completes"
trials = 4
[baseline]
from = "documented"
batch_size = 8
block_size = 64
learning_rate = 3e-4
[budget]
tokens = 30_000
[evaluation]
tokens = 256
count = 16
[search]
batch_size = { choice = [4, 8] }
learning_rate = { log_uniform = [1e-5, 30.0] }
"""
PLANNED = "SEED=148"
"""Draws two rates that diverge and then one that is better than the baseline's."""
ON_ONE_SLOT = ("CONCURRENCY=1", "SKIP_PREFLIGHT=1", "CHECKPOINT_INTERVAL_S=1", "--json")


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spaces") / "resumed.toml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="module")
def environment(environment: Any) -> dict[str, str]:
    """With a model whose trials take long enough to be killed in the middle."""
    return {**environment, "GPT2_MODEL_NAME": "tiny-scratch"}


@pytest.fixture(scope="module")
def alone(run_here: Any, studies: Path, space: Path) -> Study:
    """The study as it ends when nothing happens to it."""
    ran = run_here("run", f"SPACE={space}", "STUDY=alone", PLANNED, *ON_ONE_SLOT)
    assert ran.code == 0, ran.stderr
    return Study(studies / "alone")


@dataclass(frozen=True)
class Killed:
    """What became of a study whose process was killed in the middle of its last trial."""

    study: Study
    pid: int
    while_it_ran: Any
    """How a second process ended that wanted to go on with it meanwhile."""
    rows: list[dict[str, Any]]
    """The trials when it was killed."""
    orphans: list[str]
    refused: dict[str, Any]
    """How resumptions ended that were not the same study's."""
    resumed: Any
    """How the one ended before which the newest checkpoint and the table of evaluations were damaged."""


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def killed(start: Any, run_here: Any, studies: Path, space: Path) -> Killed:
    study = Study(studies / "killed")
    running = start("run", f"SPACE={space}", "STUDY=killed", PLANNED, *ON_ONE_SLOT)
    running.wait_for(lambda: bool(study.trials()) and study.trials()[-1]["trial_id"] == 3)
    while_it_ran = run_here("resume", "STUDY=killed", "--json")
    running.wait_for(lambda: len(list(study.checkpoint_dir(3).glob("step_*.pt"))) == 2)
    running.process.kill()
    running.process.wait()
    rows, orphans = study.trials(), running.orphans()
    pins = [
        "WEIGHT_DECAY=0.5",
        *(f"{name}=1" for name in ("GRAD_ACCUM_STEPS", "GRAD_CLIP_NORM", "MIN_LR_FRAC", "SEED")),
    ]
    refused = {"pinned": run_here("resume", "STUDY=killed", *pins, "DECAY_FRAC=0.1", "DROPOUT=0.5", "LORA_RANK=2")}
    space.write_text(SPACE.replace("30.0", "3.0"))
    refused["changed"] = run_here("resume", "STUDY=killed")
    space.write_text(SPACE)
    flip_a_bit(max(study.checkpoint_dir(3).glob("step_*.pt")))
    flip_a_bit(study.metrics_path)
    resumed = run_here("resume", "STUDY=killed", *ON_ONE_SLOT)
    return Killed(study, running.process.pid, while_it_ran, rows, orphans, refused, resumed)


def test_it_was_killed_in_the_middle(killed: Killed) -> None:
    assert [row["status"] for row in killed.rows] == ["completed", "unstable", "unstable", "interrupted"]
    assert 0 < killed.rows[-1]["tokens_seen"] < 30_000
    assert killed.orphans == []


def test_the_answer_is_that_of_a_study_left_alone(killed: Killed, alone: Study) -> None:
    assert killed.resumed.code == 0, killed.resumed.stderr
    assert {row["status"] for row in alone.trials()} == {"completed", "unstable"}
    assert differences(alone, killed.study) == []


def test_what_had_ended_was_not_run_again(killed: Killed) -> None:
    assert "study killed goes on: 3 of 4 trials have ended; to run: 1 cut off, 0 new" in killed.resumed.stderr
    assert killed.study.trials()[:3] == killed.rows[:3]
    assert killed.study.trials()[3]["started_at"] == killed.rows[3]["started_at"]


def test_the_damage_was_noticed_and_what_was_there_before_it_taken(killed: Killed) -> None:
    assert "metrics.parquet is damaged and now metrics.parquet.damaged; its previous copy took its place" in (
        killed.resumed.stderr
    )
    assert (killed.study.path / "metrics.parquet.damaged").exists()
    # The previous copy knows less: the damaged checkpoint may lie beyond it, and then nobody asks for it.
    [file] = killed.study.checkpoint_dir(3).iterdir()
    assert file.name == f"step_{killed.study.trials()[3]['training_steps']:08d}.pt"


def test_nothing_is_left_of_the_process_that_was_killed(killed: Killed) -> None:
    assert strays(killed.study.path.parent) == []


def test_a_second_process_is_told_who_holds_the_study(killed: Killed) -> None:
    assert killed.while_it_ran.code == 2
    error = killed.while_it_ran.document["error"]
    assert error.startswith(f"study killed is held by process {killed.pid} on ")


def test_a_changed_space_and_a_pin_are_refused_with_the_difference(killed: Killed) -> None:
    changed, pinned = killed.refused["changed"], killed.refused["pinned"]
    assert (changed.code, pinned.code) == (2, 2)
    told = "resumed.toml has changed since: search.learning_rate.log_uniform is [1e-05, 3.0], was [1e-05, 30.0]. FORCE"
    assert told in changed.stderr
    assert "study killed was planned with other settings: GRAD_ACCUM_STEPS is 1, was searched or no" in pinned.stderr
    assert "WEIGHT_DECAY is 0.5, was searched or not set" in pinned.stderr
    assert " and 2 more. Unset them to go on with the study as it is, or " in pinned.stderr
    assert len(changed.stderr.splitlines()) == len(pinned.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def extended(killed: Killed, run_here: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, Any]:
    """The study that was killed, under another name in another folder, taken from four trials to five."""
    folder = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(killed.study.path, folder / "renamed")
    return Study(folder / "renamed"), run_here(
        "resume", "STUDY=renamed", "TRIALS=5", f"STUDIES_DIR={folder}", *ON_ONE_SLOT
    )


def test_a_copied_study_is_extended_and_keeps_what_it_knows(extended: tuple[Study, Any], alone: Study) -> None:
    study, ran = extended
    assert ran.code == 0, ran.stderr
    assert [row["trial_id"] for row in study.trials()] == [0, 1, 2, 3, 4]
    clocks = {"started_at", "ended_at", "active_s", "tokens_per_s"}
    for row, before in zip(study.trials(), alone.trials(), strict=False):
        assert {name: row[name] for name in row.keys() - clocks} == {name: before[name] for name in row.keys() - clocks}
    assert study.document()["trials_planned"] == 5
    assert ran.document["study"] == "renamed"
    again = study.document()["settings"]["trials"]
    assert again == 5


def test_a_study_that_has_ended_is_told_so_and_summed_up_again(alone: Study, run_here: Any) -> None:
    before = alone.trials()
    alone.best_json.unlink()
    ran = run_here("resume", "STUDY=alone", "--json")
    assert ran.code == 0
    assert "all 4 trials of study alone have ended; make resume STUDY=alone TRIALS=+4 runs as many again" in ran.stderr
    assert ran.document["best"] == ran.document["trials"][0]
    assert alone.trials() == before
    assert json.loads(alone.best_json.read_text())["trial_id"] == ran.document["best"]["trial_id"]
