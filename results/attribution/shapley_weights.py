"""Weights that turn losses of combinations into Shapley values and interactions: linear algebra only."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

from results.attribution.design import Coalition

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float64]]


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
