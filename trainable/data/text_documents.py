"""Text read from files in chunks, cut into documents: what is trained on, and where in its file each part stands."""

import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainable.data.foreign_text import foreign_format, not_utf8
from trainable.errors import UserError, did_you_mean, reason

if TYPE_CHECKING:
    from hashlib import _Hash

CHUNK_BYTES = 1 << 20
"""A longer line is cut: tokenizing takes about 200 bytes of memory per byte of a chunk."""
BOM = b"\xef\xbb\xbf"
_BLANK_LINE = re.compile(rb"\n[ \t\r]*\n")
_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE = re.compile(r"[^\n]+")
_JSON_TYPES = {bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


@dataclass(frozen=True, kw_only=True)
class Documents:
    """What one document of a text is, as DOCUMENTS says it."""

    kind: Literal["file", "line", "blank-line", "jsonl"] = "file"
    field: str = ""
    """Of JSON lines: the key whose value is the text."""

    def __str__(self) -> str:
        return f"jsonl:{self.field}" if self.kind == "jsonl" else self.kind


WHOLE_FILES = Documents()


def parse_documents(text: str | None) -> Documents:
    """Return DOCUMENTS as a value; None is a document a file. Raises UserError."""
    kind, colon, field = (text or "file").partition(":")
    if kind == "jsonl" and field:
        return Documents(kind="jsonl", field=field)
    if not colon and kind in ("file", "line", "blank-line"):
        return Documents(kind=kind)  # type: ignore[arg-type]
    known = ("file", "line", "blank-line", "jsonl:text")
    raise UserError(f"DOCUMENTS={text} is not a way to cut a text into documents.{did_you_mean(text or '', known)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A part of a chunk that belongs to one document, in characters."""

    start: int
    end: int
    begins: bool
    """False where the document goes on from the chunk before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChunk:
    """Consecutive text of one file, about a million characters of whole lines or a part of a longer line."""

    path: Path
    first_line: int
    """1-based."""
    text: str
    """Without a byte-order mark, and with line feeds alone for line ends."""
    spans: tuple[Span, ...]
    """What of `text` is trained on; the line ends between two documents are not."""
    raw: bytes
    """As in the file; of JSON lines, the text's own bytes."""
    continues: bool
    """Begins inside a line."""
    lines: tuple[int, ...] | None = None
    """Of JSON lines: the line in the file of each line of the text."""


class _HashedFile(io.FileIO):
    """A file whose size, and then every byte that is read of it, go into a digest."""

    def __init__(self, path: Path, digest: "_Hash") -> None:
        super().__init__(path)
        self._digest = digest
        # Where one file ends and the next begins is part of the text: a separator goes there.
        digest.update(f"{os.fstat(self.fileno()).st_size}\n".encode())

    def readinto(self, buffer: Any) -> int | None:
        count = super().readinto(buffer)
        self._digest.update(memoryview(buffer)[:count])
        return count


def open_hashed(path: Path, digest: "_Hash") -> BufferedReader:
    """Open a file; what is read of it, from its beginning on, goes into the digest. Raises OSError."""
    return BufferedReader(_HashedFile(path, digest))


def iter_chunks(
    files: Iterable[Path], documents: Documents = WHOLE_FILES, *, digest: "_Hash | None" = None
) -> Iterator[TextChunk]:
    """Yield the files' text in order; with a digest, it has then taken in what text_fingerprint() is over.

    Raises UserError for a file that is not UTF-8 or cannot be read, and for a line that is not the JSON it should be.
    """
    for path in files:
        try:
            with path.open("rb") if digest is None else open_hashed(path, digest) as file:
                if (found := foreign_format(path, file.peek(4096))) is not None:
                    raise UserError(found)
                is_jsonl = documents.kind == "jsonl"
                yield from _records(path, file, documents.field) if is_jsonl else _chunks(path, file, documents)
        except UnicodeDecodeError:
            raise UserError(not_utf8(path)) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {reason(error)}.") from None


def after_documents(chunks: Iterable[TextChunk]) -> Iterator[tuple[TextChunk, list[bool]]]:
    """Yield each chunk, and for each of its spans whether a document ends right before it, as a separator says."""
    begun = False
    for chunk in chunks:
        yield chunk, [span.begins and (begun or index > 0) for index, span in enumerate(chunk.spans)]
        begun = begun or bool(chunk.spans)


def _chunks(path: Path, file: BufferedReader, documents: Documents) -> Iterator[TextChunk]:
    line, continues, is_open = 1, False, False
    for raw in _blocks(file, whole_paragraphs=documents.kind == "blank-line"):
        text = as_read(raw, starts_file=line == 1 and not continues)
        spans = _spans(text, documents, is_open=is_open)
        yield TextChunk(path=path, first_line=line, text=text, spans=spans, raw=raw, continues=continues)
        line += text.count("\n") + text.count("\r")
        continues = not raw.endswith((b"\n", b"\r"))
        if documents.kind == "file":
            is_open = is_open or bool(spans)
        else:
            is_open = spans[-1].end == len(text) if spans else is_open and "\n" not in text


def as_read(raw: bytes, *, starts_file: bool) -> str:
    """Return bytes of a file as the text that is trained on. Raises UnicodeDecodeError."""
    text = (raw.removeprefix(BOM) if starts_file else raw).decode()
    # Looking for two characters takes as long as decoding; for one byte a tenth of that.
    return text.replace("\r\n", "\n") if b"\r" in raw else text


def _blocks(file: BufferedReader, *, whole_paragraphs: bool) -> Iterator[bytes]:
    rest = b""
    while block := file.read(CHUNK_BYTES):
        rest += block
        if len(block) < CHUNK_BYTES:
            break  # the end of the file, be it in a line or after one
        if whole_paragraphs:
            end = max((found.end() for found in _BLANK_LINE.finditer(rest)), default=0)
        else:
            end = rest.rfind(b"\n") + 1
        if end == 0 and len(rest) >= CHUNK_BYTES:
            end = _cut(rest, b" \n" if whole_paragraphs else b" ")
        if end:
            yield rest[:end]
            rest = rest[end:]
    if rest:
        yield rest


def _cut(data: bytes, blanks: bytes) -> int:
    """Return where to cut data that is one line or one paragraph."""
    # Byte-pair tokenizers keep a blank with the word after it: a cut before one leaves the tokens as they were. Before
    # all that are there: within an indent what comes before would look like a blank line.
    blank = max(data.rfind(bytes([one]), len(data) // 2) for one in blanks)
    if blank > 0 and (end := len(data[:blank].rstrip())):
        return end
    end = max(1, len(data) - 4)  # a \r at the very end may be half of a line end
    while end > 1 and data[end] & 0xC0 == 0x80:
        end -= 1
    return end


def _spans(text: str, documents: Documents, *, is_open: bool) -> tuple[Span, ...]:
    if documents.kind == "file":
        return (Span(start=0, end=len(text), begins=not is_open),) if text else ()
    found: list[Span] = []
    for line in _LINE.finditer(text):
        if line.group().isspace():
            continue
        start, end = line.span()
        if documents.kind == "blank-line" and found and start == found[-1].end + 1:
            start = found.pop().start
        found.append(Span(start=start, end=end, begins=True))
    line_ends = 2 if documents.kind == "blank-line" else 1
    if found and is_open and text.count("\n", 0, found[0].start) < line_ends:
        found[0] = Span(start=0, end=found[0].end, begins=False)
    return tuple(found)


def _records(path: Path, file: BufferedReader, field: str) -> Iterator[TextChunk]:
    parts: list[tuple[str, int, bool]] = []
    size = 0
    for number, line in enumerate(file, start=1):
        value = _record(path, number, as_read(line, starts_file=number == 1), field)
        if not value.strip():
            continue
        start = 0
        # Never all of a huge value at once: see CHUNK_BYTES.
        while len(value) - start > CHUNK_BYTES:
            end = value.rfind(" ", start + CHUNK_BYTES // 2, start + CHUNK_BYTES)
            end = end if end > 0 else start + CHUNK_BYTES
            yield from _joined(path, [*parts, (value[start:end], number, start == 0)])
            parts, size, start = [], 0, end
        parts.append((value[start:], number, start == 0))
        size += len(value) - start
        if size >= CHUNK_BYTES:
            yield from _joined(path, parts)
            parts, size = [], 0
    yield from _joined(path, parts)


def _record(path: Path, number: int, line: str, field: str) -> str:
    """Return the text of a JSON line; a blank line has none."""
    where = f"{path} line {number}"
    if not line.strip():
        return ""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        fault = getattr(error, "msg", None) or "it is nested too deeply"
        column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UserError(f"{where} is not JSON: {fault}{column}. DOCUMENTS=jsonl takes one object a line.") from None
    if not isinstance(record, dict):
        remedy = " jq -c '.[]' FILE > FILE.jsonl writes a list so." if isinstance(record, list) else ""
        raise UserError(f"{where} is not a JSON object. DOCUMENTS=jsonl takes one object a line.{remedy}")
    if field not in record:
        raise UserError(f"{where} has no field {field!r}.{did_you_mean(field, map(str, record))}")
    value = record[field]
    if not isinstance(value, str):
        strings = [name for name, one in record.items() if isinstance(one, str)]
        hint = f" Fields with a string: {', '.join(strings[:8])}." if strings else " Write its text into a field."
        raise UserError(f"{where}: field {field!r} is {_JSON_TYPES.get(type(value), 'null')}, not a string.{hint}")
    if _SURROGATE.search(value):
        raise UserError(f"{where}: field {field!r} has half of a surrogate pair, which is no character.") from None
    return value.replace("\r\n", "\n")


def _joined(path: Path, parts: list[tuple[str, int, bool]]) -> Iterator[TextChunk]:
    if not parts:
        return
    spans, lines, start = [], [], 0
    for value, number, begins in parts:
        spans.append(Span(start=start, end=start + len(value), begins=begins))
        start += len(value) + 1
        # A \r at its very end is one line end with the \n after it.
        lines += [number] * (1 + value.count("\n") + value.removesuffix("\r").count("\r"))
    text = "\n".join(value for value, _, _ in parts) + "\n"
    yield TextChunk(
        path=path,
        first_line=parts[0][1],
        text=text,
        spans=tuple(spans),
        raw=text.encode(),
        continues=not parts[0][2],
        lines=tuple(lines),
    )
