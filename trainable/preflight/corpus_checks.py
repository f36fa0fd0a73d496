"""Checks of the corpus and its tokenizer: do they fit each other, the model, and is the validation part unseen?"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from trainable.data.text_documents import WHOLE_FILES, Documents, iter_chunks
from trainable.data.tokens import Corpus, Tokens, token_counts
from trainable.preflight.check_result import Check, judged, skipped
from trainable.text_audit.ngrams import NGRAM_TOKENS, KnownHashes, iter_ngram_hashes, marked_spans, tokens_a_token
from trainable.text_audit.units import Hashes, Ints

UNKNOWN_FAIL_FRAC = 0.01
LOST_FAIL_FRAC = 0.05
MIN_BYTES_PER_TOKEN = 1.5
"""English has 3 to 4.5 in vocabularies of 2,048 to 50,257; another script in GPT-2's has 1 to 1.5."""
SAMPLE_CHARS = 25_000
SAMPLE_FILES = 8

SHARED_FAIL_FRAC = 0.10
SHARED_WARN_FRAC = 0.03
"""The embedded text shares 1.2 % (signatures, repeated phrases)."""
LONG_COPY_FAIL_FRAC = 0.005
"""At 6 nats/token a remembered copy of this share lowers the validation loss by 0.03, more than seeds differ."""
EXCERPT_TOKENS = 16
CHUNK_TOKENS = 1 << 20
MAX_TRAIN_TOKENS = 40 << 20
"""Of a longer text evenly spread chunks are read: 0.1 s a million tokens."""
MAX_VAL_NGRAMS = 1 << 21
"""Of more, those whose hash is a multiple of some number are kept, which picks the same n-grams on both sides."""
LONG_COPY_TOKENS = 256
"""Repeated phrases, tables and notices are shorter: in the Python language reference the longest has 83 tokens."""


def check_tokenizer_ids(tokenizer: Tokenizer, corpus: Corpus, embedding_rows: int) -> Check:
    """Return whether every id that the tokenizer or the corpus has is one that the model embeds."""
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    in_corpus = int(np.flatnonzero(token_counts(corpus.tokens, corpus.vocab_size))[-1])
    return judged(
        "tokenizer ids",
        failed=max(highest, in_corpus) >= embedding_rows,
        measured=f"highest id {highest}, in the corpus {in_corpus}; the model embeds {embedding_rows}",
        expected=f"ids below {embedding_rows}",
        advice="Tokenizer and model do not belong together. Save the tokenizer that the model was trained with.",
    )


def check_tokenizer_fit(
    tokenizer: Tokenizer, corpus: Corpus, files: Sequence[Path], documents: Documents = WHOLE_FILES
) -> Check:
    """Return whether the tokenizer writes the text's own bytes: round trip, unknown tokens, bytes per token.

    Without files the text is what the corpus' tokens decode to, which cannot show what was lost before.
    """
    text = _sample(files, documents) if files else tokenizer.decode(corpus.tokens[: SAMPLE_CHARS // 4].tolist(), False)
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    back = tokenizer.decode(ids, skip_special_tokens=False)
    lost = (Counter(text) - Counter(back)).total() / max(1, len(text))
    unknown_frac = 0.0
    if (unknown_id := _unknown_id(tokenizer)) is not None:  # a byte-level vocabulary has none
        counts = token_counts(corpus.tokens, corpus.vocab_size)
        unknown_frac = float(counts[unknown_id] / counts.sum())
    bytes_per_token = len(text.encode()) / max(1, len(ids))
    failed = unknown_frac >= UNKNOWN_FAIL_FRAC or (lost >= LOST_FAIL_FRAC and tokenizer.decoder is not None)
    is_short = bytes_per_token < MIN_BYTES_PER_TOKEN and tokens_a_token(corpus.vocab_size) == 1
    advice = "Text does not come back as it was (case, spaces or rare characters). Look at the tokenizer."
    if failed:
        advice = "The tokenizer does not know this text. Use one made for its language and script."
    elif is_short:
        advice = "It splits the text into very short tokens: it was made for another language. Use one made for this."
    return judged(
        "tokenizer fit",
        failed=failed,
        warned=is_short or back != text,
        measured=f"round trip {'exact' if back == text else f'loses {lost:.1%} of the characters'}, "
        f"unknown tokens {unknown_frac:.2%}, {bytes_per_token:.2f} bytes/token",
        expected=f"exact, below {UNKNOWN_FAIL_FRAC:.0%}, at least {MIN_BYTES_PER_TOKEN} bytes/token",
        advice=advice,
    )


def check_overlap(corpus: Corpus, tokenizer: Tokenizer) -> Check:
    """Return whether the validation part is text that training does not see."""
    name = "train/validation overlap"
    scale = tokens_a_token(corpus.vocab_size)
    overlap = measure_overlap(corpus.train, corpus.val, scale=scale)
    if overlap is None:
        return skipped(name, f"a part has fewer than {scale * NGRAM_TOKENS} tokens")
    measured = f"{overlap.shared_frac:.1%} of the validation {scale * NGRAM_TOKENS}-grams occur in training"
    if overlap.train_read_frac < 1:
        measured += f" (in the {overlap.train_read_frac:.0%} of it that was read)"
    if overlap.longest_tokens:
        start, end = overlap.longest_start, overlap.longest_start + overlap.longest_tokens
        excerpt = " ".join(tokenizer.decode(corpus.val[start : start + EXCERPT_TOKENS].tolist()).split())
        measured += f"; longest copy: validation tokens {start:,} to {end:,}, {excerpt!r}"
    return judged(
        name,
        failed=overlap.shared_frac >= SHARED_FAIL_FRAC or overlap.long_copy_frac >= LONG_COPY_FAIL_FRAC,
        warned=overlap.shared_frac >= SHARED_WARN_FRAC or overlap.long_copy_frac > 0,
        measured=measured,
        expected=f"below {SHARED_WARN_FRAC:.0%}, and no copy of {scale * LONG_COPY_TOKENS} tokens or more",
        advice="The validation loss would measure memorization. Remove the repeated passages: make audit names them, "
        "and CLEAN=file writes the text without them.",
    )


def _sample(files: Sequence[Path], documents: Documents) -> str:
    spread = [files[round(place)] for place in np.linspace(0, len(files) - 1, min(SAMPLE_FILES, len(files)))]
    starts = (next(iter_chunks([path], documents), None) for path in spread)
    return "\n".join(chunk.text[: SAMPLE_CHARS // len(spread)] for chunk in starts if chunk is not None)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    parts = json.loads(tokenizer.to_str())
    model, decoder = parts["model"], parts.get("decoder") or {}
    if decoder.get("type") == "ByteLevel":
        # Knows every byte; what it names its unknown token is the end of a text.
        return None
    if isinstance(model.get("unk_id"), int):
        return int(model["unk_id"])
    token = model.get("unk_token")
    return tokenizer.token_to_id(token) if token else None


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of the validation tokens is also in the training tokens."""

    shared_frac: float
    """Of the validation n-grams, how many occur in training."""
    long_copy_frac: float
    """Of the validation tokens, how many lie in copies of `scale` x LONG_COPY_TOKENS and more."""
    longest_tokens: int
    longest_start: int
    """Validation token at which the longest copy begins."""
    train_read_frac: float
    """Below 1 the rest was not read, and there may be more."""


def measure_overlap(train: Tokens, val: Tokens, *, scale: int = 1) -> Overlap | None:
    """Return what the two share, or None where one is shorter than an n-gram. Memory is bounded at any length.

    scale: tokens_a_token().
    """
    n = scale * NGRAM_TOKENS
    if min(len(train), len(val)) < n:
        return None
    places, hashes = _kept_ngrams(val, n)
    distinct, which = np.unique(hashes, return_inverse=True)
    known, found = KnownHashes(distinct), np.zeros(len(distinct), dtype=bool)
    spans = _read_spans(len(train), n)
    for start, end in spans:
        for _, theirs in iter_ngram_hashes(train, start, end, n=n):
            found[known.find(theirs)[1]] = True
    copies = marked_spans(found[which])  # stretches whose every n-gram was found
    starts = places[copies[:, 0]]
    lengths = places[copies[:, 1] - 1] - starts + n
    longest = int(lengths.argmax()) if len(lengths) else 0
    return Overlap(
        shared_frac=float(found[which].mean()),
        long_copy_frac=float(lengths[lengths >= scale * LONG_COPY_TOKENS].sum() / len(val)),
        longest_tokens=int(lengths[longest]) if len(lengths) else 0,
        longest_start=int(starts[longest]) if len(lengths) else 0,
        train_read_frac=min(1.0, len(spans) * CHUNK_TOKENS / len(train)),
    )


def _kept_ngrams(tokens: Tokens, n: int) -> tuple[Ints, Hashes]:
    modulus = np.uint64(1 + len(tokens) // MAX_VAL_NGRAMS)
    places, kept = [], []
    for start, hashes in iter_ngram_hashes(tokens, 0, len(tokens), n=n):
        chosen = np.flatnonzero(hashes % modulus == 0)
        places.append(chosen + start)
        kept.append(hashes[chosen])
    return np.concatenate(places), np.concatenate(kept)


def _read_spans(tokens_count: int, n: int) -> list[tuple[int, int]]:
    """Return the (start, end) of chunks to read, each long enough to hold the n-grams that begin in it."""
    starts = np.arange(0, tokens_count - n + 1, CHUNK_TOKENS)
    most = MAX_TRAIN_TOKENS // CHUNK_TOKENS
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).round().astype(np.int64)]
    return [(int(start), min(int(start) + CHUNK_TOKENS + n - 1, tokens_count)) for start in starts]
