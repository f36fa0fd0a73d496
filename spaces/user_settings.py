"""Settings: what the user's variables change in a space file, kept with a study so that its space can be made again."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from spaces.budget import Speeds, budget_of
from spaces.overrides import with_overrides
from spaces.read.load import space_from_toml
from spaces.read.space_files import shown_path
from spaces.space import SearchSpace
from trainable.config import TrialConfig


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The user's changes to a space file."""

    trials: int | Literal["auto"] | None = None
    budget_tokens: int | None = None
    device_s: float | None = None
    pins: Mapping[str, Any] = field(default_factory=dict)
    baseline: tuple[str, TrialConfig] | None = None
    compare: str | None = None
    """make baseline: the built-in configuration that runs beside the baseline."""

    def applied_to(self, space: SearchSpace, kind: str, speeds: Speeds | None = None) -> SearchSpace:
        """Return the space as a study of that kind runs it. Raises UserError naming the variable.

        speeds: for a budget of time, which without them counts as endless.
        """
        if kind == "baseline":
            space = space.baseline_alone()
        return with_overrides(
            space,
            trials=self.trials if kind == "search" else None,
            budget_tokens=self.budget_tokens,
            device_s=self.device_s,
            speeds=speeds,
            pins=self.pins,
            baseline=self.baseline,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what study.json keeps."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> "Settings":
        """Return the settings that study.json keeps. Raises TypeError, UserError."""
        baseline = document.get("baseline")
        return cls(**{**document, "baseline": baseline and (baseline[0], TrialConfig(**baseline[1]))})


def space_of_document(document: Mapping[str, Any]) -> tuple[SearchSpace, Settings]:
    """Return the space that a study.json says was searched, and the settings in it.

    Raises KeyError, TypeError or UserError where the document does not hold it: another version wrote it.
    """
    settings, file = Settings.from_json(document["settings"]), document["space"]
    space = space_from_toml(file["toml"], name=file["name"], path=shown_path(Path(file["path"])))
    return settings.applied_to(space, document["kind"], budget_of(document).speeds), settings
