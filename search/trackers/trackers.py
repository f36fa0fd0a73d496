"""Mirrors of a study where people already look: TensorBoard, Optuna's storage, MLflow, W&B. Never its truth."""

import importlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.options import Options
from search.terminal.live_view import StudyView
from spaces.space import SearchSpace
from trainable.errors import UserError, redacted

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


def check_mirrors(mirrors: Mirrors, progress: Callable[[str, float], None], *, new_study: str | None) -> None:
    """Raise UserError when a tracker that was asked for cannot be written, or knows a `new_study` of that name."""
    if mirrors.optuna_storage:
        progress("opening OPTUNA_STORAGE", 0.0)
        import optuna

        with _usable("OPTUNA_STORAGE"):
            storage = optuna.storages.get_storage(mirrors.optuna_storage)
            # A database that is read only opens all the same.
            storage.delete_study(storage.create_new_study([optuna.study.StudyDirection.MINIMIZE]))
        if new_study in optuna.get_all_study_names(storage):
            raise UserError(
                f"OPTUNA_STORAGE already holds a study named {new_study}. Choose another STUDY= name or storage."
            )
    if mirrors.mlflow:
        progress(f"asking MLFLOW={redacted(mirrors.mlflow)}", 0.0)
        # By default a server that is down is asked for minutes, by every call again.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        mlflow = importlib.import_module("mlflow")
        with _usable("MLFLOW"):
            mlflow.MlflowClient(tracking_uri=mirrors.mlflow).search_experiments(max_results=1)
    is_online = os.environ.get("WANDB_MODE") not in ("offline", "disabled")
    if mirrors.wandb and is_online and not importlib.import_module("wandb").api.api_key:
        raise UserError("WANDB is set but nobody is logged in. Run wandb login, or set WANDB_MODE=offline.")


@contextmanager
def _usable(name: str) -> Iterator[None]:
    try:
        yield
    # Drivers, engines and servers raise what they like.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{name} cannot be used: {reason}. Correct it, or unset it.") from None


def mirror_callbacks(mirrors: Mirrors, view: StudyView, space: SearchSpace) -> "list[Callback]":
    """Return the Ray callbacks that keep the mirrors of the view's study; a tracker's own where it has one."""
    if mirrors == Mirrors():
        return []
    from search.trackers.callbacks import OptunaMirror, TensorBoardMirror
    from search.trackers.guard import GuardedTracker

    name = view.study.name
    made: dict[str, Callable[[], Callback]] = {}
    if mirrors.tensorboard:
        made["TensorBoard"] = lambda: TensorBoardMirror(view.study.path / "tensorboard")
    if mirrors.optuna_storage:
        url = mirrors.optuna_storage
        made["the Optuna storage"] = lambda: OptunaMirror(url, view.ledger, name, space)
    if mirrors.mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        made["MLflow"] = lambda: MLflowLoggerCallback(tracking_uri=mirrors.mlflow, experiment_name=name)
    if mirrors.wandb:
        from ray.air.integrations.wandb import WandbLoggerCallback

        made["W&B"] = lambda: WandbLoggerCallback(project=mirrors.wandb, group=name)
    return [GuardedTracker(tracker, make, view.say) for tracker, make in made.items()]
