"""A run's model written to a folder, with all that is known of the run, and read back to see that it is the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.model_card import model_card, model_record, step_words
from results.study.folder import Study
from results.study.paths import shown
from results.winner import winner_of
from results.words import loss_words
from search.setup.inputs import Loaded

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trainable.model.lora import AdapterBase

ROUNDING_NATS = 5e-5
"""What merged adapters, another number of threads or another device may make of a loss."""


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A folder, and what was found on reading it back."""

    folder: Path
    dtype: str | None
    """None for adapters, which are saved alone."""
    val_loss: float
    """Of the folder as it is read back, under the study's evaluation."""
    run_val_loss: float | None
    """What the study says."""
    model_val_loss: float
    """Of the model that was saved, on this machine."""
    step_words: str = ""
    """Which step of its run it is, where that is not the last."""

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
    *,
    folder: Path,
    adapters_on: "AdapterBase | None",
    dtype: str | None,
    merge: bool,
) -> SavedModel:
    """Write the model of a study's trial to `folder` and return what reading it back showed. Raises OSError.

    trial: as it stood at the model's step. adapters_on: what the model's adapters were trained on, if it has any.
    merge: they are merged into that, and not written alone, for which it must be a model that peft can load. Raises
    UserError where it is none.
    """
    from trainable.evaluation import eval_windows, evaluate
    from trainable.model.lora import merged_model
    from trainable.model.models import load_model
    from trainable.model.save_folder import adapters_base_name, base_license, save_adapter_folder, save_model_folder

    document = study.document()
    name = loaded.spec.model_name
    card = model_card(document, trial, winner_of(study), base_license=base_license(name))
    windows = eval_windows(loaded.spec.corpus.val, loaded.spec.protocol)
    record = model_record(document, trial)
    if adapters_on is not None and not merge:
        base = adapters_base_name(adapters_on)
        save_adapter_folder(model, loaded.tokenizer, folder, model_name=name, base=base, card=card, record=record)
        saved_dtype = None
        val_loss = model_val_loss = evaluate(model, windows)
    else:
        whole = merged_model(model) if adapters_on is not None else model
        saved_dtype = save_model_folder(
            whole, loaded.tokenizer, folder, model_name=name, dtype=dtype, card=card, record=record
        )
        again = load_model(str(folder), dropout=0.0, seed=0).to(next(model.parameters()).device)
        val_loss, model_val_loss = evaluate(again, windows), evaluate(whole, windows)
        # The same weights under the same kernels: anything else is a fault of this program.
        assert saved_dtype != "fp32" or val_loss == model_val_loss, (val_loss, model_val_loss)
    return SavedModel(
        folder=folder,
        dtype=saved_dtype,
        val_loss=val_loss,
        run_val_loss=trial["val_loss"],
        model_val_loss=model_val_loss,
        step_words=step_words(trial),
    )
