"""A text as passages, the paragraphs or runs of lines whose likeness is compared, and as the shingles in each."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from trainable.data.tokens import Tokens
from trainable.text_audit.ngrams import Hashes, hash_tokens, scramble
from trainable.text_audit.units import Ints, Units

MIN_PASSAGE_TOKENS = 40
"""Shorter paragraphs join the next: a heading or a line of a dialogue says too little to be a copy."""
LONG_PASSAGE_TOKENS = 200
MAX_PASSAGE_TOKENS = 400
SHINGLE_WORDS = 3
MIN_SHINGLES = 20

WordsAt = Callable[[int, int], npt.NDArray[np.int32]]
"""The words of tokens [low, high), 0 for a token that is none."""


def find_passages(units: Units, tokens: Tokens) -> tuple[Ints, Ints]:
    """Return where the passages of a text begin and end, (passages,) each: whole paragraphs.

    Or lines, where there are hardly any blank ones. A long one is cut after a line chosen by its own first tokens,
    so that copies are cut alike (content-defined chunking: Manber 1994).
    """
    sizes = units.end_token - units.first_token
    file_ends = np.append(units.file_index[1:] != units.file_index[:-1], True)
    may_end = units.ends_paragraph | file_ends
    if may_end.mean() < 0.02:
        may_end = may_end | units.ends_line
    inside = np.minimum(units.first_token + 1, len(tokens) - 1)
    is_cut = hash_tokens(np.asarray(tokens[inside])) % np.uint64(4) == 0
    ends, size = [], 0
    for unit, (tokens_count, may, cut, must) in enumerate(
        zip(sizes.tolist(), may_end.tolist(), is_cut.tolist(), file_ends.tolist(), strict=True)
    ):
        size += tokens_count
        paragraph = may and size >= MIN_PASSAGE_TOKENS
        if must or paragraph or (cut and size >= LONG_PASSAGE_TOKENS) or size >= MAX_PASSAGE_TOKENS:
            ends.append(unit + 1)
            size = 0
    end_unit = np.array(ends, dtype=np.int64)
    return units.first_token[np.append(0, end_unit)[:-1]], units.end_token[end_unit - 1]


def iter_shingles(words_at: WordsAt, first: Ints, end: Ints) -> Iterator[tuple[int, Hashes, Ints]]:
    """Yield (passage, hashes, offsets) for runs of passages, which are tokens [first, end) in order.

    The shingles of passage + i are hashes[offsets[i]:offsets[i + 1]], 32-bit values: SHINGLE_WORDS words in a row,
    whatever the case, spacing and punctuation.
    """
    step = 2048
    for low in range(0, len(first), step):
        starts, ends = first[low : low + step], end[low : low + step]
        words = words_at(int(starts[0]), int(ends[-1]))
        place = np.flatnonzero(words)  # (W,)
        passage = np.searchsorted(ends - starts[0], place, side="right")
        passage[place < starts[passage] - starts[0]] = -1  # between two passages
        parts = hash_tokens(words[place])
        hashes = parts[:-2] * np.uint64(31 * 31) + parts[1:-1] * np.uint64(31) + parts[2:]
        is_inside = (passage[:-2] == passage[2:]) & (passage[2:] >= 0)
        counts = np.bincount(passage[:-2][is_inside], minlength=len(starts))
        yield low, scramble(hashes[is_inside]) >> np.uint64(32), np.append(0, np.cumsum(counts))
