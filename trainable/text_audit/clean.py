"""A cleaned copy of a text: what an audit found, left out or repaired unit by unit. Never touches the source."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from trainable.data.corpus import text_fingerprint
from trainable.errors import UserError, as_user_error
from trainable.regular_files import whole_file
from trainable.text_audit.audit_values import KINDS, AuditReport, CleanPlan, Hit, Spans, hit_spans, removed_spans
from trainable.text_audit.debris import repair
from trainable.text_audit.ngrams import covered, marks_between
from trainable.text_audit.scan import Scan
from trainable.text_audit.units import Flags, Floats, Units

_COPY_BYTES = 1 << 22
REMOVED_KINDS = ("binary", "repeated_ngram", "train_val_overlap", "exact_duplicate", "near_duplicate")
"""The first that claims a unit is named as the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What was left out for one kind of finding."""

    lines: int
    """Whole or in part."""
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanSummary:
    """What a cleaned copy lacks."""

    out: Path
    source_bytes: int
    bytes: int
    """Written."""
    removed: Mapping[str, Removed]
    """By kind."""
    repaired_lines: int
    """Kept, without their encoding debris."""
    kept_kinds: tuple[str, ...]
    """Found, and left in: whether they belong is for a person to say."""


def plan_clean(scan: Scan, hits: list[Hit], markup: Flags, *, n: int) -> CleanPlan:
    """Return what a cleaned copy leaves out and repairs; `markup` marks the units whose tags are debris.

    n: tokens of the n-grams of which none may stay.
    """
    units = scan.units
    removed = np.zeros(len(units), dtype=np.uint8)
    for kind in REMOVED_KINDS:
        gone = units_to_remove(units, removed_spans(hit for hit in hits if hit.kind == kind), n)
        removed[gone & (removed == 0)] = 1 + KINDS.index(kind)
    debris = unit_cover(units, hit_spans(hit for hit in hits if hit.kind == "encoding_debris")) > 0
    markup = markup & debris
    return CleanPlan(
        units=units, removed=removed, repaired=debris & ((scan.debris > 0) | markup) & (removed == 0), markup=markup
    )


def unit_cover(units: Units, spans: Spans) -> Floats:
    """Return the share of each unit's tokens that spans cover (units,); of a unit without tokens, that of its place."""
    end = np.minimum(np.maximum(units.end_token, units.first_token + 1), units.tokens)
    first = np.minimum(units.first_token, end - 1)
    frac: Floats = marks_between(covered(spans, units.tokens), first, end) / (end - first)
    return frac


def units_to_remove(units: Units, spans: Spans, n: int) -> Flags:
    """Return the units that must go so that no n-gram of the spans stays."""
    frac = unit_cover(units, spans)
    # Half of its tokens, or a whole n-gram of them.
    gone = (frac >= 0.5) | (frac * (units.end_token - units.first_token) >= n)
    if len(spans):
        # A span over the ends of two units may fill neither by half: the one it fills more goes.
        first, last = units.of_token(spans[:, 0]), units.of_token(spans[:, 1] - 1)
        two = (last == first + 1) & ~gone[first] & ~gone[last]
        first, last = first[two], last[two]
        gone[np.where(frac[first] >= frac[last], first, last)] = True
    return gone


def check_clean(files: list[Path], out: Path, *, source: Path | None = None) -> None:
    """Raise UserError when a cleaned copy of the files cannot be the new file `out`.

    source: the file or folder that they were found in.
    """
    if out.exists():
        what = "is one of the audited files" if any(out.samefile(path) for path in files) else "exists"
        raise UserError(f"CLEAN={out} {what}. Nothing is overwritten: name a new file.")
    if source is not None and source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"CLEAN={out} is in the source's folder and would become part of it. Name a file elsewhere.")
    if not out.parent.is_dir():
        raise UserError(f"CLEAN={out} cannot be written: {out.parent} is not a folder. Make it, or name another.")


def write_clean(files: list[Path], report: AuditReport, out: Path) -> CleanSummary:
    """Write the files' text without what `report` found as one new file, and return what it lacks.

    Of copies the first stays, or the one in the validation part. Foreign languages, shifts and long lines stay.
    Raises UserError when `out` exists or cannot be written, and when the files changed since the audit.
    """
    check_clean(files, out)
    if text_fingerprint(files) != report.text_fingerprint:
        raise UserError(f"{files[0]} has changed since it was audited. Run the audit again.")
    with as_user_error(OSError, f"CLEAN={out} cannot be written"), whole_file(out) as file:
        for index, path in enumerate(files):
            _copy_clean(path, report.plan, index, file)
        size = file.tell()
    return CleanSummary(
        out=out,
        source_bytes=report.bytes,
        bytes=size,
        removed=_removed_by_kind(report.plan),
        repaired_lines=_lines(report.plan.units, report.plan.repaired),
        kept_kinds=tuple(
            kind for kind in ("foreign_language", "distribution_shift", "long_line") if kind in report.totals
        ),
    )


def _copy_clean(path: Path, plan: CleanPlan, file_index: int, out: BinaryIO) -> None:
    units = plan.units
    first, end = np.searchsorted(units.file_index, (file_index, file_index + 1)).tolist()
    if first == end:
        return  # an empty file
    # Of this file's units alone: there may be as many files.
    removed, repaired, markup = (column[first:end] for column in (plan.removed, plan.repaired, plan.markup))
    action = np.where(removed > 0, 3, repaired.astype(np.int8) + (repaired & markup))
    last_byte = b"\n"
    with path.open("rb") as source:
        changes = np.flatnonzero(np.diff(action)) + first + 1
        for low, high in pairwise([first, *changes.tolist(), end]):
            act = action[low - first]
            source.seek(int(units.first_byte[low]))
            size = int(units.end_byte[high - 1] - units.first_byte[low])
            if act == 3:
                # The line that a cut begins in must still end.
                written = b"\n" if units.ends_line[high - 1] and not units.starts_line[low] else b""
                out.write(written)
            elif act == 0:
                written = _copy(source, size, out)
            else:
                written = repair(source.read(size), markup=bool(act == 2))
                out.write(written)
            last_byte = written[-1:] or last_byte
    if last_byte != b"\n" and file_index + 1 < len(units.files):
        out.write(b"\n")


def _copy(source: BinaryIO, size: int, out: BinaryIO) -> bytes:
    block = b""
    while size > 0 and (block := source.read(min(size, _COPY_BYTES))):
        out.write(block)
        size -= len(block)
    return block[-1:]


def _removed_by_kind(plan: CleanPlan) -> dict[str, Removed]:
    sizes = plan.units.end_token - plan.units.first_token
    return {
        kind: Removed(lines=_lines(plan.units, gone), tokens=int(sizes[gone].sum()))
        for index, kind in enumerate(KINDS, start=1)
        if (gone := plan.removed == index).any()
    }


def _lines(units: Units, chosen: Flags) -> int:
    places = np.stack([units.file_index[chosen], units.line[chosen]], axis=1)
    return int((np.diff(places, axis=0, prepend=-1) != 0).any(axis=1).sum())
