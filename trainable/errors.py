"""The two exceptions that are told in a line, of what was asked and of the machine; and words that such lines share."""

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

LARGEST_SHOWN = 10**15  # larger whole numbers are out of every bound; no float can hold some of them
MOST_LISTED = 8
_CREDENTIALS = re.compile(r"(\b[a-z][a-z0-9+.-]*://)\S*@", re.IGNORECASE)
_SECRET_VALUE = re.compile(r"([?&][^=&\s]*(?:secret|passw|pwd|token|key|sig)[^=&\s]*=)[^&\s'\"]*", re.IGNORECASE)


def redacted(text: str) -> str:
    """Return the text with *** in place of the user and password in each URL, and of passwords in its query."""
    # Up to the last @: a password may hold one, and quotes.
    return _SECRET_VALUE.sub(r"\1***", _CREDENTIALS.sub(r"\1***@", text))


def full_reason(error: BaseException) -> str:
    """Return an error's text as a part of a line, without a full stop."""
    # Redacted before it is cut: half a password is not known for one.
    return redacted(" ".join(str(error).split()))[:300].rstrip(".") or type(error).__name__


def reason(error: BaseException) -> str:
    """Return full_reason() for a line that has named the file: of an error of the system its words alone."""
    return str(getattr(error, "strerror", None) or full_reason(error))


class UserError(ValueError):
    """Something the user gave cannot be used: one line that says where, what, and the remedy.

    The command line prints it without a traceback and exits with code 2. No password of a URL stays in it.
    """

    def __init__(self, message: str = "") -> None:
        # What a person typed, or a file is called, may hold bytes that are no UTF-8, which not everything can pass on.
        super().__init__(redacted(message).encode("utf-8", "backslashreplace").decode())


@contextmanager
def as_user_error(
    kinds: type[BaseException] | tuple[type[BaseException], ...], what: str, remedy: str = ""
) -> Iterator[None]:
    """Turn an error of these kinds into the UserError that says what fails, why, and the remedy."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{what}: {reason(error)}. {remedy}".rstrip()) from None


class InputChangedError(UserError):
    """A file that a run is made from is gone, or is not what it was when the study began: no fault of the trial's."""

    def __init__(self, message: str, *, remedy: str = "Restore it, then go on with") -> None:
        super().__init__(message)
        self.remedy = remedy
        """What goes before the command that goes on."""


class NothingToDoError(UserError):
    """A study has nothing yet for what was asked: no winner, no candidate, no change to explain."""


class MachineError(Exception):
    """The machine does not do what is needed, whatever was asked: one line with the cause and the remedy.

    The command line prints it without a traceback and exits with code 1.
    """


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the known word that a misspelt one is for, None where none is near."""
    names = sorted(known)
    same = [name for name in names if name.lower() == word.lower()]
    return next(iter(same or difflib.get_close_matches(word, names, n=1, cutoff=0.6)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest known word; where none is near, the known words if they are few."""
    names = sorted(known)
    if (near := nearest(word, names)) is not None:
        return f" Did you mean '{near}'?"
    return f" Known: {', '.join(names)}." if 0 < len(names) <= MOST_LISTED else ""


def count_words(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count and its noun."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def first_of(words: Sequence[str], most: int = 3) -> str:
    """Return the first words as a list, and how many more there are."""
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def check_bounds(name: str, value: float, low: float, high: float, *, low_open: bool = False, note: str = "") -> None:
    """Raise UserError, which ends with `note`, unless low <= value <= high; with low_open low itself is out."""
    # Asked this way round, for a NaN is on neither side of a bound.
    if (low < value if low_open else low <= value) and value <= high:
        return
    least = f"{'more than' if low_open else 'at least'} {_shown(low)}"
    raise UserError(f"{name} is {_shown(value)}; it must be {least} and at most {_shown(high)}{note}.")


def _shown(value: float) -> str:
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(value) if abs(value) <= LARGEST_SHOWN else f"about {'-' if value < 0 else ''}2^{value.bit_length()}"
