"""One TOML table read key by key with its place in the file; knows nothing of what the keys mean."""

import math
import reprlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainable.config import meant_by
from trainable.errors import UserError, did_you_mean

TOP_KEYS = ("description", "baseline", "trials", "budget", "evaluation", "scheduler", "searcher", "search", "stability")
_LONGEST_MESSAGE = 400
_LONGEST_WORD = 60
_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother = 2, _LONGEST_WORD, _LONGEST_WORD


def shown(value: object) -> str:
    """Return a value of the file for a message: its repr, cut when long or deep."""
    return _repr.repr(value)


@dataclass(frozen=True)
class Table:
    """A table of the file at `path`; `title` is how a message calls it, empty for the file's top level."""

    path: str
    title: str
    values: Mapping[str, Any]

    def error(self, message: str, key: str | None = None) -> UserError:
        """Return the error, one printable line, that `message` makes with its place before it."""
        place = " ".join(part for part in (self.title, key) if part) or "the top level"
        text = "".join(c if c.isprintable() else " " for c in message)
        text = text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
        return UserError(f"{self.path}: {place} {text}")

    def allow(self, known: Iterable[str], *, why_not: Mapping[str, str] | None = None) -> None:
        """Raise UserError for the first key that is not known; `why_not` holds the words for some of them."""
        known = tuple(known)
        for key in self.values:
            if key in known:
                continue
            meant = meant_by(key)
            if why_not and meant in why_not:
                raise self.error(f"has the key '{key}', {why_not[meant]}")
            hint = did_you_mean((meant if meant in known else key.lower())[:_LONGEST_WORD], known)
            if self.title and key in TOP_KEYS:
                hint = " It belongs at the top of the file, above the first [table]."
            raise self.error(f"has an unknown key {shown(key)}.{hint}")

    def has(self, key: str) -> bool:
        """Return whether the key is given."""
        return key in self.values

    def one_of(self, keys: Collection[str], *, remedy: str) -> str:
        """Return the one of `keys` that is given. Raises UserError when none or several are."""
        given = [key for key in keys if key in self.values]
        if len(given) != 1:
            raise self.error(f"must have one of {', '.join(keys)}, not {' and '.join(given) or 'none'}. {remedy}")
        return given[0]

    def table(self, key: str, *, remedy: str = "") -> "Table":
        """Return the table under `key`, empty when it is absent."""
        value = self.values.get(key, {})
        title = f"{self.title} {key}" if self.title else f"[{key}]"
        if not isinstance(value, dict):
            raise Table(self.path, title, {}).error(f"must be a table, not {shown(value)}.{remedy}")
        return Table(self.path, title, value)

    def text(self, key: str, default: str, choices: Collection[str] = (), *, remedy: str = "") -> str:
        """Return a string, one of `choices` if there are any."""
        value = self.values.get(key, default)
        if not isinstance(value, str):
            raise self.error(f"must be a string, not {shown(value)}.", key)
        if choices and value not in choices:
            near = did_you_mean(value[:_LONGEST_WORD], choices)
            raise self.error(f"has no choice {shown(value)}.{near}{remedy}", key)
        return value

    def integer(self, key: str, default: int) -> int:
        """Return a whole number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(f"must be a whole number such as {default}, not {shown(value)}.", key)
        return value

    def finite(self, value: object, key: str) -> float:
        """Return `value` as a finite number; `key` names it in the error."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.error(f"must be a finite number, not {shown(value)}.", key)
        return float(value)

    def array(self, key: str, *, length: int | None = None) -> list[Any]:
        """Return a non-empty array, of `length` values if that is given."""
        value = self.values[key]
        wanted = "[low, high]" if length == 2 else "an array with at least one value"
        if not isinstance(value, list) or not value or (length is not None and len(value) != length):
            raise self.error(f"must be {wanted}, not {shown(value)}.", key)
        return value


def check_integers(table: Table) -> None:
    """Raise UserError for an integer beyond TOML's 64 bits, anywhere below `table`."""
    pending: list[tuple[str, object]] = list(table.values.items())
    while pending:
        key, value = pending.pop()
        if isinstance(value, dict):
            pending += value.items()
        elif isinstance(value, list):
            pending += ((key, item) for item in value)
        elif isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise table.error("has a number beyond 64 bits.", shown(key))
