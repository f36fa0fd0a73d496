"""The origin of a saved model and its README: settings, losses, evidence, text, versions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from results.study.folder import Study
from results.winner import Winner, evidence_words, worse_words
from results.words import config_words, evaluation_words, loss_words
from trainable.config import HYPERPARAMETERS
from trainable.errors import count_words

Row = Mapping[str, Any]


def best_evaluation(evaluations: Sequence[Row]) -> Row | None:
    """Return a run's evaluation of the lowest val_loss, None where it has none.

    The first one is of the weights that the run started from and does not count.
    """
    trained = [row for row in evaluations[1:] if row["val_loss"] is not None]
    return min(trained, key=lambda row: float(row["val_loss"]), default=None)


def model_row(study: Study, trial: Row) -> dict[str, Any]:
    """Return the trial's row at the step whose weights are its model.

    That is the last step, because trials are compared at equal tokens; in a run of train the step of the lowest
    validation loss.
    """
    best = (best_evaluation(study.metrics()) if trial["purpose"] == "train" else None) or trial
    return {**trial, **{name: best[name] for name in ("val_loss", "optimizer_steps", "tokens_seen")}}


def step_words(row: Row) -> str:
    """Return the step of a model_row(), empty for the last one."""
    step, steps = row["optimizer_steps"], row["training_steps"]
    return f", step {step} of {steps} (its lowest validation loss)" if step < steps else ""


def model_record(study: Study, trial: Row) -> dict[str, Any]:
    """Return the record, for programs, of which model a folder holds."""
    document = study.document()
    return {
        "study": study.name,
        "created_at": document["created_at"],
        "trial_id": trial["trial_id"],
        "model": document["model"],
        "checkpoint_path": document["checkpoint_path"],
        "corpus_fingerprint": document["corpus"]["fingerprint"],
        "hyperparameters": {name: trial[name] for name in HYPERPARAMETERS},
    }


def model_card(study: Study, trial: Row, winner: Winner, *, base_license: str | None) -> str:
    """Return the Markdown, with the front matter that the hub reads."""
    document = study.document()
    base = document["model"]
    is_hub_name = "/" in base and not base.startswith(("/", "."))
    front = ["library_name: transformers", "pipeline_tag: text-generation"]
    front += [f"base_model: {base}"] if is_hub_name else []
    front += [f"license: {base_license}"] if base_license else []
    corpus = document["corpus"]
    start = winner.start_val_loss
    losses = {"start": start, "baseline": winner.baseline_val_loss, "this model": trial["val_loss"]}
    shown_losses = " → ".join(f"{name} {loss_words(loss)}" for name, loss in losses.items() if loss is not None)
    worse = worse_words("This training", trial["val_loss"], start)
    text = Path(document["data_source"]).name if document["data_source"] else "the Python language reference"
    lines = [
        "---",
        *front,
        "---",
        "",
        f"# {base if is_hub_name else Path(base).name}, trained on {text}",
        "",
        f"Trial {trial['trial_id']} of study {study.name}{step_words(trial)}: {config_words(trial)}.",
        "",
        f"Validation loss (nats/token): {shown_losses}.",
        *([f"**{worse}.**"] if worse else []),
        "",
        f"Proof: {evidence_words(winner)}.",
        "",
        f"Evaluated on {evaluation_words(document)}, with the run's fp32 weights, without dropout.",
        "",
        "| setting | value |",
        "|---|---|",
        *(f"| {name} | {trial[name]} |" for name in HYPERPARAMETERS),
        "",
        f"- base: {base}" + (f", weights of {document['checkpoint_path']}" if document["checkpoint_path"] else ""),
        f"- licence of the base: {base_license or 'not known; it holds for this model too'}",
        f"- text: {text}, {corpus['train_tokens']:,} training tokens, fingerprint {corpus['fingerprint']}",
        f"- trained: {trial['tokens_seen']:,} tokens, {count_words(trial['optimizer_steps'], 'step')}, on "
        f"{document['device']['type']}",
        f"- versions: {', '.join(f'{name} {number}' for name, number in document['versions'].items())}",
        *([f"- commit: {document['git_commit']}"] if document.get("git_commit") else []),
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")',
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")',
        "```",
    ]
    return "\n".join(lines) + "\n"
