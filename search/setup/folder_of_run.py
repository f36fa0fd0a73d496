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


@dataclass(frozen=True, kw_only=True)
class SavedModel:
    """A written model."""

    folder: Path
    dtype: str | None
    """None for adapters without their base."""
    val_loss: float
    """Of the folder as read back, under the study's evaluation."""
    words: str
    """The line for a person."""


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
    record, written = model_record(study, trial), f"{step_words(trial)} written to {shown(folder)}"
    if adapters_on is not None and not options.merge:
        base = adapters_base_name(adapters_on)
        save_adapter_folder(model, loaded.tokenizer, folder, model_name=name, base=base, card=card, record=record)
        loss = evaluate(model, windows)
        words = f"adapters{written}, val loss {loss:.4f} on their base. MERGE=1 writes a whole model"
        return SavedModel(folder=folder, dtype=None, val_loss=loss, words=words)
    whole = merged_model(model) if adapters_on is not None else model
    dtype = save_model_folder(
        whole, loaded.tokenizer, folder, model_name=name, dtype=options.dtype, card=card, record=record
    )
    again = load_model(str(folder), dropout=0.0, seed=0).to(next(model.parameters()).device)
    loss, loss_here, run_loss = evaluate(again, windows), evaluate(whole, windows), trial["val_loss"]
    # The same weights and kernels give the same bits: anything else is a bug of ours.
    assert dtype != "fp32" or loss == loss_here, (loss, loss_here)
    if dtype != "fp32":
        judged = f": it was trained in fp32, at {loss_here:.4f}. DTYPE=fp32 keeps every digit"
    elif loss_here == run_loss:
        judged = ", the run's to the last digit"
    else:
        # Merged adapters, other threads, another device and other versions have other last digits.
        judged = f"; the run measured {loss_words(run_loss)}"
    words = f"model{written} ({dtype}); read back, its val loss is {loss:.4f}{judged}"
    return SavedModel(folder=folder, dtype=dtype, val_loss=loss, words=words)
