"""An attribution in words and as a table."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from results.attribution.attribution_values import Attribution, Estimate, ShortestPath
from results.attribution.design import Setting, combination_text
from results.words import amount_words, difference_words, loss_words, percent_words
from trainable.errors import count_words

if TYPE_CHECKING:
    from rich.console import RenderableType


def seed_words(seeds: Sequence[int]) -> str:
    return f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}"


def combination_words(attribution: Attribution, changes: Iterable[int]) -> str:
    """Return the changes' names joined by +, or the name of an end."""
    made = sorted(changes)
    if not made:
        return attribution.before_name
    if len(made) == len(attribution.settings):
        return attribution.after_name
    return combination_text(attribution.settings, made)


def estimate_words(estimate: Estimate | None) -> str:
    """Return the mean, signed, and half the width of its interval, in nats/token."""
    if estimate is None:
        return "unknown"
    half_width = "" if estimate.high is None else f" ± {amount_words(estimate.high - estimate.mean)}"
    return difference_words(estimate.mean) + half_width


def render(attribution: Attribution) -> "RenderableType":
    """Return the table of changes, the interactions worth naming, the path and the notes, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    seeds = len(attribution.seeds)
    unit = "nats/token, negative is better" + ("; ±: 95 % for all" if seeds > 1 else "")
    table = Table(title=Text(f"Which change did it? {count_words(seeds, 'seed')}, {unit}"))
    table.add_column("change", no_wrap=True)
    table.add_column(Text(f"{attribution.before_name} → {attribution.after_name}"))
    table.add_column("alone", justify="right", no_wrap=True)
    table.add_column("Shapley value", justify="right", no_wrap=True)
    for change, (setting, effect) in enumerate(zip(attribution.settings, attribution.effects, strict=True)):
        alone = estimate_words(effect.alone) if effect.alone else _unknown_word(attribution, change)
        cells = (setting.name, f"{setting.before} → {setting.after}", alone)
        table.add_row(*map(Text, cells), Text(estimate_words(effect.shapley), style=_style(effect.shapley)))
    table.add_section()
    losses = (attribution.loss_before, attribution.loss_after)
    ends = " → ".join("unknown" if loss is None else loss_words(loss) for loss in losses)
    table.add_row(*map(Text, ("together", ends, "")), Text(estimate_words(attribution.total), style="bold"))
    return Group(table, *(Text(line) for line in summary_lines(attribution)))


def _unknown_word(attribution: Attribution, change: int) -> str:
    """Return why the change's effect alone is not known."""
    alone = frozenset({change})
    return "incomplete" if any(entry.changes == alone for entry in attribution.unstable) else "unknown"


def _style(estimate: Estimate | None) -> str:
    if estimate is None or not estimate.is_proven:
        return ""
    return "green" if estimate.mean < 0.0 else "red"


def summary_lines(attribution: Attribution) -> list[str]:
    """Return the interactions worth naming, the shortest path and the notes, a line each."""
    lines = []
    for entry in attribution.interactions:
        if entry.named:
            names = combination_words(attribution, (entry.first,)), combination_words(attribution, (entry.second,))
            lines.append(f"Interaction: {names[0]} with {names[1]} {estimate_words(entry.estimate)}")
    if attribution.interactions and not lines:
        lines.append("No interaction is proven." if len(attribution.seeds) > 1 else "No interaction worth naming.")
    path = attribution.path
    if path is not None and path.order:
        lines.append(f"Shortest path: {_path_words(attribution, path)}")
    elif path is not None:
        lines.append(f"Shortest path: none; no combination was better than {attribution.before_name}.")
    return [*lines, *(f"Note: {note}." for note in attribution.notes)]


def did_it_words(attribution: Attribution) -> str:
    """Return the answer in a sentence: learning rate did it: -0.07 of -0.09 nats/token; block size 256 cost 0.02."""
    total = attribution.total
    known = [
        (setting, effect.shapley)
        for setting, effect in zip(attribution.settings, attribution.effects, strict=True)
        if effect.shapley is not None
    ]
    if total is None or not known:
        return "Which change did it is not known: too few combinations completed."
    gained = sorted((one for one in known if one[1].mean < 0.0), key=lambda one: one[1].mean)
    lost = sorted((one for one in known if one[1].mean > 0.0), key=lambda one: -one[1].mean)
    # What is a tenth of the largest effect or less is noise to a reader.
    least = 0.1 * max(abs(estimate.mean) for _, estimate in known)
    did_it = gained[0] if gained and total.mean < 0.0 else None
    others = gained[1:] if did_it else gained
    parts = [f"{_change_words(one)} gave {_proof_words(by)}" for one, by in others if -by.mean > least]
    parts += [f"{_change_words(one)} cost {_proof_words(by).lstrip('+')}" for one, by in lost if by.mean > least]
    of_total = f"{difference_words(total.mean)} nats/token"
    first = f"No gain: {attribution.after_name} is {of_total}"
    if did_it:
        first = f"{_change_words(did_it[0])} did it: {_proof_words(did_it[1])} of {of_total}"
    return "; ".join([first, *parts]) + "."


def _change_words(setting: Setting) -> str:
    name = setting.name.replace("_", " ")
    return f"{name} {setting.after}" if name != "lora" else setting.after


def _proof_words(estimate: Estimate) -> str:
    return difference_words(estimate.mean) + ("" if estimate.is_proven else " (not proven)")


def _path_words(attribution: Attribution, path: ShortestPath) -> str:
    steps = [
        attribution.settings[change].name + (f" ({loss_words(loss)})" if loss is not None else "")
        for change, loss in zip(path.order, path.losses[1:], strict=True)
    ]
    assert path.share_frac is not None
    best = combination_words(attribution, path.best)
    return (
        f"{', then '.join(steps)}: {estimate_words(path.difference)}, "
        f"{percent_words(path.share_frac)} of what the best combination gains ({best})"
    )
