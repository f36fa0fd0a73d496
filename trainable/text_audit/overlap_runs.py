"""Train/validation overlap: n-grams of the validation part that training sees too."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trainable.data.tokens import Progress, Tokens
from trainable.text_audit.ngrams import NGRAM_TOKENS, Hashes, Positions, iter_ngram_hashes, matching_runs

_FILTER_BITS = 24
_NO_RUNS = np.zeros((0, 3), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What the two parts share."""

    runs: npt.NDArray[np.int64]
    """(n, 3) of (train position, validation position, length), sorted by the first; the validation position is the
    first there."""
    val_ngrams_frac: float
    """Share of the validation n-grams that occur in the training part."""


def find_overlap(tokens: Tokens, train_tokens: int, skipped: npt.NDArray[np.bool_], progress: Progress) -> Overlap:
    """Return every n-gram of NGRAM_TOKENS that both parts hold, as runs; where `skipped` is true none is looked at."""
    known, where, counts = _val_index(tokens, train_tokens, skipped)
    if len(known) == 0:
        return Overlap(runs=_NO_RUNS, val_ngrams_frac=0.0)
    # Nearly all n-grams of the training part miss: a bit per hash prefix turns them away before the search.
    shift = np.uint64(64 - _FILTER_BITS)
    maybe = np.zeros(1 << _FILTER_BITS, dtype=bool)
    maybe[known >> shift] = True
    is_matched = np.zeros(len(known), dtype=bool)
    runs = [_NO_RUNS]
    for start, block in iter_ngram_hashes(tokens, 0, train_tokens):
        here = np.flatnonzero(maybe[block >> shift])
        here = here[~skipped[here + start]]
        index = np.minimum(np.searchsorted(known, block[here]), len(known) - 1)
        found = known[index] == block[here]
        is_matched[index[found]] = True
        runs.append(matching_runs(here[found] + start, where[index[found]], gap=1))
        progress("comparing train and validation text", min(1.0, (start + len(block)) / train_tokens))
    frac = float(counts[is_matched].sum() / counts.sum())
    return Overlap(runs=_joined(np.concatenate(runs)), val_ngrams_frac=frac)


def _val_index(
    tokens: Tokens, train_tokens: int, skipped: npt.NDArray[np.bool_]
) -> tuple[Hashes, Positions, npt.NDArray[np.int64]]:
    """The validation part's distinct hashes, sorted; of each the first position and how often it occurs."""
    blocks = [np.zeros(0, dtype=np.uint64)]
    blocks += [block for _, block in iter_ngram_hashes(tokens, train_tokens, len(tokens))]
    hashes = np.concatenate(blocks)
    positions = np.flatnonzero(~skipped[train_tokens : train_tokens + len(hashes)])
    known, first, counts = np.unique(hashes[positions], return_index=True, return_counts=True)
    return known, positions[first] + train_tokens, counts


def _joined(runs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The runs, those that a block's end cut in two made one again."""
    if len(runs) == 0:
        return runs
    here, there, length = runs.T
    goes_on = (here[1:] - here[:-1] == there[1:] - there[:-1]) & (
        here[1:] == here[:-1] + length[:-1] - NGRAM_TOKENS + 1
    )
    firsts = np.append(0, np.flatnonzero(~goes_on) + 1)
    lasts = np.append(firsts[1:], len(runs)) - 1
    return np.stack([here[firsts], there[firsts], here[lasts] + length[lasts] - here[firsts]], axis=1)
