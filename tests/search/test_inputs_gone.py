"""A cache that is deleted while a search runs ends it in one line, as interrupted."""

from pathlib import Path

from tests.faults.common import Place
from tests.faults.inputs import no_cache, wrong


def test_a_deleted_cache_ends_a_search_as_interrupted(tmp_path: Path) -> None:
    assert wrong(Place(str(tmp_path)), no_cache) == []
