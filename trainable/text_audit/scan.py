"""One pass over the text: its units, and for each what can be told from its bytes alone."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from trainable.data.text_documents import WHOLE_FILES, Documents
from trainable.data.tokens import Progress, Tokens
from trainable.text_audit.debris import MARKUP, debris_of
from trainable.text_audit.language import common_words, count_words, unit_scripts
from trainable.text_audit.ngrams import Hashes
from trainable.text_audit.noise import noisy_units
from trainable.text_audit.text import Piece, iter_pieces
from trainable.text_audit.units import Cuts, Flags, Units, cut_units


@dataclass(frozen=True, kw_only=True)
class Scan:
    """The units of a text and their marks, each array (units,)."""

    units: Units
    lines: int
    noisy: Flags
    script: npt.NDArray[np.uint8]
    """Index in language.SCRIPTS, or NONE."""
    debris: npt.NDArray[np.uint16]
    """Traces of a broken conversion, markup apart."""
    debris_types: npt.NDArray[np.uint8]
    """Bit i for debris.TYPES[i]."""
    markup: npt.NDArray[np.uint16]
    """Tags and entities."""
    words: npt.NDArray[np.uint16]
    common_words: npt.NDArray[np.uint16]
    """Of those, the text's commonest."""
    prose_bytes: npt.NDArray[np.uint16]
    """Letters, spaces and full stops."""


def scan_text(
    files: list[Path],
    tokenizer: Tokenizer,
    tokens: Tokens,
    progress: Progress,
    *,
    documents: Documents = WHOLE_FILES,
    separator_id: int | None = None,
) -> Scan:
    """Return the scan of the files, whose tokens under `tokenizer` are `tokens`."""
    columns: dict[str, list[npt.NDArray[np.generic]]] = {}
    index_of = {path: index for index, path in enumerate(files)}
    common = common_words(files)
    lines = 0
    for piece in iter_pieces(files, tokenizer, tokens, documents=documents, separator_id=separator_id):
        path, file_lines = piece.chunk.path, piece.chunk.lines
        # A text of JSON lines has lines of its own, which the chunk maps to the file's.
        first_line = 0 if file_lines else piece.chunk.first_line
        cuts = cut_units(piece.data, first_line=first_line, continues=piece.chunk.continues)
        ends_file = piece.first_byte + len(piece.data) == path.stat().st_size
        # A file's last line counts without its line end too.
        lines += cuts.lines + int(ends_file and not cuts.ends_line[-1])
        rows: dict[str, npt.NDArray[np.generic]] = {
            "file_index": np.full(len(cuts.starts), index_of[path], dtype=np.int32),
            "first_byte": piece.first_byte + cuts.starts,
            "end_byte": piece.first_byte + np.append(cuts.starts[1:], len(piece.data)),
            "line": np.array(file_lines)[cuts.line] if file_lines else cuts.line,
            "first_token": piece.first_token + np.searchsorted(piece.token_starts, cuts.starts),
            **{name: getattr(cuts, name) for name in ("starts_line", "ends_line", "ends_paragraph")},
        }
        for name, values in (rows | _mark_columns(piece, cuts, common)).items():
            columns.setdefault(name, []).append(values)
        progress("reading the text", (piece.first_token + len(piece.token_starts)) / max(1, len(tokens)))
    joined = {name: np.concatenate(parts) for name, parts in columns.items()}
    marks: dict[str, Any] = {field.name: joined.pop(field.name) for field in fields(Scan) if field.name in joined}
    units = Units(files=tuple(files), tokens=len(tokens), **joined)
    return Scan(units=units, lines=lines, **marks)


def _mark_columns(piece: Piece, cuts: Cuts, common: Hashes) -> dict[str, npt.NDArray[np.generic]]:
    count = len(cuts.starts)
    unit, type_ = debris_of(piece.data, cuts.starts, starts_file=piece.first_byte == 0)
    types = np.zeros(count, dtype=np.uint8)
    np.bitwise_or.at(types, unit, (1 << type_).astype(np.uint8))
    hits, markup = (np.bincount(unit[kind], minlength=count) for kind in (type_ < MARKUP, type_ >= MARKUP))
    words, known, prose = count_words(piece.data, cuts.starts, common)
    counts = {"debris": hits, "markup": markup, "words": words, "common_words": known, "prose_bytes": prose}
    return {
        "noisy": noisy_units(piece.data, cuts.starts),
        "script": unit_scripts(piece.data, cuts.starts),
        "debris_types": types,
        **{name: np.minimum(values, 0xFFFF).astype(np.uint16) for name, values in counts.items()},
    }
