"""What the losses of combinations say of each change: Shapley values, interactions, the shortest path.

The changes are the players of a game whose value is the loss; a combination of them is a coalition. No library does
this: shap and shapiq explain a model's predictions, need numba, and have no intervals over seeds; pyDOE makes designs
and does not analyse them. What is needed is a page of linear algebra:

- Shapley value: least squares with the Shapley kernel, held to sum to the total (Charnes et al. 1988; Lundberg & Lee
  2017, theorem 2), each seed for itself, on pairs of a combination and its complement (Covert & Lee 2021). Of every
  combination that is the value of Shapley (1953). Of fewer it is exact unless three or more changes interact, because
  interactions of two cancel in a pair.
- Interaction of two changes: the Shapley interaction index (Grabisch & Roubens 1999), which for two changes alone is
  the two-factor effect v(ij) - v(i) - v(j) + v(); otherwise least squares on the same pairs, exact as above.
- Bonferroni over all that is said (the total, each change alone and by its share, each interaction): with four changes
  and plain 95 % intervals, one attribution of no effect in two called something proven (simulated).
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

from results.attribution.attribution_values import (
    ALPHA,
    ONE_SEED_SHARE,
    PATH_SHARE,
    Attribution,
    Effect,
    Estimate,
    Interaction,
    ShortestPath,
    UnstableCombination,
)
from results.attribution.design import Coalition, Setting, check_changes
from results.attribution.sentences import combination_words, seed_words
from results.confirmation.paired_t import stable_losses, t_half_width
from trainable.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]


def attribute(
    losses: Mapping[Coalition, Mapping[int, float | None]],
    settings: Sequence[Setting],
    *,
    before_name: str = "before",
    after_name: str = "after",
) -> Attribution:
    """Return the effect of each setting's change; losses by combination and seed, nats/token, None where unstable.

    Unstable runs have no loss and are named, never imputed. A seed on which the first or the last combination was
    unstable is left out; so is, on all seeds, any other combination that was unstable on a remaining seed. Raises
    UserError when no seed was run for every combination given.
    """
    k = len(settings)
    check_changes(k)
    everything: Coalition = frozenset(range(k))
    assert {frozenset(), everything} <= losses.keys()
    assert all(coalition <= everything for coalition in losses)
    run = set.intersection(*({*by_seed} for by_seed in losses.values()))
    if not run:
        raise UserError("no seed has every combination yet. Run the remaining combinations of one seed first.")
    bad = {c: run - stable_losses(by_seed).keys() for c, by_seed in losses.items()}
    seeds = tuple(sorted(run - bad[frozenset()] - bad[everything]))
    by_size = sorted(losses, key=lambda c: (len(c), sorted(c)))
    stable = [c for c in by_size if seeds and not bad[c].intersection(seeds)]
    table = _Table(stable, [[float(losses[c][seed] or 0.0) for c in stable] for seed in seeds], k)
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


class _Table:
    """The losses in use, a row per seed and a column per combination."""

    def __init__(self, columns: Sequence[Coalition], rows: Sequence[Sequence[float]], k: int) -> None:
        self.columns = list(columns)
        self.place = {coalition: place for place, coalition in enumerate(columns)}
        self.rows = [list(row) for row in rows]
        # With one change its share, its effect alone and the total are one statement.
        self.alpha = ALPHA / (1 if k == 1 else 1 + 2 * k + math.comb(k, 2))

    def means(self) -> dict[Coalition, float]:
        """Return each combination's mean over seeds."""
        return {c: statistics.fmean(row[place] for row in self.rows) for c, place in self.place.items()}

    def difference(self, coalition: Coalition) -> Estimate | None:
        """Return the combination's difference from `before`, paired by seed."""
        if coalition not in self.place:
            return None
        start, end = self.place[frozenset()], self.place[coalition]
        return _estimate([row[end] - row[start] for row in self.rows], self.alpha)

    def estimates(self, weights: "Array") -> list[Estimate]:
        """Return an estimate for each row of `weights` (values, combinations): every value is linear in the losses."""
        import numpy as np

        # As differences from `before`: the values are the same, and equal losses give exactly 0.
        rows = np.asarray(self.rows)
        values = (rows - rows[:, [self.place[frozenset()]]]) @ weights.T  # (seeds, values)
        return [_estimate([float(value) for value in column], self.alpha) for column in values.T]


def _estimate(values: Sequence[float], alpha: float) -> Estimate:
    mean, half_width = statistics.fmean(values), t_half_width(values, alpha)
    if half_width is None:
        return Estimate(mean=mean, low=None, high=None)
    return Estimate(mean=mean, low=mean - half_width, high=mean + half_width)


def _effects(table: _Table, k: int) -> tuple[Effect, ...]:
    alone = [table.difference(frozenset({change})) for change in range(k)]
    weights = shapley_weights(table.columns, k) if table.rows else None
    shapley: Sequence[Estimate | None] = [None] * k if weights is None else table.estimates(weights)
    return tuple(Effect(alone=a, shapley=s) for a, s in zip(alone, shapley, strict=True))


def _interactions(table: _Table, k: int, effects: Sequence[Effect]) -> tuple[Interaction, ...]:
    weights = interaction_weights(table.columns, k) if table.rows else None
    if weights is None:
        return ()
    twos = list(combinations(range(k), 2))
    largest = max((abs(effect.shapley.mean) for effect in effects if effect.shapley), default=0.0)
    found = []
    for (first, second), estimate in zip(twos, table.estimates(weights), strict=True):
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
        # No known combinations lead there step by step, so the order is that of the values, unknown ones last.
        values = [effect.shapley.mean if effect.shapley else math.inf for effect in effects]
        order = tuple(sorted(target, key=lambda change: (values[change], change)))
    steps = [frozenset(order[:length]) for length in range(1, len(order) + 1)]
    return ShortestPath(
        order=order,
        losses=(start, *(means.get(step) for step in steps)),
        difference=Estimate(mean=-gain[target], low=None, high=None),
        share_frac=gain[target] / gain[best],
        best=best,
    )


def _best_order(target: Coalition, gain: Mapping[Coalition, float]) -> tuple[int, ...] | None:
    """Return the order with the largest sum of gains on the way; None when no known combinations lead there.

    Dynamic programming over the subsets of `target`.
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
        yield f"on every seed {ends} did not complete: there is no difference to attribute"
    elif len(found.seeds) == 1:
        yield "one seed: no interval, so an effect cannot be told from noise"
    elif found.total is not None and found.total.mean != 0.0 and found.total.low is None:
        yield "the total is the same on every seed, so that they say no more than one: it has no interval"
    for entry in found.unstable:
        which = combination_words(found, entry.changes)
        yield f"{which} did not complete on {seed_words(entry.seeds)}"
    if extra:
        yield f"{seed_words(sorted(extra))} left out: not run for every combination"
    if found.seeds and not found.is_exact:
        left_out = planned - found.combinations
        used = f"{found.combinations} of {2**k} combinations"
        used += f", without {left_out} that did not complete on a seed in use" if left_out else ""
        yield f"from {used}: exact unless three or more changes interact"
        if any(effect.shapley is None for effect in found.effects):
            yield "too few combinations to determine the Shapley values"
        if k > 1 and not found.interactions:
            yield "too few combinations to determine the interactions"


def shapley_weights(columns: Sequence[Coalition], k: int) -> "Array | None":
    """Return the (k, columns) weights that turn losses into Shapley values; None when the columns are too few.

    By least squares (see attribute.py), which of all 2^k combinations gives the values exactly. They sum to the total.
    """
    import numpy as np

    place = {coalition: column for column, coalition in enumerate(columns)}
    total = np.zeros(len(columns))
    total[place[frozenset(range(k))]], total[place[frozenset()]] = 1.0, -1.0
    if k == 1:
        return total[None]
    halves = _present_halves(place, k)
    if not halves:
        return None
    # (pairs, k): a pair's difference is the sum of the values of the changes made less the sum of the others.
    signs = np.array([[1.0 if change in half else -1.0 for change in range(k)] for half in halves])
    differences = np.zeros((len(halves), len(columns)))
    for row, half in enumerate(halves):
        differences[row, place[half]], differences[row, place[frozenset(range(k)) - half]] = 1.0, -1.0
    # The values are total / k plus a part that sums to 0, which has k - 1 coordinates in an orthonormal basis.
    basis = np.linalg.qr(np.column_stack([np.ones(k), np.eye(k)[:, 1:]]))[0][:, 1:]
    # A pair's weight: the mass of its sizes under the Shapley kernel, divided among the pairs present.
    sizes = [len(half) for half in halves]
    kernel = [(1.0 if 2 * size == k else 2.0) / (size * (k - size) * sizes.count(size)) for size in sizes]
    root = np.sqrt(kernel)[:, None]
    design = root * (signs @ basis)
    if np.linalg.matrix_rank(design) < k - 1:
        return None
    rest = root * (differences - signs.sum(axis=1, keepdims=True) * total / k)
    solved: Array = total / k + basis @ (np.linalg.pinv(design) @ rest)
    return solved


def _present_halves(place: Mapping[Coalition, int], k: int) -> list[Coalition]:
    """Return the smaller one of each combination and its complement, where both are there; none and all left out."""
    everything = frozenset(range(k))
    pairs = [half for half in place if frozenset() < half < everything and everything - half in place]
    return [half for half in pairs if 2 * len(half) < k or (2 * len(half) == k and 0 in half)]


def interaction_weights(columns: Sequence[Coalition], k: int) -> "Array | None":
    """Return the (pairs of changes, columns) weights that turn losses into interactions; None when too few columns.

    Pairs are in the order of itertools.combinations.
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
