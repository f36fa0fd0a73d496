"""Settings: what the user's variables change in a space file, kept with a study so that its space can be made again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The user's changes to a space file."""

    trials: int | Literal["auto"] | None = None
    budget_tokens: int | None = None
    device_s: float | None = None
    """A budget of time."""
    pins: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters fixed for every trial, the baseline included."""
    baseline: tuple[str, TrialConfig] | None = None
    """Another baseline; domains are widened to hold it, as far as they can be."""
    compare: str | None = None
    """make baseline: the built-in configuration that runs beside the baseline."""

    def to_json(self) -> dict[str, Any]:
        """Return what study.json keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Settings":
        """Return the settings that study.json keeps. Raises TypeError, UserError."""
        baseline = document.get("baseline")
        return cls(**{**document, "baseline": baseline and (baseline[0], TrialConfig(**baseline[1]))})
