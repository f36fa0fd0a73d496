"""Whatever lies where an option names a file or a folder, it is used or refused in one line, and never waited for."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.options import parse_options
from search.setup.baseline_sources import read_baseline
from search.setup.inputs import check_inputs
from spaces.read.load import load_space
from tests.fuzz.commands import run
from tests.fuzz.outcome import attempt
from tests.fuzz.test_variables import as_it_was
from trainable.data.corpus import cache_dir

PATIENCE_S = 120


def socket_at(path: Path) -> None:
    """Bind a socket; its path may be longer than a socket's may."""
    before = Path.cwd()
    os.chdir(path.parent)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path.name)
    os.chdir(before)


def full_of_odd_things(path: Path) -> None:
    """Make a folder in which every name that is looked for is a pipe, beside links that lead nowhere."""
    path.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "trainer_state.json", "gpt2_search.json"):
        os.mkfifo(path / name)
    for name in ("a.pt", "a.txt", "a.jsonl.gz", "train.log", "study.json", "metrics.csv", "training_args.bin"):
        os.mkfifo(path / name)
    (path / "loop.txt").symlink_to("loop.txt")
    (path / "gone.pt").symlink_to("nowhere")


def terabyte(path: Path) -> None:
    """Make a file of a terabyte that takes no room."""
    path.touch()
    os.truncate(path, 1 << 40)


def linked(target: str) -> Callable[[Path], None]:
    """Return what puts a link to the target."""
    return lambda path: path.symlink_to(target)


DEVICES = ("/dev/zero", "/dev/full", "/dev/null", "/dev", "/proc/self/mem")
ODD: dict[str, Callable[[Path], Any]] = {
    "pipe": os.mkfifo,
    "socket": socket_at,
    "empty file": Path.touch,
    "empty folder": Path.mkdir,
    "folder of pipes": full_of_odd_things,
    "terabyte of zeros": terabyte,
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "bytes": lambda path: path.write_bytes(bytes(range(256)) * 20),
    "long line": lambda path: path.write_text("x" * 3_000_000),
    **{f"link to {target}": linked(target) for target in (*DEVICES, "/nowhere/at/all", "odd", ".")},
}


def inputs(variable: str) -> Callable[[Path], Any]:
    """Return the check of what a run is given, with the path as one of its variables."""

    def check(path: Path) -> Any:
        text = path.parent / "text.txt"
        text.write_text("the words of a small text\n" * 400)
        given = {"TRAINING_DATA_SOURCE": str(text), "GPT2_MODEL_NAME": "tiny-scratch", variable: str(path)}
        return check_inputs(parse_options(given), progress=lambda what, done: None)

    return check


def cache(path: Path) -> Path:
    """Return the cache's folder where CACHE_DIR is the path."""
    os.environ["CACHE_DIR"] = str(path)
    return cache_dir()


ASKED: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "SPACE": ("odd.toml", lambda path: load_space(str(path))),
    "BASELINE": ("odd.env", lambda path: read_baseline(str(path))),
    "BASELINE of weights": ("odd", lambda path: read_baseline(str(path))),
    "TARGET": ("odd.log", lambda path: run("diagnose", f"TARGET={path}")),
    "TRAINING_DATA_SOURCE": ("odd.txt", inputs("TRAINING_DATA_SOURCE")),
    "VALIDATION_DATA_SOURCE": ("odd.jsonl", inputs("VALIDATION_DATA_SOURCE")),
    "CHECKPOINT_PATH": ("odd.pt", inputs("CHECKPOINT_PATH")),
    "GPT2_MODEL_NAME": ("odd", inputs("GPT2_MODEL_NAME")),
    "STUDIES_DIR": ("odd", lambda path: run("list", f"STUDIES_DIR={path}")),
    "CACHE_DIR": ("odd", cache),
    "OPTUNA_STORAGE": ("odd", lambda path: parse_options({"OPTUNA_STORAGE": str(path)})),
}
TOO_LONG = {("TARGET", "terabyte of zeros"), ("TRAINING_DATA_SOURCE", "terabyte of zeros")}
"""A text and a log may be as large as they are."""
TOO_LONG |= {("VALIDATION_DATA_SOURCE", "terabyte of zeros")}


@pytest.fixture(autouse=True)
def not_waited_for() -> Iterator[None]:
    """Fail what waits: for a pipe's writer say, which takes no time of this process."""

    def ring(*_: object) -> None:
        raise TimeoutError(f"still waiting after {PATIENCE_S} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(PATIENCE_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("option", ASKED)
def test_an_odd_thing_is_used_or_refused(option: str, kind: str, tmp_path: Path) -> None:
    if (option, kind) in TOO_LONG:
        pytest.skip("read to its end, whatever it holds")
    name, ask = ASKED[option]
    ODD[kind](tmp_path / name)
    with as_it_was():
        attempt(f"odd path: {option}", lambda: ask(tmp_path / name))
