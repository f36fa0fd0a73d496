"""What make test hands out to its processes, what they do not inherit, and how long the fuzz of tests/fuzz looks."""

import os

import pytest
from hypothesis import HealthCheck, settings

for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "GNUMAKEFLAGS", "MAKE_WORDS"):
    os.environ.pop(name, None)

# Two processes of tests on two cores: a second thread in each only waits for the first, minutes where others work too.
os.environ["OMP_NUM_THREADS"] = "1"

_shared = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))
# The same examples every time, so that a commit is never red by chance.
settings.register_profile("short", _shared, max_examples=100, derandomize=True)
settings.register_profile("long", _shared, max_examples=int(os.environ.get("FUZZ_EXAMPLES", "3000")))
settings.load_profile("short")

SLOW_FIRST = ("journeys", "search", "fuzz", "trainable")
"""Folders whose tests are begun first: a long one begun last would run alone."""
SHARED_STUDIES = ("searched", "left_alone")
"""Fixtures of a session that take half a minute: the files that use one run in one process."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the tests and name for each the group that runs in one process: its file, or the files of its study."""
    groups = {item.path: name for item in items for name in SHARED_STUDIES if name in getattr(item, "fixturenames", ())}
    for item in items:
        # Journeys share nothing.
        alone = item.nodeid if item.path.parent.name == "journeys" else str(item.path)
        item.add_marker(pytest.mark.xdist_group(groups.get(item.path, alone)))
    places = {name: place for place, name in enumerate(SLOW_FIRST)}
    items.sort(key=lambda item: places.get(item.path.parent.name, len(places)))
