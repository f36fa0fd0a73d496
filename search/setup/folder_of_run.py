"""Writes a run's model to a folder, with its record and model card, and reads it back to check it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.model_card import model_card, model_record, step_words
from results.study.folder import Study
from results.study.paths import shown
from results.winner import winner_of
from results.words import loss_words
from search.options import Options
from search.setup.inputs import Loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainable.model.lora import AdapterBase

ROUNDING_NATS = 5e-5
"""Merged adapters, other threads or another device change a loss by less."""


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A written model, and its loss when read back."""

    folder: Path
    dtype: str | None
    """None for adapters without their base."""
    val_loss: float
    """Of the folder as read back, under the study's evaluation."""
    run_val_loss: float | None
    """As the study has it."""
    model_val_loss: float
    """Of the model before it was saved, on this machine."""
    step_words: str = ""
    """The step of its run, where that is not the last."""

    @property
    def words(self) -> str:
        """The line for a person."""
        if self.dtype is None:
            return (
                f"adapters{self.step_words} written to {shown(self.folder)}, val loss {self.val_loss:.4f} on their "
                "base. MERGE=1 writes a whole model"
            )
        line = (
            f"model{self.step_words} written to {shown(self.folder)} ({self.dtype}); read back, its val loss is "
            f"{self.val_loss:.4f}"
        )
        if self.dtype != "fp32":
            return f"{line}: it was trained in fp32, at {self.model_val_loss:.4f}. DTYPE=fp32 keeps every digit"
        if self.model_val_loss == self.run_val_loss:
            return f"{line}, the run's to the last digit"
        if self.run_val_loss is not None and abs(self.model_val_loss - self.run_val_loss) < ROUNDING_NATS:
            return f"{line}, the run's to rounding"
        return f"{line}; the run measured {loss_words(self.run_val_loss)}, on another device or by other versions"


def save_run_model(
    model: "PreTrainedModel",
    loaded: Loaded,
    study: Study,
    trial: Mapping[str, Any],
    options: Options,
    *,
    folder: Path,
    adapters_on: "AdapterBase | None",
) -> SavedModel:
    """Write the model of a study's trial to `folder` and read it back. Raises OSError.

    trial: the row as of the model's step. adapters_on: the base of the model's adapters, if it has any. Without MERGE
    they are written alone, which needs a base that peft can load; raises UserError where it is none.
    """
    from trainable.evaluation import eval_windows, evaluate
    from trainable.model.lora import merged_model
    from trainable.model.models import load_model
    from trainable.model.save_folder import adapters_base_name, base_license, save_adapter_folder, save_model_folder

    name = loaded.spec.model_name
    card = model_card(study, trial, winner_of(study), base_license=base_license(name))
    windows = eval_windows(loaded.spec.corpus.val, loaded.spec.protocol)
    record = model_record(study, trial)
    if adapters_on is not None and not options.merge:
        base = adapters_base_name(adapters_on)
        save_adapter_folder(model, loaded.tokenizer, folder, model_name=name, base=base, card=card, record=record)
        saved_dtype = None
        val_loss = model_val_loss = evaluate(model, windows)
    else:
        whole = merged_model(model) if adapters_on is not None else model
        saved_dtype = save_model_folder(
            whole, loaded.tokenizer, folder, model_name=name, dtype=options.dtype, card=card, record=record
        )
        again = load_model(str(folder), dropout=0.0, seed=0).to(next(model.parameters()).device)
        val_loss, model_val_loss = evaluate(again, windows), evaluate(whole, windows)
        # The same weights and kernels give the same bits: anything else is a bug of ours.
        assert saved_dtype != "fp32" or val_loss == model_val_loss, (val_loss, model_val_loss)
    return SavedModel(
        folder=folder,
        dtype=saved_dtype,
        val_loss=val_loss,
        run_val_loss=trial["val_loss"],
        model_val_loss=model_val_loss,
        step_words=step_words(trial),
    )
