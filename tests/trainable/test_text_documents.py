"""Text in chunks and documents: nothing is lost, every document is told, and a broken line is named."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from trainable.data import text_documents as documents_module
from trainable.data.text_documents import TextChunk, iter_chunks, parse_documents
from trainable.errors import UserError

PEAK_OF_A_LONG_LINE = """
import sys
from pathlib import Path
from tokenizers import Tokenizer
from trainable.data.text_documents import parse_documents
from trainable.data.tokens import load_corpus
corpus = load_corpus([Path(sys.argv[1])], Tokenizer.from_file(sys.argv[2]), documents=parse_documents(sys.argv[3]))
# Not ru_maxrss, which begins with that of the process that started this one.
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(len(corpus.tokens), peak)
"""

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(content: bytes | str, name: str = "a.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return written


def found(files: Path | list[Path], how: str | None = None) -> list[str]:
    """The documents' texts; what goes on in the next chunk is joined."""
    texts: list[str] = []
    for chunk in iter_chunks([files] if isinstance(files, Path) else files, parse_documents(how)):
        for span in chunk.spans:
            part = chunk.text[span.start : span.end]
            if span.begins:
                texts.append(part)
            else:
                texts[-1] += part
    return texts


def refusal_of(path: Path, how: str) -> str:
    with pytest.raises(UserError) as caught:
        list(iter_chunks([path], parse_documents(how)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_way_to_cut_is_read_and_a_wrong_one_refused() -> None:
    for how in ("file", "line", "blank-line", "jsonl:text", "jsonl:a:b"):
        assert str(parse_documents(how)) == how
    assert parse_documents(None) == parse_documents("file")
    for wrong, near in (("lines", "line"), ("jsonl", "jsonl:text"), ("jsonl:", "jsonl:text"), ("line:x", "line")):
        with pytest.raises(UserError, match=f"DOCUMENTS={wrong} is not .* Did you mean '{near}'"):
            parse_documents(wrong)


def test_documents_are_files_lines_or_paragraphs(write: Write) -> None:
    files = [write("\n one\ntwo \r\n \t\r\n\r\nthree\n\n"), write("four", "b.txt"), write("", "c.txt")]
    assert found(files) == ["\n one\ntwo \n \t\n\nthree\n\n", "four"]
    assert found(files, "line") == [" one", "two ", "three", "four"]
    assert found(files, "blank-line") == [" one\ntwo ", "three", "four"]
    assert found(write("\ufeffone\n"), "line") == ["one"]


TEXTS = st.text(alphabet="ab é\n\r\t😀", max_size=60)


@settings(deadline=None)
@given(text=TEXTS, chunk_bytes=st.integers(8, 20), how=st.sampled_from(["file", "line", "blank-line"]))
def test_chunks_of_any_size_hold_the_same_documents(
    text: str, chunk_bytes: int, how: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.txt"
    path.write_bytes(text.encode())
    whole = found(path, how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(documents_module, "CHUNK_BYTES", chunk_bytes)
        chunks = list(iter_chunks([path], parse_documents(how)))
        assert b"".join(chunk.raw for chunk in chunks) == text.encode()
        assert "".join(chunk.text for chunk in chunks) == text.replace("\r\n", "\n")
        # White space longer than a chunk is not kept between two chunks of a line.
        assert [document.split() for document in found(path, how)] == [document.split() for document in whole]
    _check_lines(chunks)


def _check_lines(chunks: list[TextChunk]) -> None:
    line = 1
    for before, chunk in zip([None, *chunks], chunks, strict=False):
        assert chunk.first_line == line
        assert chunk.continues == (before is not None and not before.raw.endswith((b"\n", b"\r")))
        line += chunk.text.count("\n") + chunk.text.count("\r")


@pytest.mark.parametrize("limit", [8, 16, 1000])
def test_chunks_are_whole_lines_where_lines_are_short(
    write: Write, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(documents_module, "CHUNK_BYTES", limit)
    texts = ["one\ntwo\r\nthree\n\n\nsix, a line that is longer than most\nende ü 😀", "\ufeffsecond file\n", ""]
    files = [write(text, f"{number}.txt") for number, text in enumerate(texts)]
    chunks = list(iter_chunks(files))
    for path, text in zip(files, texts, strict=True):
        own = [chunk for chunk in chunks if chunk.path == path]
        assert b"".join(chunk.raw for chunk in own) == text.encode()
        _check_lines(own)
    assert [chunk.path for chunk in chunks] == sorted(chunk.path for chunk in chunks)
    assert (len(chunks) > 3) == (limit < 1000)


def test_a_long_line_is_cut_before_a_word(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "CHUNK_BYTES", 16)
    chunks = list(iter_chunks([write("words and more words of a line that is long\nshort\n")]))
    assert [chunk.text for chunk in chunks][:2] == ["words and more", " words of a line"]
    assert [chunk.continues for chunk in chunks][:2] == [False, True]


def test_a_line_that_is_cut_before_its_last_blank_ends_there(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "CHUNK_BYTES", 16)
    path = write("x" * 15 + " \nsecond\n")
    assert [document.strip() for document in found(path, "line")] == ["x" * 15, "second"]
    # Of a paragraph that line is a part.
    assert found(path, "blank-line") == ["x" * 15 + " \nsecond"]


def test_a_paragraph_that_is_cut_at_an_indent_stays_one(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents_module, "CHUNK_BYTES", 16)
    path = write("ab \na \n bb\n    b\n\nnext")
    assert found(path, "blank-line") == ["ab \na \n bb\n    b", "next"]


def test_json_lines_are_documents(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    values = ["one\ntwo", "", "é 😀\r\nx", "a " * 40, "last"]
    lines = [json.dumps({"id": 1, "text": value}) for value in values]
    path = write("\ufeff" + "\r\n\n".join(lines), "a.jsonl")
    expected = ["one\ntwo", "é 😀\nx", "a " * 40, "last"]
    assert found(path, "jsonl:text") == expected
    monkeypatch.setattr(documents_module, "CHUNK_BYTES", 16)
    assert found(path, "jsonl:text") == expected
    for chunk in iter_chunks([path], parse_documents("jsonl:text")):
        assert chunk.lines is not None
        for line, text in zip(chunk.lines, chunk.text.split("\n"), strict=False):
            assert text.strip() in json.loads(path.read_text("utf-8-sig").split("\n")[line - 1])["text"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 3 is not JSON: Expecting property name"),
        ("text", "line 3 is not JSON: Expecting value at column 1"),
        ("[" * 100_000, "line 3 is not JSON"),
        ("[1]", "line 3 is not a JSON object. DOCUMENTS=jsonl takes one object a line. jq -c '.[]' FILE > FILE.jsonl "),
        ("1", "line 3 is not a JSON object. DOCUMENTS=jsonl takes one object a line."),
        ('{"txt": "x"}', "line 3 has no field 'text'. Did you mean 'txt'?"),
        ('{"text": null, "body": "x"}', "line 3: field 'text' is null, not a string. Fields with a string: body."),
        ('{"text": 3}', "line 3: field 'text' is a number, not a string. Write its text into a field."),
        ('{"text": "\\ud800"}', "line 3: field 'text' has half of a surrogate pair"),
    ],
)
def test_a_json_line_that_cannot_be_used_is_named(write: Write, line: str, says: str) -> None:
    path = write(f'{{"text": "x"}}\n\n{line}\n{{"text": "y"}}\n', "a.jsonl")
    assert f"{path} {says}" in refusal_of(path, "jsonl:text")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc")
@pytest.mark.parametrize("how", ["file", "jsonl:text"])
def test_a_line_of_100_megabytes_takes_less_than_a_gibibyte(write: Write, tmp_path: Path, how: str) -> None:
    words = f"{'x' * 999} " * 10**5
    path = write(json.dumps({"text": words}) if how.startswith("jsonl") else words)
    # One id a long word: what is measured is how text is held, and a byte-pair tokenizer would take a minute.
    quick = Tokenizer(models.WordLevel({"a": 0, "line": 1}, unk_token="a"))
    quick.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    quick.save(str(tmp_path / "quick.json"))
    command = [sys.executable, "-c", PEAK_OF_A_LONG_LINE, str(path), str(tmp_path / "quick.json"), how]
    tokens, peak_kib = map(int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert tokens == len(words.split())
    assert peak_kib < 1 << 20
