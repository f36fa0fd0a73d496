"""Templates: short wording that frames every example of a text. Repeated on purpose, so neither a copy nor a leak."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from trainable.data.tokens import Tokens
from trainable.text_audit.audit_values import Hit
from trainable.text_audit.ngrams import (
    NGRAM_TOKENS,
    Hashes,
    KnownHashes,
    covered,
    iter_ngram_hashes,
    marks_between,
    union,
)
from trainable.text_audit.units import Flags

TEMPLATE_NGRAM_TOKENS = 16
PARTS = 32
PART_TOKENS = 1 << 16
"""A template is looked for in so many tokens at the beginning of each of PARTS equal parts."""
MIN_PARTS = 29
"""It occurs in nearly all of them ..."""
MIN_OCCURRENCES = 200
"""... and so often in them together."""
MAX_TEMPLATE_TOKENS = 128
"""Longer wording that comes again everywhere is boilerplate, copied and not meant."""


@dataclass(frozen=True, kw_only=True)
class Templates:
    """Where templates are, each array (tokens,)."""

    covers: Flags
    starts: Flags
    """N-grams of NGRAM_TOKENS that start here are a quarter template or more."""
    hits: list[Hit]
    """At most one, for all of them."""


def find_templates(tokens: Tokens) -> Templates:
    """Return the templates of a text."""
    known = _known(tokens)
    where = _occurrences(tokens, known) if len(known) else np.zeros(0, dtype=np.int64)
    spans = union(np.stack([where, where + TEMPLATE_NGRAM_TOKENS], axis=1))
    spans = spans[spans[:, 1] - spans[:, 0] <= MAX_TEMPLATE_TOKENS]
    covers = covered(spans, len(tokens))
    places = np.arange(len(tokens))
    starts = marks_between(covers, places, np.minimum(places + NGRAM_TOKENS, len(tokens))) >= NGRAM_TOKENS // 4
    return Templates(covers=covers, starts=starts, hits=[_hit(spans)] if len(spans) else [])


def _known(tokens: Tokens) -> Hashes:
    """The hashes of the n-grams that occur often and throughout, sorted."""
    bounds = np.linspace(0, len(tokens), PARTS + 1, dtype=np.int64).tolist()
    parts = []
    for low, high in pairwise(bounds):
        end = min(high, low + PART_TOKENS)
        blocks = [block for _, block in iter_ngram_hashes(tokens, low, end, n=TEMPLATE_NGRAM_TOKENS)]
        parts.append(np.concatenate([np.zeros(0, dtype=np.uint64), *blocks]))
    hashes, counts = np.unique(np.concatenate(parts), return_counts=True)
    often: Hashes = hashes[counts >= MIN_OCCURRENCES]
    throughout = np.sum([np.isin(often, part) for part in parts], axis=0) >= MIN_PARTS
    known: Hashes = often[throughout]
    return known


def _occurrences(tokens: Tokens, known: Hashes) -> npt.NDArray[np.int64]:
    index, found = KnownHashes(known), [np.zeros(0, dtype=np.int64)]
    for start, block in iter_ngram_hashes(tokens, 0, len(tokens), n=TEMPLATE_NGRAM_TOKENS):
        found.append(index.find(block)[0] + start)
    return np.concatenate(found)


def _hit(spans: npt.NDArray[np.int64]) -> Hit:
    sizes = spans[:, 1] - spans[:, 0]
    return Hit(
        kind="exact_duplicate",
        first=int(spans[0, 0]),
        end=int(spans[0, 1]),
        summary=f"a template: {int(np.median(sizes)):,} tokens that come {len(spans):,} times throughout; left in",
        occurrences=len(spans),
        affected_tokens=int(sizes[0]),
    )
