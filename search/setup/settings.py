"""The user's settings: read from the variables, and compared with those that a study was planned with."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from results.confirmation.attempt import Attempt
from search.options import MoreTrials, Options, with_origin
from search.setup.baseline_sources import read_baseline
from spaces.overrides import ConfirmAtEnd, Settings, space_of_document
from spaces.read.load import space_from_toml
from spaces.read.space_files import find_space_file, parse_toml, read_space_text
from spaces.read.toml_table import shown
from spaces.space import SearchSpace
from trainable.config import config_from, variable_of
from trainable.errors import UserError

DIFFERENCES_SHOWN = 6


def read_settings(options: Options) -> tuple[Settings, list[str]]:
    """Return the settings, and lines for the user on how the variables were read. Raises UserError."""
    refuse_steps(options)
    pins = options.explicit_hyperparameters()
    notes = []
    if pins.pop("training_steps", None) is not None:
        notes.append("TRAINING_STEPS is not read by a search: its budget is in tokens (BUDGET_TOKENS).")
    pinned = [f"{variable_of(name)}={value}" for name, value in pins.items() if name != "seed"]
    if pinned:
        notes.append(with_origin(f"pinned, for the baseline too: {', '.join(pinned)}.", options.typed))
    baseline = read_baseline(options.baseline) if options.baseline else None
    if baseline is not None:
        notes += baseline.notes
    settings = Settings(
        trials=None if isinstance(options.trials, MoreTrials) else options.trials,
        budget_tokens=options.budget_tokens,
        device_s=options.budget_time,
        pins=pins,
        baseline=(baseline.name, baseline.config) if baseline else None,
        compare=options.compare,
        confirm=ConfirmAtEnd(top=options.top, seeds=options.seeds) if options.confirm else None,
    )
    return settings, notes


def confirm_at_end(planned: ConfirmAtEnd | None, options: Options, attempts: Sequence[Attempt]) -> ConfirmAtEnd | None:
    """Return what a resumed search confirms at its end: what was planned, as CONFIRM, TOP and SEEDS change it."""
    if options.confirm is False:
        return None
    if options.confirm:
        judged = sum(bool(attempt.verdicts) for attempt in attempts)
        planned = replace(planned or ConfirmAtEnd(top=options.top, seeds=options.seeds), attempt=judged + 1)
    typed = {name: getattr(options, name) for name in ("top", "seeds") if name.upper() in options.texts}
    return planned and replace(planned, **typed)


def refuse_steps(options: Options) -> None:
    """Raise UserError for STEPS, which no trial's budget is in."""
    if options.steps is not None:
        raise UserError("STEPS is the length of a winner's run. A search takes BUDGET_TOKENS or BUDGET_TIME. Unset it.")


def planned_space(document: Mapping[str, Any], where: str) -> tuple[SearchSpace, Settings]:
    """Return the space and the settings that a study was planned with, from its own document.

    Raises UserError for a document of another version, which has them not.
    """
    try:
        space, settings = space_of_document(document)
        as_run = config_from(document["baseline"]), document["evaluation"]["milestones_tokens"]
    except (KeyError, TypeError, ValidationError):
        raise UserError(f"{where} does not say how the study was planned. Start a new one.") from None
    if (space.baseline, list(space.evaluation_tokens())) != as_run:
        raise UserError(f"{where}: the study was planned by another version of this program. Start a new one.")
    return space, settings


def differences(
    document: Mapping[str, Any], settings: Settings, options: Options, *, warm_start: str | None = None
) -> list[str]:
    """Return how the variables and SPACE differ from the settings that the study was planned with.

    warm_start: the study that it learns from.
    """
    found = []
    asked, _ = read_settings(options)
    for name, value in asked.pins.items():
        then = settings.pins.get(name, document["baseline"][name] if name == "seed" else None)
        if value != then:
            found.append(f"{variable_of(name)} is {value}, was {'searched or not set' if then is None else then}")
    if asked.baseline is not None and asked.baseline != settings.baseline:
        has_changed = settings.baseline is not None and settings.baseline[0] == asked.baseline[0]
        was = "which has changed since" if has_changed else f"was {document['baseline']['name']}"
        found.append(f"BASELINE is {asked.baseline[0]}, {was}")
    others: dict[str, tuple[Any, Any]] = {"WARM_START": (options.warm_start, warm_start)}
    if document["kind"] == "baseline":
        others |= {"COMPARE": (options.compare, settings.compare), "TRIALS": (options.trials, settings.trials)}
    for name, (value, then) in others.items():
        if value not in (None, then):
            found.append(f"{name} is {value}, was {then or 'not set'}")
    file, then = _space_file(document, options), document["space"]
    if file != Path(then["path"]).resolve() and _space_differences(then, _text_of(file)):
        found.append(f"SPACE is {options.space}, was {then['name']}")
    return found


def _space_file(document: Mapping[str, Any], options: Options) -> Path:
    """Return the file that SPACE names now, however its path is written; without SPACE the study's own."""
    then = document["space"]
    if options.space is None:
        return Path(then["path"]).resolve()
    try:
        return find_space_file(options.space).resolve()
    except UserError:
        # The file was moved away, and the study has its text. The space's name means the study's own then.
        return Path(then["path"] if options.space == then["name"] else options.space).expanduser().resolve()


def _text_of(file: Path) -> str | None:
    try:
        return read_space_text(file)
    except UserError:
        return None


def space_file_differences(document: Mapping[str, Any], options: Options) -> list[str]:
    """Return the keys in which the space's file has changed since, at most six; none where it is gone."""
    now = _text_of(_space_file(document, options))
    return [] if now is None else _space_differences(document["space"], now)[:DIFFERENCES_SHOWN]


def _space_differences(then: Mapping[str, Any], now: str | None) -> list[str]:
    """Return how a text differs from a study's space; comments, order and written-out defaults do not count."""
    if now is None:
        return ["it cannot be read"]
    place = {"name": then["name"], "path": then["path"]}
    try:
        spaces = [replace(space_from_toml(text, **place), description="") for text in (then["toml"], now)]
        if spaces[0] == spaces[1]:
            return []
        return list(_changed(parse_toml(then["toml"], ""), parse_toml(now, "")))
    except UserError as error:
        return [f"it cannot be used now: {str(error).removeprefix(then['path'] + ': ').rstrip('.')}"]


def _changed(then: Mapping[str, Any], now: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key in dict.fromkeys((*then, *now)):
        before, after = then.get(key), now.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _changed(before, after, f"{above}{key}.")
        elif before != after:
            words = ["not there" if value is None else shown(value) for value in (after, before)]
            yield f"{above}{key} is {words[0]}, was {words[1]}"
