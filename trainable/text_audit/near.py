"""Near duplicates: passages (paragraphs or runs of lines) that share most of their words in order, by MinHash and
locality-sensitive hashing of their shingles."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from trainable.data.tokens import Progress, Tokens
from trainable.text_audit.ngrams import hash_tokens, scramble
from trainable.text_audit.units import Hashes, Ints, Units

MIN_PASSAGE_TOKENS = 40
"""Shorter paragraphs join the next: a heading or a line of a dialogue says too little to be a copy."""
LONG_PASSAGE_TOKENS = 200
MAX_PASSAGE_TOKENS = 400
SHINGLE_WORDS = 3
MIN_SHINGLES = 20

WordsAt = Callable[[int, int], npt.NDArray[np.int32]]
"""The words of tokens [low, high), 0 for a token that is none."""
NearDuplicate = tuple[int, int, float]
"""A passage by its index, the one that it copies and that is no copy itself, and their similarity."""

MIN_SIMILARITY = 0.5
"""Jaccard similarity of the shingles. As for the OpenWebText2 part of The Pile (Gao et al. 2020, appendix C); a copy
with a word in 15 changed has 0.6."""
PERMUTATIONS = 128
BAND_ROWS = 4
"""32 bands of 4 (Leskovec et al., Mining of Massive Datasets, sec. 3.4): 0.87 of the pairs at similarity 0.5 are
compared, 0.998 of those at 0.65, 0.003 of those at 0.1."""


def find_passages(units: Units, tokens: Tokens, scale: int = 1) -> tuple[Ints, Ints]:
    """Return where the passages of a text begin and end, (passages,) each: whole paragraphs.

    Or lines, where there are hardly any blank ones. A long one is cut after a line chosen by its own first tokens,
    so that copies are cut alike (content-defined chunking: Manber 1994). scale: tokens_a_token().
    """
    sizes = (units.end_token - units.first_token) / scale
    file_ends = np.append(units.file_index[1:] != units.file_index[:-1], True)
    may_end = units.ends_paragraph | file_ends
    if may_end.mean() < 0.02:
        may_end = may_end | units.ends_line
    inside = np.minimum(units.first_token + 1, len(tokens) - 1)
    is_cut = hash_tokens(np.asarray(tokens[inside])) % np.uint64(4) == 0
    ends, size = [], 0.0
    for unit, (tokens_count, may, cut, must) in enumerate(
        zip(sizes.tolist(), may_end.tolist(), is_cut.tolist(), file_ends.tolist(), strict=True)
    ):
        size += tokens_count
        paragraph = may and size >= MIN_PASSAGE_TOKENS
        if must or paragraph or (cut and size >= LONG_PASSAGE_TOKENS) or size >= MAX_PASSAGE_TOKENS:
            ends.append(unit + 1)
            size = 0.0
    end_unit = np.array(ends, dtype=np.int64)
    return units.first_token[np.append(0, end_unit)[:-1]], units.end_token[end_unit - 1]


def iter_shingles(words_at: WordsAt, first: Ints, end: Ints, scale: int) -> Iterator[tuple[int, Hashes, Ints]]:
    """Yield (passage, hashes, offsets) for runs of passages, which are tokens [first, end) in order.

    The shingles of passage + i are hashes[offsets[i]:offsets[i + 1]], 32-bit values: scale * SHINGLE_WORDS words in a
    row, whatever the case, spacing and punctuation.
    """
    step, width = 2048, scale * SHINGLE_WORDS
    for low in range(0, len(first), step):
        starts, ends = first[low : low + step], end[low : low + step]
        words = words_at(int(starts[0]), int(ends[-1]))
        place = np.flatnonzero(words)  # (W,)
        passage = np.searchsorted(ends - starts[0], place, side="right")
        passage[place < starts[passage] - starts[0]] = -1  # between two passages
        parts, count = hash_tokens(words[place]), max(0, len(place) - width + 1)
        hashes = np.zeros(count, dtype=np.uint64)
        for index in range(width):
            hashes = hashes * np.uint64(31) + parts[index : index + count]
        begun, ended = passage[:count], passage[len(passage) - count :]
        is_inside = (begun == ended) & (begun >= 0)
        counts = np.bincount(begun[is_inside], minlength=len(starts))
        yield low, scramble(hashes[is_inside]) >> np.uint64(32), np.append(0, np.cumsum(counts))


def find_near_duplicates(
    words_at: WordsAt, first: Ints, end: Ints, train_tokens: int, progress: Progress, scale: int = 1
) -> list[NearDuplicate]:
    """Return the passages [first, end) that are nearly equal to another, sorted, each with the one that stays.

    Of two alike the one in the validation part stays, or else the first.
    """
    bands, usable = _bands(words_at, first, end, scale, progress)
    # Validation passages come first in rank, so that they are never the copy.
    rank = np.argsort(np.argsort(first < train_tokens, kind="stable"), kind="stable")
    pairs = _candidates(bands, usable, rank)
    kept: dict[int, tuple[int, float]] = {}
    jaccard = _jaccard_of(words_at, first, end, scale)
    for done, (copy, original) in enumerate(pairs):
        if copy in kept:
            continue
        while original in kept:
            original = kept[original][0]
        if original != copy and (similarity := jaccard(copy, original)) >= MIN_SIMILARITY:
            kept[copy] = (original, similarity)
        if done % 1000 == 0:
            progress("comparing near duplicates", done / len(pairs))
    return [(copy, *kept[copy]) for copy in sorted(kept)]


def _bands(words_at: WordsAt, first: Ints, end: Ints, scale: int, progress: Progress) -> tuple[Hashes, Ints]:
    """(band hashes (usable passages, bands), indices of the usable passages)."""
    from datasketch import MinHash

    bands, usable = [np.zeros((0, PERMUTATIONS // BAND_ROWS), dtype=np.uint64)], [np.zeros(0, dtype=np.int64)]
    for passage, hashes, offsets in iter_shingles(words_at, first, end, scale):
        long = np.flatnonzero(np.diff(offsets) >= MIN_SHINGLES)
        shingles = (hashes[offsets[index] : offsets[index + 1]].tolist() for index in long)
        sketches = MinHash.generator(shingles, num_perm=PERMUTATIONS, seed=1, hashfunc=int)
        signatures = np.array([sketch.hashvalues for sketch in sketches], dtype=np.uint64)
        bands.append(_banded(signatures.reshape(-1, PERMUTATIONS // BAND_ROWS, BAND_ROWS)))
        usable.append(passage + long)
        progress("sketching passages", passage / len(first))
    return np.concatenate(bands), np.concatenate(usable)


def _banded(signatures: Hashes) -> Hashes:
    """One hash per band (N, bands) of signatures (N, bands, BAND_ROWS)."""
    hashes = np.zeros(signatures.shape[:2], dtype=np.uint64)
    for row in range(BAND_ROWS):
        hashes = scramble(hashes * np.uint64(31) + signatures[:, :, row])
    return hashes


def _candidates(bands: Hashes, usable: Ints, rank: Ints) -> list[tuple[int, int]]:
    """(copy, original) that share a band, by rising rank of the copy: with its bucket's first and the one before."""
    found = [np.zeros((0, 2), dtype=np.int64)]
    by_rank = np.argsort(rank[usable], kind="stable")
    for band in range(bands.shape[1]):
        order = by_rank[np.argsort(bands[by_rank, band], kind="stable")]
        same = np.flatnonzero(bands[order[1:], band] == bands[order[:-1], band]) + 1
        if len(same) == 0:
            continue
        bucket_first = np.arange(len(order))
        bucket_first[same] = 0
        bucket_first = np.maximum.accumulate(bucket_first)
        for other in (bucket_first[same], same - 1):
            found.append(np.stack([usable[order[same]], usable[order[other]]], axis=1))
    pairs = np.unique(np.concatenate(found), axis=0)
    pairs = pairs[np.lexsort((rank[pairs[:, 1]], rank[pairs[:, 0]]))]
    return [(int(copy), int(original)) for copy, original in pairs]


def _jaccard_of(words_at: WordsAt, first: Ints, end: Ints, scale: int) -> Callable[[int, int], float]:
    """The exact similarity of two passages, by their indices."""

    @lru_cache(maxsize=4096)
    def shingles(passage: int) -> Hashes:
        _, hashes, _ = next(iter_shingles(words_at, first[passage : passage + 1], end[passage : passage + 1], scale))
        return np.unique(hashes)

    def jaccard(one: int, other: int) -> float:
        left, right = shingles(one), shingles(other)
        common = len(np.intersect1d(left, right, assume_unique=True))
        return common / (len(left) + len(right) - common)

    return jaccard
