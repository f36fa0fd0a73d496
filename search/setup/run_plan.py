"""The one way in which runs get into a study, new or not: held, under its view, and with signals heard."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from results.confirmation.confirmation_file import load_attempts
from results.study.folder import create_study, remove_if_empty
from results.study.json_documents import write_document
from results.study.ledger import Ledger
from results.study.lock import hold
from results.study.paths import shown
from results.study.planned_run import PlannedRun
from results.winner import find_winner
from results.words import loss_words
from search.cluster.storage_hold import check_unheld, claim_name, release_name
from search.setup.plan import Plan
from search.setup.study_record import start_losses
from search.terminal.console import Terminal
from search.terminal.live_view import StudyView
from search.terminal.signals import Interrupts
from search.trackers.trackers import mirror_callbacks
from search.tune.warm_start import write_warm_start
from trainable.errors import MachineError
from trainable.rows import ENDINGS, Start

if TYPE_CHECKING:
    from search.tune.workload import Workload


@contextmanager
def held(plan: Plan) -> Iterator[Plan]:
    """Hold the plan's study while inside; a new one is made first, whose name may differ. Raises UserError."""
    storage = plan.slots.storage
    if plan.is_new:
        claim = partial(claim_name, storage=storage) if storage else None
        study = create_study(plan.name, plan.document, is_chosen=plan.name_is_chosen, claim=claim)
        plan = replace(plan, study=study, document={**plan.document, "name": study.name})
    with hold(plan.study):
        if plan.is_new and plan.warm_start is not None:
            write_warm_start(plan.study, plan.warm_start)
        try:
            yield plan
        except MachineError:
            if plan.is_new and remove_if_empty(plan.study) and storage:
                release_name(plan.study, storage)
            raise


@contextmanager
def ray_ahead(plan: Plan) -> Iterator[None]:
    """Have Ray start on this machine while what is inside comes to the plan's trials.

    Raises UserError, before, when the study holds a confirmation of trials that are gone, or another driver writes it.
    """
    study, storage = plan.study, plan.slots.storage
    if storage is not None and not study.study_json.exists():
        yield  # whether the storage has another study of its name is asked once it is there
        return
    if storage is not None:
        check_unheld(study, storage)
    find_winner(study.trials(), load_attempts(study))
    from search.tune import local_ray

    with local_ray.ray_ahead(plan.slots):
        yield


def run_plan(
    plan: Plan,
    make_workload: "Callable[[], Workload]",
    terminal: Terminal,
    *,
    ledger: Ledger,
    lines: Sequence[str] = (),
) -> int | None:
    """Run a workload into the plan's study, which is held; return the exit code of an interruption, or None.

    The workload is made by a function, because making it imports libraries for seconds, in which a signal counts too.
    Raises UserError as ray_ahead() does, and when the study cannot be written any more.
    """
    study = plan.study
    interrupts = Interrupts()
    view = StudyView(study=study, ledger=ledger, trials_planned=0, console=terminal.console)
    with interrupts, view, ray_ahead(plan):
        for line in lines:
            view.say(line)
        plan = _with_start(plan, view)
        if plan.document != study.document():
            write_document(study.study_json, plan.document)
        view.say(f"study {shown(study.path)}: starting Ray ...")
        from search.tune.engine import run_study

        work = make_workload()
        ended = sum(row["status"] in ENDINGS for row in ledger.trials() if work.includes(row))
        view.follow(
            work.includes,
            noun=_noun(plan, work),
            planned=ended + work.trials_count,
            full_length=not work.searcher.log.rung_tokens,
        )
        run_study(
            study,
            work,
            plan.loaded.spec,
            slots=plan.slots,
            ledger=ledger,
            view=view,
            interrupts=interrupts,
            callbacks=mirror_callbacks(plan.mirrors, view, plan.space) if plan.space else (),
        )
        if (end := work.searcher.log.early_end) is not None:
            early = {"trials_planned": end.trials, "early_end": asdict(end)}
            write_document(study.study_json, {**plan.document, **early})
    return interrupts.code


def _noun(plan: Plan, work: "Workload") -> str:
    if not work.is_ranked:
        return "runs"
    return "trials at most" if plan.space is not None and plan.space.ends_early else "trials"


def _with_start(plan: Plan, view: StudyView) -> Plan:
    """Return the plan with what its runs start from: as its document has it, else evaluated here, once a study."""
    from trainable.run import with_start

    known, seed = plan.document.get("start"), plan.document["seed"]
    if known is None:
        view.say("evaluating the start ...")
        spec = with_start(plan.loaded.spec, replace(plan.baseline, seed=seed))
        assert spec.start is not None
        losses = start_losses(spec.start)
        view.say(f"start: val loss {loss_words(losses['val_loss'])} nats/token")
        plan = replace(plan, document={**plan.document, "start": losses})
    elif None not in known.values():
        spec = replace(plan.loaded.spec, start=Start(**known), start_seed=seed)
    else:
        return plan
    return replace(plan, loaded=replace(plan.loaded, spec=spec))


def run_listed(
    plan: Plan, runs: Sequence[PlannedRun], terminal: Terminal, *, ledger: Ledger, lines: Sequence[str] = ()
) -> int | None:
    """Run what is decided already, each run in full; otherwise as run_plan does."""

    def workload() -> "Workload":
        from search.tune.workload import list_workload

        return list_workload(runs, baseline=plan.baseline, milestones=plan.milestones)

    return run_plan(plan, workload, terminal, ledger=ledger, lines=lines)
