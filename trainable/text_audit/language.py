"""Stretches in another script than the text's own, or in another language of the same script: prose without the
text's own commonest words."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainable.text_audit.ngrams import covered, marked_spans, marks_between
from trainable.text_audit.units import ASCII_LETTERS, Bytes, Flags, Hashes, Ints, byte_set

SCRIPTS = (
    "Latin", "Greek", "Cyrillic", "Armenian", "Hebrew", "Arabic", "Indic", "Thai or Lao", "Georgian", "Hangul", "Kana",
    "Han",
)  # fmt: skip
NONE = 255
"""A unit with fewer than MIN_LETTERS letters."""
MIN_LETTERS = 4

# Unicode 16 blocks: first code point, script by its index in SCRIPTS; NONE is no letter or another script.
_BLOCKS = (
    (0x80, NONE), (0xC0, 0), (0x250, NONE), (0x370, 1), (0x400, 2), (0x530, 3), (0x590, 4), (0x600, 5), (0x700, NONE),
    (0x750, 5), (0x780, NONE), (0x8A0, 5), (0x900, 6), (0xE00, 7), (0xF00, NONE), (0x10A0, 8), (0x1100, 9),
    (0x1200, NONE), (0x1E00, 0), (0x1F00, 1), (0x2000, NONE), (0x3040, 10), (0x3100, NONE), (0x3400, 11),
    (0xA000, NONE), (0xAC00, 9), (0xD7B0, NONE), (0xF900, 11), (0xFB00, NONE), (0xFB50, 5), (0xFE00, NONE),
    (0x20000, 11), (0x32000, NONE),
)  # fmt: skip
_FIRST = np.array([first for first, _ in _BLOCKS])
_SCRIPT = np.array([script for _, script in _BLOCKS], dtype=np.uint8)

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


def unit_scripts(data: Bytes, starts: Ints) -> npt.NDArray[np.uint8]:
    """Return for each unit of `data` (they begin at `starts`) the script of most of its letters, or NONE."""
    counts = np.zeros((len(starts), len(SCRIPTS)), dtype=np.int64)
    counts[:, 0] = np.add.reduceat(ASCII_LETTERS[data], starts, dtype=np.int64)
    leads = np.flatnonzero(data >= 0xC2)
    if len(leads):
        code_points = np.frombuffer(data.tobytes().decode("utf-8", "replace").encode("utf-32-le"), dtype=np.uint32)
        foreign = code_points[code_points >= 0x80]
        scripts = _SCRIPT[np.searchsorted(_FIRST, foreign, side="right") - 1]  # (len(leads),)
        unit = np.searchsorted(starts, leads, side="right") - 1
        letter = scripts != NONE
        index = unit[letter] * len(SCRIPTS) + scripts[letter]
        counts += np.bincount(index, minlength=counts.size).reshape(counts.shape)
    best: npt.NDArray[np.uint8] = counts.argmax(axis=1).astype(np.uint8)
    best[counts.sum(axis=1) < MIN_LETTERS] = NONE
    return best


def own_scripts(scripts: npt.NDArray[np.uint8]) -> set[int]:
    """Return the scripts that belong to the text: the commonest, and what a twentieth of the lines are in.

    Of the lines with letters, in the median of 32 equal parts.
    """
    lettered = scripts[scripts != NONE]
    if len(lettered) == 0:
        return set()
    shares = [
        np.bincount(part, minlength=len(SCRIPTS)) / len(part) for part in np.array_split(lettered, 32) if len(part)
    ]
    own = np.flatnonzero(np.median(shares, axis=0) >= 0.05)
    return {int(np.bincount(lettered).argmax()), *own.tolist()}


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


def word_counts(data: Bytes, starts: Ints, common: Hashes) -> tuple[Ints, Ints, Ints]:
    """Return for each unit of `data` its words, those of them among `common`, and its bytes that prose may have."""
    word_starts, hashes = _words(data)
    unit = np.searchsorted(starts, word_starts, side="right") - 1
    is_common = np.isin(hashes, common)
    words, known = (np.bincount(units, minlength=len(starts)) for units in (unit, unit[is_common]))
    return words, known, np.add.reduceat(_PROSE[data], starts, dtype=np.int64)


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
    if words.sum() < 10 * MIN_WORDS:
        return np.zeros(len(words), dtype=bool)
    parts = np.linspace(0, len(words) - 1, 100, dtype=np.int64)
    in_parts, common_in_parts = (np.add.reduceat(values, parts) for values in (words, common))
    usual = float(np.median(common_in_parts[in_parts > 0] / in_parts[in_parts > 0]))
    if usual < MIN_COMMON_FRAC:
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
