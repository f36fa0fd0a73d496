"""Runs the preflight before anything is trained: prints its checks and ends the command when one fails.

One that passed is kept in the cache: the same model, text and settings are not checked twice.
"""

import hashlib
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter
from rich.text import Text

from results.study.atomic import write_atomic
from results.study.folder import studies_dir
from results.words import duration_words, list_words, local_time_words
from search import ROOT
from search.setup.inputs import Loaded
from search.setup.plan import Plan
from search.terminal.console import Terminal, print_line
from trainable.config import TrialConfig
from trainable.data.corpus import cache_dir
from trainable.data.remote_files import local_folder

if TYPE_CHECKING:
    from trainable.checkpoint.checkpoint import Checkpoint
    from trainable.preflight.check_result import Check
    from trainable.preflight.memory import CheckpointRoom
    from trainable.run import RunSpec


WITHOUT_EFFECT = frozenset(
    {
        *("learning_rate", "lr_schedule", "warmup_steps", "min_lr_frac", "decay_frac", "training_steps"),
        *("batch_size", "block_size", "grad_accum_steps", "grad_clip_norm", "weight_decay", "seed"),
    }
)
"""Hyperparameters that preflight replaces by its own; the rate, the largest batch and block are compared instead."""
STYLES = {"pass": "green", "fail": "bold red", "warn": "yellow", "skipped": "dim"}
PREFLIGHT_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class PreflightRecord:
    """A preflight that passed."""

    passed_at: datetime
    learning_rate: float
    """The baseline's, or the run's. The weights may be too coarse for the steps of a smaller one."""
    batch_size: int
    block_size: int
    """Both of the largest configuration that was checked."""
    runs: int
    memory_frac: float
    """Both as in Preflight."""
    needed_bytes: Mapping[str, int]
    """By the name of the check that found it."""
    warnings: Sequence[Mapping[str, Any]] = ()
    """The checks that warned, each as a dict of Check's fields."""

    def covers(self, preflight: "Preflight") -> bool:
        """Return whether runs of this size were checked already, and what they need is still there."""
        largest = preflight.largest
        return (
            self._covers_rate(preflight.config.learning_rate)
            and largest.block_size <= self.block_size
            and largest.batch_size * largest.block_size <= self.batch_size * self.block_size
            and preflight.runs <= self.runs
            and preflight.memory_frac >= self.memory_frac
            and self._has_room(preflight)
        )

    def _covers_rate(self, learning_rate: float) -> bool:
        from trainable.preflight.configuration import PRECISION

        # It may be this rate that the warning is of: rounded away, where a larger one is not.
        warned = any(warning["name"] == PRECISION for warning in self.warnings)
        return learning_rate == self.learning_rate or (learning_rate > self.learning_rate and not warned)

    def _has_room(self, preflight: "Preflight") -> bool:
        import torch

        from trainable.device.device_memory import run_memory_bytes
        from trainable.preflight.memory import DISK, MEMORY

        room, device = preflight.room, preflight.loaded.spec.device
        if room and room.folder and self.needed_bytes.get(DISK, math.inf) * room.count > room.free_bytes:
            return False
        # A GPU would be asked in a process of its own; its name is in the key.
        left = run_memory_bytes(torch.device(device), runs=preflight.runs) if device == "cpu" else math.inf
        return self.needed_bytes.get(MEMORY, 0) <= left


_RECORD = TypeAdapter(PreflightRecord)


def record_path(preflight: "Preflight") -> Path:
    """Return the path of the record for these inputs, whether or not it exists."""
    loaded, config, largest = preflight.loaded, preflight.config, preflight.largest
    facts = loaded.facts
    inputs = {
        **{name: facts[name] for name in ("model_fingerprint", "checkpoint_fingerprint")},
        "corpus": facts["corpus"]["fingerprint"],
        "protocol": asdict(loaded.spec.protocol),
        "settings": {
            spec.name: getattr(config, spec.name) for spec in fields(config) if spec.name not in WITHOUT_EFFECT
        },
        # The baseline may train adapters in half precision, and the largest configuration every weight in full.
        "largest": [
            largest.precision,
            largest.dropout > 0,
            largest.grad_accum_steps > 1,
            largest.use_lora and [largest.lora_rank, largest.lora_targets],
        ],
        "device": [loaded.spec.device, loaded.device_info.name, loaded.spec.gradient_checkpointing],
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
    sources = sorted((ROOT / "trainable").rglob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What is looked at before anything is trained."""

    loaded: Loaded
    config: TrialConfig
    largest: TrialConfig
    """The configuration that needs the most memory."""
    runs: int = 1
    """On the device at the same time, this one included."""
    memory_frac: float = 1.0
    """Share of a GPU's memory that each may take."""
    room: "CheckpointRoom | None" = None
    """Disk space for the checkpoints."""
    checkpoint: "Checkpoint | None" = None
    """From which a run continues, where that is not the spec's."""


def preflight_of(plan: Plan) -> Preflight:
    """Return what is looked at before a study's trials are run."""
    from search.tune.engine import best_kept_of
    from trainable.checkpoint.checkpoint_store import STATES_KEPT
    from trainable.preflight.memory import CheckpointRoom

    slots = plan.slots
    # Two of every running trial and a third being written, and those of the best trials and the baseline.
    count = slots.count * (STATES_KEPT + 1) + best_kept_of(plan.document) + 1
    return Preflight(
        loaded=plan.loaded,
        config=plan.baseline,
        largest=plan.largest,
        runs=slots.count_on_device,
        memory_frac=slots.memory_frac,
        room=CheckpointRoom(folder=local_folder(plan.options.storage or str(studies_dir())), count=count),
    )


def check_preflight(preflight: Preflight, terminal: Terminal) -> None:
    """Raise SystemExit when a check fails, with the reason printed.

    The checks are skipped when they passed before for the same inputs, or SKIP_PREFLIGHT is set.
    """
    if preflight.loaded.inputs.options.skip_preflight:
        terminal.say("preflight: not run (SKIP_PREFLIGHT)")
        return
    record = read_record(record_path(preflight))
    if record is not None and record.covers(preflight):
        from trainable.preflight.configuration import check_schedule

        terminal.say(f"preflight: passed before ({local_time_words(record.passed_at)}), not run again")
        # Of this run's own numbers, which the record is not of.
        own = check_schedule(preflight.config)
        others = [warning for warning in record.warnings if warning["name"] != own.name]
        for warning in ([asdict(own)] if own.status == "warn" else []) + others:
            _say_check(warning, terminal)
        return
    checks = run_checks(preflight, terminal, every=False)
    if any(check.status == "fail" for check in checks):
        terminal.say("nothing was trained: a search cannot fix this. SKIP_PREFLIGHT=1 goes on regardless.")
        terminal.document({"passed": False, "checks": [asdict(check) for check in checks]})
        raise SystemExit(PREFLIGHT_FAILED)


def run_checks(preflight: Preflight, terminal: Terminal, *, every: bool) -> "list[Check]":
    """Run the checks and print each as it is done; with every=False only failures and warnings.

    A preflight that passed is recorded for later commands.
    """
    started_at = time.monotonic()
    checks: list[Check] = []
    with terminal.console.status("preflight ..."):
        for check in _checks(preflight):
            checks.append(check)
            if every or check.status in ("fail", "warn"):
                _say_check(asdict(check), terminal)
    counts = {status: sum(check.status == status for check in checks) for status in STYLES}
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    if skipped := [check.name for check in checks if check.status == "skipped"]:
        words += f" ({list_words(skipped)})"
    terminal.say(f"preflight: {words}, in {duration_words(time.monotonic() - started_at)}")
    if not counts["fail"]:
        record = PreflightRecord(
            passed_at=datetime.now(),
            learning_rate=preflight.config.learning_rate,
            batch_size=preflight.largest.batch_size,
            block_size=preflight.largest.block_size,
            runs=preflight.runs,
            memory_frac=preflight.memory_frac,
            needed_bytes={check.name: check.needed_bytes for check in checks if check.needed_bytes},
            warnings=[asdict(check) for check in checks if check.status == "warn"],
        )
        write_record(record_path(preflight), record)
    return checks


def _checks(preflight: Preflight) -> "Iterator[Check]":
    from trainable.device.own_process import APART, in_own_process

    loaded, checkpoint = preflight.loaded, preflight.checkpoint
    device_type = loaded.spec.device
    # A separate process reads the file again, because passing tensors to it would copy them.
    start = checkpoint.path if checkpoint is not None and device_type in APART else checkpoint
    return in_own_process(
        device_type,
        _preflight,
        loaded.spec,
        preflight.config,
        preflight.runs,
        preflight.memory_frac,
        tokenizer=loaded.tokenizer,
        files=loaded.inputs.files,
        documents=loaded.inputs.options.documents,
        largest=preflight.largest,
        checkpoint=start,
        room=preflight.room,
    )


def _preflight(
    spec: "RunSpec", config: TrialConfig, runs: int, memory_frac: float, **request: Any
) -> "Iterator[Check]":
    import torch

    from trainable.device.device_memory import prepare_memory, run_memory_bytes
    from trainable.device.own_process import APART
    from trainable.preflight import run_preflight

    device = torch.device(spec.device)
    if device.type in APART:
        prepare_memory(device, share_frac=memory_frac)
    available_bytes = run_memory_bytes(device, runs=runs, share_frac=memory_frac)
    yield from run_preflight(spec, config, available_bytes=available_bytes, **request)


def _say_check(check: Mapping[str, Any], terminal: Terminal) -> None:
    status = check["status"]
    line = Text(f"  {status:<8}", style=STYLES[status]) + Text(f"{check['name']}: {check['measured']}", style="")
    print_line(terminal.console, line)
    if status in ("fail", "warn"):
        print_line(terminal.console, f"expected: {check['expected']}", indent=10)
        if check["advice"]:
            print_line(terminal.console, check["advice"], indent=10)
