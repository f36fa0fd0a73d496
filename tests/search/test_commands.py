"""The command line: its exit codes, its streams, and what it does not import to answer a simple question."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from results.study.folder import create_study
from results.study.tables import TRIALS, write_table
from search.__main__ import COMMANDS
from search.options import KNOWN
from tests.documents import sound_document
from tests.results.confirmed import add_attempt
from tests.rows import trial_row

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "ray", "transformers", "optuna", "pandas", "matplotlib")


@pytest.fixture(scope="module")
def light(batch: Any, searched: Any) -> dict[str, Any]:
    """Commands that answer at once, in one process, by their words."""
    commands = ["--help", *(f"{name} --help" for name in COMMANDS), "list", "list --json", "spaces", "spaces --json"]
    commands += [
        "spaces SPACE=plateau",
        "variables",
        "variables --json",
        "export",
        "export --json",
        "export FORMAT=cli",
    ]
    cases = batch([(command.split(), {}) for command in commands], STUDIES_DIR=str(searched.study.path.parent))
    return dict(zip(commands, cases, strict=True))


def test_simple_questions_import_neither_torch_nor_ray(light: dict[str, Any]) -> None:
    assert {command: case.heavy for command, case in light.items() if case.heavy} == {}


def test_simple_questions_are_answered(light: dict[str, Any]) -> None:
    assert {command: case.code for command, case in light.items() if case.code != 0} == {}
    assert all(case.stdout for case in light.values())
    assert {command: case.stderr for command, case in light.items() if case.stderr and "--json" not in command} == {}


def test_help_names_every_command(light: dict[str, Any]) -> None:
    for name, help_line in COMMANDS.items():
        assert name in light["--help"].stdout
        assert help_line.split(":")[0].split()[0] in light[f"{name} --help"].stdout


def test_json_is_one_document_on_stdout(light: dict[str, Any]) -> None:
    for command in ("list --json", "spaces --json", "variables --json", "export --json"):
        assert isinstance(json.loads(light[command].stdout), dict), command


def test_the_shipped_spaces_are_listed_and_sound(light: dict[str, Any]) -> None:
    spaces = {entry["name"]: entry for entry in json.loads(light["spaces --json"].stdout)["spaces"]}
    assert spaces.keys() >= {"plateau", "before_after", "schedule", "smoke"}
    assert spaces["before_after"]["trials"] == 16
    assert set(spaces["plateau"]["search"]) >= {"batch_size", "block_size", "learning_rate", "lr_schedule"}
    for name in spaces:
        assert name in light["spaces"].stdout
    shown = light["spaces SPACE=plateau"].stdout
    assert "\nbaseline (documented): batch 32 x block 128, LR 1.00e-05, constant\n" in shown
    assert "\nsearched: learning_rate log_uniform [1e-06, 0.03]\n" in shown
    assert "uniform [0.01, 0.3], where lr_schedule is warmup_constant or warmup_cosine or linear or wsd\n" in shown
    assert "searched: " not in light["spaces"].stdout


def test_the_variables_are_listed(light: dict[str, Any]) -> None:
    assert json.loads(light["variables --json"].stdout)["variables"].keys() == set(KNOWN)
    listed = re.findall(r"^  ([A-Z][A-Z0-9_]+)", light["variables"].stdout, re.MULTILINE)
    assert sorted(listed) == sorted(KNOWN)


def test_an_empty_folder_has_no_studies(run_here: Any, tmp_path: Path) -> None:
    ran = run_here("list", STUDIES_DIR=str(tmp_path / "none"))
    assert ran.code == 0
    assert "no study in" in ran.stdout
    assert "make search SPACE=plateau" in ran.stdout
    assert run_here("list", "--json", STUDIES_DIR=str(tmp_path / "none")).document == {"studies": []}
    assert not (tmp_path / "none").exists()


def test_a_damaged_study_is_listed_with_its_error_beside_the_others(
    run_here: Any, searched: Any, tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "study.json").write_text("{")
    (tmp_path / "shared").symlink_to(searched.study.path)
    ran = run_here("list", "--json", STUDIES_DIR=str(tmp_path))
    entries = {entry["study"]: entry for entry in ran.document["studies"]}
    assert ran.code == 0
    assert entries.keys() == {"broken", "shared"}
    assert "not whole JSON" in entries["broken"]["error"]
    assert "not whole JSON" in " ".join(run_here("list", STUDIES_DIR=str(tmp_path)).stdout.split())


def test_a_study_whose_tables_do_not_fit_together_is_listed_by_its_name(
    run_here: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path))
    study = create_study("torn", sound_document("torn"))
    write_table(study.trials_path, [trial_row(0, val_loss=4.5), trial_row(1, val_loss=4.4, batch_size=8)], TRIALS)
    add_attempt(study, {0: [4.5, 4.6], 1: [4.4, 4.5]})
    study.trials_path.unlink()
    listed = " ".join(run_here("list", STUDIES_DIR=str(tmp_path)).stdout.split())
    assert "study torn: confirmation.json is of trial 0, which trials.parquet lacks" in listed


def test_a_search_that_was_cut_off_is_listed_with_what_it_was_to_run(run_here: Any) -> None:
    """Three of four trials began, and one of them was cut off; one search ended early."""
    end = {"most_trials": 24, "gain_nats": 0.01, "noise_nats": 0.02}
    whole: dict[str, Any] = {"trials_planned": 2}
    ended, cut_off = [trial_row(0, val_loss=4.1), trial_row(1, val_loss=4.0)], trial_row(2, "interrupted")
    for name, changes in {"cut": {}, "whole": whole, "early": {**whole, "early_end": end}}.items():
        study = create_study(name, sound_document(name, **changes))
        write_table(study.trials_path, ended if changes else [*ended, cut_off], TRIALS)
    studies = os.environ["STUDIES_DIR"]
    entries = run_here("list", "--json", STUDIES_DIR=studies).document["studies"]
    assert {one["study"]: (one["trials"], one["ended"], one["most_trials"]) for one in entries} == {
        "cut": (3, 2, 4), "whole": (2, 2, 2), "early": (2, 2, 24)
    }  # fmt: skip
    assert {one["best"]["trial_id"] for one in entries} == {1}
    _, *lines = run_here("list", STUDIES_DIR=studies).stdout.splitlines()
    assert {line.split()[0]: " ".join(line.split()[5:-3]) for line in lines} == {
        "cut": "2 of 4", "whole": "2", "early": "2 of 24"
    }  # fmt: skip


def test_a_broken_space_beside_sound_ones_is_named_and_the_rest_is_listed(run_here: Any, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text("trials = 4\n[budget]\ntokens = 400_000\n[search]\nbatch_sise = { choice = [8, 16] }\n")
    ran = run_here("spaces", f"SPACE={path}", "--json")
    assert ran.code == 2
    assert "Did you mean 'batch_size'?" in ran.document["spaces"][0]["error"]


def test_an_unknown_command_is_the_users_mistake(run_here: Any) -> None:
    ran = run_here("serch")
    assert ran.code == 2
    assert ran.stderr.splitlines() == [
        "error: there is no command 'serch'. Did you mean 'search'? `make help` lists them."
    ]
    assert ran.stdout == ""
    assert run_here("plateau").stderr == (
        "error: there is no command 'plateau'. Did you mean SPACE=plateau? `make help` lists them.\n"
    )


@pytest.mark.parametrize("words", ["search plateau", "search results", "list docs report"])
def test_make_does_nothing_where_one_of_its_words_is_no_command(words: str) -> None:
    """`make search plateau` would search for minutes before it refused the second word; results is a folder here."""
    ran = subprocess.run(
        ["make", "-n", *words.split()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    first = ran.stdout.splitlines()[0]
    assert f"-m search '{words.split()[1]}'; else" in first


@pytest.mark.parametrize("words", ["search help", "help test"])
def test_make_runs_nothing_beside_help(words: str) -> None:
    """`make search help` asks what search is; it printed the list and searched for minutes."""
    ran = [
        subprocess.run(["make", "-s", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        for words in (words.split(), ["help"])
    ]
    assert (ran[0].stdout, ran[0].stderr) == (ran[1].stdout, ran[1].stderr)


def test_without_its_libraries_it_names_the_python_that_has_them(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-S", "-m", "search", "list"], cwd=ROOT, capture_output=True, text=True, check=False, env={}
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "which .venv has: call make, or .venv/bin/python -m search." in ran.stderr
    assert "Traceback" not in ran.stderr


def test_a_closed_pipe_is_no_traceback(environment: Any) -> None:
    script = f"{sys.executable} -m search variables | true"
    ran = subprocess.run(
        ["sh", "-c", script], cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=False
    )
    assert ran.stderr == ""


def test_the_module_runs_from_any_folder(environment: Any, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "search", "spaces", "SPACE=smoke"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": os.pathsep.join([str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0
    assert "smoke" in ran.stdout


def test_two_logs_of_one_name_have_a_picture_each(run_here: Any, tmp_path: Path) -> None:
    pictures = set()
    for folder in ("a", "b", "a"):
        log = tmp_path / folder / "train.log"
        log.parent.mkdir(exist_ok=True)
        log.write_text("".join(f"step {step}: train loss {7 - step / 100:.4f}\n" for step in range(0, 200, 10)))
        pictures.add(run_here("diagnose", "--json", f"TARGET={log}", cwd=tmp_path).document["picture"])
    assert len(pictures) == len(list((tmp_path / "results" / "pictures").glob("train-*.diagnosis.png"))) == 2


def test_a_text_that_audit_cleaned_passes_the_preflight_that_the_one_before_did_not(
    run_here: Any, text_file: Path, narrow: Path, tmp_path: Path
) -> None:
    source, clean, text = tmp_path / "with copies.txt", tmp_path / "clean one.txt", text_file.read_text()
    source.write_text(text + text[:60_000])
    ran = run_here("preflight", TRAINING_DATA_SOURCE=str(source))
    assert ran.code == 1
    assert "make audit names them, and CLEAN=file writes the text without them" in ran.output
    audited = run_here("audit", "--json", TRAINING_DATA_SOURCE=str(source), CLEAN=str(clean))
    (step,) = audited.document["next"]
    make, search, *words = shlex.split(step["command"])
    assert (make, search, words[0]) == ("make", "search", "SPACE=plateau")
    assert words[1:] == [f"TRAINING_DATA_SOURCE={clean}", f"GPT2_MODEL_NAME={narrow}"]
    assert run_here("preflight", *words).code == 0


def test_of_a_trainers_adapters_the_log_beside_them_is_diagnosed(run_here: Any, tmp_path: Path) -> None:
    for step in (50, 100):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
        (folder / "adapter_model.safetensors").write_bytes(b"")
        rows = [{"step": row, "loss": 3 - row / 100} for row in range(10, step + 1, 10)]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows}))
    for name, last in (("out", 100), ("out/checkpoint-50", 50)):
        looked = run_here("diagnose", f"TARGET={tmp_path / name}", cwd=tmp_path)
        assert f"log of steps 10 to {last}" in looked.stdout


def test_diagnose_looks_at_the_study_that_is_named(
    run_here: Any, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STUDIES_DIR", str(studies))
    for name in ("asked", "latest-made"):
        create_study(name, sound_document(name))
    assert "found in what study asked holds" in run_here("diagnose", "STUDY=asked").stdout
    # By a path too, its files and its trials.
    (studies / "asked" / "search.log").write_text("trial 1 completed: val loss 5.0; batch 4\n")
    for target in ("asked", "asked/study.json", "asked/search.log"):
        assert "found in what study asked holds" in run_here("diagnose", f"TARGET={studies / target}").stdout
    assert "error: study asked has no trial 7" in run_here("diagnose", f"TARGET={studies}/asked/7").stderr


def test_an_audit_where_no_picture_can_be_written_prints_what_it_found(run_here: Any, tmp_path: Path) -> None:
    (tmp_path / "results").touch()
    (tmp_path / "text.txt").write_text("the same line of some words again\n" * 40, encoding="utf-8")
    ran = run_here("audit", "TRAINING_DATA_SOURCE=text.txt", cwd=tmp_path)
    assert "low" in ran.stdout or "high" in ran.stdout
    name = "results/pictures/text-[0-9a-f]{6}.audit.png"
    assert re.search(f"^no picture: {name} cannot be written: Not a directory$", ran.stdout, re.MULTILINE)
