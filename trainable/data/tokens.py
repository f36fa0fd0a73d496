"""A corpus as token ids: tokenized once, memory-mapped, split 90/10 at the tail, and sampled from."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trainable.data.corpus import cache_dir, iter_chunks, text_fingerprint
from trainable.errors import UserError

TRAIN_FRAC = 0.9
TOKENIZER_SAMPLE_CHARS = 16_000_000
"""A byte-pair vocabulary of this project's sizes no longer changes with more text than this."""

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Progress = Callable[[str, float], None]
"""Called with what is being done and the share done, 0 to 1."""


def _silent(what: str, done_frac: float) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The tokens of one source under one tokenizer."""

    path: Path
    """The token file; workers open it by this path."""
    fingerprint: str
    """SHA-256 (hex) over the text and the tokenizer."""
    vocab_size: int
    """Ids are below this."""

    @cached_property
    def tokens(self) -> Tokens:
        """All ids, memory-mapped."""
        mapped: Tokens = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return mapped

    def __getstate__(self) -> dict[str, Any]:
        # The map would be pickled as a copy of all the tokens; whoever unpickles opens the file again.
        return {name: value for name, value in vars(self).items() if name != "tokens"}

    @property
    def train(self) -> Tokens:
        """The first 90 %."""
        return self.tokens[: int(len(self.tokens) * TRAIN_FRAC)]

    @property
    def val(self) -> Tokens:
        """The last 10 %, never trained on."""
        return self.tokens[int(len(self.tokens) * TRAIN_FRAC) :]

    @cached_property
    def unigram_entropy(self) -> float:
        """Entropy of the training tokens' own frequencies, nats/token: what a model that ignores context reaches."""
        counts = np.bincount(self.train, minlength=self.vocab_size)
        probabilities = counts[counts > 0] / counts.sum()
        return float(-(probabilities * np.log(probabilities)).sum())


def train_tokenizer(files: list[Path], vocab_size: int, *, progress: Progress = _silent) -> Tokenizer:
    """Return a byte-level BPE of at most `vocab_size` ids trained on the files' first 16 million characters, cached.

    Sennrich et al. 2016, on bytes as in GPT-2.
    """
    key = hashlib.sha256(f"{text_fingerprint(files)} bpe {vocab_size}".encode()).hexdigest()[:16]
    path = cache_dir() / f"tokenizer-{key}.json"
    if path.exists():
        return Tokenizer.from_file(str(path))
    progress("training a tokenizer on the corpus", 0.0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(files), trainer)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    tokenizer.save(str(temporary))
    temporary.replace(path)
    progress("training a tokenizer on the corpus", 1.0)
    return tokenizer


def _sample(files: list[Path]) -> Iterator[str]:
    left_chars = TOKENIZER_SAMPLE_CHARS
    for chunk in iter_chunks(files):
        if left_chars <= 0:
            return
        yield chunk.text[:left_chars]
        left_chars -= len(chunk.text)


def load_corpus(files: list[Path], tokenizer: Tokenizer, *, progress: Progress = _silent) -> Corpus:
    """Return the files' tokens, from the cache or tokenized into it.

    Chunks of whole lines are encoded on their own, without special tokens, and joined.
    Raises UserError for an empty, unreadable or non-UTF-8 source.
    """
    serialized = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)
    fingerprint = hashlib.sha256(f"{text_fingerprint(files)} {serialized}".encode()).hexdigest()
    # Not the number of entries: ids may have gaps, and the largest is what a model's embedding must reach.
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    path = cache_dir() / f"tokens-{fingerprint[:16]}.npy"
    if not path.exists():
        _tokenize(files, tokenizer, path, vocab_size, progress)
    return Corpus(path=path, fingerprint=fingerprint, vocab_size=vocab_size)


def _tokenize(files: list[Path], tokenizer: Tokenizer, path: Path, vocab_size: int, progress: Progress) -> None:
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    total_bytes = max(1, sum(file.stat().st_size for file in files))
    raw_path = path.with_suffix(f".{os.getpid()}.raw")
    done_bytes = 0
    tokens_count = 0
    try:
        with raw_path.open("wb") as raw:
            for chunk in iter_chunks(files):
                ids = np.asarray(tokenizer.encode(chunk.text, add_special_tokens=False).ids, dtype=dtype)
                raw.write(ids.tobytes())
                tokens_count += len(ids)
                done_bytes += len(chunk.text.encode())
                progress("tokenizing the corpus", done_bytes / total_bytes)
        _seal(raw_path, path, dtype, tokens_count)
    finally:
        raw_path.unlink(missing_ok=True)


def _seal(raw_path: Path, path: Path, dtype: type[np.uint16] | type[np.uint32], tokens_count: int) -> None:
    # Through a map and under a temporary name: memory stays flat and a killed run leaves no half-written cache.
    if tokens_count == 0:
        raise UserError("the corpus has no tokens under this tokenizer. Name a TRAINING_DATA_SOURCE with text in it.")
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        sealed = np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=(tokens_count,))
        sealed[:] = np.memmap(raw_path, dtype=dtype, mode="r")
        sealed.flush()
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def check_corpus(corpus: Corpus, *, block_size: int, eval_block_size: int) -> None:
    """Raise UserError when either side of the split is too short for its block size."""
    for side, tokens, block in (("train", corpus.train, block_size), ("validation", corpus.val, eval_block_size)):
        if len(tokens) < block + 1:
            raise UserError(
                f"the corpus is too short: its {side} part has {len(tokens):,} tokens and a block of {block} needs "
                f"{block + 1:,}. Name a longer TRAINING_DATA_SOURCE or set a smaller BLOCK_SIZE."
            )


def sample_batch(tokens: Tokens, *, batch_size: int, block_size: int, generator: torch.Generator) -> torch.Tensor:
    """Return random windows (batch_size, block_size + 1) of ids as int64; the last column is only ever a target."""
    starts = torch.randint(len(tokens) - block_size, (batch_size, 1), generator=generator).numpy()  # (B, 1)
    windows = tokens[starts + np.arange(block_size + 1)]  # (B, T + 1)
    return torch.from_numpy(windows.astype(np.int64))
