"""The data audit: what in a training text would harm a run, by token position, file and line. Trains nothing."""

from pathlib import Path

from tokenizers import Tokenizer

from trainable.data.corpus import text_fingerprint
from trainable.data.text_documents import WHOLE_FILES, Documents
from trainable.data.tokens import Progress, Tokens, load_corpus, silent
from trainable.errors import UserError
from trainable.text_audit.audit_findings import kind_spans, make_findings, read_bytes, within
from trainable.text_audit.audit_values import AuditReport, Hit, hit_spans, removed_spans
from trainable.text_audit.clean import plan_clean, unit_cover
from trainable.text_audit.copies import find_copies
from trainable.text_audit.ngrams import NGRAM_TOKENS, covered, tokens_a_token
from trainable.text_audit.regions import find_binary, find_debris, find_foreign, find_long_lines
from trainable.text_audit.repeats import find_repeats
from trainable.text_audit.scan import Scan, scan_text
from trainable.text_audit.shift import find_shifts
from trainable.text_audit.text import Source
from trainable.text_audit.units import Flags, Units
from trainable.text_audit.windows import describe_vocabulary, measure_windows

MOSTLY = 0.8
"""A unit or a repeated run of which a binary region covers this share is not examined again."""
COPIED_KINDS = ("exact_duplicate", "near_duplicate", "repeated_ngram", "train_val_overlap")
EXCERPT_TOKENS = 160
PROFILE_WINDOWS = 800
SHIFT_WINDOWS = 4096
"""At most, each of 2,048 tokens or more."""


def audit(
    files: list[Path],
    tokenizer: Tokenizer,
    *,
    documents: Documents = WHOLE_FILES,
    separator_id: int | None = None,
    has_tail: bool = True,
    token_range: tuple[int, int] | None = None,
    progress: Progress = silent,
) -> AuditReport:
    """Return what is wrong with the files' text as training sees it under `tokenizer`.

    `has_tail`: the last tenth is the validation part. `token_range` (half-open) keeps what touches it; the whole text
    is read all the same, to compare with.
    Raises UserError for an empty, unreadable or non-UTF-8 source and for a range that starts beyond the text.
    """
    corpus = load_corpus(files, tokenizer, documents=documents, separator_id=separator_id, progress=progress)
    tokens = corpus.tokens
    train_tokens = len(corpus.train) if has_tail else len(tokens)
    token_range = _checked_range(token_range, len(tokens))
    vocabulary, scale = describe_vocabulary(tokenizer), tokens_a_token(corpus.vocab_size)
    text = Source(files=files, tokenizer=tokenizer, tokens=tokens, documents=documents, separator_id=separator_id)
    scan = scan_text(text, progress)
    progress("looking for noise, other languages and repetitions", 0.0)
    hits, markup = _text_hits(scan, tokens)
    hits += find_copies(scan.units, tokens, vocabulary.word, hits, train_tokens, progress)
    progress("looking for shifts", 0.0)
    windows = measure_windows(tokens, vocabulary, _window_tokens(len(tokens), SHIFT_WINDOWS, 2048, scale))
    hits += _unexplained(find_shifts(windows), hits, len(tokens))
    copied = covered(removed_spans(hit for hit in hits if hit.kind in COPIED_KINDS), len(tokens))
    profile = measure_windows(tokens, vocabulary, _window_tokens(len(tokens), PROFILE_WINDOWS, 256, scale), copied)
    if token_range is not None:
        hits = [seen for hit in hits if (seen := within(hit, token_range)) is not None]

    def decoded(units: Units, unit: int) -> bytes:
        first = int(units.first_token[unit])
        return tokenizer.decode(tokens[first : first + EXCERPT_TOKENS].tolist(), skip_special_tokens=False).encode()

    findings, totals = make_findings(
        hits,
        scan.units,
        train_tokens=train_tokens,
        token_range=token_range,
        # A JSON line holds its text with escapes, among other fields.
        bytes_at=decoded if documents.kind == "jsonl" else read_bytes,
    )
    return AuditReport(
        files=tuple(files),
        text_fingerprint=text_fingerprint(files),
        tokens=len(tokens),
        train_tokens=train_tokens,
        lines=scan.lines,
        bytes=sum(path.stat().st_size for path in files),
        token_range=token_range,
        findings=findings,
        totals=totals,
        spans={kind: kind_spans([hit for hit in hits if hit.kind == kind]) for kind in totals},
        profile=profile,
        plan=plan_clean(scan, hits, markup, n=scale * NGRAM_TOKENS),
    )


def _checked_range(token_range: tuple[int, int] | None, tokens: int) -> tuple[int, int] | None:
    if token_range is None:
        return None
    first, end = token_range
    assert 0 <= first < end, token_range
    if first >= tokens:
        raise UserError(
            f"RANGE starts at token {first:,}; the text has {tokens:,}. Positions are those of the text's own tokens, "
            f"not of those drawn in training; name a range within 0-{tokens}."
        )
    return first, min(end, tokens)


def _text_hits(scan: Scan, tokens: Tokens) -> tuple[list[Hit], Flags]:
    """Return what shows line by line, and which units have markup that is debris."""
    binary = list(find_binary(scan))
    noisy = unit_cover(scan.units, hit_spans(binary)) >= MOSTLY
    debris, markup = find_debris(scan, noisy)
    covered_by_binary = covered(hit_spans(binary), len(tokens))
    repeats = [hit for hit in find_repeats(tokens) if covered_by_binary[hit.first : hit.end].mean() < MOSTLY]
    return [*binary, *repeats, *find_foreign(scan, noisy), *debris, *find_long_lines(scan)], markup


def _unexplained(shifts: list[Hit], hits: list[Hit], tokens: int) -> list[Hit]:
    """Return the shifts of which no finding of another kind covers half."""
    kinds = ("binary", "foreign_language", "repeated_ngram", "encoding_debris")
    explained = covered(hit_spans(hit for hit in hits if hit.kind in kinds), tokens)
    return [hit for hit in shifts if explained[hit.first : hit.end].mean() < 0.5]


def _window_tokens(tokens: int, most: int, least: int, scale: int) -> int:
    # Short texts get shorter windows: 16 of them are what it takes to tell one from the others.
    return max(tokens // most, min(scale * least, max(scale * 128, tokens // 32)))
