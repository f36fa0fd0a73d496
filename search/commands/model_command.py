"""`make model`: writes a study's best model as a folder that other programs load."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.model_card import model_record, model_row
from results.study.folder import Study
from results.winner import warning_words, winner_of
from search.cluster.study_storage import NoCheckpointError, model_checkpoint, open_or_fetch_study
from search.options import Options
from search.setup.finish import save_run_model
from search.setup.reopen import load_inputs_of
from search.terminal.console import Preparing, Terminal
from search.terminal.next_steps import remedy, train_again
from trainable.config import config_from
from trainable.errors import UserError
from trainable.model.model_names import check_model_target

if TYPE_CHECKING:
    from trainable.checkpoint.checkpoint import Checkpoint


def model_command(options: Options, terminal: Terminal) -> int:
    """Write the best trial of STUDY (default: the latest search) to OUT."""
    study, options = open_or_fetch_study(options)
    winner = winner_of(study)
    if winner.trial is None:
        raise UserError(f"study {study.name} has no completed trial, so there is no model.{remedy(study)}")
    trial = model_row(study, winner.trial)
    folder = options.out or study.path / f"model-{trial['trial_id']}"
    record = model_record(study, trial)
    check_model_target(folder, {name: record[name] for name in ("created_at", "trial_id", "hyperparameters")})
    with Preparing(terminal.console) as progress:
        checkpoint = _checkpoint(study, options.storage, trial, folder, progress)
        loaded = load_inputs_of(study, options, progress)
        progress("writing the model", 0.5)
        from trainable.run import resume_run

        state = resume_run(loaded.spec, config_from(trial), checkpoint, may_be_over=True)
        saved = save_run_model(state.model, loaded, study, trial, folder=folder, adapters_on=state.adapter_base)
    terminal.say(f"trial {trial['trial_id']} of study {study.name}: {saved.words}")
    terminal.warn(warning_words(winner))
    terminal.document(
        {
            "study": study.name,
            "trial_id": trial["trial_id"],
            "optimizer_steps": trial["optimizer_steps"],
            "model": str(folder),
            "dtype": saved.dtype,
            "val_loss": saved.val_loss,
            "trial_val_loss": trial["val_loss"],
            "worse_than_start": winner.worse_than_start,
        }
    )
    return 0


def _checkpoint(
    study: Study, storage: str | None, trial: dict[str, Any], folder: Path, progress: Preparing
) -> "Checkpoint":
    """Return the checkpoint of the trial's model. Raises UserError with the command that trains it again."""
    progress("reading the checkpoint", 0.0)
    try:
        return model_checkpoint(study, storage, trial)
    except NoCheckpointError as gone:
        raise NoCheckpointError(f"{gone} Train it again: {train_again(study, folder)}") from None
