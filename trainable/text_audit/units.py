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
    first_line: Ints
    """1-based."""
    last_line: Ints
    """The line of the unit's last visible byte."""
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
    first_line: Ints
    last_line: Ints
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
    kept = ~blank
    kept[0] = True
    lines = first_line + np.flatnonzero(kept)
    starts_line, ends_line = np.ones((2, len(lines)), dtype=bool)
    starts_line[0] = not continues
    ends_line[-1] = len(new_lines) > 0 and new_lines[-1] == len(data)
    cuts = Cuts(
        starts=starts[kept],
        first_line=lines,
        last_line=lines,
        starts_line=starts_line,
        ends_line=ends_line,
        ends_paragraph=np.append(blank[1:], False)[kept],
        lines=len(new_lines),
    )
    return _split_long(data, cuts, ends[kept])


def line_ends(data: Bytes) -> Ints:
    """Return one past each \\n, \\r\\n and lone \\r, as universal newlines count them."""
    is_end = data == 10
    returns = np.flatnonzero(data == 13)
    if len(returns):
        lone = returns[(returns + 1 >= len(data)) | (data[np.minimum(returns + 1, len(data) - 1)] != 10)]
        is_end[lone] = True
    return np.flatnonzero(is_end) + 1


def _split_long(data: Bytes, cuts: Cuts, ends: Ints) -> Cuts:
    long = np.flatnonzero(ends - cuts.starts > LONG_BYTES)
    if len(long) == 0:
        return cuts
    inner = [_inner_cuts(data, int(cuts.starts[i]), int(ends[i])) for i in long]
    repeats = np.ones(len(cuts.starts), dtype=np.int64)
    repeats[long] += [len(positions) for positions in inner]
    parent = np.repeat(np.arange(len(cuts.starts)), repeats)
    first = np.append(0, np.cumsum(repeats)[:-1])
    starts = cuts.starts[parent]
    is_first = np.zeros(len(parent), dtype=bool)
    is_first[first] = True
    starts[~is_first] = np.concatenate([np.array(p, dtype=np.int64) for p in inner])
    is_last = np.append(is_first[1:], True)
    return Cuts(
        starts=starts,
        first_line=cuts.first_line[parent],
        last_line=cuts.last_line[parent],
        starts_line=cuts.starts_line[parent] & is_first,
        ends_line=cuts.ends_line[parent] & is_last,
        ends_paragraph=cuts.ends_paragraph[parent] & is_last,
        lines=cuts.lines,
    )


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
            start = _character_start(data, high)
        cuts.append(start)
    return cuts


def _character_start(data: Bytes, position: int) -> int:
    while data[position] & 0xC0 == 0x80:
        position -= 1
    return position
