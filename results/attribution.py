"""Which of several changes did it: combinations to run, and what their losses say. It trains nothing.

The changes are the players of a game whose value is the loss; a combination of them is a coalition. Own code, because
the kept libraries do other things: shap and shapiq explain a model's predictions, bring numba, and know no seeds (the
interval here is one over seeds); pyDOE makes designs and analyses none. What is needed is a page of linear algebra:

- Shapley value, every combination known: the weights of Shapley (1953), each seed for itself.
- Shapley value otherwise: least squares with the Shapley kernel, held to sum to the total (Charnes et al. 1988;
  Lundberg & Lee 2017, theorem 2), on pairs of a combination and its complement (Covert & Lee 2021): interactions of
  two changes cancel in a pair, so that the value is exact unless three or more changes interact.
- Interaction of two changes: the Shapley interaction index (Grabisch & Roubens 1999), which for two changes alone is
  the two-factor effect v(ij) - v(i) - v(j) + v(); otherwise least squares on the same pairs, exact as above.
"""

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from results.atomic import write_atomic
from results.paths import shown
from results.study import Study
from trainable.config import HYPERPARAMETERS, TrialConfig, make_config
from trainable.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from rich.console import RenderableType

    Array = np.ndarray[Any, np.dtype[np.float64]]

ALPHA = 0.05
"""Intervals hold 95 %: a Shapley value's for itself, the interactions' for all of them at once."""

ONE_SEED_SHARE = 0.2
"""With one seed there is no interval: an interaction is named from this share of the largest Shapley value on."""

PATH_SHARE = 0.9
"""The shortest path reaches this share of the largest gain of any combination."""

MAX_CHANGES = 12

Coalition = frozenset[int]
"""Which of the changes are made, by their place in the settings."""

_SCHEDULE_FIELDS = ("lr_schedule", "warmup_steps", "min_lr_frac", "decay_frac")
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "batch_size": ("batch_size", "grad_accum_steps"),
    "schedule": _SCHEDULE_FIELDS,
}
_NO_SETTINGS = ("seed", "training_steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Hyperparameters that are changed together, because one makes no sense without the other."""

    name: str
    fields: tuple[str, ...]
    before: str
    after: str
    """Their values, for a person."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds, in nats/token; as a difference, negative is better."""

    mean: float
    low: float | None
    high: float | None
    """Its t interval over seeds; None with one seed."""

    @property
    def is_proven(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0.0 or self.high < 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What one change did."""

    alone: Estimate | None
    """From `before` with this change only; None when that run was unstable or is missing."""
    shapley: Estimate | None
    """Its share of the total; None when too many combinations were unstable or are missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interaction:
    """What two changes do together beyond the sum of both."""

    first: int
    second: int
    estimate: Estimate
    named: bool
    """Worth naming: its interval leaves 0 out; with one seed, ONE_SEED_SHARE of the largest Shapley value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShortestPath:
    """The fewest changes that gain PATH_SHARE of what the best combination gains, the greatest gains first."""

    order: tuple[int, ...]
    """Empty when no combination is better than `before`."""
    losses: tuple[float | None, ...]
    """Mean loss of `before` and after each change; None where that combination was not run."""
    difference: Estimate | None
    """Its end against `before`; not corrected for having been chosen. None when it is empty."""
    share_frac: float | None
    """Of the best combination's gain."""
    best: Coalition
    """The combination of the lowest mean loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnstableCombination:
    """A combination that did not complete on some seeds."""

    changes: Coalition
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """Which of the changes did it; attribution.json."""

    before_name: str
    after_name: str
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    """On which both ends were stable: everything below is paired over these."""
    combinations: int
    """Stable on each of these seeds, so used."""
    is_exact: bool
    """Whether that is every combination. If not, Shapley values are exact unless three or more changes interact."""
    loss_before: float | None
    loss_after: float | None
    total: Estimate | None
    """after - before. The Shapley values sum to it."""
    effects: tuple[Effect, ...]
    """By setting."""
    interactions: tuple[Interaction, ...]
    """Every two changes; empty when the combinations do not determine them."""
    path: ShortestPath | None
    unstable: tuple[UnstableCombination, ...]
    notes: tuple[str, ...]
    """What a reader of the numbers must know."""


def changed_settings(before: TrialConfig, after: TrialConfig) -> tuple[Setting, ...]:
    """Return the settings in which the two differ, in TrialConfig's order.

    The schedule with all its fields is one setting, and so is batch_size with grad_accum_steps. A field that neither
    side's schedule reads is no difference, nor is a warm-up of the same share of the run; seed and training_steps are
    no settings.
    """
    grouped = {field: name for name, fields in _GROUPS.items() for field in fields}
    names = dict.fromkeys(grouped.get(field, field) for field in HYPERPARAMETERS if field not in _NO_SETTINGS)
    settings = []
    for name in names:
        fields = _GROUPS.get(name, (name,))
        if any(_differs(field, before, after) for field in fields):
            old, new = _value_text(name, before, after), _value_text(name, after, before)
            settings.append(Setting(name=name, fields=fields, before=old, after=new))
    return tuple(settings)


def _differs(field: str, before: TrialConfig, after: TrialConfig) -> bool:
    if field in _SCHEDULE_FIELDS[1:]:
        reads = [_reads(config, field) for config in (before, after)]
        if not all(reads):
            return False
    if field == "warmup_steps" and before.training_steps != after.training_steps:
        # Half a step on either side is the rounding to whole steps.
        rounding = 0.5 / before.training_steps + 0.5 / after.training_steps
        return abs(_warmup_share(before) - _warmup_share(after)) > rounding
    return bool(getattr(before, field) != getattr(after, field))


def _reads(config: TrialConfig, field: str) -> bool:
    return config.lr_schedule == "wsd" if field == "decay_frac" else config.has_warmup


def _warmup_share(config: TrialConfig) -> float:
    return config.warmup_steps / config.training_steps


def _value_text(name: str, config: TrialConfig, other: TrialConfig) -> str:
    if name == "schedule":
        text = config.lr_schedule
        if config.has_warmup:
            text += f", warm-up {100.0 * _warmup_share(config):.3g} %"
        for field in ("min_lr_frac", "decay_frac"):
            if _reads(config, field) and _differs(field, config, other):
                text += f", {field} {getattr(config, field):g}"
        return text
    if name == "batch_size":
        accumulates = config.grad_accum_steps > 1 or other.grad_accum_steps > 1
        return f"{config.batch_size}" + (f" x {config.grad_accum_steps}" if accumulates else "")
    value = getattr(config, name)
    return f"{value:g}" if isinstance(value, float) else str(value)


def config_of(
    before: TrialConfig, after: TrialConfig, settings: Sequence[Setting], coalition: Iterable[int]
) -> TrialConfig:
    """Return `before` with the coalition's settings from `after`; seed and training_steps are `before`'s.

    A warm-up keeps its share of the run it comes from. At an equal token budget the number of steps depends on the
    batch, so bring the result to the budget afterwards (with_token_budget).
    """
    fields = [field for index in coalition for field in settings[index].fields]
    values = {field: getattr(after, field) for field in fields}
    if "warmup_steps" in values:
        values["warmup_steps"] = round(_warmup_share(after) * before.training_steps)
    # One call: a warm-up and the schedule that reads it are valid together only.
    config = make_config(before, values)
    return config if config.has_warmup else replace(config, warmup_steps=0)


def coalitions(k: int, *, limit_full: int = 5, samples: int | None = None, seed: int = 0) -> list[Coalition]:
    """Return the combinations of k changes to run: all of them up to k = limit_full, else `samples` of them.

    Always with none, all, each change alone and all but each, and each combination with its complement, so every
    change is made in exactly half of them. `samples` defaults to what determines all interactions of two changes,
    2 + k (k + 1); the pairs beyond the smallest sizes are drawn from the Shapley kernel without replacement.
    Raises UserError when `samples` is too few.
    """
    _check_changes(k)
    everything = frozenset(range(k))
    if k <= limit_full:
        return [frozenset(some) for size in range(k + 1) for some in combinations(range(k), size)]
    samples = 2 + k * (k + 1) if samples is None else samples
    if samples < 2 * k + 2:
        raise UserError(f"SAMPLES={samples} is too few for {k} changes: give at least {2 * k + 2} combinations.")
    chosen: list[Coalition] = []
    by_size = [_halves(k, size) for size in range(1, k // 2 + 1)]
    room = samples // 2 - 1
    while by_size and len(by_size[0]) <= room:
        chosen += by_size[0]
        room -= len(by_size.pop(0))
    chosen += _draw(k, [half for halves in by_size for half in halves], room, seed)
    pairs = [(half, everything - half) for half in chosen]
    return sorted({frozenset(), everything, *(c for pair in pairs for c in pair)}, key=lambda c: (len(c), sorted(c)))


def _check_changes(k: int) -> None:
    if not 1 <= k <= MAX_CHANGES:
        raise UserError(f"{k} settings differ; at least 1 and at most {MAX_CHANGES} can be told apart.")


def _halves(k: int, size: int) -> list[Coalition]:
    """Return one of each pair of a combination of `size` changes and its complement."""
    found = [frozenset(some) for some in combinations(range(k), size)]
    return [half for half in found if 2 * size < k or 0 in half]


def _draw(k: int, halves: Sequence[Coalition], number: int, seed: int) -> list[Coalition]:
    import numpy as np

    if not halves or number < 1:
        return []
    kernel = np.array([1.0 / (math.comb(k, len(half)) * len(half) * (k - len(half))) for half in halves])
    places = np.random.default_rng(seed).choice(
        len(halves), size=min(number, len(halves)), replace=False, p=kernel / kernel.sum()
    )
    return [halves[place] for place in places]


def attribute(
    losses: Mapping[Coalition, Mapping[int, float | None]],
    settings: Sequence[Setting],
    *,
    before_name: str = "before",
    after_name: str = "after",
) -> Attribution:
    """Return what each setting's change did; losses by combination and seed, nats/token, None where unstable.

    An unstable run has no loss to share out, so it is named and never imputed: a seed on which an end was unstable is
    left out, and so is, for all seeds alike, a combination unstable on any other. Raises UserError when no seed was
    run for every combination given.
    """
    k = len(settings)
    _check_changes(k)
    everything: Coalition = frozenset(range(k))
    assert {frozenset(), everything} <= losses.keys()
    assert all(coalition <= everything for coalition in losses)
    run = set.intersection(*({*by_seed} for by_seed in losses.values()))
    if not run:
        raise UserError("no seed has been run for every combination yet. Finish one seed's combinations first.")
    bad = {c: {seed for seed in run if not _is_finite(by_seed[seed])} for c, by_seed in losses.items()}
    seeds = tuple(sorted(run - bad[frozenset()] - bad[everything]))
    by_size = sorted(losses, key=lambda c: (len(c), sorted(c)))
    stable = [c for c in by_size if seeds and not bad[c].intersection(seeds)]
    table = _Table(stable, [[float(losses[c][seed] or 0.0) for c in stable] for seed in seeds])
    effects = _effects(table, k)
    unstable = tuple(UnstableCombination(changes=c, seeds=tuple(sorted(bad[c]))) for c in by_size if bad[c])
    found = Attribution(
        before_name=before_name,
        after_name=after_name,
        settings=tuple(settings),
        seeds=seeds,
        combinations=len(stable),
        is_exact=len(stable) == 2**k,
        loss_before=table.means().get(frozenset()),
        loss_after=table.means().get(everything),
        total=table.difference(everything),
        effects=effects,
        interactions=_interactions(table, k, effects),
        path=_shortest_path(table, effects) if seeds else None,
        unstable=unstable,
        notes=(),
    )
    extra = {seed for by_seed in losses.values() for seed in by_seed} - run
    return replace(found, notes=tuple(_notes(found, planned=len(losses), extra=extra)))


def _is_finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


class _Table:
    """The losses that are used, a row per seed and a column per combination."""

    def __init__(self, columns: Sequence[Coalition], rows: Sequence[Sequence[float]]) -> None:
        self.columns = list(columns)
        self.place = {coalition: place for place, coalition in enumerate(columns)}
        self.rows = [list(row) for row in rows]

    def means(self) -> dict[Coalition, float]:
        """Return every combination's mean over seeds."""
        return {c: statistics.fmean(row[place] for row in self.rows) for c, place in self.place.items()}

    def difference(self, coalition: Coalition) -> Estimate | None:
        """Return the combination's difference from `before`, paired by seed."""
        if coalition not in self.place:
            return None
        start, end = self.place[frozenset()], self.place[coalition]
        return _estimate([row[end] - row[start] for row in self.rows], ALPHA)

    def estimates(self, weights: "Array", alpha: float) -> list[Estimate]:
        """Return an estimate for each row of `weights` (values, combinations): every value is linear in the losses."""
        import numpy as np

        # From `before` on: no value changes by it, and no change at all is exactly 0.
        rows = np.asarray(self.rows)
        values = (rows - rows[:, [self.place[frozenset()]]]) @ weights.T  # (seeds, values)
        return [_estimate([float(value) for value in column], alpha) for column in values.T]


def _estimate(values: Sequence[float], alpha: float) -> Estimate:
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(mean=mean, low=None, high=None)
    standard_error = statistics.stdev(values) / math.sqrt(len(values))
    half_width = float(stdtrit(len(values) - 1, 1.0 - alpha / 2.0)) * standard_error
    return Estimate(mean=mean, low=mean - half_width, high=mean + half_width)


def _effects(table: _Table, k: int) -> tuple[Effect, ...]:
    alone = [table.difference(frozenset({change})) for change in range(k)]
    weights = shapley_weights(table.columns, k) if table.rows else None
    shapley: Sequence[Estimate | None] = [None] * k if weights is None else table.estimates(weights, ALPHA)
    return tuple(Effect(alone=a, shapley=s) for a, s in zip(alone, shapley, strict=True))


def shapley_weights(columns: Sequence[Coalition], k: int) -> "Array | None":
    """Return the (k, columns) weights that turn losses into Shapley values; None when the columns are too few.

    Exact when the columns are all 2^k combinations, else by least squares as the module says. The weights of a column
    but none and all sum to 0, so that the values sum to the total.
    """
    import numpy as np

    place = {coalition: column for column, coalition in enumerate(columns)}
    weights = np.zeros((k, len(columns)))
    if len(place) == 2**k:
        for coalition, column in place.items():
            for change in range(k):
                inside = change in coalition
                others = len(coalition) - inside
                weight = 1.0 / (k * math.comb(k - 1, others))
                weights[change, column] = weight if inside else -weight
        return weights
    halves = _present_halves(place, k)
    if not halves:
        return None
    # (pairs, k): a pair's difference is the sum over the changes made less the sum over the others.
    signs = np.array([[1.0 if change in half else -1.0 for change in range(k)] for half in halves])
    differences = np.zeros((len(halves), len(columns)))
    for row, half in enumerate(halves):
        differences[row, place[half]], differences[row, place[frozenset(range(k)) - half]] = 1.0, -1.0
    total = np.zeros(len(columns))
    total[place[frozenset(range(k))]], total[place[frozenset()]] = 1.0, -1.0
    # The values are total / k and something that sums to 0: k - 1 free numbers along an orthonormal basis.
    basis = np.linalg.qr(np.column_stack([np.ones(k), np.eye(k)[:, 1:]]))[0][:, 1:]
    root = np.sqrt(_pair_kernel(halves, k))[:, None]
    design = root * (signs @ basis)
    if np.linalg.matrix_rank(design) < k - 1:
        return None
    rest = root * (differences - signs.sum(axis=1, keepdims=True) * total / k)
    solved: Array = total / k + basis @ (np.linalg.pinv(design) @ rest)
    return solved


def _present_halves(place: Mapping[Coalition, int], k: int) -> list[Coalition]:
    everything = frozenset(range(k))
    halves = [half for size in range(1, k // 2 + 1) for half in _halves(k, size)]
    return [half for half in halves if half in place and everything - half in place]


def _pair_kernel(halves: Sequence[Coalition], k: int) -> "Array":
    """Return each pair's weight: its sizes' mass under the Shapley kernel, shared by the pairs that are there."""
    import numpy as np

    sizes = [len(half) for half in halves]
    return np.array([(1.0 if 2 * size == k else 2.0) / (size * (k - size) * sizes.count(size)) for size in sizes])


def interaction_weights(columns: Sequence[Coalition], k: int) -> "Array | None":
    """Return the (pairs of changes, columns) weights that turn losses into interactions; None when too few columns.

    The pairs are in the order of itertools.combinations.
    """
    import numpy as np

    place = {coalition: column for column, coalition in enumerate(columns)}
    twos = list(combinations(range(k), 2))
    if not twos:
        return None
    if len(place) == 2**k:
        weights = np.zeros((len(twos), len(columns)))
        for row, two in enumerate(twos):
            for coalition, column in place.items():
                inside = len(coalition.intersection(two))
                weight = 1.0 / ((k - 1) * math.comb(k - 2, len(coalition) - inside))
                weights[row, column] = -weight if inside == 1 else weight
        return weights
    halves = _present_halves(place, k)
    # v() + v(all) - v(S) - v(rest) is the sum of the interactions between S and the rest.
    cuts = np.array([[float(len(half.intersection(two)) == 1) for two in twos] for half in halves])
    if not halves or np.linalg.matrix_rank(cuts) < len(twos):
        return None
    sums = np.zeros((len(halves), len(columns)))
    for row, half in enumerate(halves):
        sums[row, [place[frozenset()], place[frozenset(range(k))]]] = 1.0
        sums[row, [place[half], place[frozenset(range(k)) - half]]] = -1.0
    solved: Array = np.linalg.pinv(cuts) @ sums
    return solved


def _interactions(table: _Table, k: int, effects: Sequence[Effect]) -> tuple[Interaction, ...]:
    weights = interaction_weights(table.columns, k) if table.rows else None
    if weights is None:
        return ()
    twos = list(combinations(range(k), 2))
    largest = max((abs(effect.shapley.mean) for effect in effects if effect.shapley), default=0.0)
    found = []
    for (first, second), estimate in zip(twos, table.estimates(weights, ALPHA / len(twos)), strict=True):
        named = estimate.is_proven if len(table.rows) > 1 else abs(estimate.mean) >= ONE_SEED_SHARE * largest > 0.0
        found.append(Interaction(first=first, second=second, estimate=estimate, named=named))
    return tuple(found)


def _shortest_path(table: _Table, effects: Sequence[Effect]) -> ShortestPath:
    means = table.means()
    start = means[frozenset()]
    gain = {coalition: start - mean for coalition, mean in means.items()}
    best = max(gain, key=lambda c: (gain[c], -len(c)))
    if gain[best] <= 0.0:
        return ShortestPath(order=(), losses=(start,), difference=None, share_frac=None, best=frozenset())
    enough = [c for c in gain if gain[c] >= PATH_SHARE * gain[best]]
    target = min(enough, key=lambda c: (len(c), -gain[c]))
    order = _best_order(target, gain)
    if order is None:
        # Nothing known leads there step by step; an unknown value goes last.
        values = [effect.shapley.mean if effect.shapley else math.inf for effect in effects]
        order = tuple(sorted(target, key=lambda change: (values[change], change)))
    steps = [frozenset(order[:length]) for length in range(1, len(order) + 1)]
    return ShortestPath(
        order=order,
        losses=(start, *(means.get(step) for step in steps)),
        difference=table.difference(target),
        share_frac=gain[target] / gain[best],
        best=best,
    )


def _best_order(target: Coalition, gain: Mapping[Coalition, float]) -> tuple[int, ...] | None:
    """Return the order with the largest sum of gains on the way; None when no known combinations lead there.

    By dynamic programming over the subsets of `target`.
    """
    best: dict[Coalition, tuple[float, tuple[int, ...]]] = {frozenset(): (0.0, ())}
    for size in range(1, len(target) + 1):
        for some in combinations(sorted(target), size):
            step = frozenset(some)
            ways = [(best[step - {last}], last) for last in some if step - {last} in best]
            if step in gain and ways:
                (so_far, order), last = max(ways, key=lambda way: way[0][0])
                best[step] = (so_far + gain[step], (*order, last))
    return best[target][1] if target in best else None


def _notes(found: Attribution, *, planned: int, extra: set[int]) -> Iterable[str]:
    k = len(found.settings)
    if not found.seeds:
        ends = f"{found.before_name} or {found.after_name}"
        yield f"{ends} was unstable on every seed: there is no difference to share out"
    elif len(found.seeds) == 1:
        yield "one seed: no interval, and noise is not told from effect"
    for entry in found.unstable:
        which = combination_words(found, entry.changes)
        yield f"unstable on {_seed_words(entry.seeds)}: {which}"
    if extra:
        yield f"{_seed_words(sorted(extra))} left out: not run for every combination"
    if found.seeds and not found.is_exact:
        left_out = planned - found.combinations
        used = f"{found.combinations} of {2**k} combinations"
        used += f", without {left_out} unstable on a seed that counts" if left_out else ""
        yield f"from {used}: exact unless three or more changes interact"
        if any(effect.shapley is None for effect in found.effects):
            yield "too few combinations to determine the Shapley values"
        if k > 1 and not found.interactions:
            yield "too few combinations to determine the interactions"


def _seed_words(seeds: Sequence[int]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"


def combination_words(attribution: Attribution, changes: Iterable[int]) -> str:
    """Return the changes' names joined by +, or the name of an end."""
    made = sorted(changes)
    if not made:
        return attribution.before_name
    if len(made) == len(attribution.settings):
        return attribution.after_name
    return " + ".join(attribution.settings[change].name for change in made)


def unknown_word(attribution: Attribution, change: int) -> str:
    """Return why the change's effect alone is not known."""
    alone = frozenset({change})
    return "unstable" if any(entry.changes == alone for entry in attribution.unstable) else "unknown"


def estimate_words(estimate: Estimate | None) -> str:
    """Return the mean and its interval, signed, in nats/token."""
    if estimate is None:
        return "unknown"
    text = f"{estimate.mean:+.4f}"
    if estimate.low is not None and estimate.high is not None:
        text += f" [{estimate.low:+.4f}, {estimate.high:+.4f}]"
    return text


def render(attribution: Attribution) -> "RenderableType":
    """Return the table of changes, the interactions worth naming, the path and the notes, for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    seeds = len(attribution.seeds)
    unit = "nats/token, negative is better" + ("; ±: 95 %" if seeds > 1 else "")
    table = Table(title=Text(f"Which change did it? {seeds} seed{'' if seeds == 1 else 's'}, {unit}"))
    table.add_column("change", no_wrap=True)
    table.add_column(Text(f"{attribution.before_name} → {attribution.after_name}"))
    table.add_column("alone", justify="right", no_wrap=True)
    table.add_column("Shapley value", justify="right", no_wrap=True)
    for change, (setting, effect) in enumerate(zip(attribution.settings, attribution.effects, strict=True)):
        alone = _half_width_words(effect.alone) if effect.alone else unknown_word(attribution, change)
        cells = (setting.name, f"{setting.before} → {setting.after}", alone)
        table.add_row(*map(Text, cells), Text(_half_width_words(effect.shapley), style=_style(effect.shapley)))
    table.add_section()
    losses = (attribution.loss_before, attribution.loss_after)
    ends = " → ".join("unknown" if loss is None else f"{loss:.4f}" for loss in losses)
    table.add_row(*map(Text, ("together", ends, "")), Text(_half_width_words(attribution.total), style="bold"))
    return Group(table, *(Text(line) for line in summary_lines(attribution)))


def _half_width_words(estimate: Estimate | None) -> str:
    if estimate is None or estimate.high is None:
        return estimate_words(estimate)
    return f"{estimate.mean:+.4f} ± {estimate.high - estimate.mean:.4f}"


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
        lines.append("No interaction worth naming.")
    path = attribution.path
    if path is not None and path.order:
        lines.append(f"Shortest path: {_path_words(attribution, path)}")
    elif path is not None:
        lines.append(f"Shortest path: none; no combination was better than {attribution.before_name}.")
    return [*lines, *(f"Note: {note}." for note in attribution.notes)]


def _path_words(attribution: Attribution, path: ShortestPath) -> str:
    steps = [
        attribution.settings[change].name + (f" ({loss:.4f})" if loss is not None else "")
        for change, loss in zip(path.order, path.losses[1:], strict=True)
    ]
    assert path.share_frac is not None
    best = combination_words(attribution, path.best)
    return (
        f"{', then '.join(steps)}: {estimate_words(path.difference)}, "
        f"{100.0 * path.share_frac:.0f} % of what the best combination gains ({best})"
    )


def to_json(attribution: Attribution) -> dict[str, Any]:
    """Return the attribution as JSON's types: a row per setting with its effects in it, a combination as places."""
    document: dict[str, Any] = json.loads(json.dumps(asdict(attribution), default=sorted, allow_nan=False))
    for row, effect in zip(document["settings"], document.pop("effects"), strict=True):
        alone, shapley = (effect[name] or dict.fromkeys(("mean", "low", "high")) for name in ("alone", "shapley"))
        row.update(alone=alone["mean"], alone_low=alone["low"], alone_high=alone["high"])
        row.update(shapley=shapley["mean"], low=shapley["low"], high=shapley["high"])
    return document


def from_json(document: Mapping[str, Any]) -> Attribution:
    """Return the attribution that to_json made. Raises KeyError, TypeError or ValueError for anything else."""
    rows, path = document["settings"], document["path"]
    settings = [
        Setting(name=row["name"], fields=tuple(row["fields"]), before=row["before"], after=row["after"]) for row in rows
    ]
    effects = [
        Effect(
            alone=_read_estimate(row["alone"], row["alone_low"], row["alone_high"]),
            shapley=_read_estimate(row["shapley"], row["low"], row["high"]),
        )
        for row in rows
    ]
    parsed = {
        "settings": tuple(settings),
        "seeds": tuple(document["seeds"]),
        "total": None if document["total"] is None else Estimate(**document["total"]),
        "effects": tuple(effects),
        "interactions": tuple(
            Interaction(**{**row, "estimate": Estimate(**row["estimate"])}) for row in document["interactions"]
        ),
        "path": None if path is None else _read_path(path),
        "unstable": tuple(
            UnstableCombination(changes=frozenset(row["changes"]), seeds=tuple(row["seeds"]))
            for row in document["unstable"]
        ),
        "notes": tuple(document["notes"]),
    }
    return Attribution(**{**document, **parsed})


def _read_estimate(mean: float | None, low: float | None, high: float | None) -> Estimate | None:
    return None if mean is None else Estimate(mean=mean, low=low, high=high)


def _read_path(row: Mapping[str, Any]) -> ShortestPath:
    return ShortestPath(
        order=tuple(row["order"]),
        losses=tuple(row["losses"]),
        difference=None if row["difference"] is None else Estimate(**row["difference"]),
        share_frac=row["share_frac"],
        best=frozenset(row["best"]),
    )


def write_attribution(study: Study, attribution: Attribution) -> None:
    """Write the study's attribution.json. Raises OSError."""
    data = json.dumps(to_json(attribution), indent=2, allow_nan=False) + "\n"
    write_atomic(study.path / "attribution.json", data.encode())


def load_attribution(study: Study) -> Attribution | None:
    """Return the study's attribution, None when it has none. Raises UserError when its file is damaged."""
    path = study.path / "attribution.json"
    try:
        return from_json(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
        reason = " ".join(str(err).split())
        raise UserError(f"{shown(path)}: not an attribution ({reason}). Move it away and attribute again.") from None
