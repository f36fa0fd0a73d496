"""What a person sets is read exactly, an unknown name is never passed over, and a bad value is refused by name."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from results.confirmation import attempt
from results.study.paths import shown
from search.commands.variables_command import variable_groups
from search.options import (
    KNOWN,
    Options,
    parse_options,
    read_options,
    typed_folders,
    with_default_warmup,
)
from search.terminal.console import Terminal
from trainable.config import BEFORE, DOCUMENTED, LR_SCHEDULES, TrialConfig
from trainable.errors import UserError

ROOT = Path(__file__).parents[2]


def test_the_environment_is_read_and_a_word_wins_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", " 8 ")
    monkeypatch.setenv("BLOCK_SIZE", "256")
    variables = read_options(["BLOCK_SIZE=64", "STUDY= a b "])
    assert variables.texts["BATCH_SIZE"] == "8"
    assert variables.texts["BLOCK_SIZE"] == "64"
    assert variables.study == "a b"
    assert variables.explicit_hyperparameters() == {"batch_size": 8, "block_size": 64}


def test_empty_means_not_set_in_the_environment_and_as_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_SIZE", "")
    monkeypatch.setenv("BLOCK_SIZE", "   ")
    monkeypatch.setenv("SEED", "3")
    variables = read_options(["SEED=", "USE_LR_WARMUP="])
    assert {"BATCH_SIZE", "BLOCK_SIZE", "SEED", "USE_LR_WARMUP"}.isdisjoint(variables.texts)
    assert variables.explicit_hyperparameters() == {}


def test_a_value_may_hold_an_equals_sign() -> None:
    assert read_options(["TRAINING_DATA_SOURCE=a=b.txt"]).training_data_source == Path("a=b.txt").absolute()


def test_a_path_through_the_folder_above_is_told_without_it(tmp_path: Path) -> None:
    for name in ("a/b", "c/d"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a" / "text").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "c" / "d")
    above, behind, gone = (
        read_options([f"TRAINING_DATA_SOURCE={tmp_path}/{path}"]).training_data_source
        for path in ("a/b/../text", "link/../d", "a/../gone")
    )
    assert above == tmp_path / "a" / "text"
    # Behind a link the folder above is that of what it links to.
    assert behind == tmp_path / "link" / ".." / "d"
    assert gone == tmp_path / "a" / ".." / "gone"


def test_a_folder_given_as_a_word_is_where_later_code_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUDIES_DIR", "elsewhere")
    read_options([f"STUDIES_DIR={tmp_path}"])
    assert os.environ["STUDIES_DIR"] == str(tmp_path)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("SPCE=plateau", "there is no variable 'SPCE'. Did you mean 'SPACE'?"),
        ("BATCH_SZE=8", "there is no variable 'BATCH_SZE'. Did you mean 'BATCH_SIZE'?"),
        ("batch_size=8", "there is no variable 'batch_size'. Did you mean 'BATCH_SIZE'?"),
        ("=8", "there is no variable ''."),
        ("plateau", "'plateau' is not of the form NAME=value. Did you mean SPACE=plateau?"),
        ("BUDGET=1M", "there is no variable 'BUDGET'. Did you mean 'BUDGET_TOKENS'?"),
        ("TOKENS=1M", "there is no variable 'TOKENS'. Did you mean 'BUDGET_TOKENS'?"),
        ("MODEL=gpt2", "there is no variable 'MODEL'. Did you mean 'GPT2_MODEL_NAME'?"),
        ("space", "'space' is not of the form NAME=value. Did you mean 'SPACE='?"),
        ("TRIALS", "'TRIALS' is not of the form NAME=value. Did you mean 'TRIALS='?"),
        ("LORA_RNK=8", "there is no variable 'LORA_RNK'. Did you mean 'LORA_RANK'?"),
    ],
)
def test_an_unknown_word_is_refused(word: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        read_options([word])
    assert str(refusal.value).startswith(message)


def test_the_environment_may_hold_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPCE", "plateau")
    monkeypatch.setenv("LORA_RNK", "8")
    assert read_options([]).texts == {
        "STUDIES_DIR": os.environ["STUDIES_DIR"],
        "CACHE_DIR": os.environ["CACHE_DIR"],
    }


def test_a_misspelt_variable_on_makes_command_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAKE_WORDS", "SEED=1 SPCE=plateau")
    monkeypatch.setenv("MAKELEVEL", "1")
    with pytest.raises(UserError, match=r"there is no variable 'SPCE'\. Did you mean 'SPACE'\?"):
        read_options([])
    # Of another project's make.
    monkeypatch.setenv("MAKELEVEL", "2")
    read_options([])


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """What the Makefile takes for an environment that is set up: this one."""
    folder = tmp_path / "venv"
    (folder / "bin").mkdir(parents=True)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (folder / ".installed").touch()
    return folder


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("options", [(), ("-s",), ("-j2",), ("-e", "-w"), ("-k", "--no-print-directory")])
def test_real_make_hands_a_misspelt_variable_down(options: tuple[str, ...], venv: Path) -> None:
    words = ["TRAINING_DATA_SOURCE=a b $$'\\", "SPCE=plateau"]
    ran = subprocess.run(
        ["make", "-C", str(ROOT), *options, "spaces", f"VENV={venv}", *words],
        # make 3.81 tells variables from its options by nothing, and newer makes by MAKEFLAGS.
        env={**os.environ, "MAKEFLAGS": ""},
        cwd=venv,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode != 0
    assert "error: there is no variable 'SPCE'. Did you mean 'SPACE'?" in ran.stderr.splitlines()
    assert "plateau" not in ran.stdout


def test_a_next_step_is_typed_where_the_last_command_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = {"STUDIES_DIR": str(tmp_path), "VENV": "/my venv", "SPACE": "smoke", "STORAGE": "/a$b"}
    typed = "VENV=/my\\ venv SPACE=smoke STORAGE=/a$$b"
    for name, value in {**words, "MAKELEVEL": "1", "MAKE_WORDS": typed}.items():
        monkeypatch.setenv(name, value)
    terminal = Terminal(as_json=False)
    terminal.typed_folders = typed_folders(read_options([]))
    folders = "'STORAGE=/a$$b' 'VENV=/my venv'"
    assert typed_folders(read_options(["STUDIES_DIR=/s"])) == f" STUDIES_DIR=/s {folders}"
    for folder, there in ((ROOT, ""), (tmp_path, f" -C {ROOT}")):
        monkeypatch.setenv("MAKE_CALLED_FROM", str(folder))
        typed = terminal.typed("make -s export STUDY=a > a.toml")
        assert typed == f"make{there} -s export STUDY=a > a.toml {folders}"
        said = terminal.with_typed("Go on with: make resume STUDY=a.b TRIALS=+2; or make resume STUDY=... as you like.")
        assert said == (
            f"Go on with: make{there} resume STUDY=a.b TRIALS=+2 {folders}; or make resume STUDY=... as you like."
        )
        said = terminal.with_typed("Again: make train STUDY=a 'SAVE_MODEL=/x y.z'. Or make attribute FROM=before TO=a.")
        assert said == (
            f"Again: make{there} train STUDY=a 'SAVE_MODEL=/x y.z' {folders}. "
            f"Or make{there} attribute FROM=before TO=a {folders}."
        )
        said = terminal.with_typed(
            "Or make train 'CHECKPOINT_PATH=/x y.pt' GPT2_MODEL_NAME=tiny. `make model MERGE=1` is"
        )
        assert said == (
            f"Or make{there} train 'CHECKPOINT_PATH=/x y.pt' GPT2_MODEL_NAME=tiny {folders}. "
            f"`make{there} model MERGE=1 {folders}` is"
        )
    # Typed without make in another folder, from which STUDIES_DIR may be a relative path.
    monkeypatch.delenv("MAKE_CALLED_FROM")
    monkeypatch.chdir(tmp_path)
    terminal.typed_folders = " STUDIES_DIR=own '/a$$b'"
    typed = terminal.typed("make -s export STUDY=a > a.toml")
    assert typed == f"{sys.executable} -m search export STUDY=a > a.toml STUDIES_DIR=own '/a$b'"


def test_a_path_is_shown_from_the_folder_in_which_make_was_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make -C project` has another current folder than the shell, where the path is opened."""
    monkeypatch.setenv("MAKE_CALLED_FROM", str(tmp_path))
    assert shown(tmp_path / "studies" / "a") == "studies/a"
    assert shown(ROOT / "results" / "studies" / "a") == f"{ROOT}/results/studies/a"
    monkeypatch.delenv("MAKE_CALLED_FROM")
    monkeypatch.chdir(tmp_path)
    assert shown(tmp_path / "a") == "a"


def test_a_study_that_the_shell_names_is_not_the_next_ones_name(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(as_json=False)
    for typed, is_exported in ((["STUDY=a"], False), ([], True)):
        monkeypatch.setenv("STUDY", "a")
        terminal.is_study_exported = read_options(typed).is_study_exported
        free = " STUDY=" if is_exported else ""
        for command in ("make search SPACE=schedule BASELINE=a", "make train CHECKPOINT_PATH=/c.pt"):
            assert terminal.typed(command).endswith(f"{command.removeprefix('make')}{free}")
        for command in ("make train STUDY=a", "make confirm STUDY=a", "make diagnose TARGET=a"):
            assert terminal.typed(command).endswith(command.removeprefix("make"))


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_a_misspelt_variable_of_the_environment_or_of_a_make_around_ours_is_told(venv: Path) -> None:
    (venv / "Makefile").write_text("all:\n\t@$(MAKE) -s -C $(HARNESS) spaces VENV=$(V)\n")
    ran = subprocess.run(
        ["make", "-s", f"HARNESS={ROOT}", f"V={venv}", "SPCE=plateau"],
        cwd=venv,
        env={**os.environ, "BATCHSIZE": "8"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert sorted(ran.stderr.splitlines()) == [
        "note: BATCHSIZE is set in the environment and is not a variable of this program. Did you mean BATCH_SIZE?",
        "note: SPCE is set in the environment and is not a variable of this program. Did you mean SPACE?",
    ]
    assert "plateau" in ran.stdout


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_the_makefile_called_from_elsewhere_says_how_to_call_it(tmp_path: Path) -> None:
    folder = tmp_path / "my project (copy)"
    folder.mkdir()
    shutil.copy(ROOT / "Makefile", folder)
    command = ["make", "-f", str(folder / "Makefile"), "search"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert f"This Makefile is to be called in its own folder: make -C '{folder}' search" in ran.stderr
    assert list(tmp_path.iterdir()) == [folder]


def test_words_may_be_written_large() -> None:
    read = parse_options({"TRIALS": "Auto", "COMPILE": "ON", "CONCURRENCY": "AUTO", "DEVICE": "CPU", "USE_LORA": "YES"})
    assert (read.trials, read.compile, read.concurrency, read.device) == ("auto", "on", "auto", "cpu")
    assert read.hyperparameters == {"use_lora": True}


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("400000", 400_000),
        ("400_000", 400_000),
        ("400,000", 400_000),
        ("4e5", 400_000),
        ("1.5E+6", 1_500_000),
        ("400k", 400_000),
        ("1.5M", 1_500_000),
        ("8m", 8_000_000),
        ("2G", 2_000_000_000),
        ("0.5b", 500_000_000),
        ("1", 1),
    ],
)
def test_tokens_have_suffixes(text: str, tokens: int) -> None:
    assert parse_options({"BUDGET_TOKENS": text}).budget_tokens == tokens


@pytest.mark.parametrize(
    "text",
    ["0", "-5", "1e-6", "1e999", "2,5M", "40,00", "k", "4 00", "400kk", "1.5.5M", "nan", "inf", "0.0001k", "9999999G"],
)
def test_what_is_no_number_of_tokens_is_refused_by_name(text: str) -> None:
    with pytest.raises(UserError, match=r"^BUDGET_TOKENS="):
        parse_options({"BUDGET_TOKENS": text})


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "one", "", "1e3", "10000000000000000"])
def test_what_is_no_whole_number_is_refused_by_name(text: str) -> None:
    with pytest.raises(UserError, match=r"^TRIALS="):
        parse_options({"TRIALS": text})


@pytest.mark.parametrize("text", ["0", "1.01", "-0.5", "nan", "inf", "half"])
def test_what_is_no_share_is_refused_by_name(text: str) -> None:
    with pytest.raises(UserError, match=r"^GPU_FRACTION="):
        parse_options({"GPU_FRACTION": text})


def test_numbers_that_are_set_and_those_that_are_not() -> None:
    options = parse_options({"TRIALS": "24", "GPU_FRACTION": "0.25"})
    assert (options.trials, options.gpu_fraction) == (24, 0.25)
    assert (options.concurrency, options.budget_tokens) == (None, None)
    assert Options().gpu_fraction == 1.0


@pytest.mark.parametrize(("text", "after"), [("3", 3), ("+2", 17), ("auto", None)])
def test_trials_are_a_number_more_of_them_or_found_by_the_search(text: str, after: int | None) -> None:
    assert parse_options({"TRIALS": text}).trials_after(15) == after


@pytest.mark.parametrize(("text", "value"), [("3", 3), ("auto", "auto")])
def test_concurrency_is_a_number_or_measured(text: str, value: int | str) -> None:
    assert parse_options({"CONCURRENCY": text}).concurrency == value


@pytest.mark.parametrize(("text", "mode"), [("auto", "auto"), ("1", "on"), ("False", "off")])
def test_compile_is_a_flag_or_auto(text: str, mode: str) -> None:
    assert parse_options({"COMPILE": text}).compile == mode


def test_a_range_is_token_positions() -> None:
    assert parse_options({"RANGE": "2.0M-2.5M"}).range == (2_000_000, 2_500_000)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "SEEDS",
            "1001",
            "SEEDS='1001' must be at most 1000. SEEDS: confirm, attribute: fresh seeds of each of the best",
        ),
        ("TOP", "0", "TOP='0' must be at least 1. TOP: confirm: how many of the best trials (default 2)."),
        ("FORMAT", "yml", "FORMAT=yml is not known. Known: cli, env, json, toml."),
        ("TO", "best", "TO=best is not known. Known: before, documented."),
        ("BUDGET_TOKENS", "9" * 400, f"BUDGET_TOKENS='{'9' * 60}...' must be at most 10^15."),
    ],
)
def test_a_refusal_names_the_variable_the_value_the_law_and_the_remedy(name: str, text: str, message: str) -> None:
    with pytest.raises(UserError) as refusal:
        parse_options({name: text})
    assert str(refusal.value).startswith(message)
    assert str(refusal.value).endswith((".", "?"))


def test_the_bounds_of_a_confirmation_are_those_of_its_variables() -> None:
    for name, most in (("TOP", 100), ("SEEDS", attempt.MAX_SEEDS)):
        parse_options({name: str(most)})
        with pytest.raises(UserError, match=f"must be at most {most}"):
            parse_options({name: str(most + 1)})


@pytest.mark.parametrize(
    ("text", "value"),
    [("True", True), ("true", True), ("1", True), ("YES", True), ("False", False), ("0", False), ("no", False)],
)
def test_flags_are_written_as_the_owners_scripts_write_them(text: str, value: bool) -> None:
    assert parse_options({"USE_LR_WARMUP": text}).use_lr_warmup is value


def test_a_path_is_absolute_and_the_home_folder_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/owner")
    assert parse_options({"CHECKPOINT_PATH": "a.pt"}).checkpoint_path == tmp_path / "a.pt"
    assert parse_options({"CHECKPOINT_PATH": "~/a.pt"}).checkpoint_path == Path("/home/owner/a.pt")
    assert parse_options({}).checkpoint_path is None


def test_use_lr_warmup_says_the_schedule_where_nothing_else_does() -> None:
    assert parse_options({"USE_LR_WARMUP": "True"}).explicit_hyperparameters() == {"lr_schedule": "warmup_cosine"}
    assert parse_options({"USE_LR_WARMUP": "False"}).explicit_hyperparameters() == {"lr_schedule": "constant"}


@pytest.mark.parametrize("schedule", LR_SCHEDULES)
def test_lr_schedule_wins_over_use_lr_warmup_false(schedule: str) -> None:
    """An exported linear schedule comes with USE_LR_WARMUP=False, which is all that the owner's scripts can be told."""
    given = parse_options({"USE_LR_WARMUP": "False", "LR_SCHEDULE": schedule}).explicit_hyperparameters()
    assert given == {"lr_schedule": schedule}


@pytest.mark.parametrize(
    ("typed", "schedule", "warmup"),
    [
        (["LR_SCHEDULE=constant"], "constant", "200"),
        (["LR_SCHEDULE=linear", "WARMUP_STEPS=0"], "linear", "0"),
        (["USE_LR_WARMUP=False"], "constant", None),
        (["USE_LR_WARMUP=True", "WARMUP_STEPS=50"], "warmup_cosine", "50"),
        ([], "warmup_cosine", "200"),
    ],
)
def test_a_schedule_that_is_typed_replaces_the_exported_one(
    typed: list[str], schedule: str, warmup: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An export says the schedule twice; nobody who types one of the two is told to unset the other."""
    for name, text in {"LR_SCHEDULE": "warmup_cosine", "USE_LR_WARMUP": "True", "WARMUP_STEPS": "200"}.items():
        monkeypatch.setenv(name, text)
    options = read_options(typed)
    assert options.explicit_hyperparameters()["lr_schedule"] == schedule
    assert options.texts.get("WARMUP_STEPS") == warmup


def test_a_warm_up_of_no_given_length_is_a_tenth_of_the_run_as_before_had_it() -> None:
    assert with_default_warmup({"lr_schedule": "warmup_cosine"}, DOCUMENTED)["warmup_steps"] == 200
    given: dict[str, int | float | str] = {"lr_schedule": "linear", "training_steps": 5000}
    assert with_default_warmup(given, DOCUMENTED)["warmup_steps"] == BEFORE.warmup_steps == 500


@pytest.mark.parametrize(
    ("given", "base"),
    [
        ({"lr_schedule": "warmup_cosine", "warmup_steps": 0}, DOCUMENTED),
        ({"lr_schedule": "constant"}, DOCUMENTED),
        ({}, DOCUMENTED),
        ({"lr_schedule": "linear"}, BEFORE),
    ],
)
def test_a_warm_up_that_is_given_or_not_wanted_stays(given: dict[str, int | float | str], base: TrialConfig) -> None:
    assert with_default_warmup(given, base) == given


def test_the_owners_variables_pass_where_they_ask_for_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_TYPE", "gpt2")
    for name, text in (("USE_LORA", "True"), ("LORA_RANK", "4"), ("LORA_ALPHA", "8"), ("LORA_DROPOUT", "0.05")):
        monkeypatch.setenv(name, text)
    given = read_options([]).explicit_hyperparameters()
    assert given == {"use_lora": True, "lora_rank": 4, "lora_alpha": 8, "lora_dropout": 0.05}


def test_every_variable_is_described_once() -> None:
    names = [name for group in variable_groups().values() for name, _ in group]
    assert sorted(names) == sorted(KNOWN)
    assert all(meaning.strip() for group in variable_groups().values() for _, meaning in group)
