"""`make search`: runs a planned study to its end, or to Ctrl-C, and sums it up. `make baseline` runs it too."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from results.study.folder import Study, create_study, remove_if_empty
from results.study.ledger import Ledger
from results.study.lock import hold
from results.words import config_words, token_words
from search.commands.confirm_command import confirm_study
from search.options import Options
from search.setup.finish import finish_study
from search.setup.plan import Plan, baseline_runs, make_plan
from search.setup.preflight_run import PREFLIGHT_FAILED, passes_preflight
from search.setup.study_record import study_document
from search.terminal.console import Preparing, Terminal
from search.terminal.summary import say_summary, summary_document
from search.trackers.trackers import mirror_callbacks
from search.tune.history import History
from search.tune.run_trials import run_trials
from search.tune.warm_start import write_warm_start
from trainable.errors import MachineError

if TYPE_CHECKING:
    from search.tune.workload import Workload


def search_command(options: Options, terminal: Terminal) -> int:
    """Run a search; return the exit code."""
    with Preparing(terminal.console) as progress:
        plan = make_plan(options, kind="search", progress=progress)
    return run_planned(plan, options, terminal)


def run_planned(plan: Plan, options: Options, terminal: Terminal) -> int:
    """Check, run, confirm where that was asked for, and sum up a planned search; return the exit code."""
    if not is_sound(plan, options, terminal):
        return PREFLIGHT_FAILED
    study, code = run_plan(plan, terminal)
    if code == 0 and options.confirm:
        code = confirm_study(study, options, terminal)
    finish_study(study, terminal, plan.slots.storage)
    say_summary(study, terminal)
    terminal.document(summary_document(study))
    return code


def is_sound(plan: Plan, options: Options, terminal: Terminal) -> bool:
    """Return whether the planned study passes preflight, or is to go on regardless."""
    return passes_preflight(
        options,
        plan.inputs,
        plan.loaded,
        plan.space.baseline,
        largest=plan.largest,
        runs_at_once=plan.slots.count_here,
        terminal=terminal,
    )


def run_plan(plan: Plan, terminal: Terminal) -> tuple[Study, int]:
    """Run a planned study; return it and the exit code: 0, 130 or 143 when interrupted, 1 when every trial failed."""
    trials_planned = len(plan.configs) if plan.configs else plan.space.trials
    document = study_document(
        plan.name,
        plan.kind,
        space=plan.space,
        settings=plan.settings,
        loaded=plan.loaded,
        slots={"slots": plan.slots.count, "threads_per_slot": plan.slots.threads, "gpu_frac": plan.slots.gpu_frac},
        trials_planned=trials_planned,
    )
    study = create_study(plan.name, document)
    with hold(study):
        if plan.warm_start is not None:
            write_warm_start(study, plan.warm_start)
        try:
            code = run_trials(
                study,
                lambda: _work(plan),
                plan.loaded.spec,
                slots=plan.slots,
                ledger=Ledger(study),
                budget_tokens=plan.space.budget_tokens,
                lines=header_lines(plan, trials_planned),
                terminal=terminal,
                callbacks=lambda view: mirror_callbacks(plan.mirrors, view, plan.space),
            )
        except MachineError:
            remove_if_empty(study)
            raise
    if code is not None:
        return study, code
    return study, 1 if all(row["status"] == "failed" for row in study.trials()) else 0


def _work(plan: Plan) -> "Workload":
    from search.tune.workload import list_workload, space_workload

    if plan.configs is None:
        return space_workload(plan.space, History(warm_start=plan.warm_start))
    milestones_tokens = plan.space.evaluation_tokens()
    runs = baseline_runs(plan.configs)
    return list_workload(runs, baseline=plan.space.baseline, milestones_tokens=milestones_tokens)


def header_lines(plan: Plan, trials_planned: int) -> list[str]:
    """Return what a person should know before the first trial ends."""
    space, loaded, slots = plan.space, plan.loaded, plan.slots
    facts = loaded.corpus_facts
    start = f", every trial from the weights of {plan.inputs.checkpoint_path}" if plan.inputs.checkpoint_path else ""
    device = loaded.device_info
    return [
        f"study {plan.name}: {space.description}",
        f"model {plan.inputs.model_name}{start}; {token_words(facts['train_tokens'])} training tokens",
        *plan.inputs.text_lines,
        *loaded.separator_notes,
        f"{trials_planned} trials of at most {token_words(space.budget_tokens)} tokens, evaluated on the same "
        f"{space.evaluation.tokens:,} held-out tokens at context {space.evaluation.block_size}",
        f"{slots.count} at a time on {device.type} ({device.name}), {slots.threads} CPU thread(s) each",
        f"baseline ({space.baseline_name}): {config_words(asdict(space.baseline))}",
        *(f"search {parameter.name}: {parameter.domain}" for parameter in space.parameters if plan.configs is None),
        *plan.notes,
        "starting Ray ...",
    ]
