import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import trainable.data.text_documents
from trainable.data.text_documents import parse_documents
from trainable.data.tokens import load_corpus, silent
from trainable.text_audit.scan import scan_text
from trainable.text_audit.text import Source, iter_pieces
from trainable.text_audit.units import LONG_BYTES, cut_units

TEXT = "Plain words.\r\nÜber naïve café — “quoted” text, 日本語 and 😀.\n\n\n   indented\n" * 30 + "no line end"


@given(st.text(alphabet="ab é\n\r\t", max_size=60))
@settings(max_examples=300, deadline=None)
def test_units_are_the_lines_with_blank_ones_joined_to_the_line_before(text: str) -> None:
    data = np.frombuffer(text.encode(), dtype=np.uint8)
    if len(data) == 0:
        return
    cuts = cut_units(data, first_line=1, continues=False)
    lines = io.StringIO(text, newline="").readlines()
    expected: list[list[str]] = []
    for index, line in enumerate(lines):
        if index and not line.strip(" \t\r\n"):
            expected[-1].append(line)
        else:
            expected.append([line])
    bounds = [*cuts.starts.tolist(), len(data)]
    pieces = [data[a:b].tobytes().decode() for a, b in pairwise(bounds)]
    assert pieces == ["".join(group) for group in expected]
    firsts = np.cumsum([1, *(len(group) for group in expected[:-1])])
    assert cuts.line.tolist() == firsts.tolist()
    assert cuts.ends_paragraph.tolist() == [len(group) > 1 for group in expected]
    assert cuts.lines == sum(line.endswith(("\n", "\r")) for line in lines)


@given(st.lists(st.sampled_from(["word ", "End. ", "x" * 90, "é" * 100, "日" * 50]), max_size=60))
@settings(max_examples=100, deadline=None)
def test_long_lines_are_cut_between_characters_and_never_lost(words: list[str]) -> None:
    line = ("start " + "".join(words) + "\n").encode()
    data = np.frombuffer(line, dtype=np.uint8)
    cuts = cut_units(data, first_line=7, continues=False)
    bounds = [*cuts.starts.tolist(), len(data)]
    pieces = [line[a:b] for a, b in pairwise(bounds)]
    assert all(len(piece) <= LONG_BYTES for piece in pieces)
    assert [piece.decode() for piece in pieces]
    assert set(cuts.line.tolist()) == {7}
    assert cuts.starts_line.tolist() == [True] + [False] * (len(pieces) - 1)
    assert cuts.ends_line.tolist() == [False] * (len(pieces) - 1) + [True]


def byte_level(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def word_pieces(text: str) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, word_pieces])
def test_every_unit_knows_its_first_token(make: type, tmp_path: Path) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    giant = "one long line of words " * 1000
    for path, text in zip(files, (TEXT, TEXT[:500] + giant), strict=True):
        path.write_bytes(text.replace("\r\n", "\n").encode())
    tokenizer = make(TEXT)
    tokens = load_corpus(files, tokenizer).tokens
    units = scan_text(Source(files=files, tokenizer=tokenizer, tokens=tokens), silent).units
    offset = 0
    for index, path in enumerate(files):
        text = path.read_bytes().decode()
        encoding = tokenizer.encode(text, add_special_tokens=False)
        byte_of = np.cumsum([0, *(len(character.encode()) for character in text)])
        starts = byte_of[np.array([start for start, _ in encoding.offsets])]
        of_file = units.file_index == index
        expected = offset + np.searchsorted(starts, units.first_byte[of_file])
        assert np.abs(units.first_token[of_file] - expected).max() <= 1  # a token may begin with the line end before
        assert units.first_byte[of_file][0] == 0
        assert units.end_byte[of_file][-1] == len(text.encode())
        assert (units.first_byte[of_file][1:] == units.end_byte[of_file][:-1]).all()
        offset += len(encoding.ids)
    assert units.tokens == offset == len(tokens)


def test_lines_of_a_file_in_several_chunks_are_counted_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainable.data.text_documents, "CHUNK_BYTES", 5000)
    path = tmp_path / "a.txt"
    text = "".join(f"line {n}\r\n" for n in range(1, 2001)) + "x " * 20_000 + "\nlast\n"
    path.write_bytes(text.encode())
    tokenizer = byte_level("line 0123456789\n")
    tokens = load_corpus([path], tokenizer).tokens
    source = Source(files=[path], tokenizer=tokenizer, tokens=tokens)
    assert len(list(iter_pieces(source))) > 5
    scan = scan_text(source, silent)
    assert scan.lines == 2002
    units, data = scan.units, text.encode()
    for unit in np.flatnonzero(units.starts_line)[:2000].tolist():
        shown = data[units.first_byte[unit] : units.end_byte[unit]].decode()
        assert shown == f"line {units.line[unit]}\r\n"
    assert units.line[-1] == 2002
    assert units.starts_line.sum() == 2002


@pytest.mark.parametrize("make", [byte_level, word_pieces])
@pytest.mark.parametrize("how", ["file", "line", "blank-line"])
def test_positions_are_right_with_separators_marks_and_line_ends_of_two_characters(
    make: Callable[[str], Tokenizer], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable.data.text_documents, "CHUNK_BYTES", 700)
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, text in zip(files, ("\ufeff" + TEXT, TEXT[:500].replace("\r", "").replace("\n", "\r\n")), strict=True):
        path.write_bytes(text.encode())
    tokenizer, documents = make(TEXT), parse_documents(how)
    tokens = load_corpus(files, tokenizer, documents=documents, separator_id=3).tokens
    source = Source(files=files, tokenizer=tokenizer, tokens=tokens, documents=documents, separator_id=3)
    units = scan_text(source, silent).units
    data = [path.read_bytes() for path in files]
    for unit in range(len(units)):
        file = units.file_index[unit]
        line = data[file][units.first_byte[unit] : units.end_byte[unit]].decode().strip("\ufeff\r\n")
        assert units.line[unit] == data[file][: units.first_byte[unit]].count(b"\n") + 1
        ids = tokens[units.first_token[unit] : units.end_token[unit]].tolist()
        expected = tokenizer.encode(line, add_special_tokens=False).ids
        if how == "line":
            assert ids == [*([3] if unit else []), *expected]
        else:
            # The line ends are tokens too, and may join the line after them.
            assert len(expected) - 4 <= len(ids) <= len(expected) + 4
    assert units.tokens == len(tokens)


def test_units_of_json_lines_are_the_texts_with_the_lines_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    texts = [f"record {number}\nits second line é" for number in range(300)]
    path.write_text("\n".join(json.dumps({"id": "x", "text": text}) + "\n" for text in texts))
    tokenizer, documents = byte_level(TEXT), parse_documents("jsonl:text")
    tokens = load_corpus([path], tokenizer, documents=documents, separator_id=3).tokens
    source = Source(files=[path], tokenizer=tokenizer, tokens=tokens, documents=documents, separator_id=3)
    units = scan_text(source, silent).units
    assert len(units) == 600
    for unit in range(600):
        ids = tokens[units.first_token[unit] : units.end_token[unit]].tolist()
        decoded = tokenizer.decode([id_ for id_ in ids if id_ != 3])
        assert decoded.strip("\n") == texts[unit // 2].split("\n")[unit % 2]
        assert units.line[unit] == 2 * (unit // 2) + 1


def test_a_json_text_that_ends_in_a_carriage_return_moves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one\r", "two\r\r", "th\rree", "four")))
    tokenizer, documents = byte_level(TEXT), parse_documents("jsonl:text")
    tokens = load_corpus([path], tokenizer, documents=documents).tokens
    source = Source(files=[path], tokenizer=tokenizer, tokens=tokens, documents=documents)
    assert scan_text(source, silent).units.line.tolist() == [1, 2, 3, 3, 4]
