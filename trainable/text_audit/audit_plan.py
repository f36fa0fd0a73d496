"""Which units a cleaned copy leaves out or repairs: findings turned from tokens into whole lines and parts of lines."""

import numpy as np
import numpy.typing as npt

from trainable.text_audit.audit_values import KINDS, CleanPlan, Hit, Spans, hit_spans, removed_spans
from trainable.text_audit.ngrams import NGRAM_TOKENS, covered
from trainable.text_audit.scan import Scan
from trainable.text_audit.units import Flags, Units

HALF = 0.5
"""A unit is left out if so much of it, or an n-gram of it, is a copy or no text."""
REMOVED_KINDS = ("binary", "repeated_ngram", "train_val_overlap", "exact_duplicate", "near_duplicate")
"""The first that claims a unit is named as the reason."""


def plan_clean(scan: Scan, hits: list[Hit], markup: Flags) -> CleanPlan:
    """Return what a cleaned copy leaves out and repairs; `markup` marks the units whose tags are debris."""
    units = scan.units
    removed = np.zeros(len(units), dtype=np.uint8)
    for kind in REMOVED_KINDS:
        gone = units_to_remove(units, removed_spans(hit for hit in hits if hit.kind == kind))
        removed[gone & (removed == 0)] = 1 + KINDS.index(kind)
    debris = unit_cover(units, hit_spans(hit for hit in hits if hit.kind == "encoding_debris")) > 0
    markup = markup & debris
    return CleanPlan(
        units=units, removed=removed, repaired=debris & ((scan.debris > 0) | markup) & (removed == 0), markup=markup
    )


def unit_cover(units: Units, spans: Spans) -> npt.NDArray[np.float64]:
    """Return the share of each unit's tokens that spans cover (units,); of a unit without tokens, that of its place."""
    cover = covered(spans, units.tokens)
    total = np.append(0, np.cumsum(cover, dtype=np.int64))
    end = np.minimum(np.maximum(units.end_token, units.first_token + 1), units.tokens)
    first = np.minimum(units.first_token, end - 1)
    frac: npt.NDArray[np.float64] = (total[end] - total[first]) / (end - first)
    return frac


def units_to_remove(units: Units, spans: Spans) -> Flags:
    """Return the units that must go so that no n-gram of the spans stays."""
    frac = unit_cover(units, spans)
    gone = (frac >= HALF) | (frac * (units.end_token - units.first_token) >= NGRAM_TOKENS)
    if len(spans):
        # A span over the ends of two units may fill neither by half: the one it fills more goes.
        first, last = units.of_token(spans[:, 0]), units.of_token(spans[:, 1] - 1)
        two = (last == first + 1) & ~gone[first] & ~gone[last]
        first, last = first[two], last[two]
        gone[np.where(frac[first] >= frac[last], first, last)] = True
    return gone
