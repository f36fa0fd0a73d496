"""The text in chunks, aligned with its tokens: the byte at which each token starts. It judges nothing."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from trainable.data.text_documents import BOM, WHOLE_FILES, Documents, TextChunk, after_documents, iter_chunks
from trainable.data.tokens import Tokens, token_counts
from trainable.text_audit.units import Bytes, Ints


@dataclass(frozen=True, kw_only=True)
class Source:
    """A text and its tokens under a tokenizer."""

    files: list[Path]
    tokenizer: Tokenizer
    tokens: Tokens
    documents: Documents = WHOLE_FILES
    separator_id: int | None = None


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A chunk of the text and the tokens that start in it."""

    chunk: TextChunk
    data: Bytes
    """chunk.raw."""
    first_byte: int
    """In the file."""
    first_token: int
    """In the corpus."""
    token_starts: Ints
    """(T,) byte of `data` at which each token starts, not decreasing."""


def iter_pieces(source: Source) -> Iterator[Piece]:
    """Yield the files' bytes in order, aligned with the tokens."""
    lengths, tokens = token_lengths(source.tokenizer), source.tokens
    tells = source.documents.kind == "file" and _lengths_tell(source, lengths)
    path: Path | None = None
    first_token = first_byte = 0
    for chunk, follows in after_documents(iter_chunks(source.files, source.documents)):
        first_byte = first_byte if chunk.path == path else 0
        path = chunk.path
        separated = [follows_one and source.separator_id is not None for follows_one in follows]
        data = np.frombuffer(chunk.text.encode(), dtype=np.uint8)
        starts = None
        if tells and separated:  # a file of a mark alone has no document
            starts = _starts_by_length(data, tokens[first_token:], lengths, separated[0])
        if starts is None:
            starts = _starts_by_offsets(chunk, source.tokenizer, separated)
        raw = np.frombuffer(chunk.raw, dtype=np.uint8)
        if len(raw) != len(data):
            starts = _kept_bytes(raw, starts_file=first_byte == 0)[starts]
        yield Piece(chunk=chunk, data=raw, first_byte=first_byte, first_token=first_token, token_starts=starts)
        first_byte += len(raw)
        first_token += len(starts)
    assert first_token == len(tokens), (first_token, len(tokens))


def _kept_bytes(raw: Bytes, *, starts_file: bool) -> Ints:
    """Return where in the file's bytes each byte of its text is, and one past the last; see text_documents.as_read."""
    kept = np.ones(len(raw) + 1, dtype=bool)
    kept[:-2] &= (raw[:-1] != 13) | (raw[1:] != 10)
    if starts_file and raw[: len(BOM)].tobytes() == BOM:
        kept[: len(BOM)] = False
    return np.flatnonzero(kept)


def token_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int32]:
    """Return the bytes that each id stands for (ids,), right for byte-level tokenizers, where a character is a byte."""
    added = {id_: len(token.content.encode()) for id_, token in tokenizer.get_added_tokens_decoder().items()}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values(), default=-1) + 1, dtype=np.int32)
    for token, id_ in vocabulary.items():
        lengths[id_] = added.get(id_, len(token))
    return lengths


def _lengths_tell(source: Source, lengths: npt.NDArray[np.int32]) -> bool:
    """Whether each token stands for as many bytes of the text as `lengths` says."""
    decoder = json.dumps(json.loads(source.tokenizer.to_str())["decoder"])
    if '"ByteLevel"' not in decoder:
        return False
    total_bytes = int(token_counts(source.tokens, len(lengths)) @ lengths)
    text_bytes = 0
    begun = 0
    for chunk in iter_chunks(source.files):
        text_bytes += len(chunk.text.encode())
        begun += sum(span.begins for span in chunk.spans)
    if source.separator_id is not None:
        text_bytes += int(lengths[source.separator_id]) * max(0, begun - 1)
    return total_bytes == text_bytes


def _starts_by_length(data: Bytes, tokens: Tokens, lengths: npt.NDArray[np.int32], separated: bool) -> Ints | None:
    """Token starts from the lengths alone, a tenth of the cost of encoding again; None where they do not add up."""
    if separated:
        rest = _starts_by_length(data, tokens[1:], lengths, False)
        return None if rest is None else np.append(0, rest)
    ends = np.cumsum(lengths[tokens[: len(data)]], dtype=np.int64)  # a token is a byte at least
    count = int(np.searchsorted(ends, len(data))) + 1
    if count > len(ends) or ends[count - 1] != len(data):
        return None
    return np.append(0, ends[: count - 1])


def _starts_by_offsets(chunk: TextChunk, tokenizer: Tokenizer, separated: list[bool]) -> Ints:
    texts = [chunk.text[span.start : span.end] for span in chunk.spans]
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    parts: list[Ints] = []
    for span, one, after_separator in zip(chunk.spans, encoded, separated, strict=True):
        if after_separator:
            parts.append(np.array([span.start]))
        offsets = np.array(one.offsets, dtype=np.int64).reshape(-1, 2)
        parts.append(span.start + np.maximum.accumulate(offsets[:, 0]))
    starts = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
    if chunk.text.isascii():
        return starts
    code_points = np.frombuffer(chunk.text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    return np.append(0, np.cumsum(widths))[starts]
