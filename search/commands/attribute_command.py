"""`make attribute`: finds which of the changed settings made the difference, by running every combination."""

from dataclasses import asdict, replace

from results.attribution.attribute import attribute
from results.attribution.attribution_runs import Question, attribution_losses, make_question, question_of_study
from results.attribution.attribution_values import to_json, write_attribution
from results.attribution.sentences import did_it_words, render
from results.confirmation.attempt import load_attempts
from results.study.folder import Study, check_has_baseline, check_studies_dir, find_study, studies_dir
from results.study.ledger import Ledger
from results.study.lock import hold
from results.study.paths import shown
from results.study.planned_run import runs_left
from results.words import budget_words
from search.cluster.study_storage import open_or_fetch_study
from search.options import Options
from search.setup.finish import finish_study
from search.setup.inputs import check_fit
from search.setup.plan import Plan, load_for, planned
from search.setup.preflight_run import check_preflight, preflight_of
from search.setup.reopen import reopen
from search.setup.run_plan import checked, cost_words, ray_ahead, run_plan
from search.setup.settings import refuse_steps
from search.terminal.console import Preparing, Terminal, print_wide
from search.terminal.next_steps import Step, ending_document, say_next, with_remedy
from search.trackers.trackers import check_mirrors
from spaces.budget import Budget, budget_of
from trainable.config import BASELINES, DOCUMENTED
from trainable.errors import UserError, count_words

DEFAULT_BUDGET_TOKENS = 200_000
DEFAULT_SEEDS = 3
EVALUATIONS = 4
EVALUATION = {"block_size": DOCUMENTED.block_size, "tokens": 4096}


def attribute_command(options: Options, terminal: Terminal) -> int:
    """Attribute the difference between FROM and TO, or STUDY's baseline and winner; return the exit code.

    The runs go into STUDY, or for FROM and TO into a study of their own.
    """
    named = options.from_ is not None or options.to is not None
    if named and options.study is not None:
        raise UserError(
            f"STUDY={options.study} attributes its winner; FROM and TO are documented configurations. Unset STUDY."
        )
    source, options = (None, options) if named else open_or_fetch_study(options)
    budget, seeds = _budget(source, options), options.seeds or DEFAULT_SEEDS
    if source is not None:
        check_has_baseline(source)
        # Held from the question on: what another command adds meanwhile may have another winner.
        with with_remedy(source), hold(source):
            question = question_of_study(source, budget)
            with Preparing(terminal.console) as progress:
                plan = _plan(question, source, budget, options, progress)
            with ray_ahead(plan):
                check_preflight(preflight_of(plan), terminal)
                return _run(question, plan, seeds, terminal)
    before, after = options.from_ or "before", options.to or "documented"
    question = make_question(before, BASELINES[before], after, BASELINES[after], budget)
    with Preparing(terminal.console) as progress:
        plan = _plan(question, None, budget, options, progress)
    with checked(plan, terminal) as plan:
        return _run(question, plan, seeds, terminal)


def _budget(source: Study | None, options: Options) -> Budget:
    """Return the budget of a run: the variables', or else that of the study's trials. Raises UserError."""
    refuse_steps(options)
    budget = Budget(tokens=DEFAULT_BUDGET_TOKENS) if source is None else budget_of(source.document())
    return budget.asked(options.budget_tokens, options.budget_time)


def _plan(question: Question, source: Study | None, budget: Budget, options: Options, progress: Preparing) -> Plan:
    """Return the plan of the study that the runs go into."""
    milestones_tokens = tuple(budget.tokens * part // EVALUATIONS for part in range(1, EVALUATIONS + 1))
    configs = list(question.configs.values())
    if source is not None:
        plan = reopen(source, options, progress, configs=configs)
        check_fit(plan.loaded, configs)
        if budget == plan.budget:
            return plan
        # Only these runs are longer or shorter; study.json keeps the budget of its trials.
        return replace(plan, baseline=question.before, budget=budget, milestones_tokens=milestones_tokens)
    name = f"attribute-{question.before_name}-{question.after_name}-{budget.tokens}"
    if (existing := find_study(name)) is not None:
        return reopen(existing, options, progress, configs=configs)
    asked = {
        "kind": "attribute",
        "evaluation": {**EVALUATION, "milestones_tokens": list(milestones_tokens)},
        "budget_tokens": budget.tokens,
        "baseline": {"name": question.before_name, **asdict(question.before)},
        "seed": question.before.seed,
        "trials_planned": len(configs) * (options.seeds or DEFAULT_SEEDS),
    }
    check_studies_dir()
    check_mirrors(options, progress, new_study=None, searches=False)
    loaded = load_for(asked, options, progress)
    check_fit(loaded, configs)
    return planned(Study(studies_dir() / name), asked, loaded, progress, configs=configs)


def _run(question: Question, plan: Plan, seeds: int, terminal: Terminal) -> int:
    """Run what is missing, and print the attribution once nothing is; return the exit code."""
    study, ledger = plan.study, Ledger(plan.study)
    trials = ledger.trials()
    # A study's seed picked its winner and is not used again; without a search it is as good as any.
    above = plan.document["seed"] - (plan.kind == "attribute")
    taken = {seed for attempt in load_attempts(study) for seed in attempt.seeds}
    runs = question.runs(question.seeds(trials, seeds, above=above, taken=taken))
    left = runs_left(list(runs.values()), trials)
    again = _again(plan, question, seeds)
    if len(left) < len(runs):
        terminal.say(f"{len(runs) - len(left)} of {len(runs)} runs have ended before")
    if left:
        ends = f"{question.before_name} to {question.after_name}"
        lines = [
            f"study {study.name}: {count_words(len(question.settings), 'change')} from {ends}, in "
            f"{count_words(len(question.configs), 'combination')}, each on "
            f"{count_words(len(runs) // len(question.configs), 'seed')}",
            cost_words(plan, left),
        ]
        code = run_plan(plan, terminal, ledger=ledger, runs=left, lines=lines, again=again)
        if code is not None:
            following = say_next([Step(command=again, purpose="go on with the attribution")], terminal)
            terminal.document({"study": study.name, "path": str(study.path), "next": following})
            return code
    trials = study.trials()
    if failed := len(runs_left(list(runs.values()), trials)):
        terminal.say(f"{count_words(failed, 'run')} failed; to run again: {again}")
    found = attribute(
        attribution_losses(runs, trials),
        question.settings,
        before_name=question.before_name,
        after_name=question.after_name,
    )
    if (own := budget_of(plan.document)) != plan.budget:
        other = f"each run had {budget_words(plan.budget)}, where the study's trials have {budget_words(own)}"
        found = replace(found, notes=(*found.notes, other))
    write_attribution(study, found)
    unwritten = finish_study(study, plan.options, terminal, samples=False)
    print_wide(terminal.console, render(found))
    terminal.say(did_it_words(found), None if unwritten else f"report: {shown(study.path / 'report.html')}")
    terminal.document({**ending_document(study, terminal), **to_json(found)})
    return 1 if failed else unwritten


def _again(plan: Plan, question: Question, seeds: int) -> str:
    asked = f"STUDY={plan.name}"
    if plan.kind == "attribute":
        asked = f"FROM={question.before_name} TO={question.after_name}"
    return f"make attribute {asked} SEEDS={seeds} {plan.budget.setting}"
