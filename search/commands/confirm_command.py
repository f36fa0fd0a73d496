"""`make confirm`: the best trials and the baseline again on fresh seeds, and what that proves."""

from rich.table import Table

from results.confirmation.attempt import Attempt, judged, plan_attempt, planned_runs
from results.confirmation.confirmation_file import load_attempts, to_json, write_attempts
from results.samples import samples_json
from results.study.folder import Study
from results.study.ledger import Ledger
from results.study.lock import hold
from results.study.planned_run import runs_left
from results.winner import evidence_words, headline, notes, way_words, winner_of
from results.winner import to_json as winner_json
from results.words import UNKNOWN, config_words, count_words, difference_words
from search.cluster.study_storage import open_or_fetch_study
from search.options import Options
from search.setup.finish import finish_study
from search.setup.reopen import reopen
from search.setup.run_plan import run_listed
from search.terminal.console import Preparing, Terminal
from search.terminal.next_steps import next_document, say_next
from search.terminal.summary import warning_lines

DEFAULT_SEEDS = 5


def confirm_command(options: Options, terminal: Terminal) -> int:
    """Confirm STUDY's best TOP trials on SEEDS fresh seeds; return the exit code."""
    study, _ = open_or_fetch_study(options)
    code = confirm_study(study, options, terminal)
    finish_study(study, code, options, terminal)
    attempts, winner = load_attempts(study), winner_of(study)
    say_attempt(study, attempts[-1], terminal)
    for line in filter(None, (headline(winner), way_words(winner), evidence_words(winner), *notes(winner))):
        terminal.say(line)
    for warning in warning_lines(winner):
        terminal.console.print(warning, soft_wrap=True)
    say_next(study, terminal)
    terminal.document(
        {
            "study": study.name,
            "path": str(study.path),
            "winner": winner_json(winner),
            "next": next_document(study, terminal),
            "verdicts": to_json(attempts[-1:])["attempts"][0]["verdicts"],
            "samples": samples_json(study),
            **to_json(attempts),
        }
    )
    return code


def confirm_study(study: Study, options: Options, terminal: Terminal) -> int:
    """Make another attempt at a proof, or take up the one that was begun; return the exit code."""
    with hold(study):
        attempts = load_attempts(study)
        attempt = _next_attempt(study, attempts, options, terminal)
        if attempt is None:
            return 0
        earlier = attempts[: attempt.number - 1]
        left = runs_left(planned_runs(attempt, study.trials()), study.trials())
        code = _run(study, earlier, attempt, options, terminal) if left else None
        trials = study.trials()
        attempt = judged(attempt, trials)
        write_attempts(study, (*earlier, attempt))
        failed = len(runs_left(planned_runs(attempt, trials), trials)) if code is None else 0
        if failed:
            terminal.say(f"{count_words(failed, 'run')} failed; make confirm STUDY={study.name} runs them again")
    return code or (1 if failed else 0)


def _next_attempt(study: Study, attempts: tuple[Attempt, ...], options: Options, terminal: Terminal) -> Attempt | None:
    """Return the attempt to run, None when the best are proven and nobody asked for more seeds."""
    if attempts and not attempts[-1].verdicts:
        known = attempts[-1]
        terminal.say(
            f"attempt {known.number} goes on as it was begun: {count_words(len(known.candidates), 'candidate')}, "
            f"{count_words(len(known.seeds), 'seed')}"
        )
        return known
    attempt = plan_attempt(study.trials(), attempts, top=options.top, seeds=options.seeds or DEFAULT_SEEDS)
    proven = {verdict.trial_id for one in attempts for verdict in one.verdicts if verdict.outcome == "better"}
    if proven.issuperset(attempt.candidates) and options.seeds is None:
        terminal.say(f"the best of the search are proven already; SEEDS={DEFAULT_SEEDS} makes another attempt")
        return None
    if attempts:
        last = attempts[-1]
        needed = [one.seeds_needed for one in last.verdicts if one.seeds_needed and one.trial_id in attempt.candidates]
        terminal.say(
            f"attempt {attempt.number}, at {attempt.alpha:.2%} for a false proof where the first had "
            f"{attempts[0].alpha:.2%}: all attempts together stay below 5 %"
            + (f"; at the difference seen before about {min(needed)} seeds are needed" if needed else "")
        )
    return attempt


def _run(
    study: Study, earlier: tuple[Attempt, ...], attempt: Attempt, options: Options, terminal: Terminal
) -> int | None:
    with Preparing(terminal.console) as progress:
        plan = reopen(study, options, progress)
    ledger = Ledger.load(study)
    # Before the first run: an attempt that is cut off is taken up, and its seeds are never used again.
    write_attempts(study, (*earlier, attempt))
    left = runs_left(planned_runs(attempt, ledger.trials()), ledger.trials())
    words = f"study {study.name}: confirmation, {count_words(len(left), 'run')} on fresh seeds"
    return run_listed(plan, left, terminal, ledger=ledger, lines=[words])


def say_attempt(study: Study, attempt: Attempt, terminal: Terminal) -> None:
    """Print what an attempt proved, and the ranks by search and by it."""
    rows = {row["trial_id"]: row for row in study.trials()}
    if not attempt.verdicts:
        terminal.say(f"attempt {attempt.number} is not complete; make confirm STUDY={study.name} goes on")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("trial", "by search", "confirmed", "v baseline", "interval", "p", "verdict"):
        table.add_column(heading, justify="left" if heading in ("trial", "verdict") else "right", overflow="fold")
    for rank, verdict in enumerate(attempt.verdicts, start=1):
        table.add_row(
            f"{verdict.trial_id}",
            str(rank),
            str(attempt.ranking.index(verdict.trial_id) + 1),
            difference_words(verdict.mean_difference),
            f"{difference_words(verdict.low)} to {difference_words(verdict.high)}",
            UNKNOWN if verdict.p_value is None else f"{verdict.p_value:.2g}",
            verdict.words,
        )
    table.add_row("baseline", "", str(attempt.ranking.index(attempt.baseline) + 1))
    terminal.console.print(table)
    for verdict in attempt.verdicts:
        terminal.say(f"trial {verdict.trial_id} ({config_words(rows[verdict.trial_id])}): {verdict.words}")
