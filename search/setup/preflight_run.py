"""The preflight as every command that trains runs it: its checks as lines, and whether to go on."""

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.text import Text

from results.words import duration_words
from search.options import Options
from search.setup.inputs import Inputs, Loaded
from search.terminal.console import Terminal
from trainable.config import TrialConfig

if TYPE_CHECKING:
    from trainable.checkpoint.checkpoint import Checkpoint
    from trainable.preflight.check_result import Check

STYLES = {"pass": "green", "fail": "bold red", "warn": "yellow", "skipped": "dim"}
PREFLIGHT_FAILED = 1


def passes_preflight(
    options: Options,
    inputs: Inputs,
    loaded: Loaded,
    config: TrialConfig,
    *,
    largest: TrialConfig,
    runs_at_once: int,
    terminal: Terminal,
    checkpoint: "Checkpoint | None" = None,
) -> bool:
    """Return whether to go on: the set-up is sound, or SKIP_PREFLIGHT says to go on regardless.

    checkpoint: where a run is to go on from, when it is not the spec's.
    """
    checks = run_checks(
        inputs,
        loaded,
        config,
        largest=largest,
        runs_at_once=runs_at_once,
        terminal=terminal,
        every=False,
        checkpoint=checkpoint,
    )
    failed = [check for check in checks if check.status == "fail"]
    if not failed:
        return True
    if options.skip_preflight:
        terminal.say("going on regardless, as SKIP_PREFLIGHT says")
        return True
    terminal.say("nothing was trained: no search can mend this. SKIP_PREFLIGHT=1 goes on regardless.")
    terminal.document({"passed": False, "checks": [asdict(check) for check in checks]})
    return False


def run_checks(
    inputs: Inputs,
    loaded: Loaded,
    config: TrialConfig,
    *,
    largest: TrialConfig,
    runs_at_once: int,
    terminal: Terminal,
    every: bool,
    checkpoint: "Checkpoint | None" = None,
) -> "list[Check]":
    """Run the preflight, saying each check as it is done, or with every=False those alone that ask for attention."""
    started_at = time.monotonic()
    checks: list[Check] = []
    with terminal.console.status("preflight ..."):
        for check in _checks(inputs, loaded, config, largest, runs_at_once, checkpoint):
            checks.append(check)
            if every or check.status in ("fail", "warn"):
                _say_check(check, terminal)
    counts = {status: sum(check.status == status for check in checks) for status in STYLES}
    words = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    terminal.say(f"preflight: {words}, in {duration_words(time.monotonic() - started_at)}")
    return checks


def _checks(
    inputs: Inputs,
    loaded: Loaded,
    config: TrialConfig,
    largest: TrialConfig,
    runs_at_once: int,
    checkpoint: "Checkpoint | None",
) -> "Iterator[Check]":
    import torch

    from trainable.preflight import run_preflight
    from trainable.preflight.memory_probe import available_memory_bytes

    memory_bytes = available_memory_bytes(torch.device(loaded.spec.device))
    return run_preflight(
        loaded.spec,
        config,
        tokenizer=loaded.tokenizer,
        files=inputs.files,
        largest=largest,
        checkpoint=checkpoint,
        available_bytes=None if memory_bytes is None else memory_bytes // runs_at_once,
    )


def _say_check(check: "Check", terminal: Terminal) -> None:
    line = Text(f"  {check.status:<8}", style=STYLES[check.status]) + Text(f"{check.name}: {check.measured}", style="")
    terminal.console.print(line, soft_wrap=True)
    if check.status in ("fail", "warn"):
        terminal.say(f"          expected: {check.expected}")
        if check.advice:
            terminal.say(f"          {check.advice}")
