"""A checksum inside a Parquet file that covers all of it, footer included.

Parquet's own checksums cover only the pages: a changed footer reads as other rows. The checksum is put right before the
footer, in bytes that no page refers to and no reader reads.
"""

import hashlib

MARK = b"gpt2-search sha256 "
"""Comes before the checksum, and nowhere else in a file."""

_TAIL_BYTES = 8
"""The footer's length in four bytes, then PAR1."""


def guarded(parquet: bytes) -> bytes:
    """Return the Parquet file with a checksum before its footer."""
    footer_at = _footer_at(parquet)
    return parquet[:footer_at] + MARK + hashlib.sha256(parquet).digest() + parquet[footer_at:]


def check_guard(data: bytes) -> None:
    """Raise ValueError when a guarded Parquet file has changed; a file without a checksum passes."""
    mark_at = data.rfind(MARK)
    if mark_at < 0:
        return
    digest_at = mark_at + len(MARK)
    footer_at = digest_at + hashlib.sha256().digest_size
    digest = hashlib.sha256(data[:mark_at] + data[footer_at:]).digest()
    if footer_at != _footer_at(data) or digest != data[digest_at:footer_at]:
        raise ValueError("checksum mismatch")


def _footer_at(data: bytes) -> int:
    return len(data) - _TAIL_BYTES - int.from_bytes(data[-_TAIL_BYTES:-4], "little")
