"""Tokenizers that do not fit their text or model, and validation text that training has seen."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from trainable.data.corpus import language_reference
from trainable.data.text_documents import parse_documents
from trainable.data.tokens import Corpus, Tokens, load_corpus
from trainable.preflight import corpus_checks
from trainable.preflight.corpus_checks import (
    check_overlap,
    check_tokenizer_fit,
    check_tokenizer_ids,
    measure_overlap,
)


@pytest.fixture
def random_tokens() -> Callable[[int, int], Tokens]:
    """Return a function that draws so many ids from a seed."""
    return lambda seed, count: np.random.default_rng(seed).integers(0, 500, count).astype(np.uint16)


def _words_tokenizer(text: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(text, trainers.WordLevelTrainer(special_tokens=["[UNK]"], show_progress=False))
    return tokenizer


def test_ids_that_the_model_lacks_fail(tokenizer: Tokenizer, corpus: Corpus) -> None:
    assert check_tokenizer_ids(tokenizer, corpus, 300).status == "pass"
    check = check_tokenizer_ids(tokenizer, corpus, 299)
    assert check.status == "fail"
    assert "highest id 299" in check.measured
    assert "do not belong together" in check.advice


def test_a_tokenizer_of_the_texts_own_fits(tokenizer: Tokenizer, corpus: Corpus, text_file: Path) -> None:
    for files in ([text_file], []):
        check = check_tokenizer_fit(tokenizer, corpus, files)
        assert check.status == "pass", check
        assert "round trip exact, unknown tokens 0.00%" in check.measured


def test_of_json_lines_the_text_is_looked_at(
    tokenizer: Tokenizer, corpus: Corpus, text_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.jsonl"
    path.write_text(json.dumps({"id": 1, "text": text_file.read_text()}), encoding="utf-8")
    plain = check_tokenizer_fit(tokenizer, corpus, [text_file])
    assert check_tokenizer_fit(tokenizer, corpus, [path], parse_documents("jsonl:text")) == plain


def test_a_tokenizer_that_does_not_know_the_words_fails(text_file: Path) -> None:
    other = _words_tokenizer(["words that are nowhere in the text"])
    check = check_tokenizer_fit(other, load_corpus([text_file], other), [text_file])
    assert check.status == "fail"
    assert "does not know this text" in check.advice


def test_a_tokenizer_that_changes_case_is_named(text_file: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    lower = Tokenizer.from_str(tokenizer.to_str())
    lower.normalizer = normalizers.Lowercase()
    shouted = tmp_path / "shouted.txt"
    shouted.write_text(text_file.read_text().capitalize())
    check = check_tokenizer_fit(lower, load_corpus([shouted], lower), [shouted])
    assert check.status == "warn"
    assert "does not come back" in check.advice


def test_a_tokenizer_of_another_script_is_named(tmp_path: Path) -> None:
    text = tmp_path / "greek.txt"
    text.write_text("".join(chr(0x3B1 + place % 24) for place in np.random.default_rng(0).integers(0, 24, 20_000)))
    latin = Tokenizer(models.BPE())
    latin.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    latin.decoder = decoders.ByteLevel()
    words = ["".join(letters) for letters in np.random.default_rng(0).choice(list("abcdefghij"), (2000, 5))]
    latin.train_from_iterator(
        words,
        trainers.BpeTrainer(vocab_size=2000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    check = check_tokenizer_fit(latin, load_corpus([text], latin), [text])
    assert check.status == "warn"
    assert "1.00 bytes/token" in check.measured


def test_a_clean_split_passes_and_says_its_share(corpus: Corpus, tokenizer: Tokenizer) -> None:
    check = check_overlap(corpus, tokenizer)
    assert check.status == "pass"
    assert check.measured.startswith("0.0% of the validation 128-grams occur in training")


def test_the_longest_copy_is_measured_to_the_token(random_tokens: Callable[[int, int], Tokens]) -> None:
    train, val = random_tokens(0, 50_000), random_tokens(1, 10_000)
    nothing = measure_overlap(train, val)
    assert nothing is not None
    assert (nothing.shared_frac, nothing.long_copy_frac, nothing.longest_tokens) == (0.0, 0.0, 0)
    val[2000:2300] = train[7:307]
    val[5000:5040] = train[900:940]
    val[7000:7031] = train[100:131]
    found = measure_overlap(train, val)
    assert found is not None
    assert (found.longest_start, found.longest_tokens) == (2000, 300)
    assert found.long_copy_frac == pytest.approx(300 / 10_000)
    assert found.shared_frac == pytest.approx((300 - 31 + 40 - 31) / (10_000 - 31))
    assert found.train_read_frac == 1.0
    assert measure_overlap(train, val[:31]) is None


def test_characters_that_are_written_often_are_no_copy(tmp_path: Path) -> None:
    """A licence of 700 characters at the top of each file, which a vocabulary of bytes has 700 tokens of."""
    letters = Tokenizer(models.BPE())
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    letters.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    licence, draw = language_reference()[:700], np.random.default_rng(0)
    files = [licence + "".join(draw.choice(list("abcdefgh \n"), 60_000)) for _ in range(10)]
    text = tmp_path / "files.txt"
    text.write_text("".join(files))
    check = check_overlap(load_corpus([text], letters), letters)
    assert check.status == "pass", check
    assert "of the validation 128-grams occur in training; longest copy: validation tokens 0 to 702, " in check.measured
    text.write_text("".join(files[:9]) + files[0][:2000] + files[9][2000:])
    check = check_overlap(load_corpus([text], letters), letters)
    assert check.status == "fail", check
    assert "no copy of 1024 tokens or more" in check.expected


def test_a_long_text_is_read_in_part_and_a_long_validation_part_sampled(
    random_tokens: Callable[[int, int], Tokens], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_checks, "CHUNK_TOKENS", 1000)
    monkeypatch.setattr(corpus_checks, "MAX_TRAIN_TOKENS", 10_000)
    monkeypatch.setattr(corpus_checks, "MAX_VAL_NGRAMS", 2000)
    train, val = random_tokens(0, 50_000), random_tokens(1, 10_000)
    val[1000:6000] = train[20_000:25_000]
    found = measure_overlap(train, val)
    assert found is not None
    assert found.train_read_frac == pytest.approx(0.2)
    # A chunk of the copied part was read, and of its n-grams every fifth or so looked for.
    assert 0.05 < found.shared_frac < 0.2
    assert 900 < found.longest_tokens <= 1031
