"""One pass over the text: its units, and for each what can be told from its bytes alone."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import entr

from trainable.data.tokens import Progress
from trainable.text_audit.debris import MARKUP, debris_of
from trainable.text_audit.language import common_words, unit_scripts, word_counts
from trainable.text_audit.ngrams import covered, marked_spans, marks_between
from trainable.text_audit.text import Piece, Source, iter_pieces
from trainable.text_audit.units import Bytes, Cuts, Flags, Floats, Hashes, Ints, Units, byte_set, cut_units

MIN_REGION_BYTES = 200
"""A shorter blob is a checksum or a key such as prose may quote."""
BLOB_RUN_BYTES = 40
"""A run of base64 characters at least so long is looked at: longer than words and most identifiers."""
BLOCK_BYTES = 512
RANDOM_ENTROPY_BITS = 5.5
"""Order-0 entropy per byte of a block that no text or code reaches: English has 4.3 to 4.6, code up to 5.2,
base64 6.0, random printable characters 6.5 (Shannon 1951 has 4.1 for letters alone)."""
CONTROL_FRAC = 0.1
NOISY_FRAC = 0.5
"""Share of a unit's bytes that must be noise."""
PLAIN_FRAC = 0.55
"""Lower-case letters and spaces in a line; prose has 0.9, code 0.7, random characters 0.3 to 0.45."""
EDGE_UNITS = 3

_CONTROL = byte_set(range(9), b"\x0b", range(0x0E, 0x20), b"\x7f")
_UPPER, _LOWER, _DIGIT = byte_set(range(65, 91)), byte_set(range(97, 123)), byte_set(range(48, 58))
_PLAIN = _LOWER | byte_set(b" \n\r\t")
_BASE64 = _UPPER | _LOWER | _DIGIT | byte_set(b"+/=_-")
_HEX_LETTER = byte_set(b"abcdefABCDEF")
_HEX = _DIGIT | _HEX_LETTER | byte_set(b" :,x\r\n\t\\")


def noisy_units(data: Bytes, starts: Ints) -> Flags:
    """Return for each unit of `data` (they begin at `starts`) whether most of it is noise."""
    sizes = np.diff(np.append(starts, len(data)))

    def frac(marks: Flags) -> Floats:
        return np.add.reduceat(marks, starts, dtype=np.int64) / sizes

    # A block does not begin and end where the noise does: lines of lower-case letters inside it are spared, and the
    # next few lines without are added.
    strange = frac(_PLAIN[data]) < PLAIN_FRAC
    random = (frac(_random_blocks(data)) >= NOISY_FRAC) & strange
    for _ in range(EDGE_UNITS if random.any() else 0):
        random |= strange & (np.append(random[1:], False) | np.append(False, random[:-1]))
    hexadecimal = (frac(_HEX[data]) > 0.95) & (frac(_HEX_LETTER[data]) > 0.1) & (frac(_DIGIT[data]) > 0.25)
    return (
        (frac(_controls(data)) >= CONTROL_FRAC)
        | (frac(_blobs(data)) >= NOISY_FRAC)
        | random
        | (hexadecimal & (sizes >= BLOB_RUN_BYTES))
    )


def _controls(data: Bytes) -> Flags:
    """C0 and C1 controls, U+FFFD and the private use area, every byte of them."""
    found = _CONTROL[data]
    high = np.flatnonzero(data >= 0xC2)
    lead, second = data[high], data[np.minimum(high + 1, len(data) - 1)]
    third = data[np.minimum(high + 2, len(data) - 1)]
    two = high[(lead == 0xC2) & (second < 0xA0)]
    private = (lead == 0xEE) | ((lead == 0xEF) & (second < 0xA4))
    three = high[private | ((lead == 0xEF) & (second == 0xBF) & (third == 0xBD))]
    for where, width in ((two, 2), (three, 3)):
        for offset in range(width):
            found[np.minimum(where + offset, len(data) - 1)] = True
    return found


def _random_blocks(data: Bytes) -> Flags:
    marks = np.zeros(len(data), dtype=bool)
    blocks = len(data) // BLOCK_BYTES
    whole = data[: blocks * BLOCK_BYTES].reshape(blocks, BLOCK_BYTES)
    for low in range(0, blocks, 256):
        rows = whole[low : low + 256]  # (R, BLOCK_BYTES)
        index = rows + (np.arange(len(rows), dtype=np.int64) * 256)[:, None]
        frac = np.bincount(index.ravel(), minlength=len(rows) * 256).reshape(-1, 256) / BLOCK_BYTES
        entropy = entr(frac).sum(axis=1) / np.log(2)
        # UTF-8 of other scripts spreads over many byte values too: that is a matter of scripts.
        random = (entropy >= RANDOM_ENTROPY_BITS) & (frac[:, 128:].sum(axis=1) < 0.05)
        marks[low * BLOCK_BYTES : (low + len(rows)) * BLOCK_BYTES] = random.repeat(BLOCK_BYTES)
    return marks


def _blobs(data: Bytes) -> Flags:
    """Long runs of base64 or of hexadecimal without spaces."""
    runs = marked_spans(_BASE64[data])
    runs = runs[runs[:, 1] - runs[:, 0] >= BLOB_RUN_BYTES]
    starts, ends = runs.T
    upper, lower, digit, hex_letter = (
        marks_between(kind[data], starts, ends) / (ends - starts) for kind in (_UPPER, _LOWER, _DIGIT, _HEX_LETTER)
    )
    # Random base64 has 0.41, 0.41 and 0.16; words joined by dashes have no digits, constants no lower-case letters.
    mixed = (upper > 0.2) & (lower > 0.2) & (digit > 0.03)
    hexadecimal = (digit > 0.3) & (hex_letter > 0.1) & (digit + hex_letter > 0.95)
    return covered(runs[mixed | hexadecimal], len(data))


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The units of a text and their marks, each array (units,)."""

    units: Units
    lines: int
    noisy: Flags
    script: npt.NDArray[np.uint8]
    """Index in language.SCRIPTS, or NONE."""
    debris: npt.NDArray[np.uint16]
    """Traces of a broken conversion, markup apart."""
    debris_types: npt.NDArray[np.uint8]
    """Bit i for debris.TYPES[i]."""
    markup: npt.NDArray[np.uint16]
    """Tags and entities."""
    words: npt.NDArray[np.uint16]
    common_words: npt.NDArray[np.uint16]
    """Of those, the text's commonest."""
    prose_bytes: npt.NDArray[np.uint16]
    """Letters, spaces and full stops."""


def scan_text(source: Source, progress: Progress) -> Scan:
    """Return the scan of a text."""
    columns: dict[str, list[npt.NDArray[np.generic]]] = {}
    index_of = {path: index for index, path in enumerate(source.files)}
    common = common_words(source.files)
    lines = 0
    for piece in iter_pieces(source):
        path, file_lines = piece.chunk.path, piece.chunk.lines
        # A text of JSON lines has lines of its own, which the chunk maps to the file's.
        first_line = 0 if file_lines else piece.chunk.first_line
        cuts = cut_units(piece.data, first_line=first_line, continues=piece.chunk.continues)
        ends_file = piece.first_byte + len(piece.data) == path.stat().st_size
        # A file's last line counts without its line end too.
        lines += cuts.lines + int(ends_file and not cuts.ends_line[-1])
        rows: dict[str, npt.NDArray[np.generic]] = {
            "file_index": np.full(len(cuts.starts), index_of[path], dtype=np.int32),
            "first_byte": piece.first_byte + cuts.starts,
            "end_byte": piece.first_byte + np.append(cuts.starts[1:], len(piece.data)),
            "line": np.array(file_lines)[cuts.line] if file_lines else cuts.line,
            "first_token": piece.first_token + np.searchsorted(piece.token_starts, cuts.starts),
            **{name: getattr(cuts, name) for name in ("starts_line", "ends_line", "ends_paragraph")},
        }
        for name, values in (rows | _mark_columns(piece, cuts, common)).items():
            columns.setdefault(name, []).append(values)
        progress("examining the text", (piece.first_token + len(piece.token_starts)) / max(1, len(source.tokens)))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    marks: dict[str, Any] = {field.name: joined.pop(field.name) for field in fields(Scan) if field.name in joined}
    units = Units(files=tuple(source.files), tokens=len(source.tokens), **joined)
    return Scan(units=units, lines=lines, **marks)


def _mark_columns(piece: Piece, cuts: Cuts, common: Hashes) -> dict[str, npt.NDArray[np.generic]]:
    count = len(cuts.starts)
    unit, type_ = debris_of(piece.data, cuts.starts, starts_file=piece.first_byte == 0)
    types = np.zeros(count, dtype=np.uint8)
    np.bitwise_or.at(types, unit, (1 << type_).astype(np.uint8))
    hits, markup = (np.bincount(unit[kind], minlength=count) for kind in (type_ < MARKUP, type_ >= MARKUP))
    words, known, prose = word_counts(piece.data, cuts.starts, common)
    counts = {"debris": hits, "markup": markup, "words": words, "common_words": known, "prose_bytes": prose}
    return {
        "noisy": noisy_units(piece.data, cuts.starts),
        "script": unit_scripts(piece.data, cuts.starts),
        "debris_types": types,
        **{name: np.minimum(values, 0xFFFF).astype(np.uint16) for name, values in counts.items()},
    }
