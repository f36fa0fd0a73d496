"""Tokens: cached once per text and tokenizer, never half, split at the tail, sampled within bounds."""

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from trainable.config import TrialConfig
from trainable.data import text_documents as documents_module
from trainable.data import tokens as tokens_module
from trainable.data.cache_files import sum_path
from trainable.data.corpus import size_words
from trainable.data.text_documents import parse_documents
from trainable.data.tokens import Corpus, Tokens, check_corpus, load_corpus, sample_batch, train_tokenizer
from trainable.errors import UserError

KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from tokenizers import Tokenizer
from trainable.data import text_documents, tokens
text_documents.CHUNK_BYTES = 1000
def die_halfway(what, done_frac):
    if done_frac > 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
tokens.load_corpus([Path(sys.argv[1])], Tokenizer.from_file(sys.argv[2]), progress=die_halfway)
"""


def word_tokenizer(ids: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=next(iter(ids))))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def corpus_of(tokens: Tokens, folder: Path, vocab_size: int = 300) -> Corpus:
    np.save(folder / "tokens.npy", tokens)
    return Corpus(path=folder / "tokens.npy", fingerprint="", vocab_size=vocab_size)


def arange(length: int) -> Tokens:
    return np.arange(length, dtype=np.uint16)


def test_the_tokens_are_the_tokenizers(text_file: Path, tokenizer: Tokenizer, corpus: Corpus) -> None:
    assert corpus.tokens.tolist() == tokenizer.encode(text_file.read_text()).ids
    assert tokenizer.decode(corpus.tokens.tolist()) == text_file.read_text()
    assert corpus.vocab_size == 300
    assert isinstance(corpus.tokens, np.memmap)


def test_special_tokens_are_not_added(text_file: Path, tokenizer: Tokenizer, corpus: Corpus) -> None:
    from tokenizers.processors import TemplateProcessing

    with_start = Tokenizer.from_str(tokenizer.to_str())
    with_start.add_special_tokens(["<s>"])
    with_start.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 300)])
    assert with_start.encode("x").ids[0] == 300
    np.testing.assert_array_equal(load_corpus([text_file], with_start).tokens, corpus.tokens)


def test_a_second_load_tokenizes_nothing(text_file: Path, tokenizer: Tokenizer, cache: Path) -> None:
    told: list[float] = []
    first = load_corpus([text_file], tokenizer, progress=lambda what, done_frac: told.append(done_frac))
    assert told[-1] == 1.0
    assert told == sorted(told)
    written_at = first.path.stat().st_mtime_ns
    second = load_corpus([text_file], tokenizer, progress=lambda what, done_frac: pytest.fail("tokenized again"))
    assert (second, second.path.stat().st_mtime_ns) == (first, written_at)
    assert sorted(cache.iterdir()) == [first.path, sum_path(first.path)]


def test_the_fingerprint_is_of_text_and_tokenizer(text_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    corpus = load_corpus([text_file], tokenizer)
    copy = tmp_path / "copy.txt"
    copy.write_bytes(text_file.read_bytes())
    assert load_corpus([copy], tokenizer) == corpus
    copy.write_bytes(text_file.read_bytes() + b"x")
    other_text = load_corpus([copy], tokenizer)
    changed = Tokenizer.from_str(tokenizer.to_str())
    changed.add_tokens([AddedToken("the end")])
    other_tokenizer = load_corpus([text_file], changed)
    for others in (other_text, other_tokenizer):
        assert others.fingerprint != corpus.fingerprint
        assert others.path != corpus.path
    assert len(other_text.tokens) == len(corpus.tokens) + 1
    assert other_tokenizer.vocab_size == 301


@pytest.mark.parametrize(("cores", "at_once"), [(1, 1), (3, 3), (64, 8)])
def test_many_chunks_and_files_are_joined_in_order(
    cores: int, at_once: int, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "CHUNK_BYTES", 20)
    monkeypatch.setattr(tokens_module, "cpu_cores", lambda: cores)
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    lines = [f"line {number} of a file\r\n" for number in range(40)]
    files[0].write_text("".join(lines[:30]), newline="")
    files[1].write_text("".join(lines[30:]), newline="")
    told: list[float] = []
    corpus = load_corpus(files, tokenizer, progress=lambda what, done_frac: told.append(done_frac))
    assert tokenizer.decode(corpus.tokens.tolist()) == "".join(lines).replace("\r\n", "\n")
    # A core has a chunk at a time, of a document too.
    assert len(told) == math.ceil(sum(1 for _ in documents_module.iter_chunks(files)) / at_once) > 4


def test_tokens_of_another_rule_for_long_lines_are_made_again(
    text_file: Path, tokenizer: Tokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = load_corpus([text_file], tokenizer)
    monkeypatch.setattr("trainable.data.tokens.CUTS", 1)
    before = load_corpus([text_file], tokenizer)
    assert (before.fingerprint, before.path == now.path) == (now.fingerprint, False)


def test_a_killed_writer_leaves_no_cache(text_file: Path, tokenizer: Tokenizer, corpus: Corpus, cache: Path) -> None:
    saved = cache.parent / "tokenizer.json"
    tokenizer.save(str(saved))
    command = [sys.executable, "-c", KILLED_WRITER, str(text_file), str(saved)]
    assert subprocess.run(command, env=os.environ, check=False).returncode == -signal.SIGKILL
    assert cache.is_dir()
    assert list(cache.glob("*.npy")) == []
    np.testing.assert_array_equal(load_corpus([text_file], tokenizer).tokens, corpus.tokens)


def test_a_failing_writer_leaves_nothing(
    text_file: Path, tokenizer: Tokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(
            UserError, match=r"tokens-\w+\.npy cannot be written: No space left .* set another CACHE_DIR"
        ):
            load_corpus([text_file], tokenizer)
    with pytest.raises(KeyboardInterrupt):
        load_corpus([text_file], tokenizer, progress=lambda what, done_frac: signal.raise_signal(signal.SIGINT))
    assert list(cache.iterdir()) == []


def test_a_text_whose_tokens_do_not_fit_is_refused_at_its_beginning(
    text_file: Path, tokenizer: Tokenizer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents_module, "CHUNK_BYTES", 1000)
    monkeypatch.setattr(tokens_module, "cpu_cores", lambda: 1)
    whole = load_corpus([text_file], tokenizer)
    size_bytes = whole.path.stat().st_size
    whole.path.unlink()
    free, usage = size_bytes // 2, shutil.disk_usage(cache)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))
    told: list[float] = []
    refusal = rf"npy cannot be written: the text's tokens take about .* and {size_words(free)} is free there\."
    with pytest.raises(UserError, match=refusal):
        load_corpus([text_file], tokenizer, progress=lambda what, done_frac: told.append(done_frac))
    assert len(told) <= 1
    assert list(cache.glob("*.npy")) == []
    # Nearly enough may be enough: the beginning is no measure of the rest.
    free = round(0.95 * size_bytes)
    assert load_corpus([text_file], tokenizer) == whole


def test_the_last_tenth_is_the_validation_part(corpus: Corpus, tmp_path: Path) -> None:
    np.testing.assert_array_equal(np.concatenate([corpus.train, corpus.val]), corpus.tokens)
    small = corpus_of(arange(109), tmp_path)
    assert small.train.tolist() == list(range(98))
    assert small.val.tolist() == list(range(98, 109))


@pytest.mark.parametrize(("largest", "dtype"), [(65_535, np.uint16), (65_536, np.uint32), (150_000, np.uint32)])
def test_ids_take_two_bytes_where_they_fit(tmp_path: Path, largest: int, dtype: type[np.integer]) -> None:
    text = tmp_path / "words.txt"
    text.write_text("first last first unheard last\n")
    corpus = load_corpus([text], word_tokenizer({"none": 0, "first": 1, "last": largest}))  # ids with a gap
    assert corpus.vocab_size == largest + 1
    assert corpus.tokens.dtype == dtype
    assert corpus.tokens.tolist() == [1, largest, 1, 0, largest]


def test_entropy_is_of_the_training_part(corpus: Corpus, tmp_path: Path) -> None:
    evenly = corpus_of(arange(360) % np.uint16(4), tmp_path)
    assert evenly.unigram_entropy == pytest.approx(math.log(4), rel=1e-12)
    # 90 training tokens, 80 % of one id and 20 % of another, and a validation part of a third.
    skewed = corpus_of(np.array([0] * 72 + [1] * 18 + [2] * 10, dtype=np.uint16), tmp_path)
    assert skewed.unigram_entropy == pytest.approx(-(0.8 * math.log(0.8) + 0.2 * math.log(0.2)), rel=1e-12)
    assert 0 < corpus.unigram_entropy < math.log(300)


def test_a_corpus_travels_as_its_path(corpus: Corpus) -> None:
    assert len(corpus.tokens) > 10_000
    assert corpus.unigram_entropy
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 1000
    copy = pickle.loads(pickled)
    assert copy == corpus
    np.testing.assert_array_equal(copy.tokens, corpus.tokens)


def test_a_corpus_too_short_for_a_block_is_refused(tmp_path: Path) -> None:
    corpus = corpus_of(arange(1000), tmp_path)  # 900 and 100 tokens
    check_corpus(corpus, block_size=899, eval_block_size=99)
    with pytest.raises(UserError, match=r"too short: its train part has 900 tokens .* 900 needs 901\. Name a longer"):
        check_corpus(corpus, block_size=900, eval_block_size=99)
    with pytest.raises(UserError, match=r"part has 100 tokens .* a smaller EVAL_BLOCK_SIZE, or \[evaluation\] block"):
        check_corpus(corpus, block_size=2, eval_block_size=100)


def test_white_space_alone_is_too_short(tmp_path: Path) -> None:
    text = tmp_path / "white.txt"
    text.write_text("\n \n\t\n")
    corpus = load_corpus([text], train_tokenizer([text], 300))
    with pytest.raises(UserError, match="the corpus is too short"):
        check_corpus(corpus, block_size=16, eval_block_size=16)
    with pytest.raises(UserError, match="no tokens under this tokenizer"):
        load_corpus([text], word_tokenizer({"none": 0}))


def test_a_batch_is_windows_of_the_text() -> None:
    batch = sample_batch(arange(500), TrialConfig(batch_size=7, block_size=16), torch.Generator().manual_seed(0))
    assert batch.shape == (7, 17)
    assert batch.dtype == torch.int64
    assert (batch[:, 1:] == batch[:, :-1] + 1).all()


def test_every_window_can_be_drawn_and_none_beyond() -> None:
    batch = sample_batch(arange(20), TrialConfig(batch_size=2000, block_size=16), torch.Generator().manual_seed(0))
    counts = torch.bincount(batch[:, 0])
    assert len(counts) == 4
    assert batch.max() == 19
    assert counts.min() > 400
    only = sample_batch(arange(17), TrialConfig(batch_size=3, block_size=16), torch.Generator())
    assert (only == torch.arange(17)).all()


def test_batches_depend_on_their_generator_alone() -> None:
    def draw(seed: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        torch.rand(seed + 1)  # the global generator has no part in it
        return [sample_batch(arange(900), TrialConfig(batch_size=4, block_size=8), generator) for _ in range(3)]

    first, again, other = draw(0), draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])


def test_a_tokenizer_is_trained_once_per_text_and_size(
    text_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = train_tokenizer([text_file], 290)
    assert trained.get_vocab_size() == 290
    again = train_tokenizer([text_file], 290, progress=lambda what, done_frac: pytest.fail("trained again"))
    assert again.to_str() == trained.to_str()
    assert train_tokenizer([text_file], 280).get_vocab_size() == 280
    assert len(list(cache.glob("tokenizer-*.json"))) == 2
    monkeypatch.setenv("CACHE_DIR", str(cache / "other"))
    assert train_tokenizer([text_file], 290).to_str() == trained.to_str()


def test_a_trained_tokenizer_knows_every_byte(text_file: Path) -> None:
    tokenizer = train_tokenizer([text_file], 300)
    for text in ("Überraschung 😀\r\n", "\t  \x00\x7f", "漢字 und Ελληνικά"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.token_to_id("<|endoftext|>") == 0


def test_a_tokenizer_is_trained_on_the_head_of_a_large_text(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens_module, "TOKENIZER_SAMPLE_CHARS", 10_000)
    monkeypatch.setattr(documents_module, "CHUNK_BYTES", 3_000)
    head = tmp_path / "head.txt"
    head.write_text(text_file.read_text()[:10_000])
    assert train_tokenizer([text_file], 300).to_str() == train_tokenizer([head], 300).to_str()


def test_the_separator_stands_between_files_and_documents(tokenizer: Tokenizer, tmp_path: Path) -> None:
    own = Tokenizer.from_str(tokenizer.to_str())
    own.add_special_tokens(["<end>"])
    end = own.token_to_id("<end>")
    files = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    for path, text in zip(files, ("one\ntwo\n", "", "three"), strict=True):
        path.write_text(text)
    first, second, third = (own.encode(text).ids for text in ("one", "two", "three"))
    expected = {
        "file": [*own.encode("one\ntwo\n").ids, end, *third],
        "line": [*first, end, *second, end, *third],
        "blank-line": [*own.encode("one\ntwo").ids, end, *third],
    }
    fingerprints = set()
    for how, ids in expected.items():
        documents = parse_documents(how)
        corpus = load_corpus(files, own, documents=documents, separator_id=end)
        assert corpus.tokens.tolist() == ids
        without = load_corpus(files, own, documents=documents)
        assert without.tokens.tolist() == [token for token in ids if token != end]
        fingerprints |= {corpus.fingerprint, without.fingerprint}
    assert len(fingerprints) == 6


def test_documents_are_separated_alike_whatever_the_chunks(
    text_file: Path, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = text_file.read_text().splitlines()[:200]
    records = tmp_path / "records.jsonl"
    records.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    plain = tmp_path / "plain.txt"
    plain.write_text("\n\n".join(lines))
    monkeypatch.setattr(documents_module, "CHUNK_BYTES", 500)
    expected = [id_ for line in lines for id_ in (7, *tokenizer.encode(line).ids)][1:]
    for path, how in ((plain, "line"), (plain, "blank-line"), (records, "jsonl:text")):
        assert (
            load_corpus([path], tokenizer, documents=parse_documents(how), separator_id=7).tokens.tolist() == expected
        )


def test_a_validation_text_of_its_own_is_held_out_whole(text_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("words of the other text " * 50)
    tail = load_corpus([text_file], tokenizer)
    corpus = load_corpus([text_file], tokenizer, validation_files=[other])
    np.testing.assert_array_equal(corpus.train, tail.tokens)
    assert corpus.val.tolist() == tokenizer.encode(other.read_text()).ids
    assert corpus.validation is not None
    assert len({corpus.fingerprint, corpus.validation.fingerprint, tail.fingerprint}) == 3
    other.write_text("words of another text " * 50)
    assert load_corpus([text_file], tokenizer, validation_files=[other]).fingerprint != corpus.fingerprint
    assert len(pickle.dumps(corpus)) < 1000
    with pytest.raises(UserError, match=r"its validation part .* Name a longer VALIDATION_DATA_SOURCE"):
        check_corpus(corpus, block_size=8, eval_block_size=100_000)
