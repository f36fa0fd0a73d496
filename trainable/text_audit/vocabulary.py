"""What each token id stands for: its size, and the word it is part of whatever the case and spacing around it."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from trainable.text_audit.text import token_lengths


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Each array (ids,)."""

    bytes: npt.NDArray[np.int32]
    non_ascii_bytes: npt.NDArray[np.int32]
    word: npt.NDArray[np.int32]
    """The same number for ids that differ in case and surrounding space only; 0 for those without letters or digits."""


def describe_vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """Return what the tokenizer's ids stand for; ids that are part of a character count as words of their own."""
    lengths = token_lengths(tokenizer)
    size = len(lengths)
    texts = tokenizer.decode_batch([[id_] for id_ in range(size)], skip_special_tokens=False)
    numbers: dict[str, int] = {}
    word = np.zeros(size, dtype=np.int32)
    non_ascii = np.zeros(size, dtype=np.int32)
    for id_, text in enumerate(texts):
        key = text.strip().casefold()
        partial = "\ufffd" in text
        if partial or any(character.isalnum() for character in key):
            word[id_] = numbers.setdefault(f"{id_}" if partial else f" {key}", len(numbers) + 1)
        non_ascii[id_] = lengths[id_] if partial else sum(len(c.encode()) for c in text if not c.isascii())
    return Vocabulary(bytes=lengths, non_ascii_bytes=non_ascii, word=word)
