"""An environment without variables, a small text, commands run as a person runs them, and one real study."""

import ctypes
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from results.study.folder import Study
from search.options import KNOWN
from tests import running
from tests.faults.common import QUICK_SPACE, Place
from tests.running import Ran, Running, search
from trainable.data.corpus import language_reference

if TYPE_CHECKING:
    from trainable.run import RunSpec

PR_SET_CHILD_SUBREAPER = 36
ROOT = Path(__file__).parents[2]
FROM_MAKE = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MAKE_WORDS", "MAKE_CALLED_FROM")
SECRET = "hunter2-is-nobodys-business"
SPACE = """
description = "A grid with good, useless and wild rates; the last cell is made to fail"

[baseline]
from = "documented"
batch_size = 4
block_size = 32
learning_rate = 1e-4

[budget]
tokens = 12_288

[evaluation]
tokens = 512
count = 4

[scheduler]
name = "asha"
grace_frac = 0.4
reduction_factor = 2

[searcher]
name = "grid"

[search]
learning_rate = { choice = [1e-4, 1e-3, 100.0, 1e-6] }
batch_size = { choice = [4, 8] }
weight_decay = { choice = [10.0], when = { learning_rate = [100.0] } }
"""
"""Rungs at 4,916 and 9,832 tokens. A rate of 100 with that decay multiplies every weight by -999 a step: its loss is no
number long before the first rung."""
FAILING_TRIAL = 7
TWO_RATES = """
description = "One rate is much better than the baseline's"
trials = 3
[baseline]
batch_size = 4
block_size = 32
[budget]
tokens = 6_144
[evaluation]
tokens = 512
count = 2
[scheduler]
name = "none"
[searcher]
name = "random"
[search]
learning_rate = { choice = [1e-5, 3e-3] }
"""
"""Three trials of two configurations: the search is over before its last."""
Environment = Mapping[str, str]


Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cache: Path) -> None:
    """Take away what the person who runs the tests has set; studies and caches go to temporary folders."""
    for name in (*KNOWN, *FROM_MAKE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STUDIES_DIR", str(tmp_path / "studies"))
    monkeypatch.setenv("CACHE_DIR", str(cache))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, as bit-for-bit equality needs, and torch's global generator as it was."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)


@pytest.fixture
def no_reaping_init() -> Iterator[None]:
    """Orphans come to this process, which reaps none: as in a container whose first process is `sleep infinity`."""
    libc = ctypes.CDLL(None)
    if sys.platform != "linux":
        pytest.skip("orphans come to another process on Linux alone")
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0)
        for child in psutil.Process().children():
            with suppress(ChildProcessError):
                os.waitpid(child.pid, os.WNOHANG)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens and tokenizers, made once for all tests."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """English, 400 kB."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text(language_reference()[:400_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def spec(text_file: Path, cache: Path, narrow: Path) -> "RunSpec":
    """The fixed part of a run of the small model on that text, on the CPU."""
    from search.options import Options
    from search.setup.inputs import check_inputs, load_inputs

    def silent(what: str, done_frac: float) -> None:
        pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(cache))
        options = Options(training_data_source=text_file, gpt2_model_name=str(narrow), device="cpu")
        inputs = check_inputs(options, progress=silent)
        loaded = load_inputs(inputs, block_size=32, eval_tokens=256, progress=silent)
    return loaded.spec


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the studies of one test file are kept: two files may give theirs the same name."""
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def environment(shared_environment: Environment, studies: Path) -> Environment:
    """The environment of a command of its own process: nothing but what it needs."""
    return {**shared_environment, "STUDIES_DIR": str(studies)}


@pytest.fixture(scope="session")
def shared_environment(text_file: Path, cache: Path, narrow: Path) -> Environment:
    """The environment of a command, but for its studies."""
    kept = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH")
    return {
        **{name: os.environ[name] for name in kept if name in os.environ},
        "CACHE_DIR": str(cache),
        "TRAINING_DATA_SOURCE": str(text_file),
        "GPT2_MODEL_NAME": str(narrow),
        "DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
    }


BATCH = """
import contextlib, io, json, os, sys
from search.__main__ import main

class Stream(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

for case in json.load(sys.stdin):
    before = dict(os.environ)
    os.environ.update(case["variables"])
    out, err = Stream(), Stream()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(case["words"])
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = f"{type(error).__name__}: {error}"
    os.environ.clear()
    os.environ.update(before)
    heavy = [name for name in ("torch", "ray", "transformers", "optuna", "pandas", "matplotlib") if name in sys.modules]
    streams = [stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in (out, err)]
    print(json.dumps([code, *streams, heavy]))
"""


@dataclass(frozen=True)
class Case:
    """How one command of a batch ended, and which heavy libraries the batch has imported by then."""

    code: int | str
    stdout: str
    stderr: str
    heavy: list[str]


Batch = Callable[..., list[Case]]


@pytest.fixture(scope="module")
def batch(environment: Environment) -> Batch:
    """Return a function that runs commands one after another in a new process: [(words, variables), ...]."""

    def run_batch(commands: list[tuple[list[str], dict[str, str]]], **variables: str) -> list[Case]:
        done = subprocess.run(
            [sys.executable, "-c", BATCH],
            cwd=ROOT,
            env={**environment, "PYTHONPATH": str(ROOT), **variables},
            input=json.dumps([{"words": words, "variables": own} for words, own in commands]),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return [Case(*json.loads(line)) for line in done.stdout.splitlines()]

    return run_batch


Start = Callable[..., Running]


@pytest.fixture(scope="module")
def start(environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Return a function that starts `python -m search WORD ...`, with variables by keyword."""
    started: list[Running] = []

    def start_command(*words: str, cwd: Path = ROOT, **variables: str) -> Running:
        folder = tmp_path_factory.mktemp("output")
        started.append(running.start(search(*words), {**environment, **variables}, cwd=cwd, folder=folder))
        return started[-1]

    yield start_command
    for one in started:
        running.kill_family(one)


@pytest.fixture(scope="module")
def run(start: Start) -> Run:
    """Return a function that runs `python -m search WORD ...` to its end, with variables by keyword."""
    return lambda *words, **variables: start(*words, **variables).ended()


@pytest.fixture(scope="session")
def left_alone(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study of tests.faults.common.QUICK_SPACE as it ends when nothing happens to it."""
    place = Place(str(tmp_path_factory.mktemp("left_alone")), QUICK_SPACE)
    assert run_in_process(place.words("run", "alone"), os.environ).code == 0
    return place.study("alone")


def run_in_process(words: tuple[str, ...], environment: Environment, cwd: Path = ROOT) -> Ran:
    """Run a command in this process: what it imports is imported once.

    Ray's token stays in the environment, because the library keeps the first one that it sees.
    """
    from search.__main__ import main

    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name, text in environment.items():
            patch.setenv(name, text)
        patch.chdir(cwd)
        code = main(words)
    return Ran(code, *(stream.buffer.getvalue().decode("utf-8", "surrogateescape") for stream in (out, err)))


@pytest.fixture(scope="module")
def run_here(environment: Environment) -> Run:
    """Return a function that runs a command as run() does, in this process."""
    return lambda *words, cwd=ROOT, **variables: run_in_process(words, {**environment, **variables}, cwd)


@pytest.fixture(scope="session")
def two_rates(shared_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A baseline and a trial of a much better rate, in one Ray start: a study with a winner; to be copied."""
    folder = tmp_path_factory.mktemp("two_rates")
    space, study = folder / "two.toml", Study(folder / "studies" / "two")
    space.write_text(TWO_RATES, encoding="utf-8")
    words = ("run", f"SPACE={space}", "STUDY=two", "SKIP_PREFLIGHT=1", "CONCURRENCY=1")
    ran = run_in_process(words, {**shared_environment, "STUDIES_DIR": str(study.path.parent)})
    assert ran.code == 0, ran.output
    return study


@dataclass(frozen=True)
class Searched:
    """The one real search that most tests look at."""

    study: Study
    space_path: Path
    ran: Ran
    orphans: list[str]


@pytest.fixture(scope="session")
def searched(shared_environment: Environment, tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """Eight cells by `python -m search run --json`; the last trial finds a checkpoint of a later version of ours."""
    import torch

    folder = tmp_path_factory.mktemp("searched")
    space_path, study = folder / "own.toml", Study(folder / "studies" / "shared")
    space_path.write_text(SPACE, encoding="utf-8")
    command = running.start(
        search("run", "--json", f"SPACE={space_path}", "STUDY=shared", "CONCURRENCY=2"),
        {**shared_environment, "STUDIES_DIR": str(study.path.parent), "HF_TOKEN": SECRET, "OWN_PASSWORD": SECRET},
        folder=folder,
    )
    command.wait_for(study.study_json.exists)
    checkpoint = study.checkpoint_dir(FAILING_TRIAL) / "step_00000000.pt"
    checkpoint.parent.mkdir(parents=True)
    weights = {"model_state_dict": {"weight": torch.zeros(1)}}
    torch.save({"format": "gpt2-search checkpoint", "version": 99, **weights}, checkpoint)
    ran = command.ended()
    return Searched(study=study, space_path=space_path, ran=ran, orphans=command.orphans())
