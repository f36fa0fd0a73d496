"""Words of another language in the same script: stretches of prose without the text's own commonest words."""

from pathlib import Path

import numpy as np

from trainable.text_audit.ngrams import Hashes, covered, marked_spans, marks_between
from trainable.text_audit.units import ASCII_LETTERS, Bytes, Flags, Ints, byte_set

COMMON_WORDS = 100
SAMPLES = 64
SAMPLE_BYTES = 16_384
MIN_WORDS = 100
"""A stretch is judged over at least so many words: shorter ones may be names or a list."""
FOREIGN_RATIO = 0.22
"""Common words in a stretch against the text's usual share. English prose has 0.45 of its 100 commonest words and
varies by a tenth of that; German, French or Italian share 0.02 to 0.1 with it."""
MIN_COMMON_FRAC = 0.2
"""A text whose own share is lower has no words to tell it by: tables, code, or a script without spaces."""
MIN_PROSE_FRAC = 0.85
"""Letters, spaces and full stops among the bytes: code and tables have fewer."""

_LETTER = ASCII_LETTERS | byte_set(range(128, 256))
_PROSE = _LETTER | byte_set(b" \n\r.,'")
_LETTER_HASH = np.random.default_rng(1).integers(1, 1 << 62, 256, dtype=np.uint64) | np.uint64(1)
_LETTER_HASH[65:91] = _LETTER_HASH[97:123]


def common_words(files: list[Path]) -> Hashes:
    """Return the hashes of the files' commonest words, sorted, from samples spread evenly over them."""
    sizes = np.array([path.stat().st_size for path in files], dtype=np.int64)
    ends = np.cumsum(sizes)
    total = int(ends[-1])
    parts = [np.zeros(0, dtype=np.uint64)]
    for position in np.unique(np.linspace(0, max(0, total - SAMPLE_BYTES), SAMPLES, dtype=np.int64)).tolist():
        index = int(np.searchsorted(ends, position, side="right"))
        with files[index].open("rb") as file:
            file.seek(position - int(ends[index] - sizes[index]))
            data = np.frombuffer(file.read(SAMPLE_BYTES), dtype=np.uint8)
        parts.append(_words(data)[1])
    words, counts = np.unique(np.concatenate(parts), return_counts=True)
    return np.sort(words[np.argsort(-counts, kind="stable")[:COMMON_WORDS]])


def count_words(data: Bytes, starts: Ints, common: Hashes) -> tuple[Ints, Ints, Ints]:
    """Return for each unit of `data` its words, those of them among `common`, and its bytes that prose may have."""
    word_starts, hashes = _words(data)
    unit = np.searchsorted(starts, word_starts, side="right") - 1
    index = np.minimum(np.searchsorted(common, hashes), max(0, len(common) - 1))
    is_common = common[index] == hashes if len(common) else np.zeros(len(hashes), dtype=bool)
    words = np.bincount(unit, minlength=len(starts))
    return (
        words,
        np.bincount(unit[is_common], minlength=len(starts)),
        np.add.reduceat(_PROSE[data], starts, dtype=np.int64),
    )


def _words(data: Bytes) -> tuple[Ints, Hashes]:
    """Start and hash of every run of letters, whatever the case of its ASCII letters."""
    starts, ends = marked_spans(_LETTER[data]).T
    if len(starts) == 0:
        return starts, np.zeros(0, dtype=np.uint64)
    letters = np.flatnonzero(_LETTER[data])
    lengths = ends - starts
    firsts = np.append(0, np.cumsum(lengths)[:-1])
    offset = (np.arange(len(letters)) - np.repeat(firsts, lengths)).astype(np.uint64)
    # Odd factors, so that a letter's place counts and no product vanishes.
    values = _LETTER_HASH[data[letters]] * (offset * np.uint64(2) + np.uint64(3))
    return starts, np.add.reduceat(values, firsts)


def foreign_units(words: Ints, common: Ints, prose: Ints, sizes: Ints) -> Flags:
    """Return which units lie in a stretch of at least MIN_WORDS words of prose without the text's own words."""
    usual = _usual(words, common)
    if usual < MIN_COMMON_FRAC or words.sum() < 10 * MIN_WORDS:
        return np.zeros(len(words), dtype=bool)
    so_far = np.append(0, np.cumsum(words))
    ends = np.searchsorted(so_far, so_far[:-1] + MIN_WORDS)  # (units,) the stretch is units [i, ends[i])
    fits = ends <= len(words)
    starts, ends = np.flatnonzero(fits), ends[fits]
    words_in, common_in, prose_in, sizes_in = (
        marks_between(values, starts, ends) for values in (words, common, prose, sizes)
    )
    bad = (common_in < FOREIGN_RATIO * usual * words_in) & (prose_in >= MIN_PROSE_FRAC * sizes_in)
    return covered(np.stack([starts[bad], ends[bad]], axis=1), len(words))


def _usual(words: Ints, common: Ints) -> float:
    """The median share of common words over 100 equal parts of the text."""
    parts = [
        np.add.reduceat(values, np.linspace(0, len(values) - 1, 100, dtype=np.int64)) for values in (words, common)
    ]
    has_words = parts[0] > 0
    return float(np.median(parts[1][has_words] / parts[0][has_words])) if has_words.any() else 0.0
