"""Marked units as findings: binary and foreign stretches, encoding debris, very long lines."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from trainable.text_audit.audit_values import Hit
from trainable.text_audit.debris import TYPES
from trainable.text_audit.language import NONE, SCRIPTS, foreign_units, own_scripts
from trainable.text_audit.ngrams import marked_spans, union
from trainable.text_audit.scan import MIN_REGION_BYTES, Scan
from trainable.text_audit.units import Flags, Ints

MIN_FOREIGN_BYTES = 200
"""A name or a quotation in another script is shorter."""
GAP_UNITS = 3
"""Marked units with at most this many others between them are one region."""
MIN_MARKUP = 5
MARKUP_BYTES = 120
"""HTML is debris where there are MIN_MARKUP tags and entities, and one in this many bytes; less is text about HTML."""
LONG_LINE_BYTES, HUGE_LINE_BYTES = 2_000, 200_000
LONG_LINE_RATIO = 20
"""A line is very long above LONG_LINE_BYTES if it is this many times the 95th percentile of the lines with text, and
above HUGE_LINE_BYTES in any case."""


def find_binary(scan: Scan) -> Iterator[Hit]:
    """Yield the stretches that are not text."""
    for low, high in _groups(scan.noisy):
        spans = marked_spans(scan.noisy[low:high]) + low  # (n, 2)
        # One line alone, before or after the blob, may be text with many signs.
        blobs = np.flatnonzero(np.diff(spans)[:, 0] > 1)
        spans = spans[blobs[0] : blobs[-1] + 1] if len(blobs) else spans
        first, end = int(spans[0, 0]), int(spans[-1, 1])
        size = _bytes(scan, first, end)
        if size >= MIN_REGION_BYTES:
            # Lines of text between two blobs stay.
            removed = np.stack([scan.units.first_token[spans[:, 0]], scan.units.end_token[spans[:, 1] - 1]], axis=1)
            yield _hit(scan, "binary", first, end, f"{size:,} bytes that are no text", removed=union(removed))


def find_foreign(scan: Scan, ignored: Flags) -> Iterator[Hit]:
    """Yield the stretches in a script that is not the text's own, or without its words; `ignored` units apart."""
    own = own_scripts(scan.script)
    foreign = (scan.script != NONE) & ~np.isin(scan.script, list(own)) & ~ignored
    for first, end in _groups(foreign):
        size = _bytes(scan, first, end)
        if size >= MIN_FOREIGN_BYTES:
            inside = scan.script[first:end]
            name = SCRIPTS[int(np.bincount(inside[foreign[first:end]]).argmax())]
            yield _hit(scan, "foreign_language", first, end, f"{size:,} bytes in {name} script")
    sizes = scan.units.end_byte - scan.units.first_byte
    words, common, prose = (column.astype(np.int64) for column in (scan.words, scan.common_words, scan.prose_bytes))
    strange = foreign_units(words, common, prose, sizes) & ~ignored & ~foreign
    for first, end in _groups(strange):
        count = int(words[first:end].sum())
        summary = f"{count:,} words, of which hardly any is common in the rest: another language, or a list"
        yield _hit(scan, "foreign_language", first, end, summary)


def find_debris(scan: Scan, ignored: Flags) -> tuple[list[Hit], Flags]:
    """Return encoding debris, and the units whose markup is part of it; `ignored` units apart."""
    hits = []
    for first, end in _groups((scan.debris > 0) & ~ignored):
        hits.append(_debris_hit(scan, first, end, scan.debris[first:end].astype(np.int64), low=0, high=4))
    is_markup = np.zeros(len(scan.units), dtype=bool)
    for first, end in _groups((scan.markup > 0) & ~ignored):
        counts = scan.markup[first:end].astype(np.int64)
        if counts.sum() >= MIN_MARKUP and counts.sum() * MARKUP_BYTES >= _bytes(scan, first, end):
            is_markup[first:end] = True
            hits.append(_debris_hit(scan, first, end, counts, low=4, high=len(TYPES)))
    return hits, is_markup


def _debris_hit(scan: Scan, first: int, end: int, counts: Ints, *, low: int, high: int) -> Hit:
    bits = int(np.bitwise_or.reduce(scan.debris_types[first:end]))
    names = ", ".join(TYPES[i] for i in range(low, high) if bits >> i & 1)
    touched = np.flatnonzero(counts) + first
    tokens = int((scan.units.end_token[touched] - scan.units.first_token[touched]).sum())
    total = int(counts.sum())
    return _hit(scan, "encoding_debris", first, end, f"{names}: {total:,}", occurrences=total, affected_tokens=tokens)


def find_long_lines(scan: Scan) -> Iterator[Hit]:
    """Yield the lines far longer than the text's others."""
    units = scan.units
    starts = np.flatnonzero(units.starts_line)
    starts = starts if len(starts) and starts[0] == 0 else np.append(0, starts)
    ends = np.append(starts[1:], len(units))
    sizes = units.end_byte[ends - 1] - units.first_byte[starts]
    usual = float(np.percentile(sizes, 95))
    limit = min(max(LONG_LINE_BYTES, LONG_LINE_RATIO * usual), HUGE_LINE_BYTES)
    for line in np.flatnonzero(sizes >= limit).tolist():
        summary = f"a line of {int(sizes[line]):,} bytes; 95 % of the lines have at most {usual:,.0f}"
        yield _hit(scan, "long_line", int(starts[line]), int(ends[line]), summary)


def _groups(flags: Flags) -> Iterator[tuple[int, int]]:
    """(first, end) of each stretch of marked units, gaps of up to GAP_UNITS bridged."""
    # Made longer by the gap, those that are one touch each other.
    for first, end in union(marked_spans(flags) + np.array([0, GAP_UNITS])).tolist():
        yield first, end - GAP_UNITS


def _bytes(scan: Scan, first: int, end: int) -> int:
    return int((scan.units.end_byte[first:end] - scan.units.first_byte[first:end]).sum())


def _hit(scan: Scan, kind: str, first: int, end: int, summary: str, **others: Any) -> Hit:
    low = int(scan.units.first_token[first])
    high = max(int(scan.units.end_token[end - 1]), low + 1)
    return Hit(kind=kind, first=low, end=high, summary=summary, **{"affected_tokens": high - low, **others})
