"""Faults inside a trial's process, without a line of the program knowing: copied as sitecustomize.py onto its path.

Beside it lies faults.json: [{"trial_id", "step", "do", "times"}, ...]. FAULTS_MOST_DELAY_S in the environment makes
each trial slow by a pace of its own: it sleeps up to so long after every step, another time on every run.
"""

import importlib.abc
import importlib.machinery
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

HERE = Path(__file__).parent
MIB = 1 << 20
UNDER_WAY = "FAULTS_TRIAL"
"""The trial's number, in the environment: what travels to a process leaves this module's globals behind."""


def faults(*, saving: bool) -> list[dict[str, Any]]:
    """Return those of the trial under way, at its steps or while it saves."""
    found = json.loads((HERE / "faults.json").read_text())
    here = [fault for fault in found if str(fault["trial_id"]) == os.environ[UNDER_WAY]]
    return [fault for fault in here if (fault["do"] == "die while saving") == saving]


def strikes(fault: dict[str, Any]) -> bool:
    """Return whether the fault is due again, and count it."""
    for time_of in range(fault["times"]):
        try:
            (HERE / f"struck-{fault['trial_id']}-{fault['do']}-{time_of}").touch(exist_ok=False)
        except FileExistsError:
            continue
        return True
    return False


def strike(do: str) -> None:
    """Do the worst."""
    import torch

    match do:
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raise":
            raise ValueError("injected: the batch has no labels")
        case "hang":
            time.sleep(3600)
        case "ask for a petabyte":
            torch.empty(1 << 50, dtype=torch.uint8)
        case "grow":
            held = []
            while True:
                held.append(bytearray(os.urandom(MIB) * 64))


class Inject(importlib.abc.MetaPathFinder):
    """Changes two modules right after they were imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the module's own spec, whose loader changes it afterwards."""
        change = {"trainable.ray_trainable": in_training, "trainable.checkpoint.checkpoint_file": in_saving}.get(name)
        spec = PathFinder.find_spec(name, path) if change else None
        if change is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def then_change(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = then_change  # type: ignore[method-assign]
        return spec


def in_training(module: Any) -> None:
    """Let faults strike right after a step, which nobody has been told of yet."""
    train, step = module.train, module.SearchTrial.step

    def struck(state: Any, *arguments: Any, **options: Any) -> Iterator[Any]:
        # Not by random's own functions: they would move the state that a trial may draw from.
        delay_s = float(os.environ.get("FAULTS_MOST_DELAY_S", 0)) * 10 ** random.Random().uniform(-2, 0)
        for row in train(state, *arguments, **options):
            time.sleep(delay_s)
            for fault in faults(saving=False):
                if state.optimizer_steps == fault["step"] and strikes(fault):
                    strike(fault["do"])
            yield row

    def noted(self: Any) -> Any:
        os.environ[UNDER_WAY] = str(self._store.trial_id)
        return step(self)

    module.train, module.SearchTrial.step = struck, noted


def in_saving(module: Any) -> None:
    """Let a fault strike between a checkpoint's writing and its renaming."""
    save = module.torch.save

    def struck(payload: Any, file: Any) -> None:
        save(payload, file)
        for fault in faults(saving=True):
            if payload["optimizer_steps"] >= fault["step"] and strikes(fault):
                strike("die")

    module.torch.save = struck


sys.meta_path.insert(0, Inject())
