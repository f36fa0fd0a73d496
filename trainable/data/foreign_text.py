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

_WRAPPED = (
    (b"\x1f\x8b", "gzip", "gunzip < {source} > {target}"),
    (b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc {source} > {target}"),
    (b"\xfd7zXZ\x00", "xz", "xz -dc < {source} > {target}"),
    (b"BZh91AY&SY", "bzip2", "bunzip2 < {source} > {target}"),
    (b"\x04\x22\x4d\x18", "lz4", "lz4 -dc {source} > {target}"),
    (b"7z\xbc\xaf\x27\x1c", "7-Zip", "7z x -so {source} > {target}"),
    (b"%PDF-", "PDF", "pdftotext {source} {target}"),
    (b"{\\rtf", "RTF", "pandoc -f rtf -t plain {source} -o {target}"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office document", "antiword {source} > {target}"),
    (b"\x89PNG\r\n", "PNG", "tesseract {source} - > {target}"),
    (b"\xff\xd8\xff", "JPEG", "tesseract {source} - > {target}"),
    (b"GIF8", "GIF", "tesseract {source} - > {target}"),
    (b"II*\x00", "TIFF", "tesseract {source} - > {target}"),
    (b"MM\x00*", "TIFF", "tesseract {source} - > {target}"),
)
_WEIGHTS = (b"GGUF", b"\x93NUMPY", b"\x89HDF\r\n", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_UTF = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)
_OFFICE = {"word/": "docx", "xl/": "xlsx", "ppt/": "pptx"}
_CODE_PAGES = ("cp1251", "koi8_r", "shift_jis", "gb18030", "big5", "euc_kr", "euc_jp")


def foreign_format(path: Path, head: bytes) -> str | None:
    """Return what a file beginning with `head` is and what converts it, or None where it may be UTF-8 text.

    Text in UTF-16 without a mark and some archives are valid UTF-8 too: they must be told before decoding.
    """
    for magic, name in _UTF:
        if head.startswith(magic):
            return _convert(path, f"is {name} text", f"iconv -f {name} -t UTF-8 {{source}} > {{target}}")
    for magic, name, command in _WRAPPED:
        if head.startswith(magic):
            return _convert(path, f"is {name}, not text", command)
    if head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if head[257:262] == b"ustar":
        return _convert(path, "is a tar archive, not text", "tar -xOf {source} > {target}")
    if head.startswith(b"PAR1"):
        return _parquet(path)
    if head.startswith(b"SQLite format 3\x00"):
        return _sqlite(path)
    is_safetensors = head[8:10] == b'{"' and head[3:8] == bytes(5)
    if is_safetensors or head.startswith(_WEIGHTS):
        return (
            f"{path} is not text but arrays or pickled objects. A model is named by GPT2_MODEL_NAME, "
            "a checkpoint by CHECKPOINT_PATH."
        )
    if (encoding := _unmarked_utf(head)) is not None:
        return _convert(path, f"is {encoding} text", f"iconv -f {encoding} -t UTF-8 {{source}} > {{target}}")
    return None


def not_utf8(path: Path) -> str:
    """Return where a file that passed foreign_format stops being UTF-8, and what converts it."""
    line, offset, data = _first_fault(path)
    where = f"line {line}, byte {offset}"
    intact = data.decode("utf-8", "replace")
    faults = intact.count("\ufffd")
    if sum(not char.isascii() for char in intact) > 2 * faults or _is_cut_off(data):
        # -c leaves out what cannot be read; some versions then end with an error all the same.
        return _convert(path, f"is UTF-8 text with damage: {where}", "iconv -c -f UTF-8 -t UTF-8 {source} > {target}")
    controls = sum(data.count(byte) for byte in range(32) if byte not in b"\t\n\r\f")
    if data.count(0) > len(data) // 100 or controls > 0.05 * len(data):
        return f"{path} is not text but binary data of a format not known here ({where}). Name a text file."
    guess = _code_page(data)
    command = f"iconv -f {guess} -t UTF-8 {{source}} > {{target}}"
    return _convert(path, f"is not UTF-8 text: {where}. It looks like {guess}", command)


def _convert(path: Path, found: str, command: str) -> str:
    target = path.with_name(f"{path.stem}.utf8.txt")
    filled = command.format(source=shlex.quote(str(path)), target=shlex.quote(str(target)))
    return f"{path} {found}. Convert it and use {target.name} in its place: {filled}"


def _zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        names = []
    kind = next((kind for folder, kind in _OFFICE.items() if any(name.startswith(folder) for name in names)), None)
    if any(name.endswith("/data.pkl") for name in names):
        return f"{path} is a PyTorch file, not text. To start from its weights, name it by CHECKPOINT_PATH."
    if any(name.endswith(".npy") for name in names):
        return f"{path} is a NumPy archive, not text. Name a text file."
    if kind == "docx" or "mimetype" in names:
        what = f"is {kind or 'epub or odt'}, not text"
        return _convert(path, what, "pandoc -t plain --wrap=none {source} -o {target}")
    if kind is not None:
        return _convert(path, f"is {kind}, not text", "soffice --headless --cat {source} > {target}")
    return _convert(path, "is a zip archive, not text", "unzip -p {source} > {target}")


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
        ascii_chars = min((data[place::size].count(0) for place in zeros), default=0)
        others = sum(data[place::size].count(0) for place in range(size) if place not in zeros)
        if others or ascii_chars == 0:
            continue
        try:
            text = data[:-4].decode(encoding) if len(data) > 64 else data.decode(encoding)
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


def _is_cut_off(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and any(byte >= 0x80 for byte in data[: error.start])
    return False


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
