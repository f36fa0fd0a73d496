"""What an audit says: findings, totals, a profile along the text. Values only; nothing here looks for anything."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from trainable.text_audit.units import Flags, Ints, Units
from trainable.text_audit.windows import Windows

SEVERE_FRAC: Mapping[str, tuple[float, float]] = {
    "train_val_overlap": (0.05, 0.01),
    "exact_duplicate": (0.05, 0.005),
    "near_duplicate": (0.10, 0.02),
    "repeated_ngram": (0.01, 0.001),
    "binary": (0.005, 0.0005),
    "foreign_language": (0.02, 0.002),
    "encoding_debris": (0.02, 0.001),
    "distribution_shift": (0.02, 0.005),
    "long_line": (2.0, 0.01),
}
"""Share of the audited tokens (overlap: of the validation tokens) from which a kind or a finding is high, medium. The
embedded text, with whole copied paragraphs taken out, has 1 % overlap, 0.1 % copies and 1 % near copies."""
KINDS = tuple(SEVERE_FRAC)
"""In the order in which equally severe findings are listed."""
SEVERITIES = ("high", "medium", "low")

Spans = Ints
"""Half-open token ranges, (n, 2)."""


def spans(*pairs: tuple[int, int]) -> Spans:
    """Return the half-open ranges as an array (n, 2)."""
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """What a detector saw, in tokens; it has no file, line or severity yet."""

    kind: str
    first: int
    end: int
    """One past the last token."""
    summary: str
    removed: Spans = field(default_factory=spans)
    """What a cleaned copy leaves out."""
    original: tuple[int, int] | None = None
    """Where the same text stays, half-open."""
    occurrences: int = 1
    affected_tokens: int
    """Of all occurrences."""
    weight: float = 1.0
    """Multiplies the share of the corpus that severity is judged by."""


def hit_spans(hits: Iterable[Hit]) -> Spans:
    """Return where the hits are, (n, 2)."""
    return spans(*((hit.first, hit.end) for hit in hits))


def removed_spans(hits: Iterable[Hit]) -> Spans:
    """Return all that the hits would remove, (n, 2)."""
    return np.concatenate([spans(), *(hit.removed for hit in hits)])


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Whole lines of one file and the tokens they cover, ends included."""

    file: Path
    first_line: int
    """1-based."""
    last_line: int
    first_token: int
    """0-based, in the tokens that training sees."""
    last_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFinding(Place):
    """One thing found: where, how bad, and what it looks like."""

    kind: str
    """One of KINDS."""
    severity: str
    """One of SEVERITIES."""
    summary: str
    excerpt: str
    """The first characters, control characters made visible, 120 at most."""
    occurrences: int
    affected_tokens: int
    """Tokens of all occurrences; of a copied passage, without the one that stays."""
    copy_of: Place | None
    """For copies: where the same text is that a cleaned copy keeps; for an overlap: where training sees it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KindTotal:
    """All findings of one kind together."""

    findings: int
    tokens: int
    """Tokens covered, each once."""
    frac: float
    """Of the audited tokens; for train_val_overlap without a range, of the validation tokens."""
    severity: str


@dataclass(frozen=True, kw_only=True)
class CleanPlan:
    """What a cleaned copy leaves out or repairs, unit by unit."""

    units: Units
    removed: npt.NDArray[np.uint8]
    """(units,) 0 to keep, else 1 + the index in KINDS of why not."""
    repaired: Flags
    """(units,) kept, without their encoding debris."""
    markup: Flags
    """(units,) of those, the ones whose tags and entities go too."""


@dataclass(frozen=True, kw_only=True)
class AuditReport:
    """Everything an audit found."""

    files: tuple[Path, ...]
    text_fingerprint: str
    """SHA-256 (hex) of the files' bytes."""
    tokens: int
    train_tokens: int
    """The first 90 %; the others are validation."""
    lines: int
    bytes: int
    token_range: tuple[int, int] | None
    """Half-open; only what touches it is in `findings`."""
    findings: tuple[AuditFinding, ...]
    """The worst first; of each kind the MAX_FINDINGS largest. `totals` counts all."""
    totals: Mapping[str, KindTotal]
    """By kind, for the kinds that were found."""
    spans: Mapping[str, Spans]
    """By kind, everything affected, sorted, not overlapping."""
    profile: Windows
    plan: CleanPlan = field(repr=False, compare=False)
