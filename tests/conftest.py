"""Tests that call make must not inherit the make that runs them; and how long the fuzz of tests/fuzz looks."""

import os

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
