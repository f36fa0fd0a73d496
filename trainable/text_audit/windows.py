"""What each token id stands for, and the distribution of the tokens in windows along a text."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import entr
from tokenizers import Tokenizer

from trainable.data.tokens import Tokens, token_counts
from trainable.text_audit.text import token_lengths
from trainable.text_audit.units import Flags, Floats, Ints

BUCKETS = 512
"""The commonest tokens have one each; the rest share the last ones by their id: rare words tell topics, not kinds."""
_SHARED = 64


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Each array (ids,)."""

    bytes: npt.NDArray[np.int32]
    non_ascii_bytes: npt.NDArray[np.int32]
    word: npt.NDArray[np.int32]
    """The same number for ids that differ in case and surrounding space only; 0 for those without letters or digits."""


def describe_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Return what the tokenizer's ids stand for; ids that are part of a character count as words of their own."""
    lengths = token_lengths(tokenizer)
    size = len(lengths)
    texts = tokenizer.decode_batch([[id_] for id_ in range(size)], skip_special_tokens=False)
    numbers: dict[str, int] = {}
    word = np.zeros(size, dtype=np.int32)
    non_ascii = np.zeros(size, dtype=np.int32)
    for id_, text in enumerate(texts):
        key = text.strip().casefold()
        partial = "\ufffd" in text
        if partial or any(character.isalnum() for character in key):
            word[id_] = numbers.setdefault(f"{id_}" if partial else f" {key}", len(numbers) + 1)
        non_ascii[id_] = lengths[id_] if partial else sum(len(c.encode()) for c in text if not c.isascii())
    return Vocabulary(bytes=lengths, non_ascii_bytes=non_ascii, word=word)


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Equal windows of tokens, the last one longer; each array (windows,) unless said otherwise."""

    first_token: Ints
    window_tokens: int
    tokens: int
    counts: Ints
    """(windows, BUCKETS) tokens per bucket."""
    entropy: Floats
    """Of the window's own token frequencies, nats/token."""
    bytes_per_token: Floats
    non_ascii_frac: Floats
    """Of the window's bytes."""
    duplicate_frac: Floats
    """Of the window's tokens: copies, near copies and repetitions."""

    @property
    def shift(self) -> Floats:
        """Jensen-Shannon distance of each window's tokens from the whole text's, 0 to 1."""
        return js_distance(self.counts, self.counts.sum(axis=0))

    @property
    def end_token(self) -> Ints:
        """One past the last token of each window."""
        return np.append(self.first_token[1:], self.tokens)


def measure_windows(tokens: Tokens, vocabulary: Vocabulary, window_tokens: int, copied: Flags | None = None) -> Windows:
    """Return the windows of at least one token; a last one shorter than half joins the one before.

    copied: (tokens,) which of them are copies; None where none are known.
    """
    commonest = np.argsort(-token_counts(tokens, len(vocabulary.bytes)), kind="stable")[: BUCKETS - _SHARED]
    bucket = BUCKETS - 1 - np.arange(len(vocabulary.bytes)) % _SHARED
    bucket[commonest] = np.arange(len(commonest))
    count = max(1, round(len(tokens) / window_tokens))
    first = np.arange(count, dtype=np.int64) * window_tokens
    ends = np.append(first[1:], len(tokens))
    counts = np.zeros((count, BUCKETS), dtype=np.int64)
    figures = np.zeros((count, 4))
    for index, (low, high) in enumerate(zip(first.tolist(), ends.tolist(), strict=True)):
        ids = tokens[low:high]
        counts[index] = np.bincount(bucket[ids], minlength=BUCKETS)
        size = vocabulary.bytes[ids].sum()
        figures[index] = (
            entr(np.unique(ids, return_counts=True)[1] / len(ids)).sum(),
            size / len(ids),
            vocabulary.non_ascii_bytes[ids].sum() / max(1, size),
            0.0 if copied is None else copied[low:high].mean(),
        )
    names = ("entropy", "bytes_per_token", "non_ascii_frac", "duplicate_frac")
    by_name = dict(zip(names, figures.T, strict=True))
    return Windows(first_token=first, window_tokens=window_tokens, tokens=len(tokens), counts=counts, **by_name)


def js_distance(counts: Ints, reference: Ints) -> Floats:
    """Return the Jensen-Shannon distance (base 2, so 0 to 1) of each row of counts from the reference's frequencies."""
    rows = counts / counts.sum(axis=-1, keepdims=True)
    other = reference / reference.sum(axis=-1, keepdims=True)
    middle = (rows + other) / 2
    nats = entr(middle).sum(axis=-1) - (entr(rows).sum(axis=-1) + entr(other).sum(axis=-1)) / 2
    # Of equal rows rounding can leave a little less than 0.
    distance: Floats = np.sqrt(np.maximum(nats / np.log(2), 0.0))
    return distance
