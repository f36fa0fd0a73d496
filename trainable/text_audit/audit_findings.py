"""Hits as findings: where they are in the files, what they look like there, how bad they are, which come first."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

import numpy as np

from trainable.text_audit.audit_values import (
    KINDS,
    SEVERE_FRAC,
    SEVERITIES,
    AuditFinding,
    Hit,
    KindTotal,
    Place,
    Spans,
    hit_spans,
    removed_spans,
)
from trainable.text_audit.debris import first_debris
from trainable.text_audit.ngrams import union
from trainable.text_audit.units import Units

BytesAt = Callable[[Units, int], bytes]
EXCERPT_CHARS = 120
STRAY_TOKENS = 4
"""A line of which a match covers no more than this is not part of the finding."""
MAX_FINDINGS = 200
"""Findings of a kind that a report lists; its totals count all."""


def make_findings(
    hits: Sequence[Hit], units: Units, *, train_tokens: int, token_range: tuple[int, int] | None, bytes_at: BytesAt
) -> tuple[tuple[AuditFinding, ...], dict[str, KindTotal]]:
    """Return the findings, worst first, and the totals by kind, as shares of the text or of the range.

    bytes_at gives a unit's first bytes, for the excerpts.
    """
    low, high = token_range or (0, units.tokens)
    findings: list[AuditFinding] = []
    totals: dict[str, KindTotal] = {}
    for kind in KINDS:
        of_kind = sorted((hit for hit in hits if hit.kind == kind), key=lambda hit: -hit.affected_tokens * hit.weight)
        if not of_kind:
            continue
        if kind == "encoding_debris":  # a few characters each, in lines that are sound otherwise
            tokens = min(sum(hit.affected_tokens for hit in of_kind), high - low)
        else:
            tokens = int(np.diff(np.clip(kind_spans(of_kind), low, high)).sum())
        of_validation = kind == "train_val_overlap" and token_range is None
        whole = max(1, units.tokens - train_tokens if of_validation else high - low)
        worst = max(hit.weight for hit in of_kind)
        severity = _severity(kind, worst * tokens / whole)
        totals[kind] = KindTotal(findings=len(of_kind), tokens=tokens, frac=tokens / whole, severity=severity)
        for index, hit in enumerate(of_kind[:MAX_FINDINGS]):
            own = _severity(kind, hit.weight * hit.affected_tokens / whole)
            # The largest stands for its kind: a thousand small copies are as bad as their sum.
            findings.append(_finding(hit, units, severity if index == 0 else own, bytes_at))
    findings.sort(key=lambda one: (SEVERITIES.index(one.severity), KINDS.index(one.kind), -one.affected_tokens))
    return tuple(findings), totals


def kind_spans(hits: Sequence[Hit]) -> Spans:
    """Return what hits of one kind cover, merged and sorted: all copies, and for overlaps the validation side."""
    copies = removed_spans(hit for hit in hits if hit.kind in ("exact_duplicate", "near_duplicate"))
    return union(np.concatenate([hit_spans(hits), copies]))


def within(hit: Hit, token_range: tuple[int, int]) -> Hit | None:
    """Return the hit as seen from a token range: at its place there, removing only what lies there; None if apart."""
    removed = hit.removed[(hit.removed[:, 0] < token_range[1]) & (hit.removed[:, 1] > token_range[0])]
    places = [(hit.first, hit.end), *((int(first), int(end)) for first, end in removed)]
    if hit.original is not None:
        places.append(hit.original)
    for first, end in places:
        if first < token_range[1] and end > token_range[0]:
            original = hit.original if (first, end) != hit.original else (hit.first, hit.end)
            return replace(hit, first=first, end=end, removed=removed, original=original)
    return None


def _severity(kind: str, frac: float) -> str:
    high, medium = SEVERE_FRAC[kind]
    return "high" if frac >= high else "medium" if frac >= medium else "low"


def _finding(hit: Hit, units: Units, severity: str, bytes_at: BytesAt) -> AuditFinding:
    return AuditFinding(
        **asdict(_place(units, hit.first, hit.end)),
        kind=hit.kind,
        severity=severity,
        summary=hit.summary,
        excerpt=_excerpt(bytes_at(units, _first_unit(units, hit.first, hit.end)), hit.kind),
        occurrences=hit.occurrences,
        affected_tokens=hit.affected_tokens,
        copy_of=None if hit.original is None else _place(units, *hit.original),
    )


def _place(units: Units, first: int, end: int) -> Place:
    first_unit, last_unit = _first_unit(units, first, end), int(units.of_token(end - 1))
    if last_unit > first_unit and end - units.first_token[last_unit] <= STRAY_TOKENS < units.end_token[last_unit] - end:
        last_unit -= 1
    # A region that runs on into the next file is told by its lines in the first.
    last_unit = min(last_unit, int(np.searchsorted(units.file_index, units.file_index[first_unit], side="right")) - 1)
    return Place(
        file=units.files[int(units.file_index[first_unit])],
        first_line=int(units.line[first_unit]),
        last_line=int(units.line[last_unit]),
        first_token=first,
        last_token=end - 1,
    )


def _first_unit(units: Units, first: int, end: int) -> int:
    """Return the unit in which a hit is reported to begin: not one of which both copies share the last tokens only."""
    unit = int(units.of_token(first))
    next_first = int(units.end_token[unit])
    is_stray = units.first_token[unit] < first and next_first - first <= STRAY_TOKENS
    return unit + 1 if is_stray and next_first < end and unit + 1 < len(units) else unit


def read_bytes(units: Units, unit: int) -> bytes:
    """Return the first bytes of a unit, and of what follows, as in its file."""
    with units.files[int(units.file_index[unit])].open("rb") as file:
        file.seek(int(units.first_byte[unit]))
        return file.read(4 * EXCERPT_CHARS)


def _excerpt(data: bytes, kind: str) -> str:
    if kind == "encoding_debris":
        data = data[max(0, first_debris(data) - EXCERPT_CHARS // 3) :]
    shown = "".join(_visible(character) for character in data.decode("utf-8", "ignore").strip(" "))
    return shown if len(shown) <= EXCERPT_CHARS else shown[: EXCERPT_CHARS - 1] + "…"


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return {"\n": "⏎", "\r": "", "\t": " "}.get(character) or repr(character)[1:-1]
