"""How much of the validation tokens training sees too: a quick measure. The audit says which text it is, and where."""

from dataclasses import dataclass

import numpy as np

from trainable.data.tokens import Tokens
from trainable.text_audit.ngrams import NGRAM_TOKENS, Hashes, KnownHashes, Positions, iter_ngram_hashes, marked_spans

CHUNK_TOKENS = 1 << 20
MAX_TRAIN_TOKENS = 40 << 20
"""Of a longer text evenly spread chunks are read: 0.1 s a million tokens."""
MAX_VAL_NGRAMS = 1 << 21
"""Of more, those whose hash is a multiple of some number are kept, which picks the same n-grams on both sides."""
LONG_COPY_TOKENS = 256
"""Repeated phrases, tables and notices are shorter: in the Python language reference the longest has 83 tokens."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of the validation tokens is also in the training tokens."""

    shared_frac: float
    """Of the validation n-grams, how many occur in training."""
    long_copy_frac: float
    """Of the validation tokens, how many lie in copies of LONG_COPY_TOKENS and more."""
    longest_tokens: int
    longest_start: int
    """Validation token at which the longest copy begins."""
    train_read_frac: float
    """Below 1 the rest was not read, and there may be more."""


def measure_overlap(train: Tokens, val: Tokens) -> Overlap | None:
    """Return what the two share, or None where one is shorter than an n-gram. Memory is bounded at any length."""
    if min(len(train), len(val)) < NGRAM_TOKENS:
        return None
    places, hashes = _kept_ngrams(val)
    distinct, which = np.unique(hashes, return_inverse=True)
    known, found = KnownHashes(distinct), np.zeros(len(distinct), dtype=bool)
    spans = _read_spans(len(train))
    for start, end in spans:
        for _, theirs in iter_ngram_hashes(train, start, end):
            found[known.find(theirs)[1]] = True
    copies = marked_spans(found[which])  # stretches whose every n-gram was found
    starts = places[copies[:, 0]]
    lengths = places[copies[:, 1] - 1] - starts + NGRAM_TOKENS
    longest = int(lengths.argmax()) if len(lengths) else 0
    return Overlap(
        shared_frac=float(found[which].mean()),
        long_copy_frac=float(lengths[lengths >= LONG_COPY_TOKENS].sum() / len(val)),
        longest_tokens=int(lengths[longest]) if len(lengths) else 0,
        longest_start=int(starts[longest]) if len(lengths) else 0,
        train_read_frac=min(1.0, len(spans) * CHUNK_TOKENS / len(train)),
    )


def _kept_ngrams(tokens: Tokens) -> tuple[Positions, Hashes]:
    modulus = np.uint64(1 + len(tokens) // MAX_VAL_NGRAMS)
    places, kept = [], []
    for start, hashes in iter_ngram_hashes(tokens, 0, len(tokens)):
        chosen = np.flatnonzero(hashes % modulus == 0)
        places.append(chosen + start)
        kept.append(hashes[chosen])
    return np.concatenate(places), np.concatenate(kept)


def _read_spans(tokens_count: int) -> list[tuple[int, int]]:
    """Return the (start, end) of chunks to read, each long enough to hold the n-grams that begin in it."""
    starts = np.arange(0, tokens_count - NGRAM_TOKENS + 1, CHUNK_TOKENS)
    most = MAX_TRAIN_TOKENS // CHUNK_TOKENS
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(np.int64)]
    return [(int(start), min(int(start) + CHUNK_TOKENS + NGRAM_TOKENS - 1, tokens_count)) for start in starts]
