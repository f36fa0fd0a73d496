"""Text sources: the embedded text, files and folders, chunks of whole lines, and what is said of broken ones."""

import hashlib
import inspect
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from trainable.data import corpus
from trainable.data.corpus import cache_dir, embedded_text, iter_chunks, source_files, text_fingerprint
from trainable.errors import UserError

HASH_OF_TEXT = """
import hashlib
from trainable.data.corpus import embedded_text
print(hashlib.sha256(embedded_text().encode()).hexdigest())
"""


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def refusal_of(files: list[Path]) -> str:
    with pytest.raises(UserError) as caught:
        list(iter_chunks(files))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def python_text() -> str:
    return embedded_text()


def test_the_embedded_text_is_about_two_megabytes_of_english(python_text: str) -> None:
    assert 1_500_000 < len(python_text.encode()) < 3_000_000
    assert 0.02 < python_text.count(" the ") * 5 / len(python_text) < 0.1


def test_each_passage_is_there_once(python_text: str) -> None:
    paragraphs = [paragraph for paragraph in python_text.split("\n\n") if len(paragraph.split()) >= 12]
    assert len(paragraphs) > 5000
    assert len(set(paragraphs)) == len(paragraphs)
    for passage in (topics["assert"], inspect.getdoc(json.dumps)):
        assert passage is not None
        assert python_text.count(passage.split("\n\n")[0]) >= 1


def test_the_embedded_text_is_the_same_in_every_process(python_text: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    command = [sys.executable, "-W", "error", "-c", HASH_OF_TEXT]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256(python_text.encode()).hexdigest()


def test_docstrings_are_taken_once_and_only_the_long_english_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdlib = tmp_path / "test" / "site-packages" / "lib"  # a Python may be installed under such names
    same, other = "The same words in two places. " * 4, "Words of a class's method, long enough. " * 4
    write(stdlib / "a.py", f'"""{same}"""\n')
    lines = ["def f():", f'    """{same}"""', "class C:", "    async def g(self):", f'        "{other}"']
    write(stdlib / "package" / "b.py", "\n".join(lines))
    write(stdlib / "short.py", '"""Short words."""\n')
    write(stdlib / "accents.py", '"""' + "Des mots français, assez longs pour être pris. " * 4 + '"""\n')
    write(stdlib / "broken.py", f'"""{same}""" if\n')
    write(stdlib / "test" / "c.py", '"""' + "Words of a test, long enough to be taken. " * 4 + '"""\n')
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(stdlib)})
    text = embedded_text()
    assert text.count(same.strip()) == 1
    assert text.count(other.strip()) == 1
    for absent in ("Short words.", "mots", "Words of a test"):
        assert absent not in text
    assert text.endswith("\n")


def test_the_embedded_text_is_cached(cache: Path, python_text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "embedded_text", lambda: python_text)
    (path,) = source_files(None)
    assert path.parent == cache
    assert path.read_text(encoding="utf-8") == python_text
    monkeypatch.setattr(corpus, "embedded_text", lambda: pytest.fail("made again"))
    assert source_files(None) == [path]
    assert list(cache.iterdir()) == [path]


def test_a_file_is_itself_whatever_its_suffix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "book.dat", "words")
    monkeypatch.chdir(tmp_path)
    assert source_files(str(path)) == source_files("book.dat") == [path]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert source_files("~/book.dat") == [path]


def test_a_folder_is_its_text_files_in_order(tmp_path: Path) -> None:
    names = ["b.txt", "a.md", "deep/er/c.TXT", "deep/d.text"]
    for name in [*names, "code.py", "txt", "table.csv"]:
        write(tmp_path / "texts" / name, name)
    (tmp_path / "texts" / "folder.txt").mkdir()
    assert source_files(str(tmp_path / "texts")) == sorted(tmp_path / "texts" / name for name in names)


def test_a_source_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "file", "words")
    for source, what in [
        ("empty", r"the folder holds no text file \(\.txt, \.text, \.md\)"),
        ("missing", r"does not exist"),
        ("pipe", r"is not a regular file"),
        ("file/below", r"cannot be used: Not a directory"),
        ("x" * 300, r"cannot be used: File name too long"),
    ]:
        with pytest.raises(UserError, match=f"TRAINING_DATA_SOURCE=.*{what}"):
            source_files(str(tmp_path / source))
    with pytest.raises(UserError, match="TRAINING_DATA_SOURCE=~nobody_of_that_name/x cannot be used"):
        source_files("~nobody_of_that_name/x")


def test_an_empty_source_is_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / name, "") for name in ("a.txt", "b.txt")]
    with pytest.raises(UserError, match=r"a\.txt is empty\. Name a TRAINING_DATA_SOURCE"):
        text_fingerprint(files)
    assert text_fingerprint([*files, write(tmp_path / "c.txt", "\n")])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    gone, folder = tmp_path / "gone.txt", tmp_path / "folder.txt"
    folder.mkdir()
    assert refusal_of([gone]) == f"{gone} cannot be read: No such file or directory."
    assert refusal_of([folder]) == f"{folder} cannot be read: Is a directory."
    with pytest.raises(UserError, match=r"gone\.txt cannot be read: No such file"):
        text_fingerprint([gone])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_read_permission_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "secret.txt", "words")
    path.chmod(0)
    assert refusal_of([path]) == f"{path} cannot be read: Permission denied."


@pytest.mark.parametrize(
    ("content", "line", "byte"),
    [
        (b"caf\xe9\n", 1, 3),
        (b"one\ntwo \xc3\xa9\nthr\xff\xfe\n", 3, 14),
        (b"one\r\ntwo\xe2\x82", 2, 8),
        ("é".encode() * 700_000 + b"\n\x80", 2, 1_400_001),
        ("words".encode("utf-16"), 1, 0),
    ],
)
def test_a_file_that_is_not_utf8_is_refused_with_line_and_byte(
    tmp_path: Path, content: bytes, line: int, byte: int
) -> None:
    path = write(tmp_path / "latin.txt", content)
    assert f"{path} is not UTF-8 text: line {line}, byte {byte}. Convert it, e.g. iconv " in refusal_of([path])


@pytest.mark.parametrize("limit", [1, 7, 1000])
def test_chunks_are_whole_lines_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(corpus, "CHUNK_CHARS", limit)
    texts = ["one\ntwo\r\nthree\n\n\nsix, a line that is longer than most\nende ü 😀", "\ufeffsecond file\n", ""]
    files = [write(tmp_path / f"{number}.txt", text) for number, text in enumerate(texts)]
    chunks = list(iter_chunks(files))
    for path, text in zip(files, texts, strict=True):
        own = [chunk for chunk in chunks if chunk.path == path]
        assert "".join(chunk.text for chunk in own) == text
        line = 1
        for chunk in own:
            assert chunk.first_line == line
            line += chunk.text.count("\n")
    assert [chunk.path for chunk in chunks] == sorted(chunk.path for chunk in chunks)
    assert (len(chunks) > 3) == (limit < 1000)


def test_line_ends_are_kept(tmp_path: Path) -> None:
    content = b"dos\r\nunix\nmac\rend"
    (chunk,) = iter_chunks([write(tmp_path / "ends.txt", content)])
    assert chunk.text.encode() == content


def test_a_line_longer_than_a_chunk_is_one_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "CHUNK_CHARS", 10)
    chunks = list(iter_chunks([write(tmp_path / "long.txt", "x" * 500 + "\nshort\n")]))
    assert [len(chunk.text) for chunk in chunks] == [501, 6]


def test_the_fingerprint_is_that_of_the_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.txt", "one\r\n"), write(tmp_path / "b.txt", "two\n")
    assert text_fingerprint([first, second]) == hashlib.sha256(b"one\r\ntwo\n").hexdigest()
    assert text_fingerprint([second, first]) != text_fingerprint([first, second])
    assert text_fingerprint([first]) != text_fingerprint([write(tmp_path / "unix.txt", "one\n")])


def test_the_cache_folder_is_made_where_it_is_wanted(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not cache.exists()
    assert cache_dir() == cache
    assert cache.is_dir()
    monkeypatch.setenv("CACHE_DIR", str(write(cache / "file", "")))
    with pytest.raises(UserError, match=r"CACHE_DIR=.*file cannot be used: File exists"):
        cache_dir()
