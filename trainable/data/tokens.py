"""A corpus as token ids: tokenized once, memory-mapped, split 90/10 at the tail, and sampled from."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from trainable.config import TrialConfig
from trainable.data.cache_files import cached_sum, writing
from trainable.data.corpus import cache_dir, size_words, text_fingerprint
from trainable.data.text_documents import WHOLE_FILES, Documents, after_documents, iter_chunks
from trainable.device.device import cpu_cores
from trainable.errors import InputChangedError, UserError
from trainable.model.fingerprint import file_fingerprint

TRAIN_FRAC = 0.9
END_OF_TEXT = "<|endoftext|>"
TOKENIZER_SAMPLE_CHARS = 16_000_000
"""More text than this hardly changes a byte-pair vocabulary of this project's sizes."""

MAX_CHUNKS = 8
"""Encoded at once, whatever the cores: each takes about 100 MB of memory."""
ROOM_MARGIN = 1.2
"""A text's beginning may have so many more tokens a byte than the rest."""
COUNTED_TOKENS = 1 << 20
CUTS = 2
"""Goes up when text_documents cuts long lines or paragraphs elsewhere than before: older tokens are not taken then."""
REMEDY = "It is made again by"
"""For a file of the cache."""

Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
Progress = Callable[[str, float], None]
"""Called with what is being done and the share done, 0 to 1."""


def silent(what: str, done_frac: float) -> None:
    """Report no progress."""


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """The tokens of one source under one tokenizer."""

    path: Path
    """The token file; workers open it by this path."""
    fingerprint: str
    """SHA-256 (hex) over the text, how it is cut into documents, the tokenizer, and the validation text."""
    vocab_size: int
    """Ids are below this."""
    sha256: str | None = None
    """Of the token file, compared where it is opened; None compares nothing."""
    validation: "Corpus | None" = None
    """A source of its own, held out whole; None holds out the tail."""

    @cached_property
    def tokens(self) -> Tokens:
        """All ids, memory-mapped. Raises InputChangedError when the file is gone or is another."""
        try:
            if self.sha256 is not None and file_fingerprint(self.path) != self.sha256:
                raise InputChangedError(f"the input has changed since it was first read: {self.path}", remedy=REMEDY)
            mapped: Tokens = np.load(self.path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise InputChangedError(f"the input is gone: {self.path}", remedy=REMEDY) from None
        return mapped

    def __getstate__(self) -> dict[str, Any]:
        # The map would be pickled as a copy of all the tokens; whoever unpickles opens the file again.
        return {name: value for name, value in vars(self).items() if name != "tokens"}

    @property
    def train(self) -> Tokens:
        """The first 90 %, or all where the validation text is another."""
        return self.tokens if self.validation else self.tokens[: int(len(self.tokens) * TRAIN_FRAC)]

    @property
    def val(self) -> Tokens:
        """The last 10 % or the validation text, never trained on."""
        return self.validation.tokens if self.validation else self.tokens[int(len(self.tokens) * TRAIN_FRAC) :]

    @cached_property
    def unigram_entropy(self) -> float:
        """Entropy of the training tokens' own frequencies, nats/token: what a model that ignores context reaches."""
        counts = token_counts(self.train, self.vocab_size)
        probabilities = counts[counts > 0] / counts.sum()
        return float(-(probabilities * np.log(probabilities)).sum())


def token_counts(tokens: Tokens, vocab_size: int) -> npt.NDArray[np.int64]:
    """Return how often each id occurs, (vocab_size,)."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    # A block at a time: bincount copies what it counts, to 8 bytes a token.
    for start in range(0, len(tokens), COUNTED_TOKENS):
        counts += np.bincount(tokens[start : start + COUNTED_TOKENS], minlength=vocab_size)
    return counts


def train_tokenizer(
    files: list[Path], vocab_size: int, *, documents: Documents = WHOLE_FILES, progress: Progress = silent
) -> Tokenizer:
    """Return a byte-level BPE of at most `vocab_size` ids trained on the files' first 16 million characters, cached.

    Sennrich et al. 2016, on bytes as in GPT-2.
    """
    text = text_fingerprint(files)
    key = hashlib.sha256(f"{text} {documents} bpe {vocab_size}".encode()).hexdigest()[:16]
    path = cache_dir() / f"tokenizer-{key}.json"
    if _is_cached(path, progress):
        return Tokenizer.from_file(str(path))
    progress("training a tokenizer on the corpus", 0.0)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sample(files, documents), trainer)
    # It has read the text's head alone; what it is filed under is of the whole text.
    _check_same_text(text, text_fingerprint(files))
    # Not by its own save(), whose errors are no OSErrors.
    with writing(path) as file:
        file.write(tokenizer.to_str(pretty=True).encode())
    progress("training a tokenizer on the corpus", 1.0)
    return tokenizer


def _is_cached(path: Path, progress: Progress) -> bool:
    is_whole = cached_sum(path) is not None
    if not is_whole and path.exists():
        progress(f"{path} is damaged or has no checksum: making it again", 1.0)
    return is_whole


def _check_same_text(then: object, now: object) -> None:
    if then != now:
        raise UserError("the text changed while it was read. Run the command again once nothing writes to it.")


def _sample(files: list[Path], documents: Documents) -> Iterator[str]:
    left_chars = TOKENIZER_SAMPLE_CHARS
    for chunk in iter_chunks(files, documents):
        if left_chars <= 0:
            return
        yield chunk.text[:left_chars]
        left_chars -= len(chunk.text)


def load_corpus(
    files: list[Path],
    tokenizer: Tokenizer,
    *,
    documents: Documents = WHOLE_FILES,
    separator_id: int | None = None,
    validation_files: list[Path] | None = None,
    progress: Progress = silent,
) -> Corpus:
    """Return the files' tokens, from the cache or tokenized into it; `separator_id` stands between two documents.

    Chunks of whole lines are encoded on their own, without special tokens, and joined.
    Raises UserError for an empty, unreadable or non-UTF-8 source.
    """
    serialized = json.dumps(json.loads(tokenizer.to_str()), sort_keys=True)
    text = text_fingerprint(files)
    key = f"{text} {documents} {separator_id} {serialized}"
    fingerprint = hashlib.sha256(key.encode()).hexdigest()
    # Not the number of entries: ids may have gaps, and the largest is what a model's embedding must reach.
    vocab_size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    path = cache_dir() / f"tokens-{hashlib.sha256(f'{fingerprint} {CUTS}'.encode()).hexdigest()[:16]}.npy"
    if not _is_cached(path, progress):
        _tokenize(files, text, tokenizer, documents, separator_id, path, vocab_size, progress)
    corpus = Corpus(path=path, fingerprint=fingerprint, vocab_size=vocab_size, sha256=cached_sum(path))
    if corpus.sha256 is None:
        raise UserError(f"{path} was changed right after it was written. Set CACHE_DIR to a folder of your own.")
    if not validation_files:
        return corpus
    validation = load_corpus(
        validation_files, tokenizer, documents=documents, separator_id=separator_id, progress=progress
    )
    both = hashlib.sha256(f"{fingerprint} {validation.fingerprint}".encode()).hexdigest()
    return replace(corpus, fingerprint=both, validation=validation)


def _tokenize(
    files: list[Path],
    text: str,
    tokenizer: Tokenizer,
    documents: Documents,
    separator_id: int | None,
    path: Path,
    vocab_size: int,
    progress: Progress,
) -> None:
    dtype = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    sizes = {file: file.stat().st_size for file in files}
    total_bytes = max(1, sum(sizes.values()))
    done_bytes = 0
    tokens_count = 0
    digest = hashlib.sha256()
    with writing(path) as cached:
        # By append and not through a map: there a full disk is SIGBUS, which nothing catches.
        header_bytes = _write_header(cached, dtype, 0)
        chunks = after_documents(iter_chunks(files, documents, digest=digest))
        # A text is encoded by one core: a long document is shared among them by its chunks.
        at_once = min(cpu_cores(), MAX_CHUNKS) if documents.kind == "file" else 1
        while group := list(islice(chunks, at_once)):
            for path_read in {chunk.path for chunk, _ in group}:
                # A text that somebody still writes to is refused now; what keeps its size, by its checksum at the end.
                _check_same_text(sizes[path_read], path_read.stat().st_size if path_read.exists() else None)
            texts = [chunk.text[span.start : span.end] for chunk, _ in group for span in chunk.spans]
            encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
            ids: list[int] = []
            for is_separated, one in zip(chain.from_iterable(follows for _, follows in group), encoded, strict=True):
                ids += [separator_id] if is_separated and separator_id is not None else []
                ids += one.ids
            cached.write(np.asarray(ids, dtype=dtype).tobytes())
            tokens_count += len(ids)
            is_first, done_bytes = done_bytes == 0, done_bytes + sum(len(chunk.raw) for chunk, _ in group)
            if is_first and documents.kind != "jsonl":
                _check_room(path, cached.tell(), done_bytes / total_bytes)
            # Of JSON lines only a part is text.
            progress("tokenizing the corpus", min(1.0, done_bytes / total_bytes))
        _check_same_text(text, digest.hexdigest())
        if tokens_count == 0:
            raise UserError("the corpus has no tokens under this tokenizer. Name a source with text in it.")
        cached.seek(0)
        # numpy leaves room for the digits of the first dimension.
        assert _write_header(cached, dtype, tokens_count) == header_bytes


def _check_room(path: Path, written_bytes: int, done_frac: float) -> None:
    """Raise UserError where the beginning shows that the whole will not fit: of a long text that is an hour early."""
    left_bytes, free_bytes = round(written_bytes * (1 / done_frac - 1)), shutil.disk_usage(path.parent).free
    if left_bytes > ROOM_MARGIN * free_bytes:
        raise UserError(
            f"{path} cannot be written: the text's tokens take about {size_words(written_bytes + left_bytes)}, and "
            f"{size_words(free_bytes)} is free there. Make room, or set another CACHE_DIR."
        )


def _write_header(file: IO[bytes], dtype: type[np.uint16] | type[np.uint32], tokens_count: int) -> int:
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (tokens_count,)}
    np.lib.format.write_array_header_1_0(file, header)
    return file.tell()


def check_corpus(corpus: Corpus, *, block_size: int, eval_block_size: int) -> None:
    """Raise UserError when either side of the split is too short for its block size."""
    held_out = "VALIDATION_DATA_SOURCE" if corpus.validation else "TRAINING_DATA_SOURCE"
    for side, tokens, block, source, setting in (
        ("train", corpus.train, block_size, "TRAINING_DATA_SOURCE", "BLOCK_SIZE, or block_size"),
        ("validation", corpus.val, eval_block_size, held_out, "EVAL_BLOCK_SIZE, or [evaluation] block_size"),
    ):
        if len(tokens) < block + 1:
            raise UserError(
                f"the corpus is too short: its {side} part has {len(tokens):,} tokens and a block of {block} needs "
                f"{block + 1:,}. Name a longer {source} or set a smaller {setting} in the space."
            )


def sample_batch(tokens: Tokens, config: TrialConfig, generator: torch.Generator) -> torch.Tensor:
    """Return random windows (batch_size, block_size + 1) of ids as int64; the last column is only ever a target."""
    starts = torch.randint(len(tokens) - config.block_size, (config.batch_size, 1), generator=generator)  # (B, 1)
    windows = tokens[starts.numpy() + np.arange(config.block_size + 1)]  # (B, T + 1)
    return torch.from_numpy(windows.astype(np.int64))
