"""Runs a plan: holds its study, shows progress, hears signals. All trials and confirmations run through here."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING

from results.ranking import ranked_trials, seconds_a_token
from results.study.atomic import write_document
from results.study.folder import create_study, remove_if_empty
from results.study.ledger import Ledger
from results.study.lock import hold
from results.study.paths import shown
from results.study.planned_run import PlannedRun
from results.words import duration_words, loss_words, token_words
from search.cluster.storage_hold import claim_name, release_name
from search.setup.plan import Plan
from search.setup.preflight_run import check_preflight, preflight_of
from search.setup.study_record import start_losses
from search.terminal.console import Preparing, Terminal
from search.terminal.live_view import StudyView
from search.terminal.signals import Interrupts
from search.trackers.trackers import mirror_callbacks
from search.tune.early_end import read_part_losses
from search.tune.history import WARM_START_JSON, known_trials
from trainable.errors import MachineError, count_words
from trainable.rows import Start

if TYPE_CHECKING:
    from search.tune.optuna_searcher import TrialSearcher


@contextmanager
def held(plan: Plan) -> Iterator[Plan]:
    """Hold the plan's study while inside; a new one is made first, whose name may differ. Raises UserError."""
    storage = plan.options.storage
    if plan.is_new:
        claim = partial(claim_name, storage=storage) if storage else None
        # A name that the program made is numbered where it was taken in the meantime.
        is_chosen = plan.options.study is not None or plan.kind == "attribute"
        # Made with it: a study that is killed in the next moment would be resumed without.
        beside = {WARM_START_JSON: asdict(plan.warm_start)} if plan.warm_start is not None else {}
        study = create_study(plan.name, plan.document, beside=beside, is_chosen=is_chosen, claim=claim)
        plan = replace(plan, study=study, document={**plan.document, "name": study.name})
    with hold(plan.study):
        if not plan.is_new:
            # Another command may have held the study while this one prepared. A STORAGE may be new to it.
            plan = replace(plan, document={**plan.document, **plan.study.document()})
        try:
            yield plan
        except MachineError:
            if plan.is_new and remove_if_empty(plan.study) and storage:
                release_name(plan.study, storage)
            raise


@contextmanager
def checked(plan: Plan, terminal: Terminal) -> Iterator[Plan]:
    """Hold the plan's study while inside, after its preflight, during which Ray starts; see check_preflight().

    Speeds are measured once it has passed, and before Ray's start, which would slow them.
    """
    with ray_ahead(plan) if plan.with_speeds is None else nullcontext():
        check_preflight(preflight_of(plan), terminal)
        if plan.with_speeds is not None:
            with Preparing(terminal.console) as progress:
                plan = plan.with_speeds(progress)
        with held(plan) as plan:
            yield plan


def ray_ahead(plan: Plan) -> AbstractContextManager[None]:
    """Start Ray on this machine in the background: the code inside has other work before its first trial."""
    from search.tune import local_ray

    return local_ray.ray_ahead(plan.slots)


def run_plan(
    plan: Plan,
    terminal: Terminal,
    *,
    ledger: Ledger,
    runs: Sequence[PlannedRun] | None,
    lines: Sequence[str] = (),
    again: str | None = None,
) -> int | None:
    """Run planned runs, each in full, or with None what is left of the search; the study must be held.

    again: the command that goes on with them; None for the study's own trials, which make resume goes on with. Return
    the exit code of an interruption, or None. Raises UserError when the study cannot be written any more.
    """
    study = plan.study
    interrupts = Interrupts()
    view = StudyView(study=study, ledger=ledger, trials_planned=0, console=terminal.console)
    with interrupts, view, ray_ahead(plan):
        for line in (*lines, *plan.notes):
            view.say(line)
        plan = _with_start(plan, view)
        if plan.document != study.document():
            write_document(study.study_json, plan.document)
        view.say(f"study {shown(study.path)}: starting Ray ...")
        # These imports take seconds, in which a signal is heard.
        from search.tune.engine import run_study
        from search.tune.optuna_searcher import ListSearcher

        searcher = _search_left(plan, ledger) if runs is None else ListSearcher(runs, plan.milestones)
        at_most = " at most" if plan.space is not None and plan.space.ends_early else ""
        view.follow(
            None if runs is None else [run.trial_id for run in runs],
            noun=f"trials{at_most}" if again is None else "runs",
            left=searcher.trials_left,
            full_length=not searcher.log.rung_tokens,
        )
        run_study(
            searcher,
            plan.loaded.spec,
            baseline=plan.baseline,
            slots=plan.slots,
            options=plan.options,
            view=view,
            interrupts=interrupts,
            callbacks=mirror_callbacks(plan.options, view, plan.space),
            again=again or f"make resume STUDY={study.name}",
        )
        if (end := searcher.log.early_end) is not None or searcher.exhausted:
            # Or the next step would be to go on with it for ever.
            why = {"early_end": asdict(end)} if end else {"exhausted": True}
            write_document(study.study_json, {**plan.document, "trials_planned": len(searcher.log.trials), **why})
    return interrupts.code


def _search_left(plan: Plan, ledger: Ledger) -> "TrialSearcher":
    from search.tune.optuna_searcher import SpaceSearcher

    assert plan.space is not None
    rows = ledger.trials()
    own = ranked_trials(rows)
    parts = read_part_losses(plan.study)
    return SpaceSearcher(
        plan.space,
        trials=known_trials(own, ledger.metrics(), milestones=plan.milestones, part_losses=parts),
        other_ids={row["trial_id"] for row in rows} - {row["trial_id"] for row in own},
        warm_start=plan.warm_start,
    )


def _with_start(plan: Plan, view: StudyView) -> Plan:
    """Return the plan with the losses before any training: the document's, or else evaluated now, once a study."""
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


def cost_words(plan: Plan, runs: Sequence[PlannedRun]) -> str:
    """Return the runs, their tokens and about how long they take: 9 runs, 1.35M tokens, 2 at a time: about 6 min."""
    tokens = sum(run.config.training_steps * run.config.tokens_per_step for run in runs)
    words = f"{count_words(len(runs), 'run')}, {token_words(tokens)} tokens, {plan.slots.count} at a time"
    # In rounds: while the last run trains, the other slots wait.
    rounds = -(-len(runs) // plan.slots.count)
    if plan.budget.device_s is not None:
        return f"{words}: about {duration_words(plan.budget.device_s * rounds)}"
    rate = seconds_a_token(plan.study.trials())
    if rate is None:
        return f"{words}; how long is known once the first have trained"
    return f"{words}: about {duration_words(tokens / len(runs) * rate * rounds)}"
