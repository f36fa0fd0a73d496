"""Where training text comes from: a file, a folder, or the English that comes with Python. Knows nothing of tokens."""

import filecmp
import hashlib
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from stat import S_IFDIR, S_IFREG
from typing import NoReturn

from trainable.data.cache_files import cached_sum, writing
from trainable.data.text_documents import BOM, WHOLE_FILES, Documents, iter_chunks, open_hashed
from trainable.errors import UserError, as_user_error, count_words, reason
from trainable.regular_files import file_type, state_of

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSON_LINES_SUFFIXES = (".jsonl", ".ndjson")
MARKED_UP_SUFFIXES = (*JSON_LINES_SUFFIXES, ".json", ".csv", ".tsv")
SHINGLE_WORDS = 8
REPORT_INTERVAL_S = 1.0
"""Between two reports of how much of a long text was read."""
CLOCK_TICK_S = 2.0
"""The coarsest clock of a file system, FAT's."""
MAX_REPEATED_FRAC = 0.2
"""A paragraph goes when more of its runs of 8 words than this came before."""


def cache_dir() -> Path:
    """Return the folder for token caches (CACHE_DIR, default .cache/ beside the packages), created if missing.

    Raises UserError when it cannot be.
    """
    given = os.environ.get("CACHE_DIR") or str(Path(__file__).parents[2] / ".cache")
    with as_user_error((OSError, RuntimeError), f"no cache in {given}", "Set CACHE_DIR to a folder to write to."):
        path = Path(given).expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
    return path


def source_files(
    source: str | None, *, variable: str = "TRAINING_DATA_SOURCE", documents: Documents = WHOLE_FILES
) -> list[Path]:
    """Return the text files of a source, sorted; None means the Python language reference, written to the cache first.

    Of a folder: all below it, linked folders too, without hidden ones; what is reached twice is there once.
    Raises UserError when there is no readable text at `source`.
    """
    if source is None:
        path = _embedded_path()
        if not embedded_text_is_cached():
            with writing(path) as file:
                file.write(language_reference().encode())
        return [path]
    try:
        path = Path(source).expanduser().absolute()
        kind = file_type(path)
        if kind == S_IFDIR:
            return _files_of_folder(path, f"{variable}={source}", documents)
        if kind == S_IFREG:
            return [path]
        what = "is not a regular file" if kind else "does not exist"
    except (OSError, RuntimeError) as error:
        what = f"cannot be used: {reason(error)}"
    default = " for the Python language reference" if variable == "TRAINING_DATA_SOURCE" else ""
    raise UserError(f"{variable}={source} {what}. Name a text file or a folder of them, or unset it{default}.")


def _files_of_folder(folder: Path, where: str, documents: Documents) -> list[Path]:
    suffixes = JSON_LINES_SUFFIXES if documents.kind == "jsonl" else TEXT_SUFFIXES
    visible = list(_visible_files(folder))
    found = sorted((file for file in visible if file.suffix.lower() in suffixes), reverse=True)
    if not found:
        is_jsonl = any(file.suffix.lower() in JSON_LINES_SUFFIXES for file in visible)
        way = " DOCUMENTS=jsonl:FIELD reads its JSON lines." if is_jsonl else ""
        raise UserError(
            f"{where}: the folder holds no text file ({', '.join(suffixes)}).{way} "
            "Name a folder with text, or a single file of any suffix."
        )
    # By what it is in the end: a file that links reach too is there once, by its first name.
    return sorted({file.resolve(): file for file in found}.values())


def _visible_files(folder: Path) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()

    def refuse(error: OSError) -> NoReturn:
        raise UserError(f"{error.filename} cannot be read: {reason(error)}.") from None

    for place, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        # ._x and the like: what editors, notebooks and macOS leave behind looks like text by its suffix.
        visible = [Path(place) / name for name in names if not name.startswith(".")]
        try:
            # A link may lead back to a folder above it.
            state = Path(place).stat()
            files = [path for path in visible if file_type(path) == S_IFREG]
        except OSError as error:
            refuse(error)
        if (state.st_dev, state.st_ino) in seen:
            folders.clear()
            continue
        seen.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from files


def size_words(size_bytes: int) -> str:
    """Return a text's size as 1.2 MB, smaller ones as 1.2 kB or 120 B."""
    if size_bytes < 1e3:
        return f"{size_bytes} B"
    return f"{size_bytes / 1e3:.1f} kB" if size_bytes < 1e5 else f"{size_bytes / 1e6:,.1f} MB"


@dataclass(frozen=True, kw_only=True)
class TextFacts:
    """What a source holds, counted by reading it once."""

    files: int
    size_bytes: int
    documents: int
    mended_files: int
    """With a byte-order mark at their start, or line ends of two characters."""
    marked_up_files: int = 0
    """Of JSON or CSV, read as plain text."""

    @property
    def words(self) -> str:
        """The source in a line."""
        size = size_words(self.size_bytes)
        return f"{count_words(self.files, 'file')}, {size}, {count_words(self.documents, 'document')}"

    @property
    def notes(self) -> list[str]:
        """How the text is read otherwise than it is stored."""
        notes = []
        if self.mended_files:
            mended = count_words(self.mended_files, "file")
            notes.append(f"{mended} with byte-order marks or CRLF line ends: marks are left out, the ends read as LF")
        if self.marked_up_files:
            notes.append(
                f"{count_words(self.marked_up_files, 'file')} of JSON or CSV: quotes and names of "
                "fields are text too; DOCUMENTS=jsonl:FIELD reads one field of JSON lines"
            )
        return notes


def read_facts(
    files: Sequence[Path], documents: Documents = WHOLE_FILES, *, progress: Callable[[float], None] | None = None
) -> TextFacts:
    """Return what the files hold; `progress` is called with the share read, now and then if it takes long.

    text_fingerprint() then knows the text without reading it again. Raises UserError as iter_chunks does, and for a
    source without text.
    """
    count, mended, digest, state = 0, set(), hashlib.sha256(), _state(files)
    read_bytes, total_bytes, reported_at = 0, sum(path.stat().st_size for path in files), time.monotonic()
    for chunk in iter_chunks(files, documents, digest=digest):
        count += sum(span.begins for span in chunk.spans)
        read_bytes += len(chunk.raw)
        if progress is not None and time.monotonic() - reported_at >= REPORT_INTERVAL_S:
            reported_at = time.monotonic()
            # Of JSON lines only a part is text.
            progress(min(1.0, read_bytes / total_bytes))
        begins = chunk.first_line == 1 and not chunk.continues
        if (b"\r" in chunk.raw and b"\r\n" in chunk.raw) or (begins and chunk.raw.startswith(BOM)):
            mended.add(chunk.path)
    if count == 0:
        raise UserError(f"{files[0]} is empty. Name a source with text in it.")
    if state is not None:
        _fingerprints[state] = digest.hexdigest()
    return TextFacts(
        files=len(files),
        size_bytes=total_bytes,
        documents=count,
        mended_files=len(mended),
        marked_up_files=sum(documents.kind != "jsonl" and path.suffix.lower() in MARKED_UP_SUFFIXES for path in files),
    )


def text_fingerprint(files: Sequence[Path]) -> str:
    """Return a SHA-256 (hex) over the files' sizes and bytes in order, read once a process and after every change.

    Raises UserError for an empty or unreadable source.
    """
    digest, state = hashlib.sha256(), _state(files)
    if state in _fingerprints:
        return _fingerprints[state]
    total_bytes = 0
    for path in files:
        with as_user_error(OSError, f"{path} cannot be read"), open_hashed(path, digest) as file:
            while block := file.read(1 << 22):
                total_bytes += len(block)
    if total_bytes == 0:
        raise UserError(f"{files[0]} is empty. Name a source with text in it.")
    if state is not None:
        _fingerprints[state] = digest.hexdigest()
    return digest.hexdigest()


_fingerprints: dict[Hashable, str] = {}
"""Of texts that this process has read, by what the file system said of their files."""


def _state(files: Sequence[Path]) -> Hashable:
    """Return what a change of any of the files changes; None where one cannot be read, or is so new that its next
    change may come in the same tick of the clock and not show."""
    try:
        stats = [path.stat() for path in files]
    except OSError:
        return None
    if time.time() - max(stat.st_ctime for stat in stats) < CLOCK_TICK_S:
        return None
    return tuple(map(state_of, files, stats))


def check_apart(training: Sequence[Path], validation: Sequence[Path]) -> None:
    """Raise UserError when a validation file is a training file too, by its place or by its content."""
    places = {path.resolve(): path for path in training}
    by_size: dict[int, list[Path]] = {}
    for path in training:
        by_size.setdefault(path.stat().st_size, []).append(path)
    by_size.pop(0, None)  # empty files are equal, and nothing in them is trained on
    for path in validation:
        same = places.get(path.resolve()) or next(
            (other for other in by_size.get(path.stat().st_size, []) if filecmp.cmp(path, other, shallow=False)), None
        )
        if same is not None:
            raise UserError(
                f"VALIDATION_DATA_SOURCE: {path} is also trained on"
                f"{'' if same == path else f', as {same}'}. Its loss would measure memorization: name other text, or "
                "move it out of TRAINING_DATA_SOURCE."
            )


def embedded_text_is_cached() -> bool:
    """Return whether the Python language reference need not be gathered."""
    return cached_sum(_embedded_path()) is not None


def _embedded_path() -> Path:
    return cache_dir() / f"language-reference-python-{'-'.join(str(part) for part in sys.version_info[:3])}.txt"


def language_reference() -> str:
    """Return about 0.4 MB of English: the Python language reference, each passage once."""
    from pydoc_data.topics import topics

    return each_once(by_hash(topics.values()), seen=set(), repeated_frac=MAX_REPEATED_FRAC)


def by_hash(passages: Iterable[str]) -> list[str]:
    """Return the passages mixed, so that the head and the tail of the text, the split's two sides, are alike."""
    return sorted(set(passages), key=lambda text: hashlib.sha256(text.encode()).digest())


def each_once(passages: Iterable[str], *, seen: set[int], repeated_frac: float) -> str:
    """Return the passages as one text, without paragraphs of whose shingles more than this share was seen before.

    Passages are copied from place to place: left in, the validation text would be found in the training text.
    """
    kept = []
    for passage in passages:
        new = []
        for paragraph in passage.split("\n\n"):
            own = shingles(paragraph)
            if len(own & seen) <= repeated_frac * len(own):
                new.append(paragraph)
            seen |= own
        if new:
            kept.append("\n\n".join(new))
    return "\n\n".join(kept) + "\n"


def shingles(text: str) -> set[int]:
    """Return the text's runs of SHINGLE_WORDS words, hashed."""
    words = text.split()
    return {hash(tuple(words[i : i + SHINGLE_WORDS])) for i in range(len(words) - SHINGLE_WORDS + 1)}
