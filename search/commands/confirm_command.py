"""`make confirm`: runs the best trials and the baseline again on fresh seeds, and prints what that proves."""

from typing import Any

from rich.table import Table

from results.confirmation.attempt import (
    Attempt,
    attempt_rows,
    judged,
    load_attempts,
    plan_attempt,
    planned_runs,
    to_json,
    trials_found,
    write_attempts,
)
from results.study.folder import Study, check_has_baseline
from results.study.ledger import Ledger
from results.study.lock import hold
from results.study.paths import shown
from results.study.planned_run import runs_left
from results.winner import evidence_words, headline, notes, warning_words, way_words, winner_of
from results.winner import to_json as winner_json
from results.words import (
    STATUS_LABELS,
    UNKNOWN,
    budget_words,
    config_words,
    difference_words,
    interval_words,
    list_words,
    loss_words,
)
from search.cluster.study_storage import open_or_fetch_study
from search.options import Options
from search.setup.finish import finish_study
from search.setup.reopen import reopen
from search.setup.run_plan import cost_words, run_plan
from search.setup.settings import refuse_steps
from search.terminal.console import Preparing, Terminal, print_wide
from search.terminal.next_steps import ending_document, with_remedy
from search.terminal.signals import Terminated, ending_in_order
from spaces.budget import budget_of
from trainable.errors import UserError, count_words

DEFAULT_SEEDS = 5


def confirm_command(options: Options, terminal: Terminal) -> int:
    """Confirm STUDY's best TOP trials on SEEDS fresh seeds; return the exit code."""
    study, options = open_or_fetch_study(options)
    with with_remedy(study):
        code = confirm_study(study, options, terminal)
    unwritten = finish_study(study, options, terminal, samples=code == 0)
    attempts, winner = load_attempts(study), winner_of(study)
    say_attempt(study, attempts[-1], terminal)
    terminal.say(headline(winner), way_words(winner), evidence_words(winner), *notes(winner))
    terminal.warn(warning_words(winner))
    terminal.say(None if unwritten else f"report: {shown(study.path / 'report.html')}")
    terminal.document(
        {
            **ending_document(study, terminal),
            "winner": winner_json(winner),
            "verdicts": to_json(attempts[-1:])["attempts"][0]["verdicts"],
            **to_json(attempts),
        }
    )
    return code or unwritten


def confirm_study(study: Study, options: Options, terminal: Terminal) -> int:
    """Make a new attempt at a proof, or continue the interrupted one; return the exit code."""
    refuse_steps(options)
    check_has_baseline(study)
    own = budget_of(study.document())
    if own.asked(options.budget_tokens, options.budget_time) != own:
        [name] = options.lengths
        raise UserError(f"{name}: trials are confirmed at the budget that they had, {budget_words(own)}. Unset {name}.")
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
            terminal.say(f"{count_words(failed, 'run')} failed; to run again: make confirm STUDY={study.name}")
    return code or (1 if failed else 0)


def _next_attempt(study: Study, attempts: tuple[Attempt, ...], options: Options, terminal: Terminal) -> Attempt | None:
    """Return the attempt to run; None when the best are proven and SEEDS does not ask for more."""
    if attempts and not attempts[-1].verdicts:
        known = attempts[-1]
        terminal.say(
            f"attempt {known.number} goes on: {count_words(len(known.candidates), 'candidate')}, "
            f"{count_words(len(known.seeds), 'seed')}"
        )
        return known
    attempt = plan_attempt(
        study.trials(), attempts, study=study.name, top=options.top, seeds=options.seeds or DEFAULT_SEEDS
    )
    if trials_found("better", attempts).issuperset(attempt.candidates) and options.seeds is None:
        terminal.say(f"the best of the search are proven already; SEEDS={DEFAULT_SEEDS} makes another attempt")
        return None
    if attempts:
        terminal.say(
            f"attempt {attempt.number}, at {100 * attempt.alpha:.3g}% for a false proof where the first had "
            f"{100 * attempts[0].alpha:.3g}%: all attempts together stay below 5 %"
        )
    return attempt


def _run(
    study: Study, earlier: tuple[Attempt, ...], attempt: Attempt, options: Options, terminal: Terminal
) -> int | None:
    again = f"make confirm STUDY={study.name}"
    try:
        with ending_in_order(), Preparing(terminal.console) as progress:
            plan = reopen(study, options, progress)
    except (KeyboardInterrupt, Terminated):
        asked = f"TOP={len(attempt.candidates)} SEEDS={len(attempt.seeds)}"
        terminal.say(f"no run was begun, and study {study.name} is kept as it was; to go on: {again} {asked}")
        raise
    ledger = Ledger(study)
    # Before the first run, so that an interrupted attempt is continued and its seeds are never used for another.
    write_attempts(study, (*earlier, attempt))
    left = runs_left(planned_runs(attempt, ledger.trials()), ledger.trials())
    confirmed = list_words([*(f"trial {trial_id}" for trial_id in attempt.candidates), "the baseline"])
    seeds = count_words(len(attempt.seeds), "fresh seed")
    lines = [f"study {study.name}: {confirmed} again, each on {seeds}", cost_words(plan, left)]
    return run_plan(plan, terminal, ledger=ledger, runs=left, lines=lines, again=again)


def say_attempt(study: Study, attempt: Attempt, terminal: Terminal) -> None:
    """Print the losses of an attempt's runs, and its verdict on each candidate."""
    trials = study.trials()
    rows = {row["trial_id"]: row for row in trials}
    print_wide(terminal.console, _loss_table(attempt, trials))
    for verdict in attempt.verdicts:
        terminal.say("")
        terminal.say(f"trial {verdict.trial_id} ({config_words(rows[verdict.trial_id])}): {verdict.words}")
        if verdict.mean_difference is not None:
            against = f"  against the baseline {difference_words(verdict.mean_difference)} nats/token"
            if verdict.p_value is not None:
                against += f", interval {interval_words(verdict.low, verdict.high)}, p = {verdict.p_value:.2g}"
            terminal.say(against)


def _loss_table(attempt: Attempt, trials: list[dict[str, Any]]) -> Table:
    """Return the val_loss of every run, a row per seed, because there may be many seeds."""
    table = Table(box=None, header_style="bold", pad_edge=False, title="val loss", title_justify="left")
    for heading in ("seed", "baseline", *(f"trial {one}" for one in attempt.candidates)):
        table.add_column(heading, justify="right")
    cells: dict[int, dict[int | None, str]] = {seed: {} for seed in attempt.seeds}
    for run, row in attempt_rows(attempt, trials):
        words = UNKNOWN
        if row is not None:
            done = row["status"] == "completed"
            words = loss_words(row["val_loss"]) if done else STATUS_LABELS[row["status"]]
        cells[run.config.seed][run.of_trial] = words
    for seed, by_trial in cells.items():
        table.add_row(f"{seed}", *(by_trial[one] for one in (attempt.baseline, *attempt.candidates)))
    return table
