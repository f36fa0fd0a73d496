"""attribution.json: written, and read back checked."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from results.attribution.attribution_values import Attribution
from results.study.folder import Study
from results.study.json_documents import read_document, value_of, write_document


def to_json(attribution: Attribution) -> dict[str, Any]:
    """Return the attribution as JSON's types: a row per setting with its effects in it, a combination as places."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(attribution), default=sorted, allow_nan=False))
    for row, effect in zip(document["settings"], document.pop("effects"), strict=True):
        alone, shapley = (effect[name] or dict.fromkeys(("mean", "low", "high")) for name in ("alone", "shapley"))
        row.update(alone=alone["mean"], alone_low=alone["low"], alone_high=alone["high"])
        row.update(shapley=shapley["mean"], low=shapley["low"], high=shapley["high"])
    return document


def from_json(document: Mapping[str, Any]) -> Attribution:
    """Return the attribution that to_json made. Raises KeyError, TypeError or ValueError for anything else."""
    effects = [
        {
            "alone": _estimate(row["alone"], row["alone_low"], row["alone_high"]),
            "shapley": _estimate(row["shapley"], row["low"], row["high"]),
        }
        for row in document["settings"]
    ]
    return value_of(Attribution, {**document, "effects": effects})


def _estimate(mean: float | None, low: float | None, high: float | None) -> dict[str, float | None] | None:
    return None if mean is None else {"mean": mean, "low": low, "high": high}


def write_attribution(study: Study, attribution: Attribution) -> None:
    """Write the study's attribution.json. Raises OSError."""
    write_document(study.path / "attribution.json", to_json(attribution))


def load_attribution(study: Study) -> Attribution | None:
    """Return the study's attribution, None when it has none. Raises UserError when its file is damaged."""
    return read_document(study.path / "attribution.json", from_json, what="an attribution", again="attribute")
