"""What make test hands out to its processes, what they do not inherit, and how long the fuzz of tests/fuzz looks."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from search.tune.fork_server import start_fork_server
from tests.narrow import narrow_model

for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS", "MAKE_WORDS", "MAKE_CALLED_FROM"):
    os.environ.pop(name, None)

# A hundred processes would each compile the project again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# What a shell runs in the background (make test &) ignores Ctrl-C, and the commands under test would inherit that.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# More processes of tests than cores: a second thread in each only waits for the first, minutes where others work too.
os.environ["OMP_NUM_THREADS"] = "1"

# As in search/__main__.py, whose reason holds for what tests import and collect.
gc.set_threshold(100_000, *gc.get_threshold()[1:])

_shared = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
# The same examples every time, so that a commit is never red by chance.
settings.register_profile("short", _shared, max_examples=60, derandomize=True)
settings.register_profile("long", _shared, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "3000")))
settings.load_profile("short")

SLOW_FIRST = ("journeys", "search", "fuzz", "results")
"""Folders whose tests are begun first: a long one begun last would run alone."""
TOGETHER = {
    "searched": ("test_commands", "test_export", "test_run", "test_starting"),
    "left_alone": ("test_cluster", "test_storage"),
    "two_rates": ("test_confirm_attribute", "test_model"),
}
"""A fixture of a session that is a search, and the files that look at it: they share a process, and so the search."""


def pytest_sessionstart() -> None:
    """Have the searches of this process train in forked workers, as those of a command do.

    The server is forked before a test's import of Ray, which is too late. One file alone is not to load torch for it.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        import trainable.run  # noqa: F401

        start_fork_server()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests."""
    places = {name: place for place, name in enumerate(SLOW_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(places)))


@pytest.fixture(scope="session", autouse=True)
def without_fsync() -> Iterator[None]:
    """No file is forced to the disk by this process: no test cuts the power, and a kill loses nothing that is written.

    Thousands of small tables would wait for the disk some milliseconds each. Commands of their own process do wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small pretrained model, on which the tests search unless they name another."""
    return narrow_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module", autouse=True)
def earlier_objects_frozen() -> None:
    """What is there before a file's tests is walked by no collection of theirs: the libraries' objects take 0.3 s."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Have pytest's own collection at the end of every process find nothing to walk."""
    gc.freeze()


class ByStudy(LoadScopeScheduling):  # type: ignore[misc]
    """Hands the tests to processes by file, those of TOGETHER as one, and journeys, which share nothing, one by one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        if "/journeys/" in file:
            return nodeid
        return next((name for name, stems in TOGETHER.items() if Path(file).stem in stems), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByStudy:
    """Return how `pytest -n` shares the tests out."""
    return ByStudy(config, log)
