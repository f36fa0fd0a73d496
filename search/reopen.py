"""A study that exists, opened to run more trials into it under its own protocol."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from results.ledger import Ledger
from results.paths import shown
from results.study import Study, studies_dir
from search.inputs import Inputs, Loaded, check_inputs, load_inputs
from search.interrupts import Interrupts
from search.plan import slots_for
from search.terminal import Preparing, Terminal
from search.variables import Variables
from search.view import StudyView
from trainable.config import TrialConfig, config_from
from trainable.errors import UserError

if TYPE_CHECKING:
    from search.engine import Slots
    from search.work import Work


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


def reopen(study: Study, variables: Variables, progress: Preparing) -> Reopened:
    """Return the study with its model, text and checkpoint loaded; DEVICE and CONCURRENCY are the variables'.

    Raises UserError when the text or the tokenizer is no longer what the study was run on.
    """
    document = study.document()
    opened = load_like(document, variables, progress, baseline=config_from(document["baseline"]))
    loaded = opened.loaded
    if loaded.corpus_facts["fingerprint"] != document["corpus"]["fingerprint"]:
        raise UserError(
            f"study {study.name}: the text or the tokenizer has changed since (fingerprint "
            f"{document['corpus']['fingerprint'][:12]}, now {loaded.corpus_facts['fingerprint'][:12]}), so its losses "
            "would not compare. Restore the text, or search anew."
        )
    return replace(opened, study=study)


def load_like(
    document: Mapping[str, Any], variables: Variables, progress: Preparing, *, baseline: TrialConfig
) -> Reopened:
    """Return what runs under a study document's protocol need; its model, text and checkpoint where it names them.

    The study itself is yet to be set.
    """
    own = {
        name: document[key]
        for name, key in (
            ("GPT2_MODEL_NAME", "model"),
            ("TRAINING_DATA_SOURCE", "data_source"),
            ("CHECKPOINT_PATH", "checkpoint_path"),
        )
        if key in document
    }
    values = {**variables.values, **own}
    inputs = check_inputs(Variables({name: text for name, text in values.items() if text}), progress=progress)
    loaded = load_inputs(
        inputs,
        block_size=document["evaluation"]["block_size"],
        eval_tokens=document["evaluation"]["tokens"],
        stability=document.get("stability", {}),
        init_from=inputs.checkpoint_path,
        progress=progress,
    )
    return Reopened(
        study=Study(studies_dir()),
        document=dict(document),
        inputs=inputs,
        loaded=loaded,
        slots=slots_for(loaded, variables),
        baseline=baseline,
    )


def run_more(reopened: Reopened, work: "Work", terminal: Terminal, ledger: Ledger) -> int | None:
    """Run more trials into the study; return the exit code of an interruption, or None."""
    from search.engine import run_study

    view = StudyView(
        study=reopened.study,
        ledger=ledger,
        budget_tokens=reopened.document["budget_tokens"],
        trials_planned=len(ledger.trials()) + work.trials_count,
        console=terminal.console,
    )
    interrupts = Interrupts()
    # As in run_plan: a signal must not be lost before the engine asks for it.
    with interrupts, view:
        view.say(f"study {shown(reopened.study.path)}: {work.trials_count} more runs, starting Ray ...")
        run_study(
            reopened.study,
            work,
            reopened.loaded.spec,
            slots=reopened.slots,
            ledger=ledger,
            view=view,
            interrupts=interrupts,
        )
    return interrupts.code
