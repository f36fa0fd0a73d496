"""The end of a study, for a person and as a document: the best against the baseline, what it cost, what next."""

from typing import Any

from rich.panel import Panel
from rich.text import Text

from results.confirmation.confirmation import load_confirmation, proven_trial_id
from results.ranking import baseline_trial, best_trial, ending_counts, leaderboard, savings
from results.study.folder import Study
from results.study.paths import shown
from results.words import STATUS_LABELS, config_words, duration_words, loss_words, percent_words, token_words
from search.terminal.console import Terminal
from search.terminal.live_view import leaderboard_table
from trainable.rows import ENDINGS

TABLE_ROWS = 12


def say_summary(study: Study, terminal: Terminal) -> None:
    """Print the summary of a study, whole or interrupted."""
    document, trials = study.document(), study.trials()
    if not trials:
        terminal.say("no trial was started")
        return
    terminal.console.print(leaderboard_table(trials, limit=TABLE_ROWS, statuses=(*ENDINGS, "interrupted")))
    counts = ending_counts(trials)
    terminal.say(", ".join(f"{count} {STATUS_LABELS[status]}" for status, count in counts.items() if count))
    terminal.console.print(Panel(Text("\n".join(verdict_lines(study)))))
    spent = savings(trials, document["budget_tokens"])
    terminal.say(
        f"spent {duration_words(spent.device_s_spent)} of device time and {token_words(spent.tokens_spent)} tokens; "
        f"every trial in full would have taken {duration_words(spent.device_s_full)}: "
        f"{percent_words(spent.device_s_saved_frac)} saved"
    )
    for line in next_lines(study):
        terminal.say(line)


def verdict_lines(study: Study) -> list[str]:
    """Return the answer: the best trial against the baseline, and how far to trust it."""
    trials = study.trials()
    best, baseline = best_trial(trials), baseline_trial(trials)
    if best is None:
        return ["no trial was completed, so there is no best configuration"]
    if baseline is None or baseline["status"] != "completed":
        return [
            f"best: trial {best['trial_id']}, val loss {loss_words(best['val_loss'])}; {config_words(best)}",
            "the baseline did not complete, so there is nothing to compare it with",
        ]
    if best["is_baseline"]:
        return [f"the baseline is the best: val loss {loss_words(best['val_loss'])}; no trial beat it"]
    gain = baseline["val_loss"] - best["val_loss"]
    confirmation = load_confirmation(study)
    verdict = (
        next((one for one in confirmation.verdicts if one.trial_id == best["trial_id"]), None) if confirmation else None
    )
    proof = "one seed each, so not proven yet" if verdict is None else f"on {verdict.seeds} fresh seeds {verdict.words}"
    return [
        f"best: trial {best['trial_id']}, val loss {loss_words(best['val_loss'])}; {config_words(best)}",
        f"baseline: val loss {loss_words(baseline['val_loss'])}; {config_words(baseline)}",
        f"{gain:.4f} nats/token lower on the same held-out tokens at the same token budget; {proof}",
    ]


def next_lines(study: Study) -> list[str]:
    """Return the commands to type next."""
    if best_trial(study.trials()) is None:
        return [f"all that was measured: {shown(study.path)}"]
    return [
        "",
        "next:",
        f'  eval "$(make -s export STUDY={study.name})" && make train    train that configuration',
        f"  make confirm STUDY={study.name}    is it proven? the best two again on five fresh seeds",
        f"  make attribute STUDY={study.name}    which of the changed settings did it?",
        f"  make search SPACE=schedule BASELINE={study.name}    bring the schedule back around it",
        f"  report: {shown(study.path / 'report.html')}; all that was measured: {shown(study.path)}",
    ]


def summary_document(study: Study) -> dict[str, Any]:
    """Return the summary as a document."""
    document, trials = study.document(), study.trials()
    spent = savings(trials, document["budget_tokens"])
    return {
        "study": study.name,
        "path": str(study.path),
        "best": best_trial(trials),
        "baseline": baseline_trial(trials),
        "proven": proven_trial_id(load_confirmation(study)) is not None,
        "endings": {status: count for status, count in ending_counts(trials).items() if count},
        "device_s_spent": spent.device_s_spent,
        "device_s_full": spent.device_s_full,
        "device_s_saved_frac": spent.device_s_saved_frac,
        "tokens_spent": spent.tokens_spent,
        "trials": leaderboard(trials),
    }
