"""Reopens a study to run more into it, under its own protocol and on the same inputs."""

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from results.study.document_model import INPUT_VARIABLES, run_variables
from results.study.folder import Study
from results.winner import winner_of
from results.words import list_words
from search.cluster.storage_hold import check_unheld
from search.cluster.study_storage import checkpoint_root
from search.options import Options, parse_options
from search.setup.inputs import Loaded
from search.setup.plan import Plan, load_for, planned
from search.terminal.console import Preparing
from search.trackers.trackers import check_mirrors, with_tensorboard_of
from search.tune.history import read_warm_start
from spaces.space import SearchSpace
from trainable.config import TrialConfig
from trainable.errors import UserError, redacted
from trainable.rows import ENDINGS


def reopen(
    study: Study,
    options: Options,
    progress: Preparing,
    *,
    space: SearchSpace | None = None,
    configs: Sequence[TrialConfig] = (),
) -> Plan:
    """Return the study's plan, its model, text and checkpoint loaded; device and CONCURRENCY may have changed.

    space, configs: as in Plan. Raises UserError, also when another driver writes the study into STORAGE, or the study
    holds a confirmation of trials that are gone.
    """
    if options.storage is not None:
        check_unheld(study, options.storage)
    winner_of(study)
    document = study.document()
    check_mirrors(options, progress, new_study=None, searches=space is not None)
    loaded = load_inputs_of(study, with_tensorboard_of(study, options), progress, joins=True)
    notes = list(_places_changed(study, document, loaded))
    warm_start = read_warm_start(study, space) if space is not None else None
    return planned(study, document, loaded, progress, space=space, configs=configs, warm_start=warm_start, notes=notes)


def _places_changed(study: Study, document: Mapping[str, Any], loaded: Loaded) -> Iterator[str]:
    """Yield a line where the study goes on with other checkpoints or on another device."""
    here = loaded.inputs.options.storage
    before, now = (redacted(checkpoint_root(study, place)) for place in (document.get("storage"), here))
    if before != now and any(row["status"] not in ENDINGS for row in study.trials()):
        yield f"a trial that was cut off begins again, unless its checkpoint is in {now} too: it was saved in {before}"
    device, own = document["device"], loaded.device_info
    if (device["type"], device["name"]) != (own.type, own.name):
        yield (
            f"the study ran on {device['type']} ({device['name']}) and goes on on {own.type} ({own.name}): device "
            "times do not compare, and losses differ in their last digits"
        )


def load_inputs_of(study: Study, options: Options, progress: Preparing, *, joins: bool = False) -> Loaded:
    """Return what the study was run on; with joins=False to evaluate or sample its models, not to train.

    Model, text and checkpoint may have moved: the variables say where to. Raises UserError with the difference when
    one of them is no longer what the study was run on.
    """
    document = study.document()
    loaded = load_for(document, with_inputs_of(document, options), progress, joins=joins)
    if changed := differences_of_inputs(document, loaded.facts):
        inputs = {v: (document.get(name), loaded.facts[name]) for name, v in INPUT_VARIABLES.items()}
        named = [v for v, (then, now) in inputs.items() if v in options.texts and then != now]
        remedy = f"Unset {list_words(named)}, restore" if named else "Restore"
        raise UserError(
            f"study {study.name}: {'; '.join(changed)}. Its losses and models belong to what it was run on. "
            f"{remedy} what has changed, or start a new search."
        )
    return loaded


def differences_of_inputs(document: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Return in words how text, model or checkpoint differ from what the study was run on; none where they do not."""
    before, now = _fingerprints(document), _fingerprints(facts)
    return [
        f"the {what} has changed since (then {name}, fingerprint {mark[:12]}; now {now[what][0]}, {now[what][1][:12]})"
        for what, (name, mark) in before.items()
        if mark != now[what][1]
    ]


def _fingerprints(facts: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return how each of the inputs is called and its fingerprint, of Loaded.facts or a study's document."""
    corpus = facts["corpus"]
    return {
        "text or the tokenizer": (f"{corpus['train_tokens']:,} training tokens", corpus["fingerprint"]),
        "model": (facts["model"], str(facts.get("model_fingerprint"))),
        "checkpoint": (facts["checkpoint_path"], str(facts.get("checkpoint_fingerprint"))),
    }


def check_there(own: Mapping[str, str]) -> None:
    """Raise UserError for a file or a folder of a study's own variables that is gone: the user has not set them."""
    for name, text in own.items():
        if text.startswith("/") and not os.path.lexists(text):
            raise UserError(f"the study was run on {name}={text}, which is gone. Set {name} to where it is now.")


def with_inputs_of(document: Mapping[str, Any], options: Options) -> Options:
    """Return the options with the study's own model, text, checkpoint and way of training where they name none.

    Raises UserError where one of these is gone.
    """
    texts = run_variables(document)
    check_there({name: text for name, text in texts.items() if name not in options.texts})
    own, fields = parse_options(texts), [name.lower() for name in texts if name not in options.texts]
    # Those of all its trials: with others losses differ in their last digits. Beside a GPU they do not.
    device = document["device"]
    threads = device.get("threads_per_slot") if device["type"] == "cpu" else None
    update = {one: getattr(own, one) for one in fields}
    return options.model_copy(update={**update, "threads": options.threads or threads})
