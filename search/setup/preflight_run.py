"""The preflight as every command that trains runs it: its checks as lines, and whether to go on."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.text import Text

from results.study.folder import studies_dir
from results.words import duration_words, list_words, local_time_words
from search.options import Options
from search.setup.inputs import Inputs, Loaded
from search.setup.preflight_record import PreflightRecord, Sharing, read_record, record_path, write_record
from search.terminal.console import Terminal, print_line
from trainable.config import TrialConfig

if TYPE_CHECKING:
    from search.tune.resources import Slots
    from trainable.checkpoint.checkpoint import Checkpoint
    from trainable.preflight.check_result import Check
    from trainable.preflight.disk import CheckpointRoom
    from trainable.run import RunSpec

STYLES = {"pass": "green", "fail": "bold red", "warn": "yellow", "skipped": "dim"}
PREFLIGHT_FAILED = 1


def passes_preflight(
    options: Options,
    inputs: Inputs,
    loaded: Loaded,
    config: TrialConfig,
    *,
    largest: TrialConfig,
    sharing: Sharing,
    terminal: Terminal,
    room: "CheckpointRoom | None" = None,
    checkpoint: "Checkpoint | None" = None,
) -> bool:
    """Return whether to go on: the set-up is sound, was found so before, or SKIP_PREFLIGHT says not to look.

    room: for the checkpoints. checkpoint: where a run is to go on from, when it is not the spec's.
    """
    if options.skip_preflight:
        terminal.say("preflight: not run (SKIP_PREFLIGHT)")
        return True
    record = read_record(record_path(loaded, config))
    if record is not None and record.covers(largest, sharing):
        terminal.say(f"preflight: passed before ({local_time_words(record.passed_at)}), not run again")
        for check in record.warnings:
            _say_check(check, terminal)
        return True
    checks = run_checks(
        inputs,
        loaded,
        config,
        largest=largest,
        sharing=sharing,
        terminal=terminal,
        every=False,
        room=room,
        checkpoint=checkpoint,
    )
    if all(check.status != "fail" for check in checks):
        return True
    terminal.say("nothing was trained: a search cannot fix this. SKIP_PREFLIGHT=1 goes on regardless.")
    terminal.document({"passed": False, "checks": [asdict(check) for check in checks]})
    return False


def run_checks(
    inputs: Inputs,
    loaded: Loaded,
    config: TrialConfig,
    *,
    largest: TrialConfig,
    sharing: Sharing,
    terminal: Terminal,
    every: bool,
    room: "CheckpointRoom | None" = None,
    checkpoint: "Checkpoint | None" = None,
) -> "list[Check]":
    """Run the preflight, saying each check as it is done, or with every=False those alone that ask for attention.

    That it passed is kept, for the commands that come after.
    """
    started_at = time.monotonic()
    checks: list[Check] = []
    with terminal.console.status("preflight ..."):
        for check in _checks(inputs, loaded, config, largest, sharing, room, checkpoint):
            checks.append(check)
            if every or check.status in ("fail", "warn"):
                _say_check(check, terminal)
    counts = {status: sum(check.status == status for check in checks) for status in STYLES}
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    if skipped := [check.name for check in checks if check.status == "skipped"]:
        words += f" ({list_words(skipped)})"
    terminal.say(f"preflight: {words}, in {duration_words(time.monotonic() - started_at)}")
    if not counts["fail"]:
        record = PreflightRecord(
            passed_at=datetime.now(),
            batch_size=largest.batch_size,
            block_size=largest.block_size,
            sharing=sharing,
            warnings=[check for check in checks if check.status == "warn"],
        )
        write_record(record_path(loaded, config), record)
    return checks


def sharing_of(slots: "Slots") -> Sharing:
    """Return how a study's trials share the device's memory."""
    return Sharing(runs=slots.count_on_device, memory_frac=slots.memory_frac)


def study_room(slots: "Slots") -> "CheckpointRoom":
    """Return the room that a study's checkpoints need: two of every running trial and a third being written, and those
    of the best trials and the baseline."""
    from search.tune.engine import KEPT_CHECKPOINTS
    from trainable.checkpoint.checkpoint_store import KEPT
    from trainable.preflight.disk import CheckpointRoom

    storage = slots.storage
    local = storage is None or "://" not in storage or storage.startswith("file://")
    folder = Path(storage.removeprefix("file://")) if storage else studies_dir()
    return CheckpointRoom(folder=folder if local else None, count=slots.count * (KEPT + 1) + KEPT_CHECKPOINTS + 1)


def _checks(
    inputs: Inputs,
    loaded: Loaded,
    config: TrialConfig,
    largest: TrialConfig,
    sharing: Sharing,
    room: "CheckpointRoom | None",
    checkpoint: "Checkpoint | None",
) -> "Iterator[Check]":
    from trainable.device.own_process import APART, in_own_process

    device_type = loaded.spec.device
    # A process of its own reads the file again: its tensors would be copied on the way there.
    start = checkpoint.path if checkpoint is not None and device_type in APART else checkpoint
    return in_own_process(
        device_type,
        _preflight,
        loaded.spec,
        config,
        sharing,
        tokenizer=loaded.tokenizer,
        files=inputs.files,
        largest=largest,
        checkpoint=start,
        room=room,
    )


def _preflight(spec: "RunSpec", config: TrialConfig, sharing: Sharing, **request: Any) -> "Iterator[Check]":
    import torch

    from trainable.device.device_memory import prepare_memory, run_memory_bytes
    from trainable.device.own_process import APART
    from trainable.preflight import run_preflight

    device = torch.device(spec.device)
    if device.type in APART:
        prepare_memory(device, share_frac=sharing.memory_frac)
    available_bytes = run_memory_bytes(device, runs=sharing.runs, share_frac=sharing.memory_frac)
    yield from run_preflight(spec, config, available_bytes=available_bytes, **request)


def _say_check(check: "Check", terminal: Terminal) -> None:
    line = Text(f"  {check.status:<8}", style=STYLES[check.status]) + Text(f"{check.name}: {check.measured}", style="")
    print_line(terminal.console, line)
    if check.status in ("fail", "warn"):
        print_line(terminal.console, f"expected: {check.expected}", indent=10)
        if check.advice:
            print_line(terminal.console, check.advice, indent=10)
