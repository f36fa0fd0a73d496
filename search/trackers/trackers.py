"""The trackers that the variables ask for: checks them before a study, and makes their Ray callbacks."""

import importlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_args

from results.study.document_model import Tracker
from search.options import Options
from search.terminal.live_view import StudyView
from spaces.space import SearchSpace
from trainable.errors import UserError, redacted

if TYPE_CHECKING:
    from ray.tune import Callback


def check_mirrors(options: Options, progress: Callable[[str, float], None], *, new_study: str | None) -> None:
    """Raise UserError when a requested tracker cannot be written, or already holds a study named `new_study`."""
    if options.optuna_storage:
        progress("opening OPTUNA_STORAGE", 0.0)
        import optuna

        # It would print the name of the study that is made only to be deleted.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        with _usable("OPTUNA_STORAGE"):
            storage = optuna.storages.get_storage(options.optuna_storage)
            # Written to, because a read-only database opens as well.
            storage.delete_study(storage.create_new_study([optuna.study.StudyDirection.MINIMIZE]))
        if new_study in optuna.get_all_study_names(storage):
            raise UserError(
                f"OPTUNA_STORAGE already holds a study named {new_study}. Choose another STUDY= name or storage."
            )
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


def kept_trackers(document: Mapping[str, Any], options: Options) -> dict[str, str]:
    """Return what study.json keeps of the trackers: those it had and those that are set, without anything secret."""
    values = {name: f"{getattr(options, name.lower()) or ''}" for name in get_args(Tracker)}
    # What a database's driver takes behind the ? may be a password under any name.
    kept = {name: re.sub(r"\?.*", "?***", redacted(value)) for name, value in values.items()}
    own: dict[str, str] = document.get("trackers", {})
    return own | {name: text for name, text in kept.items() if text}


def with_trackers_of(
    document: Mapping[str, Any], options: Options, progress: Callable[[str, float], None], *, is_search: bool
) -> tuple[Options, list[str]]:
    """Return the options, checked, and a line on each tracker that the study had and that is not set now.

    TensorBoard's files are in the study and go on. The others send something away or write elsewhere: that of a study
    which somebody else made is not ours to use, so they are named and not used.
    is_search: whether a search's trials run, of which alone an Optuna storage takes copies.
    """
    own = {name: text for name, text in document.get("trackers", {}).items() if name not in options.texts}
    if not is_search:
        own.pop("OPTUNA_STORAGE", None)
        options = options.model_copy(update={"optuna_storage": None})
    check_mirrors(options, progress, new_study=None)
    if own.pop("TENSORBOARD", None) is not None:
        options = options.model_copy(update={"tensorboard": True})
    return options, [
        f"the study goes on without {name}={text}, which it had; set it again to go on there"
        for name, text in own.items()
    ]


@contextmanager
def _usable(name: str) -> Iterator[None]:
    try:
        yield
    # Each driver and server has exceptions of its own.
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{name} cannot be used: {reason}. Correct it, or unset it.") from None


def mirror_callbacks(options: Options, view: StudyView, space: SearchSpace | None) -> "list[Callback]":
    """Return the Ray callbacks that copy the view's study to the requested trackers; space: that which is searched."""
    if not (options.tensorboard or options.optuna_storage or options.mlflow or options.wandb):
        return []
    from search.trackers.callbacks import GuardedTracker, OptunaMirror, TensorBoardMirror

    name = view.study.name
    made: dict[str, Callable[[], Callback]] = {}
    if options.tensorboard:
        made["TensorBoard"] = lambda: TensorBoardMirror(view.study.path / "tensorboard")
    if (url := options.optuna_storage) and space is not None:
        made["the Optuna storage"] = lambda: OptunaMirror(url, view.ledger, name, space)
    if options.mlflow:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        made["MLflow"] = lambda: MLflowLoggerCallback(tracking_uri=options.mlflow, experiment_name=name)
    if options.wandb:
        from ray.air.integrations.wandb import WandbLoggerCallback

        made["W&B"] = lambda: WandbLoggerCallback(project=options.wandb, group=name)
    return [GuardedTracker(tracker, make, view.say) for tracker, make in made.items()]
