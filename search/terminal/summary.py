"""The summary of a study, for a person and as JSON: the winner against the baseline, the cost, the next steps."""

from typing import Any

from rich.panel import Panel
from rich.text import Text

from results.device_time import time_winner
from results.ranking import ending_counts, leaderboard, ranked_trials, savings, spent_by_purpose
from results.samples import samples_json
from results.study.folder import Study
from results.study.paths import shown
from results.winner import Winner, evidence_words, headline, notes, to_json, warning_words, way_words, winner_of
from results.words import (
    amount_words,
    config_words,
    duration_words,
    early_end_words,
    loss_words,
    percent_words,
    statuses_words,
    token_words,
)
from search.terminal.console import Terminal, print_table
from search.terminal.live_view import ending_words, leaderboard_table
from search.terminal.next_steps import ending_document
from trainable.errors import count_words
from trainable.rows import ENDINGS

TABLE_ROWS = 12
REASONS_SHOWN = 4


def say_summary(study: Study, terminal: Terminal, *, has_report: bool) -> None:
    """Print the summary of a study, whole or interrupted, for a person or as a document."""
    document, rows = study.document(), study.trials()
    trials, winner = ranked_trials(rows), winner_of(study)
    saved, by_time = savings(trials), time_winner(document, rows, study.metrics(), winner)
    if trials:
        table = leaderboard_table(trials, limit=TABLE_ROWS, statuses=(*ENDINGS, "interrupted"))
        print_table(terminal.console, table, wraps=True)
        if (more := len(trials) - table.row_count) > 0:
            terminal.say(f"{more} more in the report")
        terminal.say(*count_lines(trials, winner.baseline), early_end_words(document))
        answer = [Text(line) for line in verdict_lines(winner)]
        answer += [Text(by_time["words"])] if by_time else []
        if (warning := warning_words(winner)) is not None:
            answer.append(Text(warning, style="bold red"))
        terminal.console.print(Panel(Text("\n").join(answer)))
        terminal.say(cost_line(rows), f"report: {shown(study.path / 'report.html')}" if has_report else None)
    else:
        terminal.say("no trial was started")
    terminal.document(
        {
            **ending_document(study, terminal),
            "winner": to_json(winner),
            "by_device_time": by_time,
            "best": winner.trial,
            "baseline": winner.baseline,
            "proven": winner.standing == "proven",
            "early_end": document.get("early_end"),
            "endings": {status: count for status, count in ending_counts(trials).items() if count},
            "device_s_spent": saved.device_s_spent,
            "device_s_full": saved.device_s_full,
            "device_s_saved_frac": saved.device_s_saved_frac,
            "tokens_spent": saved.tokens_spent,
            "spent": spent_by_purpose(rows),
            "trials": leaderboard(trials),
        }
    )


def count_lines(trials: list[dict[str, Any]], baseline: dict[str, Any] | None) -> list[str]:
    """Return how many trials ended how, and the reasons of the first that broke."""
    broken = [row for row in trials if row["status"] in ENDINGS and row["status"] not in ("completed", "stopped")]
    lines = [ending_words(row, baseline) for row in broken[:REASONS_SHOWN]]
    if len(broken) > REASONS_SHOWN:
        lines.append(f"{len(broken) - REASONS_SHOWN} more in the report")
    return ["", f"{count_words(len(trials), 'trial')}: {statuses_words(ending_counts(trials))}", *lines]


def verdict_lines(winner: Winner) -> list[str]:
    """Return the winner against the baseline, the evidence, and notes."""
    lines = [headline(winner), *filter(None, [way_words(winner)])]
    for name, row in ((winner.trial and winner.name, winner.trial), ("the baseline", winner.baseline)):
        if row is not None and row["status"] == "completed" and not (row is winner.baseline and row is winner.trial):
            lines.append(f"{name}: val loss {loss_words(row['val_loss'])}; {config_words(row)}")
    if winner.search_difference is not None:
        side = "lower" if winner.search_difference <= 0 else "higher"
        by = f"{amount_words(winner.search_difference)} nats/token {side}"
        # Fresh seeds may say the contrary.
        by += " in the search," if winner.verdict is not None else ""
        lines.append(f"{by} on the same held-out tokens at the same budget; {evidence_words(winner)}")
    elif winner.verdict is not None or winner.rival_verdict is not None:
        lines.append(evidence_words(winner))
    return [*lines, *notes(winner)]


def sample_lines(study: Study) -> list[str]:
    """Return how the study's models continue the sample prompt, a line each; none without samples."""
    document = samples_json(study)
    if document is None:
        return []
    texts = {name: one.get("text") or f"({one['why']})" for name, one in document["samples"].items()}
    # Both are the same where nothing beat the baseline.
    if document["samples"]["best"] == document["samples"].get("baseline"):
        del texts["best"]
    return [
        f"samples, after {' '.join(document['prompt'].split())!r}:",
        *(f"  {name}: {' '.join(text.split())}" for name, text in texts.items()),
    ]


def cost_line(rows: list[dict[str, Any]]) -> str:
    """Return what each purpose of the study's runs cost, and what stopping trials saved."""
    words = [
        f"{duration_words(spent['device_s'])} ({token_words(spent['tokens'])} tokens) on "
        f"{'the ' if purpose == 'search' else ''}{purpose}"
        for purpose, spent in spent_by_purpose(rows).items()
    ]
    saved = savings(ranked_trials(rows))
    full, share = duration_words(saved.device_s_full), saved.device_s_saved_frac
    # Trials that are still to go on have saved nothing, and neither have those that ran in full.
    in_full = f"; every trial in full would have taken {full}: {percent_words(share)} saved" if share else ""
    return f"device time: {', '.join(words)}{in_full}"
