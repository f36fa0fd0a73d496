"""The start of a search: a ladder of learning rates, the best of them at both ends of the sizes, and then a range.

The searcher decides which trials are known when.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from search.tune.history import KnownTrial
from spaces.domains import FloatRange, SearchParameter
from spaces.space import SearchSpace
from trainable.rows import PENALTY_NATS, objective

RATE = "learning_rate"
SIZES = ("batch_size", "block_size")
MOST_RATES = 6
WINDOW_DECADES = 0.75
"""To either side of the best rate: about one step of a ladder of six rates over six decades."""
SAME_DECADES = 0.05
"""A rate that is 12 % higher or lower tells nothing that the baseline's run does not."""


def ladder_points(
    parameters: Sequence[SearchParameter], baseline: Mapping[str, Any], *, most: int
) -> list[dict[str, Any]]:
    """Return the baseline at the centers of equal parts of the rate's range, the middle parts first.

    The baseline's own rate is left out. Empty if the range is no wider than the window around the best rate, or `most`
    is below three.
    """
    domain = _range(parameters)
    count = min(MOST_RATES, most)
    if domain is None or count < 3 or math.log10(domain.high / domain.low) <= 2 * WINDOW_DECADES:
        return []
    # The likely good ones first, because a trial is judged against those before it.
    order = sorted(range(count), key=lambda index: (abs(index - (count - 1) / 2), -index))
    shares = [(index + 0.5) / count for index in order]
    rates = [domain.low * (domain.high / domain.low) ** share for share in shares]
    return [{**baseline, RATE: rate} for rate in rates if abs(math.log10(rate / baseline[RATE])) > SAME_DECADES]


def size_ends(space: SearchSpace, ladder: Sequence[KnownTrial]) -> list[dict[str, Any]]:
    """Return the baseline with the smallest and with the largest batch and block, at the ladder's best rate.

    The rate goes with the square root of the tokens a step (Malladi et al. 2022, for Adam).
    """
    domain, best, baseline = _range(space.parameters), _best(ladder), space.baseline_params()
    if domain is None or best is None:
        return []
    points = []
    for end in (min, max):
        size = {one.name: end(one.domain.examples()) for one in sizes(space.parameters)}
        growth = math.prod(value / baseline[name] for name, value in size.items())
        rate = domain.nearest(best.config.learning_rate * math.sqrt(growth))
        points.append(space.baseline_with({**size, RATE: rate}))
    return points


def sizes(parameters: Sequence[SearchParameter]) -> list[SearchParameter]:
    """Return the parameters that say how many tokens a step has, where they are searched as numbers."""
    return [one for one in parameters if one.name in SIZES and one.condition is None]


def narrowed(parameters: Sequence[SearchParameter], ladder: Sequence[KnownTrial]) -> tuple[SearchParameter, ...]:
    """Return the parameters with the rate's range around the ladder's best, and below the rates that were unstable."""
    domain, leader = _range(parameters), _best(ladder)
    if domain is None or leader is None:
        return tuple(parameters)
    best, width = leader.config.learning_rate, 10**WINDOW_DECADES
    broken = [trial.config.learning_rate for trial in ladder if trial.status == "unstable"]
    broken = [rate for rate in broken if rate > best]
    window = FloatRange(max(domain.low, best / width), min(domain.high, best * width, *broken), log=True)
    return tuple(replace(one, domain=window) if one.name == RATE else one for one in parameters)


def _range(parameters: Sequence[SearchParameter]) -> FloatRange | None:
    domain = next((one.domain for one in parameters if one.name == RATE and one.condition is None), None)
    return domain if isinstance(domain, FloatRange) and domain.log else None


def _best(ladder: Sequence[KnownTrial]) -> KnownTrial | None:
    sound = [trial for trial in ladder if trial.status != "unstable" and objective(trial.val_loss) < PENALTY_NATS]
    return min(sound, key=_rank, default=None)


def _rank(trial: KnownTrial) -> tuple[float, float]:
    """Return a sort key, the best first: by tokens reached, then by loss."""
    # Early losses mislead: at the first rung a rate may lead that is ten times the one that is best at the end.
    reached_tokens = math.inf if trial.status == "completed" else trial.losses[-1][0] if trial.losses else 0
    return -reached_tokens, objective(trial.val_loss)
