"""`make search`: plans and runs a search and sums it up; and what `make baseline` and `make resume` share with it."""

from results.confirmation.attempt import load_attempts
from results.ranking import ranked_trials
from results.study.folder import Study
from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from results.words import budget_words, evaluation_words, token_words
from search.commands.confirm_command import confirm_study
from search.commands.spaces_command import space_lines
from search.options import Options
from search.setup.finish import finish_study
from search.setup.inputs import Loaded
from search.setup.plan import Plan, make_plan
from search.setup.run_plan import checked, run_plan
from search.terminal.console import Preparing, Terminal
from search.terminal.signals import INTERRUPTED, Terminated
from search.terminal.summary import say_summary
from spaces.overrides import SETTINGS
from trainable.errors import MachineError, NothingToDoError, UserError, count_words
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
    attempts, planned = load_attempts(study), SETTINGS.validate_python(study.document()["settings"]).confirm
    begun = bool(attempts) and not attempts[-1].verdicts
    is_left = planned is not None and planned.attempt > len(attempts) - begun
    # With TRIALS the user waits for more trials; the interrupted confirmation is then a printed next step.
    by_itself = options.trials is None if begun else is_left
    if code == 0 and (by_itself if options.confirm is None else options.confirm):
        try:
            asked = {"top": planned.top, "seeds": planned.seeds} if planned else {}
            code = confirm_study(study, options.model_copy(update=asked), terminal)
        except NothingToDoError as nothing:
            terminal.warn(str(nothing))
        except (UserError, MachineError) as error:
            # Of the trials, which took hours, is still told what they found.
            terminal.warn(f"error: {error}")
            code = 2 if isinstance(error, UserError) else 1
        except KeyboardInterrupt:
            code = INTERRUPTED
        except Terminated as ended:
            code = int(ended.code or 0)
    # After an interruption nobody waits for samples.
    unwritten = finish_study(study, options, terminal, samples=code == 0, loaded=loaded)
    say_summary(study, terminal, has_report=not unwritten)
    return code or unwritten


def run_own_trials(plan: Plan, ledger: Ledger, terminal: Terminal, lines: list[str]) -> int:
    """Run what is left of a search's or a baseline's trials; the study must be held.

    Return the exit code: 0, that of an interruption, or 1 when every trial failed.
    """
    left = None
    if plan.kind == "baseline":
        ended = {row["trial_id"] for row in ledger.trials() if row["status"] in ENDINGS}
        left = [
            PlannedRun(trial_id=number, config=config, purpose="baseline", is_baseline=number == 0)
            for number, config in enumerate(plan.configs)
            if number not in ended
        ]
    code = run_plan(plan, terminal, ledger=ledger, runs=left, lines=lines)
    if code is not None:
        return code
    return 1 if all(row["status"] == "failed" for row in ranked_trials(ledger.trials())) else 0


def header_lines(plan: Plan) -> list[str]:
    """Return the lines printed before the first trial."""
    space, loaded, slots = plan.space, plan.loaded, plan.slots
    assert space is not None
    model, path, tokens = loaded.spec.model_name, plan.options.checkpoint_path, len(loaded.spec.corpus.train)
    start = f", every trial from the weights of {path}" if path else ""
    device = loaded.device_info
    return [
        f"study {plan.name}{space.description and ': '}{space.description}",
        f"model {model}{start}; {token_words(tokens)} training tokens",
        *loaded.text_lines,
        f"{'up to ' if space.ends_early else ''}{count_words(plan.document['trials_planned'], 'trial')} of at most "
        f"{budget_words(plan.budget)}, evaluated on the same {evaluation_words(plan.document)}",
        f"{slots.count} at a time on {device.type} ({device.name}), {count_words(slots.threads, 'CPU thread')} each",
        *space_lines(space),
    ]
