"""A studies folder of the test's own, a study.json as a search writes it, and planted trials."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.documents import sound_document
from tests.rows import trial_row


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "studies"
    monkeypatch.setenv("STUDIES_DIR", str(folder))
    return folder


@pytest.fixture
def make_document() -> Callable[..., dict[str, Any]]:
    def make(name: str = "plateau-1125-0310", **changes: Any) -> dict[str, Any]:
        return sound_document(name, **changes)

    return make


@pytest.fixture
def make_trial() -> Callable[..., dict[str, Any]]:
    return trial_row
