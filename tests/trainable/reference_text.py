"""Prose without repeats for the tests of the text audit, and a tokenizer made from it."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer

from trainable.data.tokens import train_tokenizer


def reference_paragraphs(*, most_words: int) -> list[str]:
    """Return paragraphs of Python's own reference, none of which has eight words in a row that another has."""
    from pydoc_data.topics import topics

    seen: set[tuple[str, ...]] = set()
    kept = []
    for text in topics.values():
        for paragraph in text.split("\n\n"):
            words = paragraph.split()
            runs = {tuple(words[i : i + 8]) for i in range(len(words) - 7)}
            if 30 <= len(words) <= most_words and paragraph.isascii() and not runs & seen:
                kept.append(paragraph.strip("\n") + "\n\n")
            seen |= runs
    return kept


def tokenizer_of(paragraphs: list[str], folder: Path, *, vocab_size: int = 2000) -> Tokenizer:
    """Return a byte-level BPE of so many ids trained on the paragraphs; one of 257 has the bytes alone."""
    path = folder / "prose.txt"
    path.write_text("".join(paragraphs), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(folder / "cache"))
        return train_tokenizer([path], vocab_size)
