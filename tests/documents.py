"""The document of a study, for tests that write one themselves."""

from dataclasses import asdict
from typing import Any

from results.study.folder import SCHEMA_VERSION
from trainable.config import DOCUMENTED

SPACE = """
# A comment of the person who wrote the space.
description = "A small search"
baseline = "documented"
trials = 4
[budget]
tokens = 409_600
[search]
batch_size = { choice = [8, 32] }
learning_rate = { log_uniform = [1e-6, 1e-3] }
"""


def sound_document(name: str, **changes: Any) -> dict[str, Any]:
    """Return what study.json of a small search holds, with changes to its outermost values."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "kind": "search",
        "created_at": "2025-11-25T03:10:00+00:00",
        "model": "tiny",
        "data_source": None,
        "checkpoint_path": None,
        "corpus": {
            "fingerprint": "0" * 64,
            "train_tokens": 90_000,
            "val_tokens": 10_000,
            "vocab_size": 2048,
            "unigram_entropy": 6.35,
        },
        "evaluation": {"block_size": 128, "tokens": 16_384, "milestones_tokens": [204_800, 409_600]},
        "device": {"type": "cpu", "name": "x86_64", "count": 1},
        "versions": {"python": "3.11.7"},
        "space": {"name": "plateau", "path": "spaces/plateau.toml", "description": "", "toml": SPACE},
        "budget_tokens": 409_600,
        "rung_tokens": [102_400, 204_800],
        "baseline": {"name": "documented", **asdict(DOCUMENTED)},
        "settings": {"pins": {}},
        "trials_planned": 4,
        "seed": 0,
    }
    return {**document, **changes}
