"""`make compare STUDY=a,b`: prints studies side by side, ranked only if their losses are comparable."""

import math
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from results.ranking import of_their_own, ranked_trials, savings
from results.study.folder import LATEST, Study, open_study
from results.winner import to_json as winner_json
from results.winner import winner_of
from results.words import (
    budget_words,
    config_words,
    duration_words,
    list_words,
    loss_words,
    run_words,
    scored_tokens,
    token_words,
)
from search.options import Options
from search.terminal.console import Terminal, print_table
from spaces.budget import Budget, budget_of
from trainable.errors import UserError

SAME_SPEED = 1.1
"""Device times to this factor are the same; a shape measured twice on an idle machine is within a few per cent."""


def compare_command(options: Options, terminal: Terminal) -> int:
    """Compare the studies named in STUDY, separated by commas."""
    names = [name.strip() for name in (options.study or "").split(",") if name.strip()]
    names = list(dict.fromkeys(open_study(name).name if name == LATEST else name for name in names))
    if len(names) < 2:
        raise UserError("compare needs two different studies or more: STUDY=a,b. make list shows them.")
    studies = [open_study(name) for name in names]
    documents = {study.name: study.document() for study in studies}
    entries = [_entry(study, documents[study.name]) for study in studies]
    budgets = {name: budget_of(document) for name, document in documents.items()}
    differences = [*protocol_differences(entries), *speed_differences(budgets)]
    ranked = entries
    if not differences:
        ranked = sorted(entries, key=lambda entry: entry["best"]["val_loss"] if entry["best"] else math.inf)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("study", "best", "baseline", "trials", "tokens", "device time"):
        table.add_column(heading, justify="left" if heading == "study" else "right", no_wrap=True)
    for entry in ranked:
        table.add_row(
            entry["study"],
            loss_words(entry["winner"]["val_loss"]),
            loss_words(entry["winner"]["baseline_val_loss"]),
            str(entry["trials"]),
            token_words(entry["tokens_spent"]),
            duration_words(entry["device_s_spent"]),
        )
    print_table(terminal.console, table)
    terminal.say("")
    for entry in ranked:
        best = entry["best"]
        worse = "; its loss is not below its start's" if entry["winner"]["worse_than_start"] else ""
        said = f"{run_words(best, None)}, {config_words(best)}{worse}" if best else "no best"
        terminal.say(f"{entry['study']}: {said}")
    if differences:
        terminal.say("not ranked, because their losses are not comparable:")
        for line in differences:
            terminal.say(f"  {line}")
    else:
        terminal.say(f"the same text, evaluation and budget: {_lowest_words(ranked)}")
    terminal.document({"ranked": not differences, "differences": differences, "studies": ranked})
    return 0


def _lowest_words(ranked: list[dict[str, Any]]) -> str:
    losses = {entry["study"]: entry["best"]["val_loss"] for entry in ranked if entry["best"]}
    lowest = [study for study, loss in losses.items() if loss == min(losses.values())]
    if not lowest:
        return "no study has a completed trial"
    return f"{list_words(lowest)} {'has' if len(lowest) == 1 else 'have'} the lowest loss, one seed each"


def protocol_differences(entries: list[dict[str, Any]]) -> list[str]:
    """Return a line for each difference that makes the studies' losses incomparable."""
    lines = []
    for key in ("corpus fingerprint", "evaluation block_size", "evaluation tokens", "budget"):
        values = {entry["study"]: entry["protocol"][key] for entry in entries}
        if len(set(values.values())) > 1:
            digits = 16 if key == "corpus fingerprint" else None
            lines.append(f"{key}: " + "; ".join(f"{study} {str(value)[:digits]}" for study, value in values.items()))
    return lines


def speed_differences(budgets: Mapping[str, Budget]) -> list[str]:
    """Return a line where studies of device time measured other speeds: the same time was more training in one."""
    measured = {name: budget.speeds.step_s for name, budget in budgets.items() if budget.speeds is not None}
    if len(measured) < 2:
        return []
    first, *others = measured.values()
    common = [shape for shape in first if all(shape in other for other in others)]
    spread = {shape: [step_s[shape] for step_s in measured.values()] for shape in common}
    shape = max(spread, key=lambda one: max(spread[one]) / min(spread[one]), default=None)
    if shape is None or max(spread[shape]) <= SAME_SPEED * min(spread[shape]):
        return []
    found = "; ".join(f"{name} {step_s[shape]:.3g} s" for name, step_s in measured.items())
    return [f"measured speed, a step of batch {shape.batch_size} x block {shape.block_size}: {found}"]


def _entry(study: Study, document: dict[str, Any]) -> dict[str, Any]:
    winner, trials = winner_of(study), ranked_trials(study.trials())
    spent = savings(of_their_own(trials, study.metrics()))
    return {
        "study": study.name,
        "protocol": {
            "corpus fingerprint": document["corpus"]["fingerprint"],
            "evaluation block_size": document["evaluation"]["block_size"],
            "evaluation tokens": scored_tokens(document),
            "budget": _budget(document),
        },
        "best": winner.trial,
        "baseline": winner.baseline,
        "winner": winner_json(winner),
        "trials": len(trials),
        "tokens_spent": spent.tokens_spent,
        "device_s_spent": spent.device_s_spent,
    }


def _budget(document: dict[str, Any]) -> str:
    budget, device = budget_of(document), document["device"]
    # The same time means other training on another device or with more slots.
    return budget_words(budget) + (
        "" if budget.device_s is None else f", {device['slots']} at a time on {device['name']}"
    )
