"""Hashes of every n-gram of a token sequence, matches of n-grams as runs, and spans. Knows nothing of text."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from trainable.data.tokens import Tokens
from trainable.text_audit.units import Flags, Hashes, Ints

NGRAM_TOKENS = 32
"""As in the overlap checks of the field; a power of two, since hashes are built by doubling."""
LARGE_VOCABULARY = 1000
"""Smaller vocabularies are of characters or bytes on purpose."""
CHARACTERS_A_TOKEN = 4
"""In English."""
BLOCK_TOKENS = 1 << 18
"""Blocks that stay in the processor's cache."""


_MIX = np.uint64(0x9E3779B97F4A7C15)
_STEP = 0xD6E8FEB86659FD93
_PREFIX_BITS = 24
_PREFIX_SHIFT = np.uint64(64 - _PREFIX_BITS)


def tokens_a_token(vocab_size: int) -> int:
    """Return how many tokens of a vocabulary, a power of two, are about as long as one of a large vocabulary.

    Of characters or bytes all copies that are looked for are so many times as long.
    """
    return CHARACTERS_A_TOKEN if vocab_size < LARGE_VOCABULARY else 1


def hash_tokens(tokens: npt.NDArray[np.integer]) -> Hashes:
    """Return a 64-bit hash of each id (Steele et al. 2014, the finalizer of SplitMix)."""
    mixed = (tokens.astype(np.uint64) + np.uint64(1)) * _MIX
    return scramble(mixed)


def scramble(values: Hashes) -> Hashes:
    """Return the values, each bit depending on all."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_ngrams(hashes: Hashes, n: int) -> Hashes:
    """Return the hash of each n consecutive hashes (len - n + 1,), a polynomial in a fixed odd number; n = 2^k."""
    assert n & (n - 1) == 0, n
    # By doubling: five passes over the text for 32 tokens, where a rolling hash in numpy takes 32.
    width, factor = 1, _STEP
    while width < n:
        hashes = hashes[:-width] * np.uint64(factor) + hashes[width:]
        width, factor = width * 2, factor * factor % (1 << 64)
    return scramble(hashes)


def iter_ngram_hashes(
    tokens: Tokens, first: int, end: int, *, n: int = NGRAM_TOKENS, margin: int = 0
) -> Iterator[tuple[int, Hashes]]:
    """Yield (position, hashes) of blocks of the n-grams that lie in tokens [first, end); blocks overlap by `margin`."""
    last = end - n + 1
    for low in range(first, last, BLOCK_TOKENS):
        high = min(low + BLOCK_TOKENS, last)
        start, stop = max(first, low - margin), min(last, high + margin)
        yield start, hash_ngrams(hash_tokens(np.asarray(tokens[start : stop + n - 1])), n)


class KnownHashes:
    """Distinct hashes, sorted, in which others are looked up."""

    def __init__(self, hashes: Hashes) -> None:
        self._hashes = hashes
        self._has_prefix = np.zeros(1 << _PREFIX_BITS, dtype=bool)
        self._has_prefix[hashes >> _PREFIX_SHIFT] = True

    def find(self, hashes: Hashes) -> tuple[Ints, Ints]:
        """Return the indices of those of `hashes` that are known, and of each its index among the known."""
        # Nearly all n-grams of a text miss: a flag per prefix turns them away before the search.
        maybe = np.flatnonzero(self._has_prefix[hashes >> _PREFIX_SHIFT])
        index = np.minimum(np.searchsorted(self._hashes, hashes[maybe]), len(self._hashes) - 1)
        found = self._hashes[index] == hashes[maybe]
        return maybe[found], index[found]


def matching_runs(here: Ints, there: Ints, *, n: int, gap: int) -> Ints:
    """Return runs (k, 3) of (here, there, length) from matching n-grams `here` (ascending) and `there`.

    Matches belong to one run while both positions advance alike by at most `gap`.
    """
    if len(here) == 0:
        return np.zeros((0, 3), dtype=np.int64)
    breaks = (np.diff(here) > gap) | (np.diff(here) != np.diff(there))
    firsts = np.append(0, np.flatnonzero(breaks) + 1)
    lasts = np.append(firsts[1:], len(here)) - 1
    lengths = here[lasts] - here[firsts] + n
    return np.stack([here[firsts], there[firsts], lengths], axis=1)


def union(spans: Ints) -> Ints:
    """Return half-open spans (n, 2) merged where they touch or overlap, sorted."""
    if len(spans) == 0:
        return spans.reshape(0, 2)
    spans = spans[np.argsort(spans[:, 0], kind="stable")]
    reach = np.maximum.accumulate(spans[:, 1])
    breaks = np.flatnonzero(spans[1:, 0] > reach[:-1]) + 1
    firsts = np.append(0, breaks)
    return np.stack([spans[firsts, 0], reach[np.append(breaks, len(spans)) - 1]], axis=1)


def covered(spans: Ints, length: int) -> Flags:
    """Return for each of `length` positions whether a span covers it."""
    # Spans that no longer touch take a byte for each position, where counts of any take eight.
    steps, apart = np.zeros(length + 1, dtype=np.int8), union(spans)
    steps[apart[:, 0]] += 1
    steps[apart[:, 1]] -= 1
    covering: Flags = np.cumsum(steps[:-1], dtype=np.int8).view(np.bool_)
    return covering


def marks_between(marks: npt.NDArray[np.generic], first: Ints, end: Ints) -> Ints:
    """Return the sum of `marks`, flags or counts, over each span [first, end)."""
    total = np.zeros(len(marks) + 1, dtype=np.int64)
    # A block at a time: cumsum copies what it counts, to 8 bytes a mark.
    for low in range(0, len(marks), BLOCK_TOKENS):
        so_far = total[low + 1 : low + BLOCK_TOKENS + 1]
        np.cumsum(marks[low : low + BLOCK_TOKENS], dtype=np.int64, out=so_far)
        so_far += total[low]
    between: Ints = total[end] - total[first]
    return between


def marked_spans(marks: Flags) -> Ints:
    """Return the half-open spans (n, 2) of the stretches where `marks` is true."""
    return np.flatnonzero(np.diff(marks.astype(np.int8), prepend=0, append=0)).reshape(-1, 2)
