"""Files of the cache: believed only while they are what was written, made again otherwise, never left half-written."""

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from trainable.data import cache_files, corpus, text_documents
from trainable.data import tokens as tokens_module
from trainable.data.cache_files import cached_sum, sum_path, writing
from trainable.data.corpus import language_reference, source_files
from trainable.data.text_documents import Documents, iter_chunks
from trainable.data.tokens import load_corpus, train_tokenizer
from trainable.errors import InputChangedError, UserError


def foreign(path: Path) -> None:
    np.save(path, np.zeros(9, dtype=np.int64))


def swapped(path: Path) -> None:
    """As many tokens of as many bytes: nothing but the checksum can tell."""
    np.save(path, np.load(path)[::-1])


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


HARMS: list[Callable[[Path], None]] = [zeroed, cut, grown, emptied, pipe, Path.unlink]


@pytest.mark.parametrize("harm", [*HARMS, foreign, swapped])
def test_harmed_tokens_are_made_again_with_a_word(
    text_file: Path, tokenizer: Tokenizer, harm: Callable[[Path], None]
) -> None:
    whole = load_corpus([text_file], tokenizer)
    tokens = whole.tokens.tolist()
    harm(whole.path)
    told: list[str] = []
    again = load_corpus([text_file], tokenizer, progress=lambda what, done_frac: told.append(what))
    assert (again, again.tokens.tolist()) == (whole, tokens)
    assert told[0] == (
        "tokenizing the corpus"
        if harm == Path.unlink
        else f"{whole.path} is damaged or has no checksum: making it again"
    )


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_checksum_is_no_checksum(text_file: Path, tokenizer: Tokenizer, harm: Callable[[Path], None]) -> None:
    whole = load_corpus([text_file], tokenizer)
    harm(sum_path(whole.path))
    assert cached_sum(whole.path) is None
    assert load_corpus([text_file], tokenizer) == whole
    assert cached_sum(whole.path) == whole.sha256


@pytest.mark.parametrize("harm", [zeroed, cut, emptied, pipe])
def test_a_harmed_tokenizer_and_embedded_text_are_made_again(
    text_file: Path, cache: Path, harm: Callable[[Path], None]
) -> None:
    whole = train_tokenizer([text_file], 290).to_str()
    [path] = cache.glob("tokenizer-*.json")
    harm(path)
    assert train_tokenizer([text_file], 290).to_str() == whole
    [path] = source_files(None)
    harm(path)
    assert source_files(None) == [path]
    assert path.read_text(encoding="utf-8") == language_reference()
    assert corpus.embedded_text_is_cached()


def test_the_content_is_read_once_a_process_and_after_every_change(
    text_file: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    digest = hashlib.file_digest

    def noted(file: Any, name: str) -> Any:
        read.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", noted)
    whole = load_corpus([text_file], tokenizer)
    read.clear()
    for _ in range(3):
        assert load_corpus([text_file], tokenizer) == whole
    assert read == []
    os.utime(whole.path)
    assert load_corpus([text_file], tokenizer) == whole
    assert read == [str(whole.path)]


def test_workers_compare_the_tokens_that_they_open(text_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = load_corpus([text_file], tokenizer)
    mapped = whole.tokens
    first = mapped[:9].tolist()
    other = tmp_path / "other.npy"
    np.save(other, mapped[::-1])
    other.replace(whole.path)
    assert mapped[:9].tolist() == first, "what is open stays"
    # Sent to a worker, it is opened anew.
    del whole.__dict__["tokens"]
    with pytest.raises(InputChangedError, match=f"the input has changed since it was first read: {whole.path}$"):
        _ = whole.tokens
    whole.path.unlink()
    with pytest.raises(InputChangedError, match=f"the input is gone: {whole.path}$"):
        _ = whole.tokens


@pytest.mark.parametrize("documents", [Documents(), Documents(kind="line"), Documents(kind="jsonl", field="text")])
def test_the_text_is_hashed_as_it_is_read(tmp_path: Path, documents: Documents) -> None:
    files = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for path, lines in zip(files, (3, 0, 100_000), strict=True):
        path.write_text('{"text": "some words"}\n' * lines)
    digest = hashlib.sha256()
    for _ in iter_chunks(files, documents, digest=digest):
        pass
    assert digest.hexdigest() == corpus.text_fingerprint(files)


def test_a_text_that_changes_between_two_reads_is_refused(
    text_file: Path, tokenizer: Tokenizer, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(text_file.read_bytes())
    fingerprinted = corpus.text_fingerprint

    def then_changed(files: list[Path]) -> str:
        found = fingerprinted(files)
        text.write_bytes(text_file.read_bytes()[::-1])
        return found

    monkeypatch.setattr(tokens_module, "text_fingerprint", then_changed)
    with pytest.raises(UserError, match=r"^the text changed while it was read\. Run the command again"):
        load_corpus([text], tokenizer)
    text.write_bytes(text_file.read_bytes())
    with pytest.raises(UserError, match=r"^the text changed while it was read\."):
        train_tokenizer([text], 290)
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("is_deleted", [False, True])
def test_a_text_that_grows_while_it_is_tokenized_is_refused_at_once(
    is_deleted: bool,
    text_file: Path,
    tokenizer: Tokenizer,
    cache: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(text_file.read_bytes())
    monkeypatch.setattr(text_documents, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(tokens_module, "cpu_cores", lambda: 1)
    told: list[float] = []

    def then_changed(what: str, done_frac: float) -> None:
        told.append(done_frac)
        if is_deleted:
            text.unlink()
        else:
            text.write_bytes(text_file.read_bytes() + b"more\n")

    with pytest.raises(UserError, match=r"^the text changed while it was read\."):
        load_corpus([text], tokenizer, progress=then_changed)
    assert len(told) == 1
    assert list(cache.iterdir()) == []


FULL = """
import resource, sys
from pathlib import Path
from tokenizers import Tokenizer
from trainable.data import tokens
resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
try:
    if sys.argv[2]:
        tokens.load_corpus([Path(sys.argv[1])], Tokenizer.from_file(sys.argv[2]))
    else:
        tokens.train_tokenizer([Path(sys.argv[1])], 500)
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("what", ["tokens", "tokenizer"])
def test_a_full_disk_is_one_line(text_file: Path, tokenizer: Tokenizer, cache: Path, what: str) -> None:
    saved = cache.parent / "tokenizer.json"
    tokenizer.save(str(saved))
    words = [sys.executable, "-c", FULL, str(text_file), str(saved) if what == "tokens" else ""]
    ran = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")
    line = rf"{cache}/{what}-\w+\.\w+ cannot be written: File too large\. Make room, or set another CACHE_DIR\.\n"
    assert re.fullmatch(line, ran.stdout), ran.stdout
    assert list(cache.iterdir()) == []


def test_what_dead_processes_left_is_swept_and_a_living_ones_is_not(tmp_path: Path) -> None:
    paths = [tmp_path / f".{name}.tmp" for name in ("dead", "new", "held")]
    for path in paths:
        path.write_text("half")
    old = time.time() - cache_files.LEFT_AFTER_S - 1
    for path in (paths[0], paths[2]):
        os.utime(path, (old, old))
    with paths[2].open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with writing(tmp_path / "file") as file:
            file.write(b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".held.tmp", ".new.tmp", "file", "file.sha256"]
