"""study.json: what a study was, in full, so that it can be run again and judged."""

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from results.study.folder import SCHEMA_VERSION
from search.setup.inputs import Loaded
from search.setup.settings import Settings
from spaces.space import SearchSpace

RECORDED_PACKAGES = ("torch", "ray", "transformers", "optuna", "tokenizers", "numpy", "pyarrow")


def study_document(
    name: str,
    kind: str,
    *,
    space: SearchSpace,
    settings: Settings,
    loaded: Loaded,
    slots: Mapping[str, Any],
    trials_planned: int,
) -> dict[str, Any]:
    """Return the document of a new study; kind is "search" or "baseline"."""
    document = common_document(name, kind, loaded=loaded)
    document.update(
        space={
            "name": space.name,
            "path": str(Path(space.path).resolve()),
            "description": space.description,
            "toml": space.toml,
        },
        budget_tokens=space.budget_tokens,
        rung_tokens=list(space.rung_tokens()),
        baseline={"name": space.baseline_name, **asdict(space.baseline)},
        settings=settings.to_json(),
        trials_planned=trials_planned,
        searcher=asdict(space.searcher),
        scheduler=asdict(space.scheduler),
        stability=dict(space.stability),
        seed=space.baseline.seed,
    )
    document["evaluation"]["milestones_tokens"] = list(space.evaluation_tokens())
    document["device"].update(slots)
    return document


def common_document(name: str, kind: str, *, loaded: Loaded) -> dict[str, Any]:
    """Return what the documents of every kind of study hold."""
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "kind": kind,
        "created_at": datetime.now(UTC).isoformat(),
        **loaded.facts,
        "evaluation": asdict(loaded.spec.protocol),
        "device": asdict(loaded.device_info),
        "versions": {"python": platform.python_version(), "platform": platform.platform(), **_package_versions()},
        "git_commit": _git_commit(),
    }


def _package_versions() -> dict[str, str]:
    found = {}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


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
