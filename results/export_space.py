"""A study's winner as a whole space file, for SPACE= to search around it. It reads no study."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

import tomlkit

from spaces.budget import Budget, budget_of
from spaces.domains import Choice, Domain, FloatRange
from spaces.overrides import Settings, space_of_document, with_overrides
from spaces.read.load import load_space, space_from_toml
from spaces.space import SearchSpace
from trainable.config import TrialConfig


def space_text(document: Mapping[str, Any], config: TrialConfig, notes: Sequence[str], *, budget: Budget | None) -> str:
    """Return the study's own space with `config` as its [baseline], its comments kept; `notes` stand on top.

    Its budget is `budget`, or the study's. A study that searched no space gives the plateau space. Raises UserError
    when the study's space cannot be read any more, or what is written is no space that can be searched.
    """
    own = document.get("space")
    before = space_from_toml(own["toml"], name=own["name"], path=own["path"]) if own else load_space("plateau")
    text = tomlkit.parse(before.toml)
    text.pop("baseline", None)
    studied = before
    with suppress(KeyError, TypeError, AttributeError):  # another version's study
        # What the study had pinned is searched no more, and what it had widened stays wide.
        studied = space_of_document(document)[0] if document["kind"] == "search" else before
    _follow(text, before, with_overrides(studied, Settings(baseline=(before.name, config))))
    if own or budget is not None:
        in_file = budget or budget_of(document)
        time_s = in_file.device_s
        text["budget"] = {"tokens": in_file.tokens} if time_s is None else {"device_minutes": time_s / 60}
    baseline = tomlkit.table()
    # A space has no seed: SEED sets it for every trial.
    baseline.update({name: value for name, value in asdict(config).items() if name != "seed"})
    text["baseline"] = baseline
    written: str = tomlkit.dumps(text)
    # A budget that is too short for the largest shapes is refused here, with the least that works.
    space_from_toml(written, name=before.name, path="the exported space")
    return "".join(f"# {note}\n" for note in notes) + "\n" + written.lstrip("\n")


def _follow(text: tomlkit.TOMLDocument, before: SearchSpace, after: SearchSpace) -> None:
    """Change the [search] table of `before` to the parameters of `after`."""
    search: Any = text.get("search", {})
    left = {parameter.name: parameter for parameter in after.parameters}
    for parameter in before.parameters:
        now = left.get(parameter.name)
        if now is None:
            del search[parameter.name]
            continue
        if now.domain != parameter.domain:
            key, values = _as_toml(now.domain)
            search[parameter.name][key] = values
        if now.condition != parameter.condition:
            del search[parameter.name]["when"]
            if now.condition is not None:
                search[parameter.name]["when"] = {now.condition.parent: list(now.condition.values)}


def _as_toml(domain: Domain) -> tuple[str, list[Any]]:
    if isinstance(domain, Choice):
        return "choice", list(domain.values)
    if isinstance(domain, FloatRange):
        return "log_uniform" if domain.log else "uniform", [domain.low, domain.high]
    return "int", [domain.low, domain.high]
