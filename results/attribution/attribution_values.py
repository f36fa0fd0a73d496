"""An attribution as values; attribution.json, written and read back checked."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from results.attribution.design import Coalition, Setting
from results.study.atomic import read_document, value_of, write_document
from results.study.folder import Study
from trainable.config import HYPERPARAMETERS

ALPHA = 0.05
"""All intervals of an attribution together miss a true value with a chance of at most 5 %."""

ONE_SEED_SHARE = 0.2
"""With one seed there is no interval: an interaction is named if it is this share of the largest Shapley value."""

PATH_SHARE = 0.9
"""The shortest path reaches this share of the largest gain of any combination."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds, in nats/token; as a difference, negative is better."""

    mean: float
    low: float | None
    high: float | None
    """Its t interval over seeds, Bonferroni over the statements; None with one seed, or the same value on each."""

    @property
    def is_proven(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The effect of one change."""

    alone: Estimate | None
    """Of this change only, against `before`; None when that run was unstable or is missing."""
    shapley: Estimate | None
    """Its share of the total; None when too many combinations were unstable or are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """The effect of two changes together beyond the sum of both."""

    first: int
    second: int
    estimate: Estimate
    named: bool
    """Whether it is worth naming: its interval leaves 0 out, or, with one seed, it has ONE_SEED_SHARE."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortestPath:
    """The fewest changes with PATH_SHARE of the best combination's gain, the greatest gains first."""

    order: tuple[int, ...]
    """Empty when no combination is better than `before`."""
    losses: tuple[float | None, ...]
    """Mean loss of `before` and after each change; None where that combination was not run."""
    difference: Estimate | None
    """Its end less `before`, without an interval, because these losses chose it. None when it is empty."""
    share_frac: float | None
    """Of the best combination's gain."""
    best: Coalition
    """The combination of the lowest mean loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnstableCombination:
    """A combination that did not complete on some seeds."""

    changes: Coalition
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Which of the changes did it; attribution.json."""

    before_name: str
    after_name: str
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    """The seeds on which the first and the last combination were stable; all below is paired over them."""
    combinations: int
    """The number that were stable on each of these seeds."""
    is_exact: bool
    """Whether these are all combinations. If not, Shapley values are exact unless three or more changes interact."""
    loss_before: float | None
    loss_after: float | None
    total: Estimate | None
    """after - before. The Shapley values sum to it."""
    effects: tuple[Effect, ...]
    """By setting."""
    interactions: tuple[Interaction, ...]
    """Of every two changes; empty when the combinations do not determine them."""
    path: ShortestPath | None
    unstable: tuple[UnstableCombination, ...]
    notes: tuple[str, ...]


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
        {"alone": _estimate(row, "alone", "alone_"), "shapley": _estimate(row, "shapley", "")}
        for row in document["settings"]
    ]
    found = value_of(Attribution, {**document, "effects": effects})
    named = {change for pair in found.interactions for change in (pair.first, pair.second)}
    named |= {change for entry in found.unstable for change in entry.changes}
    if (path := found.path) is not None:
        named |= {*path.order, *path.best}
        if len(path.losses) != len(path.order) + 1 or (path.order and path.share_frac is None):
            raise ValueError("its path is not whole")
    if not {field for setting in found.settings for field in setting.fields} <= HYPERPARAMETERS.keys():
        raise ValueError("it changes what is no hyperparameter")
    if not named <= {*range(len(found.settings))}:
        raise ValueError("it names a change that is none of its settings")
    return found


def _estimate(row: Mapping[str, Any], mean: str, prefix: str) -> dict[str, Any] | None:
    bounds = {"low": row[f"{prefix}low"], "high": row[f"{prefix}high"]}
    return None if row[mean] is None else {"mean": row[mean], **bounds}


def write_attribution(study: Study, attribution: Attribution) -> None:
    """Write the study's attribution.json. Raises OSError."""
    write_document(study.path / "attribution.json", to_json(attribution))


def load_attribution(study: Study) -> Attribution | None:
    """Return the study's attribution, None when it has none. Raises UserError when its file is damaged."""
    return read_document(study.path / "attribution.json", from_json, what="an attribution", again="attribute")
