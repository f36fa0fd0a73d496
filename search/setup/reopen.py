"""A study that exists, opened to run more trials into it under its own protocol, and found to be the same."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.study.folder import Study, studies_dir
from results.study.ledger import Ledger
from results.study.own_files import remove_unfinished
from results.study.paths import shown
from search.options import Options
from search.setup.inputs import Inputs, Loaded, check_inputs, load_inputs
from search.setup.plan import slots_for
from search.terminal.console import Preparing, Terminal
from search.tune.run_trials import run_trials
from trainable.config import TrialConfig, config_from
from trainable.data.documents import parse_documents
from trainable.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ray.tune import Callback

    from search.terminal.live_view import StudyView
    from search.tune.resources import Slots
    from search.tune.workload import Workload


@dataclass(frozen=True, kw_only=True)
class Reopened:
    """A study with all that its trials run on, loaded again and found to be the same."""

    study: Study
    document: dict[str, Any]
    inputs: Inputs
    loaded: Loaded
    slots: "Slots"
    baseline: TrialConfig

    @property
    def milestones_tokens(self) -> tuple[int, ...]:
        """Where every trial of the study is evaluated."""
        return tuple(self.document["evaluation"]["milestones_tokens"])


def reopen(study: Study, options: Options, progress: Preparing) -> Reopened:
    """Return the study with its model, text and checkpoint loaded; DEVICE and CONCURRENCY are the variables'.

    Model, text and checkpoint may have moved: the variables say where to. Raises UserError with the difference when
    one of them is no longer what the study was run on.
    """
    document = study.document()
    opened = load_like(document, options, progress, baseline=config_from(document["baseline"]))
    found = differences_of_inputs(document, opened.loaded.facts)
    if found:
        raise UserError(
            f"study {study.name}: {'; '.join(found)}. Its losses would not compare with new ones. Restore what has "
            "changed, or search anew."
        )
    remove_unfinished(study.path)
    return replace(opened, study=study)


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
        if document.get(fingerprint) != facts[fingerprint] or (
            facts[fingerprint] is None and document[name] != facts[name]
        ):
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


def load_like(document: Mapping[str, Any], options: Options, progress: Preparing, *, baseline: TrialConfig) -> Reopened:
    """Return what runs under a study document's protocol need; its model, text and checkpoint where it names them.

    The study itself is yet to be set.
    """
    inputs = check_inputs(with_inputs_of(document, options), progress=progress)
    loaded = load_inputs(
        inputs,
        block_size=document["evaluation"]["block_size"],
        eval_tokens=document["evaluation"]["tokens"],
        stability=document.get("stability", {}),
        init_from=inputs.checkpoint_path,
        progress=progress,
        address=options.address,
        storage=options.storage,
    )
    return Reopened(
        study=Study(studies_dir()),
        document=dict(document),
        inputs=inputs,
        loaded=loaded,
        slots=slots_for(loaded, options, baseline, progress),
        baseline=baseline,
    )


def run_more(
    reopened: Reopened,
    make_workload: "Callable[[], Workload]",
    terminal: Terminal,
    ledger: Ledger,
    *,
    lines: "Sequence[str]" = (),
    callbacks: "Callable[[StudyView], Sequence[Callback]] | None" = None,
) -> int | None:
    """Run more trials into the study; return the exit code of an interruption, or None."""
    return run_trials(
        reopened.study,
        make_workload,
        reopened.loaded.spec,
        slots=reopened.slots,
        ledger=ledger,
        budget_tokens=reopened.document["budget_tokens"],
        lines=[*lines, f"study {shown(reopened.study.path)}: starting Ray ..."],
        terminal=terminal,
        callbacks=callbacks,
    )
