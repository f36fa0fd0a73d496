"""Exact copies as runs of tokens, however aligned: passages that occur more than once, and validation n-grams that
training sees too."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from trainable.data.tokens import Progress, Tokens
from trainable.text_audit.ngrams import NGRAM_TOKENS, KnownHashes, iter_ngram_hashes, matching_runs
from trainable.text_audit.units import Flags, Hashes, Ints

MIN_DUPLICATE_TOKENS = 50
"""Lee et al. 2022, Deduplicating training data makes language models better, sec. 4.1."""


def find_duplicate_runs(tokens: Tokens, train_tokens: int, skipped: Flags, progress: Progress, scale: int = 1) -> Ints:
    """Return runs (n, 3) of (copy, original, length), each maximal, sorted by copy.

    The original of a passage is its first occurrence in the validation part, or else its first: what is left out
    comes from the training side. N-grams that start where `skipped` is true are left out. scale: tokens_a_token().
    """
    n, least = scale * NGRAM_TOKENS, scale * MIN_DUPLICATE_TOKENS
    copies, originals = _pairs(*_fingerprints(tokens, skipped, progress, n, least), train_tokens)
    copy, original, length = matching_runs(copies, originals, n=n, gap=n).T
    before = _agreeing(tokens, copy - 1, original - 1, step=-1, most=least)
    after = _agreeing(tokens, copy + length, original + length, step=1, most=least)
    runs = np.stack([copy - before, original - before, length + before + after], axis=1)
    return _maximal(runs[runs[:, 2] >= least])


def _fingerprints(tokens: Tokens, skipped: Flags, progress: Progress, n: int, match_tokens: int) -> tuple[Hashes, Ints]:
    """The hashes of a tenth of the n-grams, chosen by the hashes alone, and where they are.

    Winnowing: Schleimer, Wilkerson & Aiken 2003, sec. 3.
    """
    # A match holds a whole window of n-grams, whose least hash is then kept in both places.
    window = match_tokens - n + 1
    margin = window - 1
    hashes, positions = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    last = len(tokens) - n + 1
    for start, block in iter_ngram_hashes(tokens, 0, len(tokens), n=n, margin=margin):
        if len(block) < window:
            continue
        least = np.minimum.reduce(sliding_window_view(block, window).T)  # (len - window + 1,)
        padded = np.concatenate([least[:1].repeat(margin), least, least[-1:].repeat(margin)])
        # A hash is some window's least if it equals the greatest of the minima of the windows it is in.
        chosen = np.flatnonzero(np.maximum.reduce(sliding_window_view(padded, window).T) == block)
        stop = start + len(block)
        low, high = start + (margin if start else 0), stop - (margin if stop < last else 0)
        chosen = chosen[(chosen + start >= low) & (chosen + start < high) & ~skipped[chosen + start]]
        hashes.append(block[chosen])
        positions.append(chosen + start)
        progress("looking for duplicates", high / last)
    return np.concatenate(hashes), np.concatenate(positions)


def _pairs(hashes: Hashes, positions: Ints, train_tokens: int) -> tuple[Ints, Ints]:
    """(copies, originals) of the n-grams that occur more than once, sorted by copy."""
    order = np.argsort(hashes, kind="stable")
    hashes, positions = hashes[order], positions[order]
    is_first = np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]
    group = np.cumsum(is_first) - 1  # (hashes,)
    sizes, in_train = np.bincount(group), np.bincount(group, weights=positions < train_tokens).astype(np.int64)
    kept = np.flatnonzero(is_first) + np.where(in_train < sizes, in_train, 0)  # the original of each group
    is_copy = kept[group] != np.arange(len(group))
    copies, originals = positions[is_copy], positions[kept[group[is_copy]]]
    by_copy = np.argsort(copies)
    return copies[by_copy], originals[by_copy]


def _agreeing(tokens: Tokens, here: Ints, there: Ints, *, step: int, most: int) -> Ints:
    """How many tokens agree from `here` and `there` on, `most` at most, for each pair of places."""
    counts, left = np.zeros(len(here), dtype=np.int64), np.arange(len(here))
    for index in range(most):
        one, other = here[left] + step * index, there[left] + step * index
        inside = (np.minimum(one, other) >= 0) & (np.maximum(one, other) < len(tokens))
        left, one, other = left[inside], one[inside], other[inside]
        left = left[tokens[one] == tokens[other]]
        counts[left] += 1
    return counts


def _maximal(runs: Ints) -> Ints:
    """The runs that are no part of another."""
    runs = runs[np.lexsort((-runs[:, 2], runs[:, 0]))]
    reach = np.maximum.accumulate(np.append(-1, runs[:, 0] + runs[:, 2]))[:-1]
    return runs[runs[:, 0] + runs[:, 2] > reach]


def find_overlap_runs(tokens: Tokens, train_tokens: int, skipped: Flags, progress: Progress, scale: int = 1) -> Ints:
    """Return runs (n, 3) of (train position, validation position, length) of every n-gram that both parts hold.

    Sorted by the first; the validation position is the first there. Where `skipped` is true none is looked at.
    """
    n = scale * NGRAM_TOKENS
    # The validation part is the smaller one: its hashes are held in memory, those of the training part pass by.
    blocks = [block for _, block in iter_ngram_hashes(tokens, train_tokens, len(tokens), n=n)]
    hashes = np.concatenate([np.zeros(0, dtype=np.uint64), *blocks])
    looked_at = np.flatnonzero(~skipped[train_tokens : train_tokens + len(hashes)])
    distinct, first = np.unique(hashes[looked_at], return_index=True)
    known, where = KnownHashes(distinct), looked_at[first] + train_tokens
    here, there = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for start, block in iter_ngram_hashes(tokens, 0, train_tokens, n=n):
        at, index = known.find(block)
        kept = ~skipped[at + start]
        here.append(at[kept] + start)
        there.append(where[index[kept]])
        progress("comparing train and validation text", min(1.0, (start + len(block)) / train_tokens))
    return matching_runs(np.concatenate(here), np.concatenate(there), n=n, gap=1)
