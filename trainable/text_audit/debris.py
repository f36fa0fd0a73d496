"""Traces of a broken conversion: doubly decoded characters, replacement and control characters, marks, markup; and
their repair."""

import html
import re

import numpy as np

from trainable.text_audit.units import Bytes, Ints

TYPES = ("mojibake", "U+FFFD", "control characters", "byte order marks", "HTML entities", "HTML tags")
MARKUP = 4
"""The types from this index on may be what the text is about, so they count only where they are dense."""

# As UTF-8 bytes. _TAIL is what the bytes 0x80-0xBF become when read as Windows-1252 or Latin-1.
_TAIL = (
    rb"(?:\xc2[\x80-\xbf]|\xe2\x82\xac|\xe2\x80[\x93\x94\x98-\x9a\x9c-\xa2\xa6\xb0\xb9\xba]|\xe2\x84\xa2"
    rb"|\xc6\x92|\xcb[\x86\x9c]|\xc5[\x92\x93\xa0\xa1\xb8\xbd\xbe])"
)
_MOJIBAKE = (
    rb"\xc3[\x82\x83]" + _TAIL  # Â, Ã: Latin letters and signs
    + rb"|\xc3\xa2" + _TAIL + rb"{2}"  # â: quotes, dashes
    + rb"|\xc3\xb0" + _TAIL + rb"{3}"  # ð: emoji
    + rb"|(?:\xc3[\x84-\xb4]" + _TAIL + rb"{1,2}){3,}"  # whole words of other scripts
)  # fmt: skip
_TAGS = (
    rb"a|abbr|b|blockquote|body|br|button|center|code|dd|div|dl|dt|em|font|form|h[1-6]|head|hr|html|i|iframe|img|input"
    rb"|label|li|link|meta|ol|option|p|pre|script|select|small|span|strong|style|sub|sup|table|tbody|td|th|thead|title"
    rb"|tr|tt|u|ul"
)
_PATTERN = re.compile(
    # How one of them may begin: nearly all bytes are turned away by this alone, an eighth of the time.
    rb"(?=[\x00-\x08\x0b\x0e-\x1f\x7f&<\xc2\xc3\xef])"
    rb"(?:(?P<t0>" + _MOJIBAKE + rb")"
    rb"|(?P<t1>\xef\xbf\xbd)"
    rb"|(?P<t2>\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b\x0e-\x1f\x7f]|\xc2[\x80-\x9f])"
    rb"|(?P<t3>\xef\xbb\xbf)"
    rb"|(?P<t4>&(?:[A-Za-z]{2,8}|#[0-9]{2,6}|#[xX][0-9a-fA-F]{2,6});)"
    rb"|(?P<t5></?(?:" + _TAGS + rb")(?:\s[^<>\n]{0,300})?/?>))",
    re.IGNORECASE,
)


def debris_of(data: Bytes, starts: Ints, *, starts_file: bool) -> tuple[Ints, Ints]:
    """Return each trace in `data` by its unit, which begin at `starts`, and its index in TYPES, (traces,) both.

    A byte order mark at the start of a file is not a trace.
    """
    positions, types = [], []
    for match in _PATTERN.finditer(data.tobytes()):
        type_ = int((match.lastgroup or "t0")[1])
        if type_ == 0 and repair_mojibake(match.group()) is None:
            continue
        if type_ == 3 and starts_file and match.start() == 0:
            continue
        positions.append(match.start())
        types.append(type_)
    unit = np.searchsorted(starts, np.array(positions, dtype=np.int64), side="right") - 1
    return unit, np.array(types, dtype=np.int64)


def first_debris(data: bytes) -> int:
    """Return where the first trace in `data` is, or 0."""
    match = _PATTERN.search(data)
    return match.start() if match else 0


def repair_mojibake(text: bytes) -> bytes | None:
    """Return the UTF-8 that was once read as Windows-1252 or Latin-1 and encoded again, or None if it was not."""
    try:
        original = b"".join(map(_byte_read_as, text.decode()))
        original.decode()
    except UnicodeError:
        return None
    return original


def _byte_read_as(character: str) -> bytes:
    try:
        return character.encode("cp1252")
    except UnicodeEncodeError:
        return character.encode("latin-1")  # which has the five byte values that Windows-1252 lacks


def repair(text: bytes, *, markup: bool) -> bytes:
    """Return `text` with mojibake undone and other debris taken out; with `markup`, tags and entities too."""
    for _ in range(4):  # &amp;lt;b&amp;gt; needs three rounds
        repaired = _PATTERN.sub(lambda match: _replacement(match, markup), text)
        if repaired == text:
            break
        text = repaired
    return text


def _replacement(match: re.Match[bytes], markup: bool) -> bytes:
    type_, found = int((match.lastgroup or "t0")[1]), match.group()
    if type_ == 0:
        return found if (fixed := repair_mojibake(found)) is None else fixed
    if type_ < MARKUP:
        return b""
    if not markup:
        return found
    return b"" if type_ == 5 else html.unescape(found.decode()).replace("\xa0", " ").encode()
