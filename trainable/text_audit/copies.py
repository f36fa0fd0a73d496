"""Overlaps, exact copies and near copies as findings: one for each passage, however many copies it has.

Templates, short wording that frames every example of a text, are repeated on purpose: neither a copy nor a leak.
"""

from collections.abc import Iterator
from itertools import pairwise
from statistics import fmean

import numpy as np
import numpy.typing as npt

from trainable.data.tokens import Progress, Tokens
from trainable.text_audit.audit_values import Hit, Spans, hit_spans, removed_spans, spans
from trainable.text_audit.duplicates import find_duplicate_runs, find_overlap_runs
from trainable.text_audit.near import NearDuplicate, find_near_duplicates, find_passages
from trainable.text_audit.ngrams import (
    BLOCK_TOKENS,
    NGRAM_TOKENS,
    KnownHashes,
    covered,
    iter_ngram_hashes,
    marks_between,
    tokens_a_token,
    union,
)
from trainable.text_audit.units import Flags, Hashes, Ints, Units

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
JOIN_TOKENS = 64
"""Runs at most this far apart, in the copy and in the original, are one passage with a few words changed."""
SAME_PASSAGE_FRAC = 0.5
"""Copies whose originals overlap by this share of the longer original are copies of one passage."""
MAX_OPEN = 32
"""Passages that a copy is compared with. Where more overlap, copies of one passage may be reported apart."""
MOSTLY = 0.8
"""A passage of which this share is already in a finding is not compared."""
SKIPPED_KINDS = ("binary", "repeated_ngram")
Runs = Ints
"""(n, 3) of (copy, original, length)."""


def _templates(tokens: Tokens, scale: int = 1) -> tuple[Flags, Flags, list[Hit]]:
    """Return which tokens a template covers, where n-grams start that are a quarter template or more, and the finding.

    Flags are (tokens,), the n-grams of NGRAM_TOKENS. At most one finding stands for all templates.
    """
    n, whole = scale * TEMPLATE_NGRAM_TOKENS, scale * NGRAM_TOKENS
    known, found = _template_hashes(tokens, n), [np.zeros(0, dtype=np.int64)]
    index = KnownHashes(known)
    for start, block in iter_ngram_hashes(tokens, 0, len(tokens), n=n) if len(known) else ():
        found.append(index.find(block)[0] + start)
    where = np.concatenate(found)
    spans = union(np.stack([where, where + n], axis=1))
    spans = spans[spans[:, 1] - spans[:, 0] <= scale * MAX_TEMPLATE_TOKENS]
    covers = covered(spans, len(tokens))
    starts = np.zeros(len(tokens), dtype=bool)
    for low in range(0, len(tokens), BLOCK_TOKENS):
        part = covers[low : low + BLOCK_TOKENS + whole - 1]
        places = np.arange(min(BLOCK_TOKENS, len(part)))
        inside = marks_between(part, places, np.minimum(places + whole, len(part)))
        starts[low : low + BLOCK_TOKENS] = inside >= whole // 4
    return covers, starts, [_template_hit(spans)] if len(spans) else []


def _template_hashes(tokens: Tokens, n: int) -> Hashes:
    """The hashes of the n-grams that occur often and throughout, sorted."""
    bounds = np.linspace(0, len(tokens), PARTS + 1, dtype=np.int64).tolist()
    parts = []
    for low, high in pairwise(bounds):
        end = min(high, low + PART_TOKENS)
        blocks = [block for _, block in iter_ngram_hashes(tokens, low, end, n=n)]
        parts.append(np.concatenate([np.zeros(0, dtype=np.uint64), *blocks]))
    hashes, counts = np.unique(np.concatenate(parts), return_counts=True)
    often: Hashes = hashes[counts >= MIN_OCCURRENCES]
    throughout = np.sum([np.isin(often, part) for part in parts], axis=0) >= MIN_PARTS
    known: Hashes = often[throughout]
    return known


def _template_hit(spans: Ints) -> Hit:
    sizes = spans[:, 1] - spans[:, 0]
    return Hit(
        kind="exact_duplicate",
        first=int(spans[0, 0]),
        end=int(spans[0, 1]),
        summary=f"a template: {int(np.median(sizes)):,} tokens that come {len(spans):,} times throughout; left in",
        occurrences=len(spans),
        affected_tokens=int(sizes[0]),
    )


def find_copies(
    units: Units, tokens: Tokens, word: npt.NDArray[np.int32], known: list[Hit], train_tokens: int, progress: Progress
) -> list[Hit]:
    """Return overlaps, exact and near copies outside what is `known`; `word` maps ids to words, 0 to none."""
    progress("looking for duplicates", 0.0)
    scale = tokens_a_token(len(word))
    skipped = covered(hit_spans(hit for hit in known if hit.kind in SKIPPED_KINDS), len(tokens))
    in_template, starts_template, template_hits = _templates(tokens, scale)
    looked_at = (tokens, train_tokens, skipped | starts_template, progress, scale)
    hits = [*template_hits, *duplicate_hits(find_duplicate_runs(*looked_at), train_tokens, scale)]
    hits += overlap_hits(find_overlap_runs(*looked_at), scale)
    first, end = find_passages(units, tokens, scale)
    gone = covered(removed_spans(hits), len(tokens))
    is_new = (end > first) & (marks_between(skipped | gone, first, end) < MOSTLY * (end - first))
    first, end = first[is_new], end[is_new]

    def words_at(low: int, high: int) -> npt.NDArray[np.int32]:
        words = word[tokens[low:high]]
        words[in_template[low:high]] = 0
        return words

    return [*hits, *near_hits(find_near_duplicates(words_at, first, end, train_tokens, progress, scale), first, end)]


def duplicate_hits(runs: Runs, train_tokens: int, scale: int = 1) -> Iterator[Hit]:
    """Yield the exact duplicates; those between the two parts of the split are overlaps and left to overlap_hits."""
    across = (runs[:, 0] < train_tokens) & (runs[:, 1] >= train_tokens)
    for copies, original in _passages(_joined(runs[~across], scale * JOIN_TOKENS)):
        removed = union(copies)
        size = int(copies[0, 1] - copies[0, 0])
        times = f" that occur {len(copies) + 1:,} times" if len(copies) > 1 else ""
        yield Hit(
            kind="exact_duplicate",
            first=int(copies[0, 0]),
            end=int(copies[0, 1]),
            summary=f"{size:,} tokens{times}",
            removed=removed,
            original=original,
            occurrences=len(copies) + 1,
            affected_tokens=int((removed[:, 1] - removed[:, 0]).sum()),
        )


def overlap_hits(runs: Runs, scale: int = 1) -> Iterator[Hit]:
    """Yield the validation passages that training sees too, from runs of (train, validation, length)."""
    for in_train, (first, end) in _passages(_joined(runs, scale * JOIN_TOKENS)):
        times = f" {len(in_train):,} times" if len(in_train) > 1 else ""
        yield Hit(
            kind="train_val_overlap",
            first=first,
            end=end,
            summary=f"{end - first:,} validation tokens that the training part has{times} too",
            removed=union(in_train),
            original=(int(in_train[0, 0]), int(in_train[0, 1])),
            occurrences=len(in_train) + 1,
            affected_tokens=end - first,
        )


def near_hits(pairs: list[NearDuplicate], first: Ints, end: Ints) -> Iterator[Hit]:
    """Yield near duplicates; consecutive passages that resemble consecutive ones are one."""
    runs: list[list[NearDuplicate]] = []
    for pair in pairs:
        before = runs[-1][-1] if runs else None
        if before and pair[0] == before[0] + 1 and abs(pair[1] - before[1] - 1) <= 1:
            runs[-1].append(pair)
        else:
            runs.append([pair])
    for run in runs:
        copies, originals, similarities = (list(column) for column in zip(*run, strict=True))
        low, high = int(first[copies[0]]), int(end[copies[-1]])
        yield Hit(
            kind="near_duplicate",
            first=low,
            end=high,
            summary=f"{high - low:,} tokens, {fmean(similarities):.0%} alike",
            removed=np.stack([first[copies], end[copies]], axis=1),
            original=(int(first[originals].min()), int(end[originals].max())),
            occurrences=2,
            affected_tokens=high - low,
        )


def _joined(runs: Runs, most: int) -> Runs:
    """(n, 4) of (copy, end, original, end): runs that go on after `most` other tokens at most made one."""
    if len(runs) == 0:
        return np.zeros((0, 4), dtype=np.int64)
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    copy, original, length = runs.T
    gap = copy[1:] - (copy[:-1] + length[:-1])
    drift = np.abs((copy[1:] - original[1:]) - (copy[:-1] - original[:-1]))
    firsts = np.append(0, np.flatnonzero((gap > most) | (drift > most)) + 1)
    ends = np.maximum.reduceat(copy + length, firsts)
    original_ends = np.maximum.reduceat(original + length, firsts)
    return np.stack([copy[firsts], ends, np.minimum.reduceat(original, firsts), original_ends], axis=1)


def _passages(joined: Runs) -> Iterator[tuple[Spans, tuple[int, int]]]:
    """(spans of the copies by position, span of the original) of each passage."""
    order = np.lexsort((joined[:, 3], joined[:, 2]))
    open_: list[tuple[int, int, list[tuple[int, int]]]] = []
    for copy, copy_end, original, original_end in joined[order].tolist():
        for first, end, members in reversed(open_):
            shared = min(end, original_end) - max(first, original)
            if shared >= SAME_PASSAGE_FRAC * max(end - first, original_end - original):
                members.append((copy, copy_end))
                break
        else:
            kept = [group for group in open_ if group[1] > original][-MAX_OPEN:]
            for group in open_:
                if group not in kept:
                    yield spans(*sorted(group[2])), group[:2]
            open_ = [*kept, (original, original_end, [(copy, copy_end)])]
    for group in open_:
        yield spans(*sorted(group[2])), group[:2]
