"""Folders of the test's own, and at the end of a long fuzz what came of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from search.options import KNOWN


@pytest.fixture(autouse=True, scope="module")
def own_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Take away what the person who runs the tests has set; studies and caches go to a temporary folder."""
    root = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        for name in KNOWN:
            patch.delenv(name, raising=False)
        patch.setenv("STUDIES_DIR", str(root / "studies"))
        patch.setenv("CACHE_DIR", str(root / "cache"))
        patch.chdir(root)
        yield root
    assert not os.environ.get("STUDIES_DIR", "").startswith(str(root))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print a line for every property, after a run with a profile of the person's choice."""
    if not config.getoption("hypothesis_profile", None):
        return
    # Imported with the tests and not before: it asks for the profile, which is loaded in between.
    from tests.fuzz.outcome import CASES, TALLY

    for name, count in sorted(TALLY.items()):
        failed = count["tried"] - count["refused"] - count["accepted"]
        terminalreporter.write_line(
            f"{name}: {count['tried']} tried, {count['refused']} refused, {count['accepted']} accepted, {failed} failed"
        )
    for kind, digests in sorted(CASES.items()):
        terminalreporter.write_line(f"{kind}: {len(digests)} distinct")
