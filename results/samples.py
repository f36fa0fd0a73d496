"""samples.json: how start, baseline and best continue one prompt, written and read back checked. It runs no model."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from results.study.folder import Study
from results.study.json_documents import read_document, write_document


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How one model continues the prompt."""

    text: str | None = None
    why: str | None = None
    """Why there is no text."""
    trial_id: int | None = None
    """None for the start, and for a baseline that has not completed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The same prompt continued with the same seed."""

    prompt: str
    seed: int
    tokens: int
    """How many at most; an end-of-text token ends earlier."""
    temperature: float
    start: Sample
    best: Sample
    """The baseline's where nothing beat it."""
    baseline: Sample | None = None
    """None in a run of train, which has none."""

    @property
    def trial_ids(self) -> tuple[int | None, int | None]:
        """Whose models continue the prompt beside the start: the baseline's and the best's."""
        return None if self.baseline is None else self.baseline.trial_id, self.best.trial_id


MODELS = ("start", "baseline", "best")


def to_json(samples: Samples) -> dict[str, Any]:
    """Return the samples as JSON's types."""
    document = asdict(samples)
    models = {model: one for model in MODELS if (one := document.pop(model)) is not None}
    said = {model: {name: value for name, value in one.items() if value is not None} for model, one in models.items()}
    return {**document, "samples": said}


def from_json(document: Mapping[str, Any]) -> Samples:
    """Return the samples that to_json was given. Raises KeyError, TypeError or ValueError for anything else."""
    values: dict[str, Any] = {name: value for name, value in document.items() if name != "samples"}
    values.update({model: _sample(entry) for model, entry in document["samples"].items()})
    samples = Samples(**values)
    numbers = (samples.seed, samples.tokens, samples.temperature)
    # math.isfinite() raises TypeError for what is not a number.
    if not isinstance(samples.prompt, str) or not all(map(math.isfinite, numbers)):
        raise ValueError("prompt must be a text; seed, tokens and temperature must be finite numbers")
    return samples


def _sample(entry: Mapping[str, Any]) -> Sample:
    sample = Sample(**entry)
    said = [text for text in (sample.text, sample.why) if text is not None]
    if len(said) != 1 or not isinstance(said[0], str) or not isinstance(sample.trial_id, (int, type(None))):
        raise ValueError("a sample has either text or why, and trial_id is a whole number")
    return sample


def write_samples(study: Study, samples: Samples) -> None:
    """Write the study's samples.json. Raises OSError."""
    write_document(study.path / "samples.json", to_json(samples))


def load_samples(study: Study) -> Samples | None:
    """Return the study's samples, None where nothing was sampled. Raises UserError for damage."""
    return read_document(study.path / "samples.json", from_json, what="samples of a study", again="run make resume")


def samples_json(study: Study) -> dict[str, Any] | None:
    """Return samples.json as it is checked, for a command's document and the report; None where there is none."""
    samples = load_samples(study)
    return None if samples is None else to_json(samples)
