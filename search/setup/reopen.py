"""A study that exists, opened to run more into it under its own protocol, its inputs found to be the same."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results.study.folder import Study
from results.study.own_files import remove_unfinished
from search.options import Options
from search.setup.inputs import Loaded, check_inputs, load_inputs
from search.setup.plan import Asked, Plan, load_plan
from search.terminal.console import Preparing
from spaces.space import SearchSpace
from trainable.config import TrialConfig
from trainable.data.text_documents import parse_documents
from trainable.errors import UserError


def reopen(
    study: Study,
    options: Options,
    progress: Preparing,
    *,
    space: SearchSpace | None = None,
    configs: Sequence[TrialConfig] = (),
) -> Plan:
    """Return the study's plan, its model, text and checkpoint loaded; DEVICE and CONCURRENCY are the variables'.

    space, configs: where its own trials go on. Model, text and checkpoint may have moved: the variables say where to.
    Raises UserError with the difference when one of them is no longer what the study was run on.
    """
    document = study.document()

    def check(loaded: Loaded) -> None:
        if found := differences_of_inputs(document, loaded.facts):
            raise UserError(
                f"study {study.name}: {'; '.join(found)}. Its losses could not be compared with new ones. Restore what "
                "has changed, or start a new search."
            )

    own = with_inputs_of(document, options)
    plan = load_plan(study, Asked(document=document, space=space, configs=configs), own, progress, check=check)
    remove_unfinished(study.path)
    return plan


def load_inputs_of(study: Study, options: Options, progress: Preparing) -> Loaded:
    """Return what the study was run on, loaded to evaluate or sample its models, not to train.

    Raises UserError when something has changed since.
    """
    document = study.document()
    inputs = check_inputs(with_inputs_of(document, options), progress=progress)
    loaded = load_inputs(
        inputs,
        block_size=document["evaluation"]["block_size"],
        eval_tokens=document["evaluation"]["tokens"],
        stability=document.get("stability", {}),
        init_from=inputs.checkpoint_path,
        progress=progress,
    )
    if changed := differences_of_inputs(document, loaded.facts):
        raise UserError(f"study {study.name}: {'; '.join(changed)}. Restore what has changed: the model needs it.")
    return loaded


def differences_of_inputs(document: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    """Return in words how text, model or checkpoint differ from what the study was run on; none where they do not."""
    found = []
    if document["corpus"]["fingerprint"] != facts["corpus"]["fingerprint"]:
        then, now = document["corpus"], facts["corpus"]
        found.append(
            f"the text or the tokenizer has changed since (then {then['train_tokens']:,} training tokens, fingerprint "
            f"{then['fingerprint'][:12]}; now {now['train_tokens']:,}, {now['fingerprint'][:12]})"
        )
    for what, name, fingerprint in (
        ("model", "model", "model_fingerprint"),
        ("checkpoint", "checkpoint_path", "checkpoint_fingerprint"),
    ):
        pairs = [(document.get(key), facts[key]) for key in (fingerprint, name)]
        # Where one of the two has none, the name has to do: an earlier version took none of a hub's model.
        then, now = pairs[0] if None not in pairs[0] else pairs[1]
        if then != now:
            found.append(
                f"the {what} has changed since (then {_named(document, name, fingerprint)}; now "
                f"{_named(facts, name, fingerprint)})"
            )
    return found


def _named(facts: Mapping[str, Any], name: str, fingerprint: str) -> str:
    return f"{facts[name]}" + (f", fingerprint {facts[fingerprint][:12]}" if facts.get(fingerprint) else "")


def with_inputs_of(document: Mapping[str, Any], options: Options) -> Options:
    """Return the options with the study's own model, text and checkpoint where they name none."""
    source, checkpoint = document.get("data_source"), document.get("checkpoint_path")
    held_out, documents = document.get("validation_data_source"), document.get("documents")
    own = {
        "gpt2_model_name": options.gpt2_model_name or document.get("model"),
        "training_data_source": options.training_data_source or (Path(source) if source else None),
        "validation_data_source": options.validation_data_source or (Path(held_out) if held_out else None),
        "documents": options.documents or (parse_documents(documents) if documents else None),
        "checkpoint_path": options.checkpoint_path or (Path(checkpoint) if checkpoint else None),
    }
    return options.model_copy(update=own)
