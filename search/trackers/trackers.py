"""The trackers that the variables ask for: checks them before a study, and makes their Ray callbacks."""

import importlib
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from results.study.folder import Study
from search.options import Options
from search.terminal.live_view import StudyView
from spaces.space import SearchSpace
from trainable.errors import UserError, as_user_error, redacted

if TYPE_CHECKING:
    from ray.tune import Callback

TENSORBOARD_FOLDER = "tensorboard"


def check_mirrors(
    options: Options, progress: Callable[[str, float], None], *, new_study: str | None, searches: bool = True
) -> None:
    """Raise UserError when a requested tracker cannot be written, or already holds a study named `new_study`.

    searches: whether it is a search's trials that run; an Optuna storage takes no others.
    """
    if options.optuna_storage and searches:
        progress("opening OPTUNA_STORAGE", 0.0)
        import optuna

        # It would print the name of the study that is made only to be deleted.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _usable("OPTUNA_STORAGE"):
            storage = optuna.storages.get_storage(options.optuna_storage)
            # Written to, because a read-only database opens as well.
            storage.delete_study(storage.create_new_study([optuna.study.StudyDirection.MINIMIZE]))
        if new_study in optuna.get_all_study_names(storage):
            raise UserError(f"OPTUNA_STORAGE already holds a study named {new_study}. Choose another STUDY= name.")
    if options.mlflow:
        progress(f"asking MLFLOW={redacted(options.mlflow)}", 0.0)
        # By default every call retries a server that is down for minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        mlflow = importlib.import_module("mlflow")
        with _usable("MLFLOW"):
            mlflow.MlflowClient(tracking_uri=options.mlflow).search_experiments(max_results=1)
    is_online = os.environ.get("WANDB_MODE") not in ("offline", "disabled")
    if options.wandb and is_online and not importlib.import_module("wandb").api.api_key:
        raise UserError("WANDB is set but nobody is logged in. Run wandb login, or set WANDB_MODE=offline.")


def with_tensorboard_of(study: Study, options: Options) -> Options:
    """Return the options with TENSORBOARD where the study has its files, unless TENSORBOARD is set.

    No other tracker goes on by itself: it sends something away, and somebody else may have made the study.
    """
    if "TENSORBOARD" in options.texts or not (study.path / TENSORBOARD_FOLDER).is_dir():
        return options
    return options.model_copy(update={"tensorboard": True})


def _usable(name: str) -> AbstractContextManager[None]:
    # Each driver and server has exceptions of its own.
    return as_user_error(Exception, f"{name} cannot be used", "Correct it, or unset it.")


def mirror_callbacks(options: Options, view: StudyView, space: SearchSpace | None) -> "list[Callback]":
    """Return the Ray callbacks that copy the view's study to the requested trackers; space: that which is searched."""
    if not (options.tensorboard or options.optuna_storage or options.mlflow or options.wandb):
        return []
    from search.trackers.callbacks import GuardedTracker, OptunaMirror, TensorBoardMirror

    name = view.study.name
    made: dict[str, Callable[[], Callback]] = {}
    if options.tensorboard:
        made["TensorBoard"] = lambda: TensorBoardMirror(view.study.path / TENSORBOARD_FOLDER)
    if (url := options.optuna_storage) and space is not None:
        made["the Optuna storage"] = lambda: OptunaMirror(url, view.ledger, name, space)
    if options.mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        made["MLflow"] = lambda: MLflowLoggerCallback(tracking_uri=options.mlflow, experiment_name=name)
    if options.wandb:
        from ray.air.integrations.wandb import WandbLoggerCallback

        made["W&B"] = lambda: WandbLoggerCallback(project=options.wandb, group=name)
    return [GuardedTracker(tracker, make, view.say) for tracker, make in made.items()]
