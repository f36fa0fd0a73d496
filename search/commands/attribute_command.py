"""`make attribute`: which of the changed settings did it? Every combination of them, really run."""

from dataclasses import asdict, replace
from typing import Any

from results.attribution import attribute, render, to_json, write_attribution
from results.attribution.attribution_plot import write_plot
from results.attribution.attribution_runs import (
    Question,
    attribution_losses,
    question_of_names,
    question_of_study,
)
from results.report.page import write_reports
from results.study.folder import Study, create_study, list_studies
from results.study.ledger import Ledger
from results.study.lock import hold
from results.study.paths import shown
from results.study.planned_run import runs_left
from results.words import count_words
from search.cluster.study_storage import TableMirror, open_or_fetch_study
from search.options import Options
from search.setup.inputs import check_fit
from search.setup.preflight_run import PREFLIGHT_FAILED, passes_preflight
from search.setup.reopen import Reopened, load_like, reopen, run_more
from search.setup.study_record import common_document
from search.terminal.console import Preparing, Terminal
from search.terminal.next_steps import Step, next_document, say_next, say_steps
from trainable.config import DOCUMENTED

DEFAULT_BUDGET_TOKENS = 200_000
DEFAULT_SEEDS = 3
EVALUATIONS = 4
EVALUATION = {"block_size": DOCUMENTED.block_size, "tokens": 4096}


def attribute_command(options: Options, terminal: Terminal) -> int:
    """Attribute the difference between FROM and TO, or STUDY's baseline and winner; return the exit code.

    A study's attribution runs into the study that it explains; one of FROM and TO into a study of its own.
    """
    named = options.from_ is not None or options.to is not None
    source = None if named else open_or_fetch_study(options)[0]
    budget_tokens = options.budget_tokens or (source.document()["budget_tokens"] if source else DEFAULT_BUDGET_TOKENS)
    if source is None:
        question = question_of_names(options.from_ or "before", options.to or "documented", budget_tokens)
    else:
        question = question_of_study(source, budget_tokens)
    with Preparing(terminal.console) as progress:
        study, opened = _open(question, source, budget_tokens, options, progress)
        check_fit(opened.loaded, list(question.configs.values()))
    if not passes_preflight(
        options,
        opened.inputs,
        opened.loaded,
        question.before,
        largest=max(question.configs.values(), key=lambda one: (one.tokens_per_step, not one.use_lora)),
        runs_at_once=opened.slots.count_here,
        terminal=terminal,
    ):
        return PREFLIGHT_FAILED
    if study is None:
        study = create_study(opened.document["name"], opened.document)
    with hold(study):
        return _run(question, replace(opened, study=study), options.seeds or DEFAULT_SEEDS, terminal)


def _open(
    question: Question, source: Study | None, budget_tokens: int, options: Options, progress: Preparing
) -> tuple[Study | None, Reopened]:
    """Return the study that the runs go into, None where it is yet to be made, and what they need."""
    milestones_tokens = [budget_tokens * part // EVALUATIONS for part in range(1, EVALUATIONS + 1)]
    if source is not None:
        opened = reopen(source, options, progress)
        if budget_tokens == opened.document["budget_tokens"]:
            return source, opened
        evaluation = {**opened.document["evaluation"], "milestones_tokens": milestones_tokens}
        document = {**opened.document, "budget_tokens": budget_tokens, "evaluation": evaluation}
        return source, replace(opened, document=document)
    name = f"attribute-{question.before_name}-{question.after_name}-{budget_tokens}"
    existing = next((study for study in list_studies() if study.name == name), None)
    if existing is not None:
        return existing, reopen(existing, options, progress)
    opened = load_like({"evaluation": EVALUATION}, options, progress, baseline=question.before)
    document = common_document(name, "attribute", loaded=opened.loaded)
    document["evaluation"]["milestones_tokens"] = milestones_tokens
    document.update(
        budget_tokens=budget_tokens,
        rung_tokens=[],
        baseline={"name": question.before_name, **asdict(question.before)},
        stability={},
        seed=question.before.seed,
        trials_planned=len(question.configs) * (options.seeds or DEFAULT_SEEDS),
    )
    return None, replace(opened, document=document)


def _run(question: Question, opened: Reopened, seeds: int, terminal: Terminal) -> int:
    """Run what is missing, and say what the losses tell once nothing is; return the exit code."""
    from search.tune.workload import list_workload

    study, ledger = opened.study, Ledger.load(opened.study)
    trials = ledger.trials()
    # On its own the question has no lucky seed to keep away from.
    above = opened.baseline.seed if opened.document["kind"] != "attribute" else opened.baseline.seed - 1
    runs = question.runs(question.seeds(trials, seeds, above=above))
    left = runs_left(list(runs.values()), trials)
    if len(left) < len(runs):
        terminal.say(f"{len(runs) - len(left)} of {len(runs)} runs are known already")
    if left:
        code = run_more(
            opened,
            lambda: list_workload(left, baseline=opened.baseline, milestones_tokens=opened.milestones_tokens),
            terminal,
            ledger,
            lines=[f"study {study.name}: attribution, {count_words(len(left), 'run')}"],
        )
        if code is not None:
            say_steps([_again(opened, question, seeds, "go on with the attribution")], terminal)
            return code
    trials = study.trials()
    if failed := len(runs_left(list(runs.values()), trials)):
        again = _again(opened, question, seeds, "").command
        terminal.say(f"{count_words(failed, 'run')} failed; {again} runs them again")
    found = attribute(
        attribution_losses(runs, trials),
        question.settings,
        before_name=question.before_name,
        after_name=question.after_name,
    )
    write_attribution(study, found)
    write_reports(study)
    picture = study.path / "attribution.png"
    write_plot(found, picture)
    if opened.slots.storage is not None:
        TableMirror(study, opened.slots.storage, terminal.say).close()
    terminal.console.print(render(found))
    terminal.say(f"picture: {shown(picture)}")
    say_next(study, terminal)
    document: dict[str, Any] = {"study": study.name, "path": str(study.path), **to_json(found)}
    document["next"] = next_document(study, terminal)
    terminal.document(document)
    return 1 if failed else 0


def _again(opened: Reopened, question: Question, seeds: int, purpose: str) -> Step:
    asked = f"STUDY={opened.study.name}"
    if opened.document["kind"] == "attribute":
        asked = f"FROM={question.before_name} TO={question.after_name}"
    budget_tokens = opened.document["budget_tokens"]
    return Step(command=f"make attribute {asked} SEEDS={seeds} BUDGET_TOKENS={budget_tokens}", purpose=purpose)
