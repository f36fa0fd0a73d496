"""Mirrors of a study where people already look: TensorBoard, Optuna's storage, MLflow, W&B. Never its truth."""

import importlib.util
from dataclasses import dataclass
from typing import TYPE_CHECKING

from results.study.folder import Study
from results.study.paths import expanded
from search.options import Variables
from spaces.space import SearchSpace
from trainable.errors import UserError

if TYPE_CHECKING:
    from ray.tune import Callback


@dataclass(frozen=True, kw_only=True)
class Mirrors:
    """What was asked for."""

    tensorboard: bool = False
    optuna_storage: str | None = None
    """A database URL; a path means an SQLite file."""
    mlflow: str | None = None
    """A tracking URI."""
    wandb: str | None = None
    """A project."""


def read_mirrors(variables: Variables) -> Mirrors:
    """Return what the variables ask for. Raises UserError for a library or a folder that is not there."""
    for name, library in (("MLFLOW", "mlflow"), ("WANDB", "wandb")):
        if variables.text(name) and importlib.util.find_spec(library) is None:
            raise UserError(f"{name} is set but {library} is not installed. Install it into .venv, or unset {name}.")
    return Mirrors(
        tensorboard=bool(variables.flag("TENSORBOARD")),
        optuna_storage=_storage_url(variables.text("OPTUNA_STORAGE")),
        mlflow=variables.text("MLFLOW"),
        wandb=variables.text("WANDB"),
    )


def _storage_url(text: str | None) -> str | None:
    if text is None or "://" in text:
        return text
    path = expanded(text, "OPTUNA_STORAGE")
    if path.is_dir() or not path.parent.is_dir():
        raise UserError(f"OPTUNA_STORAGE={text}: it must be a file in a folder that exists, or a database URL.")
    return f"sqlite:///{path}"


def mirror_callbacks(mirrors: Mirrors, study: Study, space: SearchSpace) -> "list[Callback]":
    """Return the Ray callbacks that keep the mirrors; a tracker's own where it has one."""
    if mirrors == Mirrors():
        return []
    from search.trackers.callbacks import OptunaMirror, TensorBoardMirror

    callbacks: list[Callback] = []
    if mirrors.tensorboard:
        callbacks.append(TensorBoardMirror(study.path / "tensorboard"))
    if mirrors.optuna_storage:
        callbacks.append(OptunaMirror(mirrors.optuna_storage, study.name, space))
    if mirrors.mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        callbacks.append(MLflowLoggerCallback(tracking_uri=mirrors.mlflow, experiment_name=study.name))
    if mirrors.wandb:
        from ray.air.integrations.wandb import WandbLoggerCallback

        callbacks.append(WandbLoggerCallback(project=mirrors.wandb, group=study.name))
    return callbacks
