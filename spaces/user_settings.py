"""Settings: what the user's variables change in a space file, kept with a study so that its space can be made again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from trainable.config import TrialConfig
from trainable.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ConfirmAtEnd:
    """CONFIRM=1: what a search confirms once its trials have ended, in this process or a later one."""

    top: int
    seeds: int | None
    attempt: int = 1
    """Nothing is left to confirm once so many attempts have their verdicts."""

    def __post_init__(self) -> None:
        if self.seeds == 1:
            raise UserError("SEEDS=1: one seed has no scatter, so it proves nothing. Set SEEDS to 2 or more.")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The user's changes to a space file, and what is to follow its trials."""

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
    confirm: ConfirmAtEnd | None = None

    def to_json(self) -> dict[str, Any]:
        """Return what study.json keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Settings":
        """Return the settings that study.json keeps. Raises TypeError, UserError."""
        baseline, confirm = document.get("baseline"), document.get("confirm")
        values = {
            "baseline": baseline and (baseline[0], TrialConfig(**baseline[1])),
            "confirm": confirm and ConfirmAtEnd(**confirm),
        }
        return cls(**{**document, **values})
