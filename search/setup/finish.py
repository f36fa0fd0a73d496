"""What every command that has run trials writes at its end: the samples, the best configuration and the report.

And a run's model as a folder, with its record and model card, which is read back to check it.
Samples: start, baseline and best continue one prompt, a model at a time, for people who judge text and not nats.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from results.export import write_best
from results.model_card import model_card, model_record, step_words
from results.report.page import write_reports
from results.samples import Sample, Samples, load_samples, write_samples
from results.study.atomic import storage_error_words
from results.study.folder import RESUMED_KINDS, Study
from results.study.paths import shown
from results.study.planned_run import Row
from results.winner import winner_of
from results.words import loss_words
from search.cluster.storage_hold import TableMirror
from search.cluster.study_storage import model_checkpoint
from search.options import Options
from search.setup.inputs import Loaded
from search.setup.reopen import load_inputs_of
from search.terminal.console import Preparing, Terminal
from search.terminal.signals import Interrupts, ending_in_order
from trainable.config import config_from
from trainable.errors import UserError

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


def finish_study(
    study: Study, options: Options, terminal: Terminal, *, samples: bool, loaded: Loaded | None = None
) -> int:
    """Write the best configuration, with `samples` those too, and the report, and copy all into STORAGE.

    loaded: the study's inputs, if they are loaded. Return the exit code: 2 where there is no room for them.
    """
    # Whatever the signal, the report must not be left of fewer trials: samples are given up, and the report is written.
    code = 0
    with ending_in_order():
        try:
            if samples:
                sample_study(study, options, terminal, loaded)
        finally:
            with Interrupts(), terminal.console.status("writing the report ..."):
                try:
                    write_answer(study)
                    if options.storage is not None:
                        TableMirror(study, options.storage, terminal.say).close()
                except OSError as error:
                    # What was found is still printed, and what ended the samples still raised.
                    terminal.warn(f"error: {storage_error_words(error, again=f'make report STUDY={study.name}')}")
                    code = 2
    return code


def write_answer(study: Study) -> dict[str, Any]:
    """Write best.env, best.json and the report, all of the same winner; return the report's facts."""
    if winner_of(study).trial is not None:
        write_best(study)
    return write_reports(study)


def sample_study(study: Study, options: Options, terminal: Terminal, loaded: Loaded | None) -> None:
    """Write samples.json, unless it holds SAMPLE_PROMPT, the baseline and the winner already.

    loaded: the study's inputs, if they are loaded. A failure is one line and stops nothing; only a damaged samples.json
    raises UserError.
    """
    winner, known = winner_of(study), load_samples(study)
    best, baseline = winner.trial, winner.baseline
    if best is None:
        return
    if baseline is not None and baseline["status"] != "completed":
        baseline = None
    prompt = options.sample_prompt or (known.prompt if known else study.document().get("sample_prompt"))
    sampled = baseline and baseline["trial_id"], best["trial_id"]
    if known is not None and (known.prompt, known.trial_ids) == (prompt, sampled):
        return
    try:
        with Preparing(terminal.console) as progress:
            loaded = loaded or load_inputs_of(study, options, progress)
            progress("continuing the sample prompt", 0.0)
            write_samples(study, _samples(study, baseline, best, prompt, loaded))
    except KeyboardInterrupt:
        again = f"; make resume STUDY={study.name} does it" if study.document()["kind"] in RESUMED_KINDS else ""
        terminal.say(f"interrupted before the samples were written{again}")
    except Exception as error:
        # The trials took hours and the samples take seconds: whatever fails here, the report is still written.
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        terminal.say(f"no samples were written: {' '.join(reason.split())}")


def _samples(study: Study, baseline: Row | None, best: Row, prompt: str | None, loaded: Loaded) -> Samples:
    from trainable.sampling import SAMPLE_TOKENS, TEMPERATURE, default_prompt

    text = prompt or default_prompt(loaded.tokenizer, loaded.spec.corpus.val)

    def of_trial(trial: Row) -> Sample:
        try:
            return Sample(text=_continued(study, trial, text, loaded), trial_id=trial["trial_id"])
        except UserError as error:
            return Sample(why=str(error), trial_id=trial["trial_id"])

    of_baseline = of_trial(baseline) if baseline else Sample(why="the baseline has not completed")
    return Samples(
        prompt=text,
        seed=study.document()["seed"],
        tokens=SAMPLE_TOKENS,
        temperature=TEMPERATURE,
        start=Sample(text=_continued(study, None, text, loaded)),
        baseline=None if best["purpose"] == "train" else of_baseline,
        best=of_baseline if baseline and best["trial_id"] == baseline["trial_id"] else of_trial(best),
    )


def _continued(study: Study, trial: Row | None, prompt: str, loaded: Loaded) -> str:
    """Return how the trial's model continues the prompt, or with None the start's. Raises UserError."""
    import torch

    from trainable.device.device_memory import release_memory
    from trainable.run import load_run_model
    from trainable.sampling import sample

    document = study.document()
    seed, device = document["seed"], torch.device(loaded.spec.device)
    config = config_from(trial) if trial else replace(config_from(document["baseline"]), seed=seed, use_lora=False)
    checkpoint = model_checkpoint(study, loaded.inputs.options.storage, trial) if trial else None
    model, _ = load_run_model(loaded.spec, config, checkpoint)
    del checkpoint  # the optimizer's moments, twice the model
    text = sample(model.to(device), loaded.tokenizer, prompt, seed=seed)
    del model
    release_memory(device)
    return text


def save_run_model(
    model: "PreTrainedModel",
    loaded: Loaded,
    study: Study,
    trial: Mapping[str, Any],
    *,
    folder: Path,
    adapters_on: "AdapterBase | None",
) -> SavedModel:
    """Write the model of a study's trial to `folder` and read it back. Raises UserError where it cannot be written.

    trial: the row as of the model's step. adapters_on: the base of the model's adapters, if it has any. Without MERGE
    they are written alone, which needs a base that peft can load; raises UserError where it is none.
    """
    from trainable.evaluation import eval_windows, evaluate
    from trainable.model.lora import merged_model
    from trainable.model.models import load_model
    from trainable.model.save_folder import adapters_base_name, base_license, save_adapter_folder, save_model_folder

    name, options = loaded.spec.model_name, loaded.inputs.options
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
        judged = f", of the run's fp32 weights {loss_here:.4f}. DTYPE=fp32 keeps every digit"
    elif loss_here == run_loss:
        judged = ", the run's to the last digit"
    else:
        # Merged adapters, other threads, another device and other versions have other last digits.
        judged = f"; the run measured {loss_words(run_loss)}"
    words = f"model{written} ({dtype}); read back, its val loss is {loss:.4f}{judged}"
    return SavedModel(folder=folder, dtype=dtype, val_loss=loss, words=words)
