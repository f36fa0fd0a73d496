"""Units: the smallest pieces of text that an audit points at or takes out: a line, or a part of a very long one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

LONG_BYTES = 240
"""A longer line is several units, cut after a sentence or a word."""

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Hashes = npt.NDArray[np.uint64]


def byte_set(*parts: bytes | range) -> Flags:
    """Return for each of the 256 byte values whether it is in one of the parts (256,)."""
    return np.isin(np.arange(256), [value for part in parts for value in part])


ASCII_LETTERS = byte_set(range(65, 91), range(97, 123))
SPACE = byte_set(b" \t\n\r\x0b\x0c")


@dataclass(frozen=True, kw_only=True)
class Units:
    """The text as consecutive units, each array (units,). Blank lines belong to the unit before them."""

    files: tuple[Path, ...]
    file_index: npt.NDArray[np.int32]
    first_byte: Ints
    """In its own file."""
    end_byte: Ints
    line: Ints
    """1-based; blank lines after it are not counted."""
    first_token: Ints
    """The first token that starts in the unit; of two units with the same, the former has none."""
    starts_line: Flags
    ends_line: Flags
    ends_paragraph: Flags
    """Blank lines follow."""
    tokens: int
    """Of the whole text."""

    def __len__(self) -> int:
        return len(self.first_byte)

    @property
    def end_token(self) -> Ints:
        """One past the last token of each unit."""
        return np.append(self.first_token[1:], self.tokens)

    def of_token(self, token: npt.ArrayLike) -> Ints:
        """Return the index of the unit in which each token starts."""
        return np.maximum(np.searchsorted(self.first_token, token, side="right") - 1, 0)


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Where the units of one piece of text begin; positions are bytes of the piece."""

    starts: Ints
    line: Ints
    starts_line: Flags
    ends_line: Flags
    ends_paragraph: Flags
    lines: int
    """Line ends in the piece."""


def cut_units(data: Bytes, *, first_line: int, continues: bool) -> Cuts:
    """Return the units of `data` (not empty); `continues` says that it begins inside a line."""
    new_lines = line_ends(data)
    starts = np.append(0, new_lines)
    starts = starts[starts < len(data)]  # (L,)
    ink = np.append(0, np.cumsum(~SPACE[data], dtype=np.int32))
    ends = np.append(starts[1:], len(data))
    blank = ink[ends] == ink[starts]
    kept = np.flatnonzero(~blank | (starts == 0))  # the lines that are not joined to the one before
    line_starts, line_stops = starts[kept], ends[kept]
    inside = [
        place
        for line in np.flatnonzero(line_stops - line_starts > LONG_BYTES).tolist()
        for place in _inner_cuts(data, int(line_starts[line]), int(line_stops[line]))
    ]
    unit_starts = np.sort(np.append(line_starts, np.array(inside, dtype=np.int64)))  # (units,)
    of_line = np.searchsorted(line_starts, unit_starts, side="right") - 1
    starts_line = np.diff(of_line, prepend=-1) != 0
    ends_line = np.append(starts_line[1:], True)
    ends_paragraph = ends_line & np.append(blank[1:], False)[kept][of_line]
    starts_line[0] = not continues
    ends_line[-1] = len(new_lines) > 0 and new_lines[-1] == len(data)
    return Cuts(
        starts=unit_starts,
        line=first_line + kept[of_line],
        starts_line=starts_line,
        ends_line=ends_line,
        ends_paragraph=ends_paragraph,
        lines=len(new_lines),
    )


def line_ends(data: Bytes) -> Ints:
    """Return one past each \\n, \\r\\n and lone \\r, as universal newlines count them."""
    is_end = data == 10
    returns = np.flatnonzero(data == 13)
    if len(returns):
        lone = returns[(returns + 1 >= len(data)) | (data[np.minimum(returns + 1, len(data) - 1)] != 10)]
        is_end[lone] = True
    return np.flatnonzero(is_end) + 1


def _inner_cuts(data: Bytes, start: int, end: int) -> list[int]:
    cuts = []
    # The last third of a unit is searched: no cut leaves a crumb.
    while end - start > LONG_BYTES:
        low, high = start + LONG_BYTES // 3, start + LONG_BYTES
        window = data[low:high].tobytes()
        sentence = max(window.rfind(mark) for mark in (b". ", b"? ", b"! "))
        word = window.rfind(b" ")
        if sentence >= 0:
            start = low + sentence + 2
        elif word >= 0:
            start = low + word + 1
        else:
            while data[high] & 0xC0 == 0x80:  # inside a character
                high -= 1
            start = high
        cuts.append(start)
    return cuts
