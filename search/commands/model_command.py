"""`make model`: a study's best model as a folder that other programs load."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.model_card import model_record
from results.study.folder import Study
from results.study.paths import shown
from results.winner import winner_of
from search.cluster.study_storage import CHECKPOINTS, open_or_fetch_study
from search.options import Options
from search.setup.folder_of_run import save_run_model
from search.setup.inputs import check_inputs, load_inputs
from search.setup.reopen import differences_of_inputs, with_inputs_of
from search.terminal.console import Preparing, Terminal
from trainable.config import config_from
from trainable.data.remote_files import below
from trainable.errors import UserError
from trainable.model.model_names import check_model_target

if TYPE_CHECKING:
    from trainable.checkpoint.checkpoint import Checkpoint


def model_command(options: Options, terminal: Terminal) -> int:
    """Write the best trial of STUDY (default: the latest search) to OUT."""
    study, storage = open_or_fetch_study(options)
    trial, document = _winner(study), study.document()
    folder = options.out or study.path / f"model-{trial['trial_id']}"
    record = model_record(document, trial)
    check_model_target(folder, {name: record[name] for name in ("study", "created_at", "trial_id")})
    with Preparing(terminal.console) as progress:
        checkpoint = _checkpoint(study, storage, trial, folder, progress)
        inputs = check_inputs(with_inputs_of(document, options), progress=progress)
        loaded = load_inputs(
            inputs,
            block_size=document["evaluation"]["block_size"],
            eval_tokens=document["evaluation"]["tokens"],
            stability=document.get("stability", {}),
            init_from=inputs.checkpoint_path,
            progress=progress,
        )
        changed = differences_of_inputs(document, loaded.facts)
        if changed:
            raise UserError(f"study {study.name}: {'; '.join(changed)}. Restore what has changed: the model needs it.")
        progress("writing the model", 0.5)
        from trainable.run import resume_run

        state = resume_run(loaded.spec, config_from(trial), checkpoint, may_be_over=True)
        saved = save_run_model(
            state.model, loaded, study, trial, folder=folder, dtype=options.dtype, merge=options.merge
        )
    terminal.say(f"trial {trial['trial_id']} of study {study.name}: {saved.words}")
    terminal.document(
        {
            "study": study.name,
            "trial_id": trial["trial_id"],
            "model": str(folder),
            "dtype": saved.dtype,
            "val_loss": saved.val_loss,
            "trial_val_loss": trial["val_loss"],
        }
    )
    return 0


def _winner(study: Study) -> dict[str, Any]:
    trial = study.trials()[0] if study.document()["kind"] == "train" else winner_of(study).trial
    if trial is None or trial["status"] != "completed":
        raise UserError(f"study {study.name} has no completed trial, so there is no model. Go on with it: make resume")
    return trial


def _checkpoint(
    study: Study, storage: str | None, trial: dict[str, Any], folder: Path, progress: Preparing
) -> "Checkpoint":
    """Return the checkpoint of the trial's last step. Raises UserError, saying what trains it again."""
    progress("reading the checkpoint", 0.0)
    from trainable.checkpoint.checkpoint_store import CheckpointStore

    root = below(storage, study.name, CHECKPOINTS) if storage else str(study.path / CHECKPOINTS)
    checkpoint, damaged = CheckpointStore(root=root, trial_id=trial["trial_id"]).newest()
    if checkpoint is not None and checkpoint.optimizer_steps == trial["optimizer_steps"]:
        return checkpoint
    what = "its checkpoint is damaged" if damaged else "it has no checkpoint of its last step any more"
    again = f"make train STUDY={study.name} SAVE_MODEL={shlex.quote(shown(folder))}"
    raise UserError(f"trial {trial['trial_id']} of study {study.name}: {what}. Train it again: {again}")
