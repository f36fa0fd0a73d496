"""Distribution shift: stretches whose tokens are distributed unlike the rest, and points where the text changes."""

import numpy as np

from trainable.text_audit.audit_values import Hit
from trainable.text_audit.ngrams import marked_spans
from trainable.text_audit.units import Flags, Floats, Ints
from trainable.text_audit.windows import Windows, js_distance

MIN_WINDOWS = 16
MIN_EXCESS = 0.26
"""Jensen-Shannon distance beyond the median window's. The embedded text, a mixture of prose and examples, reaches 0.23
in 4,096 tokens; inserted C or German has 0.3 to 0.5."""
MIN_DEVIATIONS = 8.0
"""... and so many robust standard deviations (1.4826 median absolute deviations, at least MIN_SPREAD)."""
MIN_SPREAD = 0.02
MIN_CHANGE = 0.28
"""Distance between all before and all after a point, beyond that with the windows shuffled. The embedded text reaches
0.01, one document after another 0.3 to 0.5."""
MIN_SIDE = 0.1
"""Share of the text on either side of a change; a shorter end is a stretch of its own."""
SHUFFLES = 5


def find_shifts(windows: Windows) -> list[Hit]:
    """Return the stretches unlike the rest, and the worst change point where none of them explains it."""
    count = len(windows.first_token)
    if count < MIN_WINDOWS:
        return []
    total = windows.counts.sum(axis=0)
    # Two at a time: one alone may be one odd paragraph.
    distance = js_distance(windows.counts[:-1] + windows.counts[1:], total)
    median = float(np.median(distance))
    spread = max(1.4826 * float(np.median(np.abs(distance - median))), MIN_SPREAD)
    excess = distance - median
    hits = []
    for first, end in _stretches((excess >= MIN_EXCESS) & (excess >= MIN_DEVIATIONS * spread), windows, total):
        worst = float(distance[max(0, first - 1) : end].max())
        summary = f"tokens distributed unlike the rest: Jensen-Shannon distance {worst:.2f}, {median:.2f} is usual"
        low, high = int(windows.first_token[first]), int(windows.end_token[end - 1])
        hits.append(_hit(low, high, summary, worst - median))
    # One change in the middle makes both halves unlike the whole: it is said only where no stretch says it better.
    change = _change(windows)
    return hits if hits or change is None else [change]


def _stretches(flags: Flags, windows: Windows, total: Ints) -> list[tuple[int, int]]:
    """(first, end) windows of each flagged stretch."""
    stretches: list[tuple[int, int]] = []
    for first, end in marked_spans(flags).tolist():
        first, end = _trimmed(first, end + 1, windows, total)
        if stretches and first <= stretches[-1][1] + 1:
            first = stretches.pop()[0]
        stretches.append((first, end))
    return stretches


def _trimmed(first: int, end: int, windows: Windows, total: Ints) -> tuple[int, int]:
    """The stretch without outer windows that are much nearer to the whole than its worst."""
    distance = js_distance(windows.counts[first:end], total)
    typical = float(np.median(js_distance(windows.counts, total)))
    odd = np.flatnonzero(distance - typical >= 0.5 * (distance.max() - typical))
    return first + int(odd[0]), first + int(odd[-1]) + 1


def _hit(low: int, high: int, summary: str, excess: float) -> Hit:
    return Hit(
        kind="distribution_shift",
        first=low,
        end=high,
        summary=summary,
        affected_tokens=high - low,
        weight=min(1.0, 2 * excess),
    )


def _change(windows: Windows) -> Hit | None:
    count = len(windows.first_token)
    side = max(1, round(MIN_SIDE * count))
    points = np.arange(side, count - side + 1)
    distance = _split_distances(windows.counts, points)
    rng = np.random.default_rng(0)
    # A short side is far from a long one by its size alone: what that comes to, shuffled windows tell.
    shuffled = [_split_distances(windows.counts[rng.permutation(count)], points) for _ in range(SHUFFLES)]
    excess = distance - np.mean(shuffled, axis=0)
    worst = int(excess.argmax())
    if excess[worst] < MIN_CHANGE:
        return None
    token = int(windows.first_token[points[worst]])
    low, high = (0, token) if token <= windows.tokens // 2 else (token, windows.tokens)
    summary = f"the text changes at token {token:,}: distance {distance[worst]:.2f} (Jensen-Shannon) before to after"
    return _hit(low, high, summary, float(excess[worst]))


def _split_distances(counts: Ints, points: Ints) -> Floats:
    """Distance of all windows before each point from all after it."""
    before = np.cumsum(counts, axis=0)
    return np.array([float(js_distance(before[point - 1], before[-1] - before[point - 1])) for point in points])
