"""samples.json: how start, baseline and best continue one prompt, written and read back checked. It runs no model."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ConfigDict, with_config

from results.study.atomic import read_document, value_of, write_document
from results.study.folder import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How one model continues the prompt."""

    text: str | None = None
    why: str | None = None
    """Why there is no text."""
    trial_id: int | None = None
    """None for the start, and for a baseline that has not completed."""

    def __post_init__(self) -> None:
        if (self.text is None) == (self.why is None):
            raise ValueError("a sample has either text or why")


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The same prompt continued with the same seed."""

    prompt: str
    seed: int
    tokens: int
    """The most; an end-of-text token ends a text earlier."""
    temperature: float
    start: Sample
    best: Sample
    """Equal to the baseline's where no trial beat it."""
    baseline: Sample | None = None
    """None in a run of train, which has none."""

    @property
    def trial_ids(self) -> tuple[int | None, int | None]:
        """The baseline's and the best's."""
        return None if self.baseline is None else self.baseline.trial_id, self.best.trial_id


MODELS = ("start", "baseline", "best")


def to_json(samples: Samples) -> dict[str, Any]:
    """Return the samples as JSON's types, the models below "samples"."""
    document = asdict(samples)
    models = {model: one for model in MODELS if (one := document.pop(model)) is not None}
    said = {model: {name: value for name, value in one.items() if value is not None} for model, one in models.items()}
    return {**document, "samples": said}


def from_json(document: Mapping[str, Any]) -> Samples:
    """Return the samples that to_json was given. Raises KeyError, TypeError or ValueError for anything else."""
    fields = dict(document)
    return value_of(Samples, fields | fields.pop("samples"))


def write_samples(study: Study, samples: Samples) -> None:
    """Write the study's samples.json. Raises OSError."""
    write_document(study.path / "samples.json", to_json(samples))


def load_samples(study: Study) -> Samples | None:
    """Return the study's samples, None where nothing was sampled. Raises UserError for damage."""
    again = f"run make resume STUDY={study.name}"
    return read_document(study.path / "samples.json", from_json, what="samples of a study", again=again)


def samples_json(study: Study) -> dict[str, Any] | None:
    """Return the checked content of samples.json, None where there is none."""
    samples = load_samples(study)
    return None if samples is None else to_json(samples)
