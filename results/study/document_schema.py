"""What study.json holds, as far as the program reads it: checked once, where it is read. It writes nothing."""

from datetime import datetime
from functools import cache
from typing import Any

from trainable.config import config_from
from trainable.errors import UserError

_LONGEST_SHOWN = 120
_TEXT = {"type": "string"}
_OPTIONAL_TEXT = {"type": ["string", "null"]}
_COUNT = {"type": "integer", "minimum": 0}
_POSITIVE = {"type": "integer", "minimum": 1}
_ENTROPY = {"type": "number", "minimum": 0, "maximum": 100}
"""In nats. No text's tokens are so rare: a larger one is another's number."""
_COUNTS = {"type": "array", "items": _COUNT}
_TABLE = {"type": "object"}


def _table(*optional: str, **columns: Any) -> dict[str, Any]:
    return {"type": "object", "properties": columns, "required": [name for name in columns if name not in optional]}


DOCUMENT: dict[str, Any] = _table(
    "rung_tokens",
    "searcher",
    "scheduler",
    "stability",
    "space",
    "settings",
    "git_commit",
    "model_fingerprint",
    "checkpoint_fingerprint",
    "validation_data_source",
    "documents",
    name=_TEXT,
    kind={"enum": ["search", "baseline", "train", "attribute"]},
    created_at={"type": "string", "format": "date-time"},
    model=_TEXT,
    model_fingerprint=_OPTIONAL_TEXT,
    data_source=_OPTIONAL_TEXT,
    validation_data_source=_OPTIONAL_TEXT,
    documents=_TEXT,
    checkpoint_path=_OPTIONAL_TEXT,
    checkpoint_fingerprint=_OPTIONAL_TEXT,
    corpus=_table(
        fingerprint=_TEXT, train_tokens=_COUNT, val_tokens=_COUNT, vocab_size=_POSITIVE, unigram_entropy=_ENTROPY
    ),
    evaluation=_table("milestones_tokens", block_size=_POSITIVE, tokens=_POSITIVE, milestones_tokens=_COUNTS),
    device=_table(
        "slots", "threads_per_slot", type=_TEXT, name=_TEXT, count=_COUNT, slots=_POSITIVE, threads_per_slot=_POSITIVE
    ),
    versions={"type": "object", "additionalProperties": _TEXT},
    git_commit=_OPTIONAL_TEXT,
    space=_table(name=_TEXT, path=_TEXT, description=_TEXT, toml=_OPTIONAL_TEXT),
    budget_tokens=_POSITIVE,
    rung_tokens=_COUNTS,
    baseline=_TABLE,
    settings=_table(
        "trials",
        "budget_tokens",
        "baseline",
        "compare",
        trials={"type": ["integer", "null"], "minimum": 1},
        budget_tokens={"type": ["integer", "null"], "minimum": 1},
        pins=_TABLE,
        baseline={"type": ["array", "null"], "prefixItems": [_TEXT, _TABLE], "minItems": 2, "maxItems": 2},
        compare=_OPTIONAL_TEXT,
    ),
    trials_planned=_POSITIVE,
    searcher=_TABLE,
    scheduler=_TABLE,
    stability=_TABLE,
    seed=_COUNT,
)
"""JSON Schema, draft 2020-12."""


def document_fault(document: dict[str, Any]) -> str | None:
    """Return what is wrong with a study's document, in words for one line, or None."""
    from jsonschema.exceptions import best_match

    error = best_match(_validator().iter_errors(document))
    if error is not None:
        where = ".".join(str(key) for key in error.absolute_path)
        message = " ".join(error.message.split())
        message = message if len(message) <= _LONGEST_SHOWN else f"{message[:_LONGEST_SHOWN]} ..."
        return f"{where}: {message}" if where else message
    try:
        config_from(document["baseline"])
    except KeyError as missing:
        return f"baseline: {missing} is missing"
    except UserError as refusal:
        return f"baseline: {refusal}"
    return None


@cache
def _validator() -> Any:
    from jsonschema import Draft202012Validator, FormatChecker

    checker = FormatChecker(formats=())

    def is_time(value: object) -> bool:
        return not isinstance(value, str) or datetime.fromisoformat(value) is not None

    checker.checks("date-time", raises=ValueError)(is_time)
    return Draft202012Validator(DOCUMENT, format_checker=checker)
