"""The exported winner, trained by `make train` in the exported environment, is the trial that won."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def studies(searched: Any) -> Path:
    """The shared search and, beside it, what is trained here."""
    return Path(searched.study.path.parent)


def test_the_exported_winner_trains_to_exactly_the_same_loss(
    searched: Any, environment: Any, run_here: Any, tmp_path: Path
) -> None:
    best = searched.ran.document["best"]
    shell = subprocess.run(
        ["sh", "-c", f'eval "$({shlex.quote(sys.executable)} -m search export STUDY=shared)" && env -0'],
        cwd=ROOT,
        env={**environment, "BATCH_SIZE": "1", "GPT2_MODEL_NAME": "gpt2-scratch"},
        capture_output=True,
        text=True,
        check=True,
    )
    exported = dict(line.split("=", 1) for line in shell.stdout.split("\0") if line)
    # Sums depend on the number of threads; the trial had those of its slot.
    torch.set_num_threads(searched.study.document()["device"]["threads_per_slot"])
    ran = run_here("train", "--json", "STUDY=again", **exported)
    assert ran.code == 0, ran.stderr
    trained = ran.document["trial"]
    assert trained["val_loss"] == best["val_loss"]
    same = ("tokens_seen", "optimizer_steps", "learning_rate", "batch_size", "block_size", "training_steps", "seed")
    assert {name: trained[name] for name in same} == {name: best[name] for name in same}


@pytest.mark.parametrize("format_", ["env", "json", "toml", "cli"])
def test_every_format_is_of_the_best_trial(format_: str, searched: Any, run_here: Any) -> None:
    ran = run_here("export", "STUDY=shared", f"FORMAT={format_}")
    best = searched.ran.document["best"]
    assert ran.code == 0
    assert ran.stderr == ""
    assert f"{best['batch_size']}" in ran.stdout
    assert "0.001" in ran.stdout
    expected = {"env": searched.study.best_env, "json": searched.study.best_json}
    if format_ in expected:
        assert ran.stdout == expected[format_].read_text()


def test_the_command_can_be_typed_in_the_folder_of_the_last_one(searched: Any, run_here: Any, tmp_path: Path) -> None:
    ran = run_here("export", f"STUDIES_DIR={searched.study.path.parent}", "FORMAT=cli", MAKE_CALLED_FROM=str(tmp_path))
    assert re.fullmatch(rf"make -C {ROOT} train .* STUDIES_DIR={searched.study.path.parent}\n", ran.stdout)


def test_json_means_the_json_format(searched: Any, run_here: Any) -> None:
    assert run_here("export", "STUDY=shared", "--json").document == json.loads(searched.study.best_json.read_text())


def test_the_latest_study_is_meant_where_none_is_named(searched: Any, run_here: Any, tmp_path: Path) -> None:
    only = tmp_path / "studies"
    only.mkdir()
    (only / "shared").symlink_to(searched.study.path)
    assert run_here("export", STUDIES_DIR=str(only)).stdout == searched.study.best_env.read_text()


def test_the_study_is_listed(searched: Any, run_here: Any) -> None:
    studies = {entry["study"]: entry for entry in run_here("list", "--json").document["studies"]}
    entry = studies["shared"]
    assert entry["trials"] == 8
    assert entry["kind"] == "search"
    assert entry["best_val_loss"] == searched.ran.document["best"]["val_loss"]
    assert entry["baseline_val_loss"] == searched.ran.document["baseline"]["val_loss"]


def test_two_lengths_of_one_run_are_refused(searched: Any, run_here: Any, studies: Path) -> None:
    # As in a shell that holds an export: TRAINING_STEPS is the winner's own length there, and STEPS was ignored.
    exported = {"TRAINING_STEPS": "48", "EXPORTED_FROM": "shared"}
    ran = run_here("train", "STUDY=shared", "STEPS=50", STUDIES_DIR=str(studies), **exported)
    assert ran.code == 2
    assert "error: STEPS and TRAINING_STEPS set the length of the same run. Unset one of them." in ran.stderr
    assert "was set by the export of study shared; unset " in ran.stderr


def test_a_shell_that_holds_another_studys_export_trains_no_winner_under_a_wrong_name(
    searched: Any, run_here: Any, studies: Path
) -> None:
    ran = run_here("train", "STUDY=shared", STUDIES_DIR=str(studies), LEARNING_RATE="0.5", EXPORTED_FROM="other")
    assert ran.code == 2
    assert (
        "error: STUDY=shared: its winner has another LEARNING_RATE. LEARNING_RATE was set by the export of"
        in ran.stderr
    )
    held = {"LEARNING_RATE": "0.5", "WEIGHT_DECAY": "0.25", "EXPORTED_FROM": "other"}
    ran = run_here("train", "STUDY=shared", "LEARNING_RATE=0.25", STUDIES_DIR=str(studies), **held)
    assert "its winner has another WEIGHT_DECAY. WEIGHT_DECAY was set by the export of study other; unset" in ran.stderr
    # The refusal of a typed value does not name the shell, which holds another.
    ran = run_here("train", "STUDY=shared", "LEARNING_RATE=fast", STUDIES_DIR=str(studies), **held)
    assert ran.stderr.startswith("error: LEARNING_RATE='fast' ")
    assert "set by the export" not in ran.stderr


def test_a_winner_that_is_trained_on_another_text_than_its_studys_is_told(
    searched: Any, run_here: Any, studies: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Other sentences, each of them once. " * 4000)
    words = ("train", "STUDY=shared", "TRAINING_STEPS=1", "SKIP_PREFLIGHT=1")
    ran = run_here(*words, STUDIES_DIR=str(studies), TRAINING_DATA_SOURCE=str(other))
    assert ran.code == 0, ran.output
    told = r"^study shared: the text or the tokenizer has changed since \(then .*\)\. This run's losses are not to be"
    assert re.search(told, ran.output, re.MULTILINE)
    # One that is typed is meant.
    ran = run_here(*words, f"TRAINING_DATA_SOURCE={other}", STUDIES_DIR=str(studies))
    assert "has changed since" not in ran.output
