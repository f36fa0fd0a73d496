"""Preflights that passed, kept in the cache: the same model, text and settings are not looked at twice."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.study.atomic import write_atomic
from search.setup.inputs import Loaded
from trainable.config import TrialConfig
from trainable.data.corpus import cache_dir

if TYPE_CHECKING:
    from trainable.preflight.check_result import Check

WITHOUT_EFFECT = frozenset(
    {
        *("learning_rate", "lr_schedule", "warmup_steps", "min_lr_frac", "decay_frac", "training_steps"),
        *("batch_size", "block_size", "grad_accum_steps", "grad_clip_norm", "weight_decay", "dropout", "seed"),
    }
)
"""What preflight's own steps replace; the largest batch and block are compared by size."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """How a run shares its device."""

    runs: int = 1
    """Those on the device at once, this one included."""
    memory_frac: float = 1.0
    """Of a GPU, what each of them may take."""


@dataclass(frozen=True, kw_only=True)
class PreflightRecord:
    """A preflight that passed."""

    passed_at: datetime
    batch_size: int
    block_size: int
    """Of the largest configuration that was looked at."""
    sharing: Sharing
    warnings: Sequence["Check"] = ()

    def covers(self, largest: TrialConfig, sharing: Sharing) -> bool:
        """Return whether nothing larger is asked now."""
        return (
            largest.block_size <= self.block_size
            and largest.batch_size * largest.block_size <= self.batch_size * self.block_size
            and sharing.runs <= self.sharing.runs
            and sharing.memory_frac >= self.sharing.memory_frac
        )


def record_path(loaded: Loaded, config: TrialConfig) -> Path:
    """Return where the record of these inputs lies, there or not."""
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
    """Return the record, or None where there is none that can be read."""
    from trainable.preflight.check_result import Check

    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return PreflightRecord(
            passed_at=datetime.fromisoformat(values["passed_at"]),
            batch_size=int(values["batch_size"]),
            block_size=int(values["block_size"]),
            sharing=Sharing(**values["sharing"]),
            warnings=[Check(**one) for one in values["warnings"]],
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_record(path: Path, record: PreflightRecord) -> None:
    """Keep the record; where that is not possible the next preflight is run, and nothing else is lost."""
    values = asdict(record) | {"passed_at": record.passed_at.isoformat()}
    try:
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, json.dumps(values).encode())
    except OSError:
        return


def _program() -> str:
    # A version number does not change with every change of a checkout.
    root = Path(__file__).parents[2] / "trainable"
    sources = sorted(root.rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
