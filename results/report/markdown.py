"""The report as Markdown for a pull request, made from the facts."""

import html
import re
from collections.abc import Iterator
from typing import Any

from results.words import (
    STATUS_LABELS,
    count_words,
    difference_words,
    duration_words,
    list_words,
    loss_words,
    percent_words,
    printable,
    token_words,
    value_words,
)

Row = dict[str, Any]
TOP_TRIALS = 5


def markdown(facts: Row) -> str:
    """Return the report: answer, changes, cost, samples, first trials, cautions and protocol."""
    of_trials = [_cost(facts), _samples(facts), _trials(facts), _cautions(facts)]
    parts = [_answer(facts), _changes(facts), *of_trials, _protocol(facts)]
    text = "\n\n".join("\n".join(lines) for part in parts if (lines := list(part))) + "\n"
    return printable(text)


def plain(text: Any) -> str:
    """Return `text` on one line, with the markup of Markdown and HTML escaped."""
    line = re.sub(r"([\\`*_{}\[\]#!|~$@])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))
    # A start that would begin a list.
    return re.sub(r"^(?=([-+]|\d+[.)])\s)", "&#8203;", line)


def _answer(facts: Row) -> Iterator[str]:
    answer, study = facts["answer"], facts["study"]
    yield f"## Study {plain(study['name'])}: {answer['headline']}"
    yield ""
    if study["description"]:
        yield plain(study["description"])
        yield ""
    yield f"**{plain(answer['proof']['words'])}**"
    for words in filter(None, (answer["way"], answer["warning"] and f"Warning: {answer['warning']}.")):
        yield from ("", plain(words))
    winner, baseline = answer["winner"], answer["baseline"]
    if winner and baseline and not winner["is_baseline"]:
        yield ""
        yield "| | val loss (nats/token) | difference | tokens | tokens/s |"
        yield "|---|---:|---:|---:|---:|"
        for name, side, difference in (
            (f"trial {winner['trial_id']}", winner, answer["val_loss_difference"]),
            ("baseline", baseline, None),
        ):
            speed = value_words(None if side["tokens_per_s"] is None else round(side["tokens_per_s"]))
            yield (
                f"| {name} | {loss_words(side['val_loss'])} | {difference_words(difference)} | "
                f"{token_words(side['tokens_seen'])} | {speed} |"
            )


def _changes(facts: Row) -> Iterator[str]:
    changed = [row for row in facts["answer"]["changes"] if row["baseline"] != row["winner"]]
    if changed:
        yield "| setting | baseline | best |"
        yield "|---|---:|---:|"
        for row in changed:
            yield f"| {row['label']} | {plain(value_words(row['baseline']))} | {plain(value_words(row['winner']))} |"
    if facts["answer"]["export"]:
        yield from (["", "```sh", facts["answer"]["export"], "```"])


def _cost(facts: Row) -> Iterator[str]:
    cost = facts["cost"]
    if not cost["by_ending"]:
        return
    yield (
        f"Wall time {duration_words(facts['study']['wall_s'])}, device time {duration_words(cost['device_s_spent'])}, "
        f"{token_words(cost['tokens_spent'])} "
        f"tokens; every trial in full would have taken {duration_words(cost['device_s_full'])}: "
        f"{percent_words(cost['device_s_saved_frac'])} saved."
        + "".join(
            f" {row['purpose'].capitalize()} took {duration_words(row['device_s'])} more."
            for row in cost["by_purpose"]
            if row["purpose"] in ("confirmation", "attribution")
        )
    )
    yield from [f"The search {words}."] if (words := facts["study"]["early_end"]) else []
    yield ""
    yield "| how it ended | trials | device time | tokens | in full |"
    yield "|---|---:|---:|---:|---:|"
    for row in cost["by_ending"]:
        yield (
            f"| {STATUS_LABELS[row['status']]} | {row['trials']} | {duration_words(row['device_s'])} | "
            f"{token_words(row['tokens'])} | {token_words(row['tokens_full'])} |"
        )


def _samples(facts: Row) -> Iterator[str]:
    samples = facts["samples"]
    if samples is None:
        return
    yield "### What it writes"
    yield ""
    yield f"The prompt, then how each model continues it: seed {samples['seed']}, at most {samples['tokens']} tokens."
    yield from ("", fenced(samples["prompt"]))
    for one in samples["continuations"]:
        name = one["name"].capitalize() + (f", trial {one['trial_id']}" if one["name"] == "best" else "")
        yield from ("", f"{name}:", "", f"(none: {plain(one['why'])})" if one["text"] is None else fenced(one["text"]))


def fenced(text: str) -> str:
    """Return `text` as a code block whose fence is longer than any in the text."""
    longest = max(map(len, re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _trials(facts: Row) -> Iterator[str]:
    rows = [row for row in facts["trials"] if row["status"] == "completed"][:TOP_TRIALS]
    if len(rows) < 2:
        return
    names = [parameter["name"] for parameter in facts["parameters"]]
    yield "| rank | trial | val loss | " + " | ".join(p["label"] for p in facts["parameters"]) + " |"
    yield "|---:|---|---:|" + "---:|" * len(names)
    for row in rows:
        values = " | ".join(plain(value_words(row["searched"].get(name))) for name in names)
        name = f"{row['trial_id']}{' (baseline)' if row['is_baseline'] else ''}"
        yield f"| {row['rank']} | {name} | {loss_words(row['val_loss'])} | {values} |"


def _cautions(facts: Row) -> Iterator[str]:
    for line in facts["answer"]["notes"]:
        yield f"- {plain(line[0].upper() + line[1:])}."
    for attempt in (facts["confirmation"] or {}).get("attempts", ()):
        for verdict in attempt["verdicts"]:
            which = f"Trial {verdict['trial_id']} on fresh seeds, attempt {attempt['number']}"
            yield f"- {which}: {plain(verdict['words'])}."
    for line in (facts["attribution"] or {}).get("summary", ()):
        yield f"- Attribution: {plain(line)}"
    if facts["edges"]:
        yield f"- On the edge of the searched space: {plain('; '.join(edge['words'] for edge in facts['edges']))}."
    if facts["instability"]["trials"]:
        yield f"- Stability: {plain(facts['instability']['words'])}."
    known = [rung for rung in facts["rungs"] if rung["rung"] is not None and rung["spearman"] is not None]
    if known:
        said = [
            f"{rung['spearman']:.2f} at {percent_words(rung['budget_frac'])} of the budget "
            f"({count_words(rung['trials_with_both'], 'trial')})"
            for rung in known
        ]
        yield f"- Rank correlation (Spearman) of the loss at a rung with the final loss: {plain(list_words(said))}."
    for method in facts["importance"]["methods"][:1]:
        order = sorted(method["shares"], key=lambda row: -row["share"])
        said = [f"{row['name']} {percent_words(row['share'])}" for row in order]
        yield f"- Importance ({method['name']}, {count_words(method['trials'], 'trial')}): {plain(', '.join(said))}."


def _protocol(facts: Row) -> Iterator[str]:
    protocol = facts["protocol"]
    evaluation = protocol["evaluation"]
    yield (
        f"Model {plain(protocol['model'])}, {plain(protocol['data_source'] or 'the Python language reference')}; "
        f"budget {protocol['budget']} a trial; every trial evaluated on the same "
        f"{value_words(evaluation.get('tokens'))} held-out tokens at context "
        f"{value_words(evaluation.get('block_size'))}, fp32, dropout off; seed {value_words(protocol['seed'])}."
    )
