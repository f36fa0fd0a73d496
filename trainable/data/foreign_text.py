"""What a file is that is not UTF-8 text, by its first bytes, and the command that converts it. Converts nothing."""

import codecs
import shlex
import sqlite3
import sys
import unicodedata
import zipfile
from contextlib import closing
from pathlib import Path

HEAD_BYTES = 1 << 20

_ICONV = "iconv -f {encoding} -t UTF-8 {{source}} > {{target}}"
_OCR = "tesseract {source} - > {target}"
_PANDOC, _OFFICE = "pandoc -t plain --wrap=none {source} -o {target}", "soffice --headless --cat {source} > {target}"
_FORMATS = (
    (0, b"\xff\xfe\x00\x00", "UTF-32 text", _ICONV.format(encoding="UTF-32")),
    (0, b"\x00\x00\xfe\xff", "UTF-32 text", _ICONV.format(encoding="UTF-32")),
    (0, b"\xff\xfe", "UTF-16 text", _ICONV.format(encoding="UTF-16")),
    (0, b"\xfe\xff", "UTF-16 text", _ICONV.format(encoding="UTF-16")),
    (0, b"\x1f\x8b", "gzip, not text", "gunzip < {source} > {target}"),
    (0, b"\x28\xb5\x2f\xfd", "zstd, not text", "zstd -dc {source} > {target}"),
    (0, b"\xfd7zXZ\x00", "xz, not text", "xz -dc < {source} > {target}"),
    (0, b"BZh91AY&SY", "bzip2, not text", "bunzip2 < {source} > {target}"),
    (0, b"\x04\x22\x4d\x18", "lz4, not text", "lz4 -dc {source} > {target}"),
    (0, b"7z\xbc\xaf\x27\x1c", "7-Zip, not text", "7z x -so {source} > {target}"),
    (257, b"ustar", "a tar archive, not text", "tar -xOf {source} > {target}"),
    (0, b"%PDF-", "PDF, not text", "pdftotext {source} {target}"),
    (0, b"{\\rtf", "RTF, not text", "pandoc -f rtf -t plain {source} -o {target}"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document, not text", "antiword {source} > {target}"),
    (0, b"\x89PNG\r\n", "PNG, not text", _OCR),
    (0, b"\xff\xd8\xff", "JPEG, not text", _OCR),
    (0, b"GIF8", "GIF, not text", _OCR),
    (0, b"II*\x00", "TIFF, not text", _OCR),
    (0, b"MM\x00*", "TIFF, not text", _OCR),
)
"""Where in a file which bytes are, what it then is, and what converts it."""
_ZIPPED = (
    ("word/", "docx, not text", _PANDOC),
    ("xl/", "xlsx, not text", _OFFICE),
    ("ppt/", "pptx, not text", _OFFICE),
    ("mimetype", "epub or odt, not text", _PANDOC),
    ("", "a zip archive, not text", "unzip -p {source} > {target}"),
)
"""How a name in a zip archive begins, and the same."""
_WEIGHTS = (b"GGUF", b"\x93NUMPY", b"\x89HDF\r\n", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_CODE_PAGES = ("cp1251", "koi8_r", "shift_jis", "gb18030", "big5", "euc_kr", "euc_jp")


def foreign_format(path: Path, head: bytes) -> str | None:
    """Return what a file beginning with `head` is and what converts it, or None where it may be UTF-8 text.

    Text in UTF-16 without a mark and some archives are valid UTF-8 too: they must be told before decoding.
    """
    for place, magic, found, command in _FORMATS:
        if head.startswith(magic, place):
            return _convert(path, f"is {found}", command)
    if head.startswith(b"PAR1"):
        return _parquet(path)
    if head.startswith(b"SQLite format 3\x00"):
        return _sqlite(path)
    zipped = _zipped_names(path) if head.startswith(b"PK\x03\x04") else []
    is_safetensors = head[8:10] == b'{"' and head[3:8] == bytes(5)
    if is_safetensors or head.startswith(_WEIGHTS) or any(name.endswith(("/data.pkl", ".npy")) for name in zipped):
        return f"{path} holds arrays or pickles, not text. GPT2_MODEL_NAME names a model, CHECKPOINT_PATH its weights."
    for start, found, command in _ZIPPED:
        if any(name.startswith(start) for name in zipped):
            return _convert(path, f"is {found}", command)
    if (encoding := _unmarked_utf(head)) is not None:
        return _convert(path, f"is {encoding} text", _ICONV.format(encoding=encoding))
    return None


def not_utf8(path: Path) -> str:
    """Return where a file that passed foreign_format stops being UTF-8, and what converts it."""
    line, offset, data = _first_fault(path)
    where = f"line {line}, byte {offset}"
    intact = data.decode("utf-8", "replace")
    faults = intact.count("\ufffd")
    if sum(not char.isascii() for char in intact) > 2 * faults:
        # -c leaves out what cannot be read; some versions then end with an error all the same.
        return _convert(path, f"is UTF-8 text with damage: {where}", "iconv -c -f UTF-8 -t UTF-8 {source} > {target}")
    controls = sum(data.count(byte) for byte in range(32) if byte not in b"\t\n\r\f")
    if data.count(0) > len(data) // 100 or controls > 0.05 * len(data):
        return f"{path} is not text but binary data of a format not known here ({where}). Name a text file."
    guess = _code_page(data)
    return _convert(path, f"is not UTF-8 text: {where}. It looks like {guess}", _ICONV.format(encoding=guess))


def _convert(path: Path, found: str, command: str) -> str:
    target = path.with_name(f"{path.stem}.utf8.txt")
    filled = command.format(source=shlex.quote(str(path)), target=shlex.quote(str(target)))
    return f"{path} {found}. Convert it and use {target.name} in its place: {filled}"


def _zipped_names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError):
        return [""]  # damaged: unzip says it


def _parquet(path: Path) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError):
        return f"{path} is a damaged Parquet file, not text. Name a text file."
    strings = [one.name for one in schema if pa.types.is_string(one.type) or pa.types.is_large_string(one.type)]
    column = "text" if "text" in strings or not strings else strings[0]
    script = (
        "import json, sys, pyarrow.parquet as pq\n"
        "for batch in pq.ParquetFile(sys.argv[1]).iter_batches(columns=[sys.argv[2]]):\n"
        "    for text in batch.column(0).to_pylist(): print(json.dumps({'text': text or ''}))"
    )
    target = path.with_name(f"{path.stem}.jsonl")
    words = (shlex.quote(word) for word in (sys.executable, "-c", f"exec({script!r})", str(path), column))
    return (
        f"{path} is Parquet, not text. Convert its column {column!r} and name {target.name} with "
        f"DOCUMENTS=jsonl:text: {' '.join(words)} > {shlex.quote(str(target))}"
    )


def _sqlite(path: Path) -> str:
    table, column = "TABLE", "COLUMN"
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            tables = "SELECT name FROM sqlite_master WHERE type = 'table'"
            for (name,) in database.execute(tables).fetchall():
                for _, field, kind, *_ in database.execute(f'PRAGMA table_info("{name}")'):
                    if column == "COLUMN" and "TEXT" in kind.upper():
                        table, column = name, field
    except sqlite3.Error:
        pass  # damaged or locked: the person names table and column
    query = shlex.quote(f'SELECT "{column}" FROM "{table}"').replace("{", "{{").replace("}", "}}")
    return _convert(path, "is an SQLite database, not text", f"sqlite3 {{source}} {query} > {{target}}")


def _unmarked_utf(head: bytes) -> str | None:
    """Return the encoding of text in two or four bytes a character: its ASCII has its zeros in the same places."""
    for encoding, size, zeros in (
        ("UTF-32LE", 4, (1, 2, 3)),
        ("UTF-32BE", 4, (0, 1, 2)),
        ("UTF-16LE", 2, (1,)),
        ("UTF-16BE", 2, (0,)),
    ):
        data = head[: len(head) // size * size]
        ascii_chars = min(data[place::size].count(0) for place in zeros)
        # A wide space or an emoji may have a zero elsewhere.
        if ascii_chars <= sum(data[place::size].count(0) for place in range(size) if place not in zeros):
            continue
        try:
            text = codecs.getincrementaldecoder(encoding)().decode(data)  # which may end within a character
        except UnicodeDecodeError:
            continue
        if all(char.isspace() or unicodedata.category(char) not in ("Cc", "Cn", "Co", "Cs") for char in text):
            return encoding
    return None


def _first_fault(path: Path) -> tuple[int, int, bytes]:
    """Return the line and byte of the first byte that is not UTF-8, and the bytes around it."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    number, read = 1, 0
    with path.open("rb") as file:
        while True:
            part = file.read(HEAD_BYTES)
            pending, _ = decoder.getstate()
            try:
                decoder.decode(part, final=not part)
            except UnicodeDecodeError as error:
                place = read - len(pending) + error.start
                number += (pending + part).count(b"\n", 0, error.start)
                file.seek(max(0, place - HEAD_BYTES // 2))
                return number, place, file.read(HEAD_BYTES)
            assert part, "the file is UTF-8"
            number += part.count(b"\n")
            read += len(part)


def _code_page(data: bytes) -> str:
    """Return iconv's name of the likeliest encoding of one or two bytes a character."""
    from charset_normalizer import from_bytes

    # Short texts in Western Europe look like anything: others are believed only when there is much to go by.
    high = bytes(byte for byte in data if byte >= 0x80)
    best = from_bytes(data[: 1 << 16], cp_isolation=[*_CODE_PAGES, "cp1252"]).best() if len(high) > 64 else None
    if best is not None and best.encoding in _CODE_PAGES:
        return best.encoding.replace("_", "-").upper().replace("SHIFT-JIS", "SHIFT_JIS")
    # Latin-1 has control characters where the code page has quotes and dashes.
    return "CP1252" if any(byte < 0xA0 for byte in high) else "LATIN1"
