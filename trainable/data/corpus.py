"""Where training text comes from: a file, a folder, or the English that comes with Python. Knows nothing of tokens."""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainable.data.embedded_text import language_reference
from trainable.errors import UserError

TEXT_SUFFIXES = (".txt", ".text", ".md")
CHUNK_CHARS = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TextChunk:
    """Consecutive whole lines of one file."""

    path: Path
    first_line: int
    """1-based."""
    text: str


def cache_dir() -> Path:
    """Return the folder for token caches (CACHE_DIR, default .cache/ beside the packages), created if missing.

    Raises UserError when it cannot be.
    """
    given = os.environ.get("CACHE_DIR") or str(Path(__file__).parents[2] / ".cache")
    try:
        path = Path(given).expanduser().absolute()
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"CACHE_DIR={given} cannot be used: {_reason(error)}. Name a folder to write to.") from None
    return path


def source_files(source: str | None) -> list[Path]:
    """Return the text files of a source, sorted; None means the embedded text, which is written to the cache first.

    Raises UserError when there is no readable text at `source`.
    """
    if source is None:
        return [_embedded_file()]
    try:
        path = Path(source).expanduser().absolute()
        path.stat()
    except FileNotFoundError:
        pass
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"TRAINING_DATA_SOURCE={source} cannot be used: {_reason(error)}. Name a text file or a folder of them."
        ) from None
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES and p.is_file())
        if not files:
            raise UserError(
                f"TRAINING_DATA_SOURCE={source}: the folder holds no text file ({', '.join(TEXT_SUFFIXES)}). "
                "Name a folder with text, or a single file of any suffix."
            )
        return files
    if not path.is_file():
        what = "is not a regular file" if path.exists() else "does not exist"
        raise UserError(
            f"TRAINING_DATA_SOURCE={source} {what}. "
            "Name a text file or a folder of them, or unset it for the embedded text."
        )
    return [path]


def iter_chunks(files: list[Path]) -> Iterator[TextChunk]:
    """Yield the text of the files in order, in chunks of whole lines of about a million characters.

    A single line longer than that is one chunk. Raises UserError for a file that is not UTF-8 or cannot be read.
    """
    for path in files:
        first_line = 1
        try:
            # newline="" keeps \r\n as it is: the tokens must be those of the bytes on disk.
            with path.open(encoding="utf-8", newline="") as file:
                while lines := file.readlines(CHUNK_CHARS):
                    yield TextChunk(path=path, first_line=first_line, text="".join(lines))
                    first_line += len(lines)
        except UnicodeDecodeError:
            raise UserError(_not_utf8(path)) from None
        except OSError as error:
            raise UserError(f"{path} cannot be read: {_reason(error)}.") from None


def text_fingerprint(files: list[Path]) -> str:
    """Return the SHA-256 (hex) of the files' bytes in order. Raises UserError for an empty or unreadable source."""
    digest = hashlib.sha256()
    size_bytes = 0
    for path in files:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 22):
                    size_bytes += len(block)
                    digest.update(block)
        except OSError as error:
            raise UserError(f"{path} cannot be read: {_reason(error)}.") from None
    if size_bytes == 0:
        raise UserError(f"{files[0]} is empty. Name a TRAINING_DATA_SOURCE with text in it.")
    return digest.hexdigest()


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")


def _not_utf8(path: Path) -> str:
    offset = 0
    with path.open("rb") as file:
        for line_number, line in enumerate(file, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"line {line_number}, byte {offset + error.start}"
                remedy = f"iconv -f latin1 -t utf-8 {path.name} > fixed.txt"
                return f"{path} is not UTF-8 text: {where}. Convert it, e.g. {remedy}"
            offset += len(line)
    return f"{path} is not UTF-8 text: it ends inside a character. Convert it to UTF-8."


def embedded_path() -> Path:
    """Return where the embedded text is cached, whether it is there yet or not."""
    return cache_dir() / f"language-reference-python-{'-'.join(str(part) for part in sys.version_info[:3])}.txt"


def _embedded_file() -> Path:
    path = embedded_path()
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            temporary.write_text(language_reference(), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(
                f"CACHE_DIR={path.parent} cannot be written: {_reason(error)}. Name a folder to write to."
            ) from None
    return path
