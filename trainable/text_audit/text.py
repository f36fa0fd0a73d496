"""The text piece by piece, each byte beside the token it went into. Looks at nothing in it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from trainable.data.corpus import TextChunk, iter_chunks
from trainable.data.tokens import Tokens
from trainable.text_audit.units import SPACE, Bytes, Ints, line_ends

PIECE_BYTES = 1 << 22
"""A line longer than this comes in several pieces, so that memory stays flat."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Consecutive bytes of one file and the tokens that start in them."""

    path: Path
    data: Bytes
    first_byte: int
    """In the file."""
    first_line: int
    continues: bool
    """The piece begins inside a line."""
    first_token: int
    """In the corpus."""
    token_starts: Ints
    """(T,) byte of `data` at which each token starts, not decreasing."""


def iter_pieces(files: list[Path], tokenizer: Tokenizer, tokens: Tokens) -> Iterator[Piece]:
    """Yield the files' bytes in order, aligned with `tokens`, which must be theirs under `tokenizer`."""
    lengths = token_lengths(tokenizer)
    tells = _lengths_tell(files, tokenizer, tokens, lengths)
    path: Path | None = None
    first_token = first_byte = 0
    for chunk in iter_chunks(files):
        if chunk.path != path:
            path, first_byte = chunk.path, 0
        data = np.frombuffer(chunk.text.encode(), dtype=np.uint8)
        starts = _starts_by_length(data, tokens[first_token:], lengths) if tells else None
        if starts is None:
            starts = _starts_by_offsets(chunk.text, tokenizer)
        yield from _pieces(chunk, data, starts, first_byte, first_token)
        first_byte += len(data)
        first_token += len(starts)
    assert first_token == len(tokens), (first_token, len(tokens))


def token_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int32]:
    """Return the bytes that each id stands for (ids,), right for byte-level tokenizers, where a character is a byte."""
    added = {id_: len(token.content.encode()) for id_, token in tokenizer.get_added_tokens_decoder().items()}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values(), default=-1) + 1, dtype=np.int32)
    for token, id_ in vocabulary.items():
        lengths[id_] = added.get(id_, len(token))
    return lengths


def _lengths_tell(files: list[Path], tokenizer: Tokenizer, tokens: Tokens, lengths: npt.NDArray[np.int32]) -> bool:
    """Whether each token stands for as many bytes of the text as `lengths` says."""
    decoder = json.dumps(json.loads(tokenizer.to_str())["decoder"])
    steps = range(0, len(tokens), 1 << 20)
    total_bytes = sum(int(lengths[tokens[low : low + (1 << 20)]].sum()) for low in steps)
    return '"ByteLevel"' in decoder and total_bytes == sum(path.stat().st_size for path in files)


def _starts_by_length(data: Bytes, tokens: Tokens, lengths: npt.NDArray[np.int32]) -> Ints | None:
    """Token starts from the lengths alone, a tenth of the cost of encoding again; None where they do not add up."""
    ends = np.zeros(0, dtype=np.int64)
    guess, taken = len(data) // 3 + 64, 0
    while (ends[-1] if len(ends) else 0) < len(data) and taken < len(tokens):
        more = np.cumsum(lengths[tokens[taken : taken + guess]], dtype=np.int64)
        ends = np.append(ends, more + (ends[-1] if len(ends) else 0))
        taken = len(ends)
    count = int(np.searchsorted(ends, len(data))) + 1
    if count > len(ends) or ends[count - 1] != len(data):
        return None
    return np.append(0, ends[: count - 1])


def _starts_by_offsets(text: str, tokenizer: Tokenizer) -> Ints:
    offsets = np.array(tokenizer.encode(text, add_special_tokens=False).offsets, dtype=np.int64).reshape(-1, 2)
    starts = np.maximum.accumulate(offsets[:, 0])
    if text.isascii():
        return starts
    code_points = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (code_points >= 0x80).astype(np.int64) + (code_points >= 0x800) + (code_points >= 0x10000)
    return np.append(0, np.cumsum(widths))[starts]


def _pieces(chunk: TextChunk, data: Bytes, starts: Ints, first_byte: int, first_token: int) -> Iterator[Piece]:
    low, line = 0, chunk.first_line
    while low < len(data):
        high = _piece_end(data, low)
        begin = int(np.searchsorted(starts, low))
        end = int(np.searchsorted(starts, high)) if high < len(data) else len(starts)
        yield Piece(
            path=chunk.path,
            data=data[low:high],
            first_byte=first_byte + low,
            first_line=line,
            continues=low > 0 and data[low - 1] not in (10, 13),
            first_token=first_token + begin,
            token_starts=starts[begin:end] - low,
        )
        if high < len(data):
            line += len(line_ends(data[low:high]))
        low = high


def _piece_end(data: Bytes, low: int) -> int:
    """Only a chunk with a huge line is longer than a piece: it is cut after a line, else a word, else a character."""
    if len(data) - low <= 2 * PIECE_BYTES:
        return len(data)
    high = low + PIECE_BYTES
    window = data[high - PIECE_BYTES // 2 : high]
    for ends in (line_ends(window), np.flatnonzero(SPACE[window]) + 1):
        if len(ends):
            high += int(ends[-1]) - len(window)
            break
    while data[high] == 10 or data[high] & 0xC0 == 0x80:  # neither \r\n nor a character is torn
        high += 1
    return high
