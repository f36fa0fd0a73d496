"""JSON documents of a study: written whole, read back as the value they were made of."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from results.study.atomic import write_atomic
from results.study.paths import shown
from trainable.errors import UserError, reason
from trainable.regular_files import read_regular

Value = TypeVar("Value")


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write `document` to `path`. Raises OSError."""
    write_atomic(path, (json.dumps(document, indent=2, allow_nan=False) + "\n").encode())


def read_document(path: Path, parse: Callable[[Any], Value], *, what: str, again: str) -> Value | None:
    """Return the value that `parse` makes of the document, None where there is no such file.

    Raises UserError when it is damaged: "not `what`", with the remedy to move it away and `again` again.
    """
    try:
        return parse(json.loads(read_regular(path)))
    except FileNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as err:
        raise UserError(f"{shown(path)}: not {what} ({reason(err)}). Move it away and {again} again.") from None


def value_of(kind: type[Value], document: Any) -> Value:
    """Return the dataclass whose JSON `document` is. Raises ValueError for a field of another type, or NaN."""
    try:
        # From JSON, whose lists may become tuples and sets: from Python's own types strict mode refuses them.
        return TypeAdapter(kind).validate_json(json.dumps(document, allow_nan=False), strict=True)
    except ValidationError as err:
        first = err.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
