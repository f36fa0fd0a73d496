"""confirmation.json: a study's attempts at a proof, written and read back checked. Attempts are added, never erased."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from results.confirmation.attempt import Attempt
from results.study.folder import Study
from results.study.json_documents import read_document, value_of, write_document


def to_json(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return the attempts as JSON's types."""
    document: dict[str, Any] = json.loads(json.dumps({"attempts": [asdict(one) for one in attempts]}, allow_nan=False))
    return document


def from_json(document: Mapping[str, Any]) -> tuple[Attempt, ...]:
    """Return the attempts that to_json was given. Raises KeyError, TypeError or ValueError for anything else."""
    attempts = tuple(value_of(Attempt, entry) for entry in document["attempts"])
    for number, attempt in enumerate(attempts, start=1):
        judged = [verdict.trial_id for verdict in attempt.verdicts]
        if attempt.number != number or (judged and judged != list(attempt.candidates)):
            raise ValueError(f"attempt {number} is not whole")
    return attempts


def write_attempts(study: Study, attempts: Sequence[Attempt]) -> None:
    """Write the study's confirmation.json. Raises OSError."""
    write_document(study.path / "confirmation.json", to_json(attempts))


def load_attempts(study: Study) -> tuple[Attempt, ...]:
    """Return the study's attempts, the oldest first. Raises UserError when the file is damaged."""
    found = read_document(study.path / "confirmation.json", from_json, what="a confirmation", again="confirm")
    return found or ()
