"""`make resume`: goes on with a study from its own files: what has ended stays, what was cut off goes on."""

from dataclasses import replace
from typing import Any

from results.confirmation.confirmation_file import load_attempts
from results.ranking import ending_counts, ranked_trials
from results.study.folder import Study
from results.study.json_documents import write_document
from results.study.ledger import Ledger
from results.study.lock import hold
from results.study.planned_run import PlannedRun
from results.words import token_words
from search.cluster.study_storage import open_or_fetch_study
from search.commands.confirm_command import confirm_study
from search.commands.run_command import run_planned
from search.options import Options
from search.setup.finish import finish_study
from search.setup.plan import baseline_configs, baseline_runs, largest_planned, plan_study
from search.setup.preflight_run import PREFLIGHT_FAILED, passes_preflight, study_room
from search.setup.reopen import Reopened, reopen, run_more, with_inputs_of
from search.setup.settings import Settings, differences, planned_space, space_file_differences
from search.terminal.console import Preparing, Terminal
from search.terminal.summary import say_summary, summary_document
from search.trackers.trackers import check_mirrors, mirror_callbacks, read_mirrors
from search.tune.history import History, known_trials
from search.tune.warm_start import read_warm_start
from spaces.overrides import with_overrides
from spaces.read.load import space_from_toml
from spaces.space import SearchSpace
from trainable.errors import UserError
from trainable.rows import ENDINGS


def resume_command(options: Options, terminal: Terminal) -> int:
    """Resume STUDY, extend it to TRIALS, or take it to a larger BUDGET_TOKENS; return the exit code."""
    study, storage = open_or_fetch_study(options)
    document = study.document()
    _check_kind(study, document)
    space, settings = planned_space(document, f"study {study.name}: study.json")
    _check_same(study, document, settings, options)
    budget_tokens = options.budget_tokens
    if budget_tokens is not None and budget_tokens != document["budget_tokens"]:
        return _at_larger_budget(study, document, replace(settings, budget_tokens=budget_tokens), options, terminal)
    trials = options.trials_after(space.trials)
    if trials is not None and document["kind"] == "search" and trials != space.trials:
        space, settings = with_overrides(space, trials=trials), replace(settings, trials=trials)
    with hold(study):
        code = _resume(study, document, space, settings, options, terminal)
    attempts = load_attempts(study)
    if code == 0 and (options.confirm or (attempts and not attempts[-1].verdicts)):
        code = confirm_study(study, options, terminal)
    finish_study(study, terminal, storage)
    say_summary(study, terminal)
    terminal.document(summary_document(study, terminal))
    return code


def _check_kind(study: Study, document: dict[str, Any]) -> None:
    kind = document.get("kind")
    remedies = {
        "attribute": "Say make attribute with the same words again: it goes on.",
        "train": f"Go on with make train CHECKPOINT_PATH={study.checkpoint_dir(0)}/step_....pt RESUME_STEPS=...",
    }
    if kind not in ("search", "baseline"):
        raise UserError(f"study {study.name} is of kind {kind}. {remedies.get(str(kind), 'Start a new one.')}")


def _check_same(study: Study, document: dict[str, Any], settings: Settings, options: Options) -> None:
    found = differences(document, settings, options)
    if found:
        raise UserError(
            f"study {study.name} was planned otherwise: {'; '.join(found)}. Unset it to go on with the study as it is, "
            "or search anew under another STUDY= name."
        )
    changed = space_file_differences(document, options)
    if changed and not options.force:
        raise UserError(
            f"study {study.name}: {document['space']['path']} has changed since: {'; '.join(changed)}. FORCE=1 goes on "
            "with the space as the study has it; to search the new one, start another study."
        )


def _resume(
    study: Study,
    document: dict[str, Any],
    space: SearchSpace,
    settings: Settings,
    options: Options,
    terminal: Terminal,
) -> int:
    ledger = Ledger.load(study)
    for note in ledger.take_notes():
        terminal.say(note)
    rows = ranked_trials(ledger.trials())
    ended = [row for row in rows if row["status"] in ENDINGS]
    configs = baseline_configs(space, settings) if document["kind"] == "baseline" else None
    planned = len(configs) if configs else space.trials
    if planned < len(rows):
        raise UserError(f"TRIALS={planned}: study {study.name} has begun {len(rows)} already. Say a larger number.")
    if planned == len(ended):
        terminal.say(f"all {planned} trials of study {study.name} have ended; TRIALS=... runs more of them")
        return 0
    mirrors = read_mirrors(options)
    with Preparing(terminal.console) as progress:
        check_mirrors(mirrors, progress, new_study=None)
        reopened = reopen(study, options, progress)
    if not passes_preflight(
        options,
        reopened.inputs,
        reopened.loaded,
        reopened.baseline,
        largest=largest_planned(space, configs),
        runs_at_once=reopened.slots.count_here,
        room=study_room(reopened.slots),
        terminal=terminal,
    ):
        return PREFLIGHT_FAILED
    if planned != document["trials_planned"]:
        write_document(study.study_json, {**document, "trials_planned": planned, "settings": settings.to_json()})
    left = [run for run in baseline_runs(configs or []) if run.trial_id not in _ids(ended)]
    code = run_more(
        reopened,
        lambda: _work(reopened, ledger, rows, space, left),
        terminal,
        ledger,
        lines=[_words(study, rows, planned)],
        callbacks=lambda view: mirror_callbacks(mirrors, view, space),
    )
    if code is not None:
        return code
    return 1 if all(row["status"] == "failed" for row in ranked_trials(ledger.trials())) else 0


def _work(
    reopened: Reopened,
    ledger: Ledger,
    rows: list[dict[str, Any]],
    space: SearchSpace,
    left: list[PlannedRun],
) -> Any:
    from search.tune.workload import list_workload, space_workload

    milestones = reopened.milestones_tokens
    if left:
        return list_workload(left, baseline=reopened.baseline, milestones_tokens=milestones)
    history = History(
        trials=known_trials(rows, ledger.metrics(), milestones_tokens=milestones),
        other_ids=_ids(ledger.trials()) - _ids(rows),
        warm_start=read_warm_start(reopened.study),
    )
    return space_workload(space, history)


def _ids(rows: list[dict[str, Any]]) -> set[int]:
    return {row["trial_id"] for row in rows}


def _words(study: Study, rows: list[dict[str, Any]], planned: int) -> str:
    counts = ending_counts(rows)
    ended = sum(counts[status] for status in ENDINGS)
    begun = len(rows) - ended
    return (
        f"study {study.name} goes on: {ended} of {planned} trials have ended, {begun} go on from their last "
        f"checkpoints, {planned - len(rows)} are new"
    )


def _at_larger_budget(
    study: Study, document: dict[str, Any], settings: Settings, options: Options, terminal: Terminal
) -> int:
    """Run the study's space at another budget: a new study that learns from this one, for their losses do not mix."""
    budget_tokens = settings.budget_tokens
    assert budget_tokens is not None
    if document["kind"] != "search" or budget_tokens < document["budget_tokens"]:
        raise UserError(
            f"BUDGET_TOKENS={budget_tokens}: study {study.name} ran at {document['budget_tokens']}, and only a search "
            "can be taken on, to more. Start a new study."
        )
    file = document["space"]
    name = f"{study.name}-{token_words(budget_tokens)}"
    if options.trials is not None:
        settings = replace(settings, trials=options.trials_after(document["trials_planned"]))
    note = (
        f"at {token_words(budget_tokens)} tokens losses do not compare with {study.name}'s: this is a study of its own"
    )
    with Preparing(terminal.console) as progress:
        plan = plan_study(
            space_from_toml(file["toml"], name=file["name"], path=file["path"]),
            settings,
            with_inputs_of(document, options).model_copy(update={"study": name}),
            kind="search",
            notes=[note],
            progress=progress,
            warm_start=study,
        )
    return run_planned(plan, options, terminal)
