"""study.json: all that is needed to run a study again and to judge it."""

import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from results.study.document_model import HOW_TRIALS_TRAIN
from results.study.folder import SCHEMA_VERSION, time_to_make
from search.setup.inputs import Loaded
from spaces.overrides import Settings
from spaces.space import SearchSpace
from trainable.rows import Start

RECORDED_PACKAGES = ("torch", "ray", "transformers", "optuna", "tokenizers", "numpy", "pyarrow")


def asked_of(kind: str, space: SearchSpace, settings: Settings, *, trials_planned: int) -> dict[str, Any]:
    """Return the part of a new study's document that the user asked for; kind is "search" or "baseline"."""
    return {
        "kind": kind,
        "space": {
            "name": space.name,
            "path": str(Path(space.path).resolve()),
            "description": space.description,
            "toml": space.toml,
        },
        "evaluation": {
            "block_size": space.evaluation.block_size,
            "tokens": space.evaluation.tokens,
            "milestones_tokens": list(space.evaluation_tokens()),
        },
        "budget_tokens": space.budget.tokens,
        "device_time": space.budget.to_json(),
        "rung_tokens": list(space.rung_tokens()),
        "baseline": {"name": space.baseline_name, **asdict(space.baseline)},
        "settings": asdict(settings),
        "trials_planned": trials_planned,
        "searcher": {"name": space.searcher},
        "scheduler": asdict(space.scheduler),
        "stability": space.stability,
        "seed": space.baseline.seed,
    }


def study_document(name: str, asked: Mapping[str, Any], *, loaded: Loaded, slots: Mapping[str, Any]) -> dict[str, Any]:
    """Return a new study's document: what was asked for, the inputs, the device and its slots.

    asked: asked_of()'s, or at least its "kind", "evaluation", "budget_tokens", "baseline", "seed", "trials_planned".
    """
    options = loaded.inputs.options
    how = {name: getattr(options, name) for name in HOW_TRIALS_TRAIN}
    packages = {name: version(name) for name in RECORDED_PACKAGES}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "created_at": time_to_make().isoformat(),
        "rung_tokens": [],
        **asked,
        **loaded.facts,
        "sample_prompt": options.sample_prompt,
        "stability": dict(loaded.spec.stability),
        "evaluation": {**asked["evaluation"], **asdict(loaded.spec.protocol)},
        "device": {**asdict(loaded.device_info), **how, **slots},
        "versions": {"python": platform.python_version(), "platform": platform.platform(), **packages},
        "git_commit": _git_commit(),
    }


def start_losses(start: Start) -> dict[str, float | None]:
    """Return study.json's "start"; None for a loss that is not finite."""
    return {name: loss if math.isfinite(loss) else None for name, loss in asdict(start).items()}


def _git_commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
