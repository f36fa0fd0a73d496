"""Preflights that passed, kept in the cache: the same model, text and settings are not checked twice."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from pydantic import TypeAdapter

from results.study.atomic import write_atomic
from search.setup.inputs import Loaded
from trainable.config import TrialConfig
from trainable.data.corpus import cache_dir

WITHOUT_EFFECT = frozenset(
    {
        *("learning_rate", "lr_schedule", "warmup_steps", "min_lr_frac", "decay_frac", "training_steps"),
        *("batch_size", "block_size", "grad_accum_steps", "grad_clip_norm", "weight_decay", "dropout", "seed"),
    }
)
"""Hyperparameters that preflight replaces by its own; the largest batch and block are compared by size instead."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How a run shares its device."""

    runs: int = 1
    """On the device at the same time, this one included."""
    memory_frac: float = 1.0
    """Share of a GPU's memory that each may take."""


@dataclass(frozen=True, kw_only=True)
class PreflightRecord:
    """A preflight that passed."""

    passed_at: datetime
    batch_size: int
    block_size: int
    """Both of the largest configuration that was checked."""
    sharing: Sharing
    warnings: Sequence[Mapping[str, str]] = ()
    """The checks that warned, each as a dict of Check's fields."""

    def covers(self, largest: TrialConfig, sharing: Sharing) -> bool:
        """Return whether a run of this size was checked already."""
        return (
            largest.block_size <= self.block_size
            and largest.batch_size * largest.block_size <= self.batch_size * self.block_size
            and sharing.runs <= self.sharing.runs
            and sharing.memory_frac >= self.sharing.memory_frac
        )


_RECORD = TypeAdapter(PreflightRecord)


def record_path(loaded: Loaded, config: TrialConfig) -> Path:
    """Return the path of the record for these inputs, whether or not it exists."""
    facts = loaded.facts
    inputs = {
        **{name: facts[name] for name in ("model_fingerprint", "checkpoint_fingerprint")},
        "corpus": facts["corpus"]["fingerprint"],
        "protocol": asdict(loaded.spec.protocol),
        "settings": {
            spec.name: getattr(config, spec.name) for spec in fields(config) if spec.name not in WITHOUT_EFFECT
        },
        "device": [loaded.spec.device, loaded.device_info.name],
        "program": [_program(), version("torch"), version("transformers")],
    }
    key = hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()
    return cache_dir() / "preflight" / f"{key[:32]}.json"


def read_record(path: Path) -> PreflightRecord | None:
    """Return the record; None if it is missing or damaged."""
    try:
        return _RECORD.validate_json(path.read_bytes())
    except (OSError, ValueError):
        return None


def write_record(path: Path, record: PreflightRecord) -> None:
    """Keep the record. If that fails, the next command only repeats the preflight."""
    with suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, _RECORD.dump_json(record))


def _program() -> str:
    # The sources themselves: in a checkout they change without a new version number.
    root = Path(__file__).parents[2] / "trainable"
    sources = sorted(root.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
