"""A studies folder of the test's own, a study.json as a search writes it, and planted trials."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.documents import sound_document
from trainable.config import DOCUMENTED


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
    def make(trial_id: int, status: str = "completed", val_loss: float | None = None, **changes: Any) -> dict[str, Any]:
        row = {
            "trial_id": trial_id,
            "purpose": "search",
            "is_baseline": trial_id == 0,
            "of_trial": None,
            "attempt": None,
            "combination": None,
            "status": status,
            "verdict": None,
            "point": None,
            **asdict(DOCUMENTED),
            "val_loss": val_loss,
            "best_val_loss": val_loss,
            "end_loss": None,
            "tokens_seen": 0,
            "optimizer_steps": 0,
            "active_s": 0.0,
            "tokens_per_s": None,
            "rung": None,
            "started_at": None,
            "ended_at": None,
        }
        return {**row, **changes}

    return make
