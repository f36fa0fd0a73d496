"""Writing systems: which one a line is in, and which ones are the text's own. Not languages: see language.py."""

import numpy as np
import numpy.typing as npt

from trainable.text_audit.units import ASCII_LETTERS, Bytes, Ints

NAMES = (
    "Latin", "Greek", "Cyrillic", "Armenian", "Hebrew", "Arabic", "Indic", "Thai or Lao", "Georgian", "Hangul", "Kana",
    "Han",
)  # fmt: skip
NONE = 255
"""A unit with fewer than MIN_LETTERS letters."""
MIN_LETTERS = 4
PARTS = 32

# Unicode 16 blocks: first code point, script by its index in NAMES; NONE is no letter or another script.
_BLOCKS = (
    (0x80, NONE), (0xC0, 0), (0x250, NONE), (0x370, 1), (0x400, 2), (0x530, 3), (0x590, 4), (0x600, 5), (0x700, NONE),
    (0x750, 5), (0x780, NONE), (0x8A0, 5), (0x900, 6), (0xE00, 7), (0xF00, NONE), (0x10A0, 8), (0x1100, 9),
    (0x1200, NONE), (0x1E00, 0), (0x1F00, 1), (0x2000, NONE), (0x3040, 10), (0x3100, NONE), (0x3400, 11),
    (0xA000, NONE), (0xAC00, 9), (0xD7B0, NONE), (0xF900, 11), (0xFB00, NONE), (0xFB50, 5), (0xFE00, NONE),
    (0x20000, 11), (0x32000, NONE),
)  # fmt: skip
_FIRST = np.array([first for first, _ in _BLOCKS])
_SCRIPT = np.array([script for _, script in _BLOCKS], dtype=np.uint8)


def unit_scripts(data: Bytes, starts: Ints) -> npt.NDArray[np.uint8]:
    """Return for each unit of `data` (they begin at `starts`) the script of most of its letters, or NONE."""
    counts = np.zeros((len(starts), len(NAMES)), dtype=np.int64)
    counts[:, 0] = np.add.reduceat(ASCII_LETTERS[data], starts, dtype=np.int64)
    leads = np.flatnonzero(data >= 0xC2)
    if len(leads):
        code_points = np.frombuffer(data.tobytes().decode("utf-8", "replace").encode("utf-32-le"), dtype=np.uint32)
        foreign = code_points[code_points >= 0x80]
        scripts = _SCRIPT[np.searchsorted(_FIRST, foreign, side="right") - 1]  # (len(leads),)
        unit = np.searchsorted(starts, leads, side="right") - 1
        letter = scripts != NONE
        index = unit[letter] * len(NAMES) + scripts[letter]
        counts += np.bincount(index, minlength=counts.size).reshape(counts.shape)
    best: npt.NDArray[np.uint8] = counts.argmax(axis=1).astype(np.uint8)
    best[counts.sum(axis=1) < MIN_LETTERS] = NONE
    return best


def own_scripts(scripts: npt.NDArray[np.uint8]) -> set[int]:
    """Return the scripts that belong to the text: the commonest, and what a twentieth of the lines are in.

    Of the lines with letters, in the median of PARTS equal parts.
    """
    lettered = scripts[scripts != NONE]
    if len(lettered) == 0:
        return set()
    shares = [
        np.bincount(part, minlength=len(NAMES)) / len(part) for part in np.array_split(lettered, PARTS) if len(part)
    ]
    own = np.flatnonzero(np.median(shares, axis=0) >= 0.05)
    return {int(np.bincount(lettered).argmax()), *own.tolist()}
