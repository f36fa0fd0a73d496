"""Repeated n-gram runs: the same few tokens over and over."""

from collections.abc import Iterator

import numpy as np

from trainable.data.tokens import Tokens
from trainable.text_audit.audit_values import Hit, spans

MAX_PERIOD_TOKENS = 64
"""A longer phrase that comes again is a duplicated passage."""
MIN_REPEATED_TOKENS = 64
"""Tokens equal to those one period before: rules of dashes and short tables stay below."""
MIN_REPEATS = 4
SAMPLE_TOKENS = 16
BLOCK_TOKENS = 1 << 20


def find_repeats(tokens: Tokens) -> Iterator[Hit]:
    """Yield the runs in which one phrase of at most MAX_PERIOD_TOKENS follows itself, in order, not overlapping."""
    for first, end, period in _merged(_candidates(tokens)):
        repeats = (end - first) / period
        phrase = "one token" if period == 1 else f"the same {period} tokens"
        yield Hit(
            kind="repeated_ngram",
            first=first,
            end=end,
            summary=f"{phrase} {repeats:,.0f} times in a row",
            removed=spans((first + period, end)),
            occurrences=int(repeats),
            affected_tokens=end - first - period,
        )


def _candidates(tokens: Tokens) -> list[tuple[int, int, int]]:
    """(first, end, period) of every periodic run, the shortest period of a run first."""
    found = []
    for low in range(0, len(tokens), BLOCK_TOKENS):
        block = tokens[low : low + BLOCK_TOKENS + MAX_PERIOD_TOKENS]
        for period in range(1, min(MAX_PERIOD_TOKENS, len(block) - 1) + 1):
            found += [(low + first, low + end, period) for first, end in _runs(block, period)]
    return found


def _runs(block: Tokens, period: int) -> list[tuple[int, int]]:
    later, earlier = block[period:], block[:-period]
    # A run long enough covers several samples in a row: few places are left to look at closely.
    sampled = later[::SAMPLE_TOKENS] == earlier[::SAMPLE_TOKENS]
    needed = MIN_REPEATED_TOKENS // SAMPLE_TOKENS - 1
    if len(sampled) < needed or not (rows := np.convolve(sampled, np.ones(needed), "valid") == needed).any():
        return []
    runs: list[tuple[int, int]] = []
    for start in (np.flatnonzero(rows) * SAMPLE_TOKENS).tolist():
        if runs and start < runs[-1][1] - period:
            continue
        first = start - _equal_steps(later[:start][::-1], earlier[:start][::-1])
        end = start + _equal_steps(later[start:], earlier[start:])
        if end - first >= max(MIN_REPEATED_TOKENS, (MIN_REPEATS - 1) * period):
            runs.append((first, end + period))
    return runs


def _equal_steps(left: Tokens, right: Tokens) -> int:
    low, step = 0, 256
    while low < len(left):
        unequal = np.flatnonzero(left[low : low + step] != right[low : low + step])
        if len(unequal):
            return low + int(unequal[0])
        low, step = low + step, step * 2
    return len(left)


def _merged(runs: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Return each run once, with its shortest period: runs are seen with multiples of it too, and in two blocks."""
    merged: list[tuple[int, int, int]] = []
    for first, end, period in sorted(runs):
        if merged and first < merged[-1][1]:
            last_first, last_end, last_period = merged[-1]
            merged[-1] = (last_first, max(end, last_end), min(period, last_period))
        else:
            merged.append((first, end, period))
    return merged
