"""The one way in which trials are run into a study, new or not: under its view, and with signals heard."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from results.study.folder import Study
from results.study.ledger import Ledger
from search.terminal.console import Terminal
from search.terminal.live_view import StudyView
from search.terminal.signals import Interrupts
from trainable.rows import ENDINGS

if TYPE_CHECKING:
    from ray.tune import Callback

    from search.tune.resources import Slots
    from search.tune.workload import Workload
    from trainable.run import RunSpec


def run_trials(
    study: Study,
    make_workload: "Callable[[], Workload]",
    spec: "RunSpec",
    *,
    slots: "Slots",
    ledger: Ledger,
    budget_tokens: int,
    lines: Sequence[str],
    terminal: Terminal,
    callbacks: "Callable[[StudyView], Sequence[Callback]] | None" = None,
) -> int | None:
    """Run work into the study; return the exit code of an interruption, or None.

    Both are made by functions, because making them imports libraries for seconds, in which a signal counts too.
    Raises UserError when the study cannot be written any more.
    """
    interrupts = Interrupts()
    view = StudyView(
        study=study, ledger=ledger, budget_tokens=budget_tokens, trials_planned=0, console=terminal.console
    )
    with interrupts, view:
        for line in lines:
            view.say(line)
        from search.tune.engine import run_study

        work = make_workload()
        ended = sum(row["status"] in ENDINGS for row in ledger.trials() if work.includes(row))
        view.follow(
            work.includes,
            noun="trials" if work.is_ranked else "runs",
            planned=ended + work.trials_count,
            full_length=not work.searcher.log.rung_tokens,
        )
        run_study(
            study,
            work,
            spec,
            slots=slots,
            ledger=ledger,
            view=view,
            interrupts=interrupts,
            callbacks=callbacks(view) if callbacks else (),
        )
    return interrupts.code
