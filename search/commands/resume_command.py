"""`make resume`: continues a study from its own files, with more trials or a larger budget if asked."""

from dataclasses import asdict, replace
from typing import Any

from results.confirmation.attempt import load_attempts
from results.ranking import ranked_trials
from results.study.atomic import write_document
from results.study.folder import Study
from results.study.ledger import Ledger
from results.study.lock import hold
from results.winner import winner_of
from results.words import budget_words, short_budget_words
from search.cluster.study_storage import open_or_fetch_study
from search.commands.run_command import conclude, run_new, run_own_trials
from search.options import Options
from search.setup.inputs import Loaded
from search.setup.plan import baseline_configs, plan_study
from search.setup.preflight_run import check_preflight, preflight_of
from search.setup.reopen import reopen, with_inputs_of
from search.setup.run_plan import ray_ahead
from search.setup.settings import (
    DIFFERENCES_SHOWN,
    confirm_at_end,
    differences,
    planned_space,
    space_file_differences,
)
from search.terminal.console import Preparing, Terminal
from search.terminal.next_steps import has_more, remedy
from search.trackers.trackers import with_tensorboard_of
from search.tune.history import read_warm_start
from spaces.budget import budget_of
from spaces.overrides import SETTINGS, Settings, with_overrides
from spaces.protocol import AUTO
from spaces.read.load import space_from_toml
from spaces.space import SearchSpace
from trainable.config import config_from
from trainable.errors import UserError, first_of
from trainable.rows import ENDINGS


def resume_command(options: Options, terminal: Terminal) -> int:
    """Resume STUDY, extend it to TRIALS, or take it to a larger BUDGET_TOKENS; return the exit code."""
    study, options = open_or_fetch_study(options)
    _check_kind(study, study.document())
    # What another process has planned since counts: until then it may write.
    with hold(study):
        document = study.document()
        space, settings = planned_space(document, f"study {study.name}: study.json")
        _check_same(study, document, space, settings, options)
        is_larger = _asks_for_more(study, document, options)
        ran = None if is_larger else _resume(study, document, space, settings, options, terminal)
    if ran is None:
        return _at_larger_budget(study, document, settings, options, terminal)
    code, loaded = ran
    return conclude(study, code, options, terminal, loaded=loaded)


def _check_kind(study: Study, document: dict[str, Any]) -> None:
    if document["kind"] == "attribute":
        raise UserError(f"study {study.name} is of kind attribute. Run the same make attribute again: it goes on.")
    if document["kind"] == "train":
        has_ended = winner_of(study).trial is not None
        how = f" This adds 500 steps: make train STUDY={study.name} RESUME_STEPS=500" if has_ended else remedy(study)
        raise UserError(f"study {study.name} is of kind train.{how}")


def _check_same(
    study: Study, document: dict[str, Any], space: SearchSpace, settings: Settings, options: Options
) -> None:
    learned = read_warm_start(study, space)
    found = differences(document, settings, options, warm_start=learned.source if learned else None)
    if found:
        raise UserError(
            f"study {study.name} was planned with other settings: {first_of(found, DIFFERENCES_SHOWN)}. Unset "
            f"{'it' if len(found) == 1 else 'them'} to go on with the study as it is, or search again under another "
            "STUDY= name."
        )
    changed = space_file_differences(document, options)
    if changed and not options.force:
        raise UserError(
            f"study {study.name}: {document['space']['path']} has changed since: {'; '.join(changed)}. FORCE=1 goes on "
            "with the space as the study has it; to search the new one, start another study."
        )


def _asks_for_more(study: Study, document: dict[str, Any], options: Options) -> bool:
    """Return whether the variables ask for a larger budget. Raises UserError for a smaller one or another kind."""
    own = budget_of(document)
    then, now = (own.tokens, options.budget_tokens) if own.device_s is None else (own.device_s, options.budget_time)
    if now == then or not options.lengths:
        return False
    if document["kind"] != "search" or now is None or now < then:
        [name] = options.lengths
        raise UserError(
            f"{name}={options.texts[name]}: study {study.name} gave its trials {budget_words(own)}. Only a search goes "
            "on with another budget, and only with a larger one of the same kind. Start a new search: "
            f"WARM_START={study.name} begins with its best."
        )
    return True


def _resume(
    study: Study, document: dict[str, Any], space: SearchSpace, settings: Settings, options: Options, terminal: Terminal
) -> tuple[int, Loaded | None]:
    """Run what is left; return the exit code, and the study's inputs if they were loaded."""
    if options.trials == AUTO and not space.ends_early:
        raise UserError(f"TRIALS=auto: study {study.name} was planned with {space.trials} trials. Unset it to go on.")
    planned = document["trials_planned"]
    if planned < space.trials:
        # It ended early, or no configuration was left.
        space = replace(space, trials=planned, ends_early=False)
    trials = options.trials_after(planned)
    if trials is not None and document["kind"] == "search" and trials != planned:
        space, settings = with_overrides(space, Settings(trials=trials)), replace(settings, trials=trials)
    settings = replace(settings, confirm=confirm_at_end(settings.confirm, options, load_attempts(study)))
    ledger = Ledger(study)
    terminal.say(*ledger.take_notes())
    rows = ranked_trials(ledger.trials())
    ended = sum(row["status"] in ENDINGS for row in rows)
    configs = baseline_configs(space, settings) if document["kind"] == "baseline" else []
    planned = len(configs) or space.planned_trials([config_from(row) for row in rows])
    if planned < len(rows):
        raise UserError(f"TRIALS={planned}: study {study.name} has {len(rows)} trials already. Set a larger number.")
    changed: dict[str, Any] = {}
    if planned != document["trials_planned"]:
        changed = {"trials_planned": planned, "early_end": None, "exhausted": False}
    if settings != SETTINGS.validate_python(document["settings"]):
        changed["settings"] = asdict(settings)
    document = {**document, **changed}
    if planned == ended:
        if changed:
            write_document(study.study_json, document)
        again = f"make resume STUDY={study.name} TRIALS=+{planned}"
        more = f"; {again} runs as many again" if has_more(document) else ""
        terminal.say(f"all {planned} trials of study {study.name} have ended{more}")
        return 0, None
    with Preparing(terminal.console) as progress:
        plan = reopen(study, options, progress, space=space, configs=configs)
    with ray_ahead(plan):
        check_preflight(preflight_of(plan), terminal)
        plan = replace(plan, document={**plan.document, **changed})
        left, new = len(rows) - ended, f"{'at most ' if space.ends_early else ''}{planned - len(rows)} new"
        cut_off = f"{left} cut off, " if left else ""
        line = f"study {study.name} goes on: {ended} of {planned} trials have ended; to run: {cut_off}{new}"
        code = run_own_trials(plan, ledger, terminal, [line])
    return code, plan.loaded


def _at_larger_budget(
    study: Study, document: dict[str, Any], settings: Settings, options: Options, terminal: Terminal
) -> int:
    """Run the space with a larger budget, as a new study that learns from this one: their losses do not compare."""
    # What the study was to confirm is its own: the longer one confirms what is asked for now.
    confirm = confirm_at_end(None, options, ())
    settings = replace(settings, budget_tokens=options.budget_tokens, device_s=options.budget_time, confirm=confirm)
    file, larger = document["space"], budget_of(document).asked(settings.budget_tokens, settings.device_s)
    name = f"{study.name}-{short_budget_words(larger)}"
    if options.trials is not None:
        asked = AUTO if options.trials == AUTO else options.trials_after(document["trials_planned"])
        settings = replace(settings, trials=asked)
    incomparable = f"losses at {budget_words(larger)} cannot be compared with {study.name}'s: this is a new study"
    with Preparing(terminal.console) as progress:
        options = with_tensorboard_of(study, with_inputs_of(document, options))
        plan = plan_study(
            space_from_toml(file["toml"], name=file["name"], path=file["path"]),
            settings,
            options.model_copy(update={"study": name}),
            kind="search",
            notes=[incomparable],
            progress=progress,
            warm_start=study,
            timed=document,
        )
    return run_new(plan, terminal)
