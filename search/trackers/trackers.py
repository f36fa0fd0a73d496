"""Mirrors of a study where people already look: TensorBoard, Optuna's storage, MLflow, W&B. Never its truth."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from results.study.folder import Study
from search.options import Options
from spaces.space import SearchSpace

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


def read_mirrors(options: Options) -> Mirrors:
    """Return what the variables ask for."""
    return Mirrors(
        tensorboard=options.tensorboard,
        optuna_storage=options.optuna_storage,
        mlflow=options.mlflow,
        wandb=options.wandb,
    )


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
