"""The view of a running study: a live screen in a terminal, plain lines elsewhere and in search.log."""

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from results.ranking import baseline_trial, budget_frac, leaderboard, ranked_trials
from results.study.folder import Study
from results.study.ledger import Ledger
from results.words import (
    STATUS_LABELS,
    UNKNOWN,
    batch_words,
    config_words,
    difference_words,
    duration_words,
    label,
    loss_words,
    percent_words,
    run_words,
    schedule_words,
    token_words,
    trial_loss_words,
    value_words,
)
from search.terminal.console import LINE_INTERVAL_S, plain, print_line, table_widths
from trainable.config import config_from
from trainable.rows import ENDINGS, RANKED_PURPOSES

LEADERS_SHOWN = 6
ENDINGS_SHOWN = 4
RUNNING_SHOWN = 8
STATUS_STYLES = {"completed": "green", "stopped": "yellow", "unstable": "red", "out_of_memory": "red", "failed": "red"}
"""The colours of how a trial ended."""
Words = Callable[[Mapping[str, Any]], str]
SETTINGS: Mapping[str, tuple[tuple[str, ...], Words]] = {
    "batch": (("batch_size", "grad_accum_steps"), batch_words),
    "block": (("block_size",), lambda row: f"{row['block_size']}"),
    "LR": (("learning_rate",), lambda row: f"{row['learning_rate']:.2e}"),
    "schedule": (("lr_schedule", "warmup_steps", "warmup_frac"), schedule_words),
}
"""Columns of the leaderboard, each with the searched parameters that it shows; others have a column of their own."""


@dataclass
class StudyView:
    """Draws a running study from its ledger. A context manager."""

    study: Study
    ledger: Ledger
    trials_planned: int
    console: Console
    ray_is_up: bool = False
    waiting: set[int] = field(default_factory=set)
    """Running trials that have lost their worker."""
    endings: list[str] = field(default_factory=list)
    """A line for every ended trial, the oldest first."""
    _started_at: float = field(default_factory=time.monotonic)
    _budgets_before: float = 0.0
    """Training by earlier processes of a resumed study, in full budgets of a trial."""
    _progress_line_at: float = field(default_factory=time.monotonic)
    _runs: Collection[int] | None = None
    """The trial_ids that are shown; None for the search's trials, among which no run of a confirmation is drawn."""
    _full_length: bool = False
    _noun: str = "trials"
    _trained_since: float | None = None
    """When the first trial of this process began; Ray's start does not count for the time left."""
    _known: tuple[float, float] = (0.0, 0.0)
    """The training that evaluations have told, in full budgets, and when the last of them came."""
    _live: Live | None = None

    def __enter__(self) -> "StudyView":
        self._started_at = self._progress_line_at = time.monotonic()
        if self.console.is_interactive:
            self._live = Live(
                get_renderable=self.render, console=self.console, refresh_per_second=2, transient=True, screen=False
            )
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def follow(self, runs: Collection[int] | None, *, noun: str, left: int, full_length: bool) -> None:
        """Show these runs, None for the search's trials, of which so many are left; full_length: no rung stops one."""
        self._runs, self._noun, self._full_length = runs, noun, full_length
        self.trials_planned = left + sum(row["status"] in ENDINGS for row in self._rows())
        self._budgets_before = sum(map(budget_frac, self._rows()))

    def _rows(self) -> list[dict[str, Any]]:
        rows, runs = self.ledger.trials(), self._runs
        return [row for row in rows if (row["purpose"] == "search" if runs is None else row["trial_id"] in runs)]

    def refresh(self) -> None:
        """Note that something changed; without a live screen print a progress line at intervals."""
        now = time.monotonic()
        if self._trained_since is None and any(row["status"] == "running" for row in self._rows()):
            self._trained_since = now
        if self._live is None and now - self._progress_line_at >= LINE_INTERVAL_S:
            self._progress_line_at = now
            self.say(self._progress_words(self._rows()))

    def trial_ended(self, trial_id: int, *, note: str) -> None:
        """Print how a trial ended."""
        trials = self.ledger.trials()
        rows = {row["trial_id"]: row for row in trials}
        row = rows[trial_id]
        # Without what was searched, two candidates may look alike.
        of = rows.get(row["of_trial"], row)
        line = ending_words({**row, "point": of["point"]}, baseline_trial(trials), note=note)
        self.endings.append(line)
        if self._live is None:
            self.say(line)
        else:
            self.log(line)

    def say(self, line: str) -> None:
        """Print a line and keep it in search.log."""
        print_line(self.console, line)
        self.log(line)

    def log(self, line: str) -> None:
        """Write a line to search.log only."""
        # A full disk is reported when the tables are written, which matter more.
        with suppress(OSError), self.study.log_path.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%H:%M:%S')} {plain(line)}\n")

    def render(self) -> RenderableType:
        """Return the live screen."""
        trials = self._rows()
        ended = [row for row in trials if row["status"] in ENDINGS]
        head = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=max(1, self.trials_planned), completed=len(ended), width=12)
        head.add_row(bar, self._progress_words(trials))
        name = Text("study ") + Text(self.study.name, style="bold")
        # Before follow() nobody knows how many trials there are, and it is not Ray that is waited for.
        parts: list[RenderableType] = [name, *([head] if self.trials_planned else []), self._running_table(trials)]
        board = self._board(ranked_trials(trials))
        if board.row_count:
            parts.append(board)
        if self.endings:
            # The newest first, because a small terminal cuts off the end.
            lines = [Text(line, style="dim", overflow="fold") for line in reversed(self.endings)]
            parts.append(Group(*lines[:ENDINGS_SHOWN]))
        return Group(*parts)

    def _board(self, trials: Sequence[dict[str, Any]]) -> Table:
        """Return the leaderboard without the last settings that the screen has no room for."""
        settings = searched_settings(trials)
        while True:
            board = leaderboard_table(trials, limit=LEADERS_SHOWN, statuses=("completed", "stopped"), settings=settings)
            if len(settings) <= 1 or table_widths(self.console, board).minimum <= self.console.width:
                return board
            settings.popitem()

    def _progress_words(self, trials: Sequence[dict[str, Any]]) -> str:
        now = time.monotonic()
        ended = [row for row in trials if row["status"] in ENDINGS]
        spent_tokens, spent = sum(row["tokens_seen"] for row in trials), sum(map(budget_frac, trials))
        if spent != self._known[0]:
            self._known = spent, now
        known_at = self._known[1]
        left_s = time_left_s(
            trials,
            trials_planned=self.trials_planned,
            elapsed_s=known_at - (self._trained_since or known_at),
            budgets_before=self._budgets_before,
            full_length=self._full_length,
        )
        left = "the first evaluation tells the time left"
        if self._trained_since is None and all(row["status"] != "running" for row in trials):
            left = "starting workers" if self.ray_is_up else "starting Ray"
        if left_s is not None:
            left = f"about {duration_words(max(0.0, left_s - (now - known_at)))} left"
        return (
            f"{len(ended)}/{self.trials_planned} {self._noun}, {token_words(spent_tokens)} tokens, "
            f"{duration_words(now - self._started_at)} so far, {left}"
        )

    def _running_table(self, trials: Sequence[dict[str, Any]]) -> Table:
        table = Table.grid(padding=(0, 1))
        running = [row for row in trials if row["status"] == "running"]
        baseline = baseline_trial(self.ledger.trials())
        for row in running[:RUNNING_SHOWN]:
            name = run_words(row, baseline)
            bar = ProgressBar(total=1.0, completed=budget_frac(row), width=10)
            does = "waiting for a worker" if row["trial_id"] in self.waiting else running_words(row)
            table.add_row(name, bar, f"val loss {loss_words(row['val_loss'])}", does, config_words(row))
        if len(running) > RUNNING_SHOWN:
            table.add_row(f"{len(running) - RUNNING_SHOWN} more")
        return table


def running_words(row: dict[str, Any]) -> str:
    """Return a running trial's speed, or what it does before an evaluation tells it."""
    if row["tokens_per_s"]:
        return f"{token_words(row['tokens_per_s'])} tokens/s"
    return "loading the model" if row["val_loss"] is None else "training"


def time_left_s(
    trials: Sequence[dict[str, Any]],
    *,
    trials_planned: int,
    elapsed_s: float,
    budgets_before: float = 0.0,
    full_length: bool = False,
) -> float | None:
    """Return an estimate of the seconds left: trials to come use as much of their budgets as ended ones did.

    elapsed_s: the time since `budgets_before` full budgets had been trained.
    """
    spent = sum(map(budget_frac, trials)) - budgets_before
    # Not yet known while a trial that went back to its checkpoint repeats steps.
    if spent <= 0:
        return None
    ended = [budget_frac(row) for row in trials if row["status"] in ENDINGS and not row["is_baseline"]]
    # Until a trial has ended assume half of the budget: most trials are stopped at the first rungs.
    usual = sum(ended) / len(ended) if ended else 1.0 if full_length else 0.5
    left = (trials_planned - len(trials)) * usual
    for row in trials:
        if row["status"] not in ENDINGS:
            goes_on = row["is_baseline"] or budget_frac(row) >= usual
            left += max(0.0, (1.0 if goes_on else usual) - budget_frac(row))
    return left / spent * elapsed_s


def ending_words(row: dict[str, Any], baseline: dict[str, Any] | None, *, note: str = "") -> str:
    """Return a line on how a trial ended and why."""
    config = config_words(row)
    share = f"{percent_words(budget_frac(row))} of the budget"
    loss = f"val loss {loss_words(row['val_loss'])}"
    name = run_words(row, baseline)
    is_compared = row["purpose"] in RANKED_PURPOSES and not row["is_baseline"]
    match row["status"]:
        case "completed":
            against = ""
            if baseline is not None and is_compared and baseline["status"] == "completed":
                against = f" ({difference_words(row['val_loss'] - baseline['val_loss'])} against the baseline)"
            return f"{name} completed: {loss}{against}; {config}"
        case "stopped":
            # With several slots a verdict may come late: the loss is that at the rung, and the training went on.
            return f"{name} stopped at {share}: {loss} at its rung, not among the best there; {config}"
        case "unstable":
            return f"{name} unstable: {row['verdict']}; {config}"
        case status:
            why = f": {note}" if note else ""
            return f"{name} {STATUS_LABELS[status]} at {share}{why}; {config}"


def searched_settings(trials: Sequence[dict[str, Any]]) -> dict[str, Words]:
    """Return the columns of what was searched, each with its words for a row; SETTINGS where nothing was."""
    names = dict.fromkeys(name for row in trials for name in json.loads(row.get("point") or "{}"))
    usual = {one: words for one, (own, words) in SETTINGS.items() if not names or names.keys() & {*own}}
    others = [name for name in names if not any(name in own for own, _ in SETTINGS.values())]
    return usual | {label(name): partial(_value_words, name) for name in others}


def _value_words(name: str, row: Mapping[str, Any]) -> str:
    return value_words(row[name]) if config_from(row).reads(name) else UNKNOWN


def leaderboard_table(
    trials: Sequence[dict[str, Any]],
    *,
    limit: int,
    statuses: Sequence[str],
    settings: Mapping[str, Words] | None = None,
) -> Table:
    """Return the best trials as a table, against the baseline; settings: its columns, by default all searched."""
    baseline = baseline_trial(trials)
    base_loss = baseline["val_loss"] if baseline and baseline["status"] == "completed" else None
    table = Table(box=None, padding=(0, 1), pad_edge=False, collapse_padding=True, header_style="bold")
    # Only words wrap, so that no digit is cut.
    settings = searched_settings(trials) if settings is None else settings
    for heading in ("trial", "val loss", "vs base", "tokens", *settings, "ended"):
        wraps = heading in ("schedule", "ended")
        justify: Literal["left", "right"] = "left" if wraps or heading == "trial" else "right"
        # A narrow column is not made wide by its name.
        name = heading if heading in ("val loss", "vs base") else heading.replace(" ", "\n")
        table.add_column(name, justify=justify, no_wrap=not wraps, min_width=len(name.split("\n")[0]))
    shown = [row for row in leaderboard(trials) if row["status"] in statuses]
    cut = shown[:limit]
    if baseline is not None and baseline in shown and baseline not in cut:
        cut.append(baseline)
    for row in cut:
        comparable = base_loss is not None and row["status"] == "completed" and not row["is_baseline"]
        # "(train)" stands in the next column, which an unstable trial leaves empty.
        loss, _, mark = trial_loss_words(row).partition(" ")
        table.add_row(
            "baseline" if row["is_baseline"] else f"{row['trial_id']}",
            loss,
            difference_words(row["val_loss"] - base_loss) if comparable else mark,
            token_words(row["tokens_seen"]),
            *(words(row) for words in settings.values()),
            Text(STATUS_LABELS[row["status"]], style=STATUS_STYLES.get(row["status"], "")),
            style="cyan" if row["is_baseline"] else "",
        )
    return table
