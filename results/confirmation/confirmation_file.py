"""confirmation.json: a study's attempts at a proof, written and read back checked. One is added, none erased."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, get_args

from results.confirmation.attempt import Attempt
from results.confirmation.paired_t import CandidateVerdict, Outcome
from results.study.folder import Study
from results.study.json_documents import read_document, write_document


def to_json(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Return the attempts as JSON's types."""
    document: dict[str, Any] = json.loads(json.dumps({"attempts": [asdict(one) for one in attempts]}, allow_nan=False))
    return document


def from_json(document: Mapping[str, Any]) -> tuple[Attempt, ...]:
    """Return the attempts that to_json was given. Raises KeyError, TypeError or ValueError for anything else."""
    attempts = []
    for number, entry in enumerate(document["attempts"], start=1):
        verdicts = tuple(CandidateVerdict(**_with_tuples(verdict)) for verdict in entry["verdicts"])
        for verdict in verdicts:
            if verdict.outcome not in get_args(Outcome):
                raise ValueError(f"there is no outcome {verdict.outcome!r}")
        attempt = Attempt(**{**_with_tuples(entry), "verdicts": verdicts})
        if attempt.number != number or (verdicts and [v.trial_id for v in verdicts] != list(attempt.candidates)):
            raise ValueError(f"attempt {number} is not whole")
        attempts.append(attempt)
    return tuple(attempts)


def _with_tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def write_attempts(study: Study, attempts: Sequence[Attempt]) -> None:
    """Write the study's confirmation.json. Raises OSError."""
    write_document(study.path / "confirmation.json", to_json(attempts))


def load_attempts(study: Study) -> tuple[Attempt, ...]:
    """Return the study's attempts, the oldest first; none where it was not confirmed. Raises UserError for damage."""
    found = read_document(study.path / "confirmation.json", from_json, what="a confirmation", again="confirm")
    return found or ()
