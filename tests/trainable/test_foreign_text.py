"""Files that are not UTF-8 text: each format is named, and the command that is offered converts it."""

import bz2
import gzip
import io
import json
import lzma
import pickle
import shutil
import sqlite3
import subprocess
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from trainable.data.text_documents import iter_chunks, parse_documents
from trainable.errors import UserError

TEXT = "Überraschung: naïve café, “quoted” – and €5.\nA second line.\n" * 20
RUSSIAN = "Съешь ещё этих мягких французских булок, да выпей чаю. Это предложение знает каждый.\n" * 20
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 20


def refusal_of(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(iter_chunks([path]))
    message = str(caught.value)
    assert message.startswith(str(path))
    return message


def converted(message: str, *, may_fail: bool = False) -> Path:
    """Run the command at the message's end; return the file that the message names."""
    assert "in its place: " in message or "DOCUMENTS=jsonl:text: " in message, message
    command = message.partition("DOCUMENTS=jsonl:text: " if "DOCUMENTS" in message else "in its place: ")[2]
    tool = command.split()[0].strip("'")
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert may_fail or result.returncode == 0, result.stderr
    source = Path(message.partition(" is ")[0])
    [target] = set(source.parent.iterdir()) - {source}
    return target


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a folder's").mkdir()  # what a shell must have quoted
    return tmp_path / "a folder's"


def write(folder: Path, data: bytes, name: str = "notes.txt") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("encoding", ["UTF-16", "UTF-16LE", "UTF-16BE", "UTF-32", "UTF-32LE", "UTF-32BE"])
@pytest.mark.parametrize(
    "text", [TEXT, "words", JAPANESE, "hello \U0001f600 world\u3000" * 600], ids=["text", "short", "japanese", "emoji"]
)
def test_wide_characters_are_named_and_converted(folder: Path, encoding: str, text: str) -> None:
    message = refusal_of(write(folder, text.encode(encoding)))
    assert f" is {encoding} text. Convert it and use notes.utf8.txt" in message
    assert converted(message).read_text("utf-8") == text


@pytest.mark.parametrize("mark", [b"\xfe\xff", b"\x00\x00\xfe\xff"])
def test_marks_of_big_endian_text_are_known(folder: Path, mark: bytes) -> None:
    encoding = "UTF-16" if len(mark) == 2 else "UTF-32"
    message = refusal_of(write(folder, mark + TEXT.encode(f"{encoding}BE")))
    assert f"is {encoding} text" in message
    assert converted(message).read_text("utf-8") == TEXT


@pytest.mark.parametrize(
    ("encoding", "text", "named"),
    [
        ("cp1252", TEXT, "CP1252"),
        ("latin-1", "caf\xe9\n", "LATIN1"),
        ("cp1251", RUSSIAN, "CP1251"),
        ("koi8-r", RUSSIAN, "KOI8-R"),
        ("shift_jis", JAPANESE, "SHIFT_JIS"),
    ],
)
def test_code_pages_are_guessed_and_converted(folder: Path, encoding: str, text: str, named: str) -> None:
    message = refusal_of(write(folder, text.encode(encoding)))
    assert f"It looks like {named}. Convert it" in message
    assert converted(message).read_text("utf-8") == text


@pytest.mark.parametrize(
    ("content", "line", "byte"),
    [
        (b"caf\xe9\n", 1, 3),
        (b"one\ntwo \xc3\xa9 \xc3\xa9 \xc3\xa9\nthr\xff\n", 3, 20),
        ("é".encode() * 700_000 + b"\n\x80", 2, 1_400_001),
        (b"x" * ((1 << 20) - 1) + "é".encode() + b"\n\xe9\n", 2, (1 << 20) + 2),
    ],
)
def test_the_place_of_the_first_fault_is_told(folder: Path, content: bytes, line: int, byte: int) -> None:
    assert f"line {line}, byte {byte}. " in refusal_of(write(folder, content))


@pytest.mark.parametrize("damage", [b"\xff", b"\xe2\x82", b"\xc3"])
@pytest.mark.parametrize("at_end", [True, False])
def test_damaged_utf8_loses_its_damage_alone(folder: Path, damage: bytes, at_end: bool) -> None:
    data = TEXT.encode() + damage + (b"" if at_end else b"\n" + TEXT.encode())
    message = refusal_of(write(folder, data))
    assert "is UTF-8 text with damage: line 41, byte " in message
    assert converted(message, may_fail=True).read_text("utf-8") == data.decode("utf-8", "ignore")


def test_compressed_text_is_named_and_unpacked(folder: Path, tmp_path: Path) -> None:
    packed = {"gzip": gzip.compress(TEXT.encode()), "bzip2": bz2.compress(TEXT.encode())}
    packed["xz"] = lzma.compress(TEXT.encode())
    for name, data in packed.items():
        path = write(folder, data)
        message = refusal_of(path)
        assert f" is {name}, not text. " in message
        target = converted(message)
        assert target.read_text("utf-8") == TEXT
        target.unlink()


def test_zstd_is_named_and_unpacked(folder: Path) -> None:
    message = refusal_of(write(folder, bytes(pa.compress(TEXT.encode(), codec="zstd", asbytes=True))))
    assert " is zstd, not text. " in message
    assert converted(message).read_text("utf-8") == TEXT


def test_archives_are_named_and_unpacked(folder: Path) -> None:
    path = folder / "notes.txt"
    with tarfile.open(path, "w") as archive:
        info = tarfile.TarInfo("inside.txt")
        info.size = len(TEXT.encode())
        archive.addfile(info, io.BytesIO(TEXT.encode()))
    assert converted(refusal_of(path)).read_text("utf-8") == TEXT


def test_a_zip_is_named_and_unpacked(folder: Path) -> None:
    path = folder / "notes.txt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inside.txt", TEXT)
    message = refusal_of(path)
    assert "is a zip archive, not text" in message
    assert converted(message).read_text("utf-8") == TEXT


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("word/document.xml", "docx"),
        ("xl/workbook.xml", "xlsx"),
        ("mimetype", "epub"),
        ("m/data.pkl", "arrays or pickles"),
    ],
)
def test_what_is_zipped_inside_is_told(folder: Path, entry: str, named: str) -> None:
    path = folder / "notes.txt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(entry, "x")
    assert named in refusal_of(path)


def test_parquet_becomes_json_lines(folder: Path) -> None:
    path = folder / "notes.txt"
    pq.write_table(pa.table({"id": [1, 2, 3], "body": ["one\ntwo", None, "é"]}), path)
    message = refusal_of(path)
    assert "is Parquet, not text. Convert its column 'body'" in message
    chunks = iter_chunks([converted(message)], parse_documents("jsonl:text"))
    assert [chunk.text for chunk in chunks] == ["one\ntwo\né\n"]
    assert "damaged Parquet" in refusal_of(write(folder, b"PAR1 and no more", "other.txt"))


def test_a_database_is_named_with_a_column_of_it(folder: Path) -> None:
    path = folder / "notes.txt"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE posts (id INTEGER, body TEXT)")
        database.execute("INSERT INTO posts VALUES (1, 'one'), (2, 'two')")
    database.close()
    message = refusal_of(path)
    assert 'SELECT "body" FROM "posts"' in message
    assert converted(message).read_text("utf-8") == "one\ntwo\n"


def test_documents_and_pictures_are_named(folder: Path) -> None:
    for data, named in (
        (b"%PDF-1.7\n%\xe2\xe3", "is PDF, not text.*pdftotext"),
        (b"%PDF-1.4\nplain", "is PDF, not text.*pdftotext"),
        (b"\x89PNG\r\n\x1a\n", "is PNG, not text.*tesseract"),
        (b"\xff\xd8\xff\xe0", "is JPEG, not text.*tesseract"),
        (b"{\\rtf1 plain}", "is RTF, not text.*pandoc"),
        (bytes(range(256)) * 20, "is not text but binary data"),
    ):
        path = write(folder, data)
        with pytest.raises(UserError, match=named):
            list(iter_chunks([path]))


def test_arrays_and_pickles_are_named_and_never_read(folder: Path) -> None:
    arrays = io.BytesIO()
    np.save(arrays, np.arange(3))
    weights = io.BytesIO()
    torch.save({"x": torch.zeros(2)}, weights)
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    safetensors = len(header).to_bytes(8, "little") + header + bytes(4)
    for data in (arrays.getvalue(), weights.getvalue(), pickle.dumps([TEXT]), safetensors, b"GGUF\x03\x00"):
        assert "holds arrays or pickles, not text" in refusal_of(write(folder, data))


@pytest.mark.parametrize(
    "text", ["", "\x00", "a\x00b\n" * 9, "PK is a name\n", "II\n", "BZh91 is one\n", "日本", "\ufeff"]
)
def test_text_is_text(folder: Path, text: str) -> None:
    assert "".join(chunk.text for chunk in iter_chunks([write(folder, text.encode())])) == text.removeprefix("\ufeff")
