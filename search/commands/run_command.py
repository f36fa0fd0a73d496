"""`make search`: plans and runs a search and sums it up; and what `make baseline` and `make resume` share with it."""

from dataclasses import asdict

from results.confirmation.attempt import NothingToConfirmError
from results.confirmation.confirmation_file import load_attempts
from results.ranking import ranked_trials
from results.study.folder import Study
from results.study.ledger import Ledger
from results.words import budget_words, config_words, count_words, token_words
from search.commands.confirm_command import confirm_study
from search.options import Options
from search.setup.finish import finish_study
from search.setup.inputs import Loaded
from search.setup.plan import Plan, baseline_runs, make_plan
from search.setup.run_plan import checked, run_plan
from search.terminal.console import Preparing, Terminal
from search.terminal.summary import say_summary
from spaces.user_settings import Settings
from trainable.rows import ENDINGS


def run_command(options: Options, terminal: Terminal) -> int:
    """Run a search; return the exit code."""
    with Preparing(terminal.console) as progress:
        plan = make_plan(options, kind="search", progress=progress)
    return run_new(plan, terminal)


def run_new(plan: Plan, terminal: Terminal) -> int:
    """Check, run, confirm with CONFIRM=1, and sum up a new search; return the exit code."""
    with checked(plan, terminal) as plan:
        code = run_own_trials(plan, Ledger(plan.study), terminal, header_lines(plan))
    return conclude(plan.study, code, plan.options, terminal, loaded=plan.loaded)


def conclude(study: Study, code: int, options: Options, terminal: Terminal, *, loaded: Loaded | None) -> int:
    """Confirm the study's best with CONFIRM=1 or where that had begun, and sum up; return the exit code.

    loaded: the study's inputs, if they are loaded.
    """
    attempts, planned = load_attempts(study), Settings.from_json(study.document()["settings"]).confirm
    begun = bool(attempts) and not attempts[-1].verdicts
    is_left = planned is not None and planned.attempt > len(attempts) - begun
    # With TRIALS the user waits for more trials; the interrupted confirmation is then a printed next step.
    by_itself = options.trials is None if begun else is_left
    if code == 0 and (by_itself if options.confirm is None else options.confirm):
        try:
            asked = {"top": planned.top, "seeds": planned.seeds} if planned else {}
            code = confirm_study(study, options.model_copy(update=asked), terminal)
        except NothingToConfirmError as nothing:
            terminal.warn(str(nothing))
    finish_study(study, code, options, terminal, loaded=loaded)
    say_summary(study, terminal)
    return code


def run_own_trials(plan: Plan, ledger: Ledger, terminal: Terminal, lines: list[str]) -> int:
    """Run what is left of a search's or a baseline's trials; the study must be held.

    Return the exit code: 0, that of an interruption, or 1 when every trial failed.
    """
    left = None
    if plan.kind == "baseline":
        ended = {row["trial_id"] for row in ledger.trials() if row["status"] in ENDINGS}
        left = [run for run in baseline_runs(plan.configs) if run.trial_id not in ended]
    code = run_plan(plan, terminal, ledger=ledger, runs=left, lines=lines)
    if code is not None:
        return code
    return 1 if all(row["status"] == "failed" for row in ranked_trials(ledger.trials())) else 0


def header_lines(plan: Plan) -> list[str]:
    """Return the lines printed before the first trial."""
    space, loaded, slots = plan.space, plan.loaded, plan.slots
    assert space is not None
    facts = loaded.corpus_facts
    inputs, checkpoint_path = loaded.inputs, plan.options.checkpoint_path
    start = f", every trial from the weights of {checkpoint_path}" if checkpoint_path else ""
    device = loaded.device_info
    return [
        f"study {plan.name}: {space.description}",
        f"model {inputs.model_name}{start}; {token_words(facts['train_tokens'])} training tokens",
        *inputs.text_lines,
        *loaded.separator_notes,
        f"{'up to ' if space.ends_early else ''}{plan.document['trials_planned']} trials of at most "
        f"{budget_words(plan.budget)}, evaluated on the same {space.evaluation.tokens:,} held-out tokens at context "
        f"{space.evaluation.block_size}",
        f"{slots.count} at a time on {device.type} ({device.name}), {count_words(slots.threads, 'CPU thread')} each",
        f"baseline ({space.baseline_name}): {config_words(asdict(space.baseline))}",
        *(f"searched: {parameter.name} {parameter.domain}" for parameter in space.parameters if not plan.configs),
        *plan.notes,
    ]
