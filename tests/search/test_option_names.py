"""A misspelt variable is noticed, and what a usual environment holds never is."""

import re
from pathlib import Path

import pytest

from search import ROOT
from search.option_names import MAKE_WORDS, make_names, nearly, references
from search.options import KNOWN, Options, typed, unread, with_place

USUAL = """
_ BASH BASHOPTS BASH_ENV BROWSER CC CFLAGS CI CLASSPATH CLICOLOR COLORFGBG COLORTERM COLUMNS COMPILER COMP_WORDBREAKS
CONDA_DEFAULT_ENV CONDA_EXE CONDA_PREFIX CONDA_PROMPT_MODIFIER CONDA_SHLVL CPATH CPPFLAGS CUDA_HOME CUDA_PATH
CUDA_VISIBLE_DEVICES CVS_RSH CXX CXXFLAGS CYGWIN DBUS_SESSION_BUS_ADDRESS DEBIAN_FRONTEND DEBUG DESKTOP_SESSION
DISPLAY DOCKER_HOST DO_NOT_TRACK DYLD_LIBRARY_PATH EDITOR EMAIL ENV FC FCEDIT FFLAGS FORCE_COLOR FPATH GDM_LANG
GDMSESSION GIT_AUTHOR_NAME GIT_EDITOR GIT_PAGER GITHUB_ACTIONS GITHUB_TOKEN GNOME_TERMINAL_SCREEN GOPATH GOROOT
GPG_AGENT_INFO GPG_TTY GREP_COLORS GTK_MODULES HF_HOME HF_HUB_OFFLINE HF_TOKEN HISTCONTROL HISTFILE HISTSIZE HOME HOST
HOSTNAME HOSTTYPE http_proxy https_proxy IFS INFOPATH INPUTRC INVOCATION_ID JAVA_HOME JOURNAL_STREAM KRB5CCNAME LANG
LANGUAGE LC_ALL LC_CTYPE LDFLAGS LD_LIBRARY_PATH LD_PRELOAD LESS LESSOPEN LIBRARY_PATH LINES LOADEDMODULES LOCAL_RANK
LOGNAME LS_COLORS MACHTYPE MAIL MAILCHECK MAKEFLAGS MAKELEVEL MAKE_TERMERR MAKE_TERMOUT MAKE_WORDS MANPATH MASTER_ADDR
MASTER_PORT MFLAGS MKL_NUM_THREADS MODULEPATH MODULESHOME MOTD_SHOWN NCCL_DEBUG NODE_PATH NODE_RANK NO_COLOR no_proxy
NUMEXPR_MAX_THREADS NVIDIA_DRIVER_CAPABILITIES NVIDIA_VISIBLE_DEVICES NVM_DIR OLDPWD OMP_NUM_THREADS OMP_PROC_BIND
OPENBLAS_NUM_THREADS OPTIND OSTYPE PAGER PATH PERL5LIB PIP_CACHE_DIR PKG_CONFIG_PATH PPID PRINTER PROMPT_COMMAND PS1
PS2 PWD PYENV_ROOT PYTHONHASHSEED PYTHONPATH PYTHONUNBUFFERED PYTORCH_CUDA_ALLOC_CONF QT_QPA_PLATFORM RANDOM RANK
RAY_ADDRESS RAY_AUTH_TOKEN RUSTUP_HOME SCREEN SEATD_VBOUND SECONDS SESSION_MANAGER SHELL SHLVL SLURM_ARRAY_TASK_ID
SLURM_CPUS_ON_NODE SLURM_JOB_ID SLURM_NTASKS SLURM_STEP_ID SSH_AGENT_PID SSH_AUTH_SOCK SSH_CLIENT SSH_CONNECTION
SSH_TTY STY SUDO_COMMAND SUDO_USER SYSTEMD_EXEC_PID TERM TERMCAP TERM_PROGRAM TEXINPUTS THEANO_FLAGS TIMEFORMAT TMOUT
TMP TMPDIR TMUX TMUX_PANE TOKENIZERS_PARALLELISM TORCH_HOME TYPE TZ UID USER USERNAME VIRTUAL_ENV VISUAL VTE_VERSION
WANDB_API_KEY WANDB_MODE WANDB_PROJECT WAYLAND_DISPLAY WINDOWID WORLD_SIZE WSLENV WSL_DISTRO_NAME XAUTHORITY
XDG_CACHE_HOME XDG_CONFIG_HOME XDG_RUNTIME_DIR XDG_SESSION_TYPE XMODIFIERS ZDOTDIR ZSH MLFLOW_TRACKING_URI OPTUNA_HOME
SPACESHIP_ROOT TRANSFORMERS_CACHE
"""


def test_a_usual_environment_raises_no_alarm() -> None:
    assert nearly(dict.fromkeys((*USUAL.split(), *KNOWN), "x"), KNOWN) == {}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BATCHSIZE", "BATCH_SIZE"),
        ("batch_size", "BATCH_SIZE"),
        ("BATCH_SIZES", "BATCH_SIZE"),
        ("LEARNING_RATES", "LEARNING_RATE"),
        ("LEARNIGN_RATE", "LEARNING_RATE"),
        ("LR", "LEARNING_RATE"),
        ("EPOCHS", "TRAINING_STEPS"),
        ("GRAD_CLIP", "GRAD_CLIP_NORM"),
        ("TRIAL", "TRIALS"),
        ("SPCE", "SPACE"),
        ("LORA_RNK", "LORA_RANK"),
        ("BUDGET_TOKEN", "BUDGET_TOKENS"),
        ("STUDYDIR", None),
    ],
)
def test_a_name_that_was_meant_for_a_variable_is_told(name: str, meant: str | None) -> None:
    assert nearly({name: "8"}, KNOWN) == ({name: meant} if meant else {})
    assert nearly({name: ""}, KNOWN) == {}


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("SPCE=plateau", ["SPCE"]),
        ("SPCE=plateau SEED=1", ["SPCE", "SEED"]),
        ("STUDY=it's SPCE=x", ["STUDY", "SPCE"]),
        ("TRAINING_DATA_SOURCE=my\\ text\\ X=1.txt", ["TRAINING_DATA_SOURCE"]),
        ("SPACE=plateau PYTHON=python3.12 MAKEFILES= SHELL=/bin/sh VENV=/tmp/venv", ["SPACE"]),
        ("SPCE:=1", ["SPCE"]),
        ("", []),
    ],
)
def test_the_variables_on_makes_command_line(words: str, names: list[str]) -> None:
    assert make_names({"MAKELEVEL": "1", MAKE_WORDS: words}) == names
    # make 3.81 has them in MAKEFLAGS without the ` -- ` that tells them from options, newer ones with it.
    for flags in (words, f" -- {words}", f"s -- {words}", "sk"):
        assert make_names({"MAKELEVEL": "1", MAKE_WORDS: words, "MAKEFLAGS": flags}) == names
    # An outer make's come along unasked.
    assert make_names({"MAKELEVEL": "2", MAKE_WORDS: words}) == []
    assert make_names({MAKE_WORDS: words}) == []


def test_a_path_of_the_shells_folder_is_told_to_who_calls_make_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "checkout", tmp_path / "my texts"
    for folder in (here, there):
        folder.mkdir()
    (there / "qa.txt").touch()
    monkeypatch.chdir(here)
    monkeypatch.setenv("MAKE_CALLED_FROM", str(there))
    monkeypatch.setenv("TRAINING_DATA_SOURCE", "qa.txt")
    refused = f"TRAINING_DATA_SOURCE={here}/qa.txt does not exist."
    told = with_place(refused, {"TRAINING_DATA_SOURCE", "STUDY"})
    assert told == f"{refused} With -C make reads paths in {here}: 'TRAINING_DATA_SOURCE={there}/qa.txt'"
    assert with_place(refused, ()) == refused
    monkeypatch.setenv("OPTUNA_STORAGE", "qa.txt")
    assert f"OPTUNA_STORAGE={there}/qa.txt" in with_place("OPTUNA_STORAGE='qa.txt' must be", {"OPTUNA_STORAGE"})
    monkeypatch.setenv("STUDY", "qa.txt")
    assert with_place("no study named 'qa.txt'", {"STUDY"}) == "no study named 'qa.txt'"
    (here / "qa.txt").touch()
    assert with_place(refused, {"TRAINING_DATA_SOURCE"}) == refused


@pytest.mark.parametrize(
    ("typed_text", "word"),
    [("a $text.txt", "$t"), ("a$$b", None), ("$(HOME)/a", None), ("a$$$b", "$b"), ("a", None), ("5$", None)],
)
def test_a_dollar_that_make_takes_for_a_reference_is_told(typed_text: str, word: str | None) -> None:
    makes = typed_text.replace("$", "$$").replace(" ", "\\ ")
    environ = {"MAKELEVEL": "1", MAKE_WORDS: f"SPACE=x OUT={makes}"}
    assert references(environ) == ({} if word is None else {"OUT": word})


@pytest.mark.parametrize(
    ("words", "target", "line"),
    [
        ("SPACE=smoke SAVE_MODEL=out", "search", "SAVE_MODEL is read by train, not by search"),
        ("SEED=3 SEEDS=5 CHECKPOINT_INTERVAL_S=9", "confirm", "SEED is read by a new search and train, not by confirm"),
        ("MERGE=1 STEPS=100", "model", "STEPS is read by export and train, not by model"),
        ("CONFIRM=1 TOP=2 SEEDS=5 TRIALS=+2 FORCE=1", "resume", None),
        ("CONFIRM=1 TENSORBOARD=1", "baseline", "CONFIRM is read by a search, not by baseline"),
        ("COMPARE=before BUDGET_TOKENS=8M LEARNING_RATE=1e-3", "baseline", None),
        ("BASELINE=mine.env", "train", "BASELINE is read by a new search, not by train"),
        ("STUDY=a TRIALS=3", "confirm", "TRIALS is read by a search, not by confirm"),
        ("SPACE=smoke", "report", "SPACE is read by a new search and spaces, not by report"),
        ("SPACE=smoke BASELINE=before", "baseline", None),
        ("CHECKPOINT_PATH=x GPT2_MODEL_NAME=tiny RANGE=1-2", "audit", None),
        ("SAVE_MODEL=out", "help", None),
        ("TOP=2", "search", "TOP is read by a search with CONFIRM=1 alone"),
        ("SEEDS=5", "baseline", "SEEDS is read by confirm and attribute, not by baseline"),
        ("ADDRESS=auto", "train", "ADDRESS is read by search, not by train"),
        ("ADDRESS=auto CONCURRENCY=2 GPU_FRACTION=1 EVALUATION_TIMEOUT_S=9", "confirm", None),
    ],
)
def test_a_variable_typed_for_a_command_that_does_not_read_it_is_told(
    words: str, target: str, line: str | None
) -> None:
    assert unread(Options(typed=typed(words.split())), target) == ([line] if line else [])


def test_what_is_to_be_confirmed_is_read_by_a_search_that_confirms() -> None:
    assert unread(Options(typed=frozenset({"TOP", "SEEDS"}), confirm=True), "search") == []


def test_what_the_makefile_reads_itself_is_no_misspelt_variable() -> None:
    own = re.findall(r"^(\w+) \??:?=", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"PYTHON", "VENV", "TORCH_INDEX"} <= set(own)
    settable = [name for name in own if name not in ("RUN", "STAMP", "COMMANDS", "UNKNOWN")]
    assert make_names({"MAKELEVEL": "1", MAKE_WORDS: " ".join(f"{name}=x" for name in settable)}) == []
