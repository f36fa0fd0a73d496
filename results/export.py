"""A study's winner as a shell, a program, a space file and make read it. It chooses and trains nothing."""

import json
import shlex
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from results.ranking import ending_counts, ranked_trials
from results.study.atomic import write_atomic
from results.study.folder import Study
from results.study.paths import shown
from results.winner import Winner, evidence_words, notes, warning_words, way_words, winner_of
from results.winner import to_json as winner_json
from trainable.config import ENV_NAMES, TrialConfig, config_from, with_token_budget
from trainable.errors import UserError

ENV_ORDER: tuple[str, ...] = (
    *ENV_NAMES,
    "USE_LR_WARMUP",
    "MODEL_TYPE",
    "GPT2_MODEL_NAME",
    "TRAINING_DATA_SOURCE",
    "VALIDATION_DATA_SOURCE",
    "DOCUMENTS",
    "CHECKPOINT_PATH",
    "WEIGHTS_ONLY",
    "EVAL_BLOCK_SIZE",
    "EVAL_TOKENS",
    "EXPORTED_FROM",
)
"""The exported variables. Those a study did without are exported empty, which counts as not set: an older value in the
person's shell must not change the configuration."""

_SCRIPTS = "training.py and training_resume.py"
_SCRIPT_HYPERPARAMETERS = (
    *("BATCH_SIZE", "BLOCK_SIZE", "LEARNING_RATE", "LR_SCHEDULE", "TRAINING_STEPS"),
    *("USE_LORA", "LORA_RANK", "LORA_ALPHA", "LORA_DROPOUT"),
)


@dataclass(frozen=True, kw_only=True)
class _Best:
    study: str
    winner: Winner
    trial: dict[str, Any]
    config: TrialConfig
    """The trial's, or that of a run of another length."""
    trained_steps: int
    """The trial's."""
    model: str
    data_source: str | None
    validation_data_source: str | None
    documents: str | None
    checkpoint_path: str | None
    eval_block_size: int
    eval_tokens: int


def export_env(study: Study, budget_tokens: int | None = None) -> str:
    """Return the study's winner as comments and `export NAME=value` lines, safe for a shell's eval.

    budget_tokens: of a longer or shorter run than the winner's, over which its schedule is stretched. Floats read back
    exactly. Raises UserError when no trial has completed or a file of the study is damaged.
    """
    best = _load(study, budget_tokens)
    lines = [f"# {line}" for line in _notes(best)]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in _env(best).items()]
    return "\n".join(lines) + "\n"


def winner_env(study: Study) -> dict[str, str]:
    """Return the winner's variables by name, empty where the study did without. Raises UserError as export_env does."""
    return _env(_load(study))


def export_cli(study: Study, budget_tokens: int | None = None) -> str:
    """Return the study's winner as a `make train NAME=value ...` command. Raises UserError as export_env does."""
    values = {name: value for name, value in _env(_load(study, budget_tokens)).items() if value}
    words = ["make", "train", *(f"{name}={_make_value(value)}" for name, value in values.items())]
    return shlex.join(words) + "\n"


def export_json(study: Study, budget_tokens: int | None = None) -> str:
    """Return the study's winner as a JSON object. Raises UserError as export_env does."""
    best = _load(study, budget_tokens)
    document = {
        "study": best.study,
        **{name: value for name, value in winner_json(best.winner).items() if name != "notes"},
        "tokens_seen": best.trial["tokens_seen"],
        "evaluation": {"block_size": best.eval_block_size, "tokens": best.eval_tokens},
        "model": best.model,
        "data_source": best.data_source,
        "validation_data_source": best.validation_data_source,
        "documents": best.documents,
        "checkpoint_path": best.checkpoint_path,
        "hyperparameters": asdict(best.config),
        "env": _env(best),
        "notes": _notes(best),
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def export_toml(study: Study, budget_tokens: int | None = None) -> str:
    """Return the study's winner as a space file around it. Raises UserError as export_env does."""
    # tomlkit takes a tenth of a second to import, which no other format needs.
    from results.export_space import space_text

    best = _load(study, budget_tokens)
    inputs = f"model {_plain(best.model)}, data {_plain(best.data_source or 'the Python language reference')}"
    return space_text(study.document(), best.config, [*_notes(best), inputs], budget_tokens=budget_tokens)


def write_best(study: Study) -> None:
    """Write the study's best.env and best.json. Raises UserError as export_env does, and OSError."""
    env, document = export_env(study), export_json(study)
    # A path that is not UTF-8 came in by surrogateescape and leaves by it.
    write_atomic(study.best_env, env.encode("utf-8", "surrogateescape"))
    write_atomic(study.best_json, document.encode())


def _load(study: Study, budget_tokens: int | None = None) -> _Best:
    winner = winner_of(study)
    trial = winner.trial
    if trial is None:
        counts = ending_counts(ranked_trials(study.trials()))
        ended = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        raise UserError(f"study {study.name} has no completed trial to export ({ended or 'none has started'}).")
    config = trained = config_from(trial)
    if budget_tokens is not None:
        config = with_token_budget(config, budget_tokens)
    document = study.document()
    try:
        return _Best(
            study=study.name,
            winner=winner,
            trial=trial,
            config=config if config.has_warmup else replace(config, warmup_steps=0),
            trained_steps=trained.training_steps,
            model=_text(document["model"]),
            data_source=document["data_source"] and _text(document["data_source"]),
            validation_data_source=_optional(document, "validation_data_source"),
            documents=_optional(document, "documents"),
            checkpoint_path=document["checkpoint_path"] and _text(document["checkpoint_path"]),
            eval_block_size=document["evaluation"]["block_size"],
            eval_tokens=document["evaluation"]["tokens"],
        )
    except ValueError as err:
        raise UserError(f"{shown(study.study_json)}: model, data_source or checkpoint_path: {err}.") from None


def _optional(document: dict[str, Any], name: str) -> str | None:
    # Studies made before there was a choice do not say it.
    value = document.get(name)
    return None if value is None else _text(value)


def _text(value: str) -> str:
    if "\0" in value:
        raise ValueError(f"{value!r} cannot be the text of a variable")
    # A path that is not UTF-8 came in by surrogateescape and leaves by it; other lone surrogates are no bytes at all.
    value.encode("utf-8", "surrogateescape")
    return value


def _env(best: _Best) -> dict[str, str]:
    values: dict[str, Any] = {
        **{variable: getattr(best.config, name) for variable, name in ENV_NAMES.items()},
        "USE_LR_WARMUP": best.config.lr_schedule == "warmup_cosine" and best.config.warmup_steps > 0,
        "MODEL_TYPE": "gpt2",
        "GPT2_MODEL_NAME": best.model,
        "TRAINING_DATA_SOURCE": best.data_source,
        "VALIDATION_DATA_SOURCE": best.validation_data_source,
        "DOCUMENTS": best.documents,
        "CHECKPOINT_PATH": best.checkpoint_path,
        "WEIGHTS_ONLY": None if best.checkpoint_path is None else True,
        "EVAL_BLOCK_SIZE": best.eval_block_size,
        "EVAL_TOKENS": best.eval_tokens,
        "EXPORTED_FROM": best.study,
    }
    assert tuple(values) == ENV_ORDER
    return {
        name: "" if value is None else value if isinstance(value, str) else repr(value)
        for name, value in values.items()
    }


def _make_value(value: str) -> str:
    # make drops blanks after the '='; the reference to a variable without a name, which is empty, keeps them.
    return ("$()" if value[:1].isspace() else "") + value.replace("$", "$$")


def _notes(best: _Best) -> list[str]:
    trial, winner = best.trial, best.winner
    loss, base = f"val_loss {trial['val_loss']:.4f} nats/token", winner.baseline_val_loss
    if trial["is_baseline"]:
        loss += "; this is the baseline: no completed trial beat it"
    elif base is None:
        status = winner.baseline["status"] if winner.baseline else "not started"
        loss += f"; the baseline has not completed ({status})"
    else:
        loss += f"; baseline {base:.4f}; difference {trial['val_loss'] - base:+.4f}"
    lines = [
        f"study {best.study}, trial {trial['trial_id']}, after {trial['tokens_seen']} training tokens",
        loss,
        *filter(None, (way_words(winner), warning_words(winner))),
        evidence_words(winner),
        *notes(winner),
        *_stretch_notes(best),
        f"evaluated on {best.eval_tokens} held-out tokens, the same for every trial, "
        f"context {best.eval_block_size}, fp32, dropout off",
        *_script_notes(best),
    ]
    if best.checkpoint_path is not None:
        lines.append(
            f"every trial took the weights alone from {best.checkpoint_path}, as WEIGHTS_ONLY=True says to make train; "
            f"{_SCRIPTS} would also continue its step count"
        )
    return [_plain(line) for line in lines]


def _stretch_notes(best: _Best) -> Iterable[str]:
    if best.config.training_steps != best.trained_steps:
        # A rate that falls with the horizon (Bjorck et al. 2024) was found for pretraining; here nothing has shown it.
        yield (
            f"BUDGET_TOKENS: the schedule is stretched from {best.trained_steps} to {best.config.training_steps} "
            "steps, warm-up and decay keep their shares of the run; rate and batch are as found, and no run of that "
            "length was measured"
        )


def _script_notes(best: _Best) -> Iterable[str]:
    schedule, warms_up = best.config.lr_schedule, best.config.warmup_steps > 0
    said = {"constant": True, "warmup_cosine": warms_up, "warmup_constant": not warms_up}.get(schedule, False)
    if not said:
        yield (
            f"{_SCRIPTS} know a constant rate and warm-up with cosine: "
            f"USE_LR_WARMUP cannot say LR_SCHEDULE={schedule} WARMUP_STEPS={best.config.warmup_steps}"
        )
    unread = [name for name in ENV_NAMES if name not in _SCRIPT_HYPERPARAMETERS]
    yield f"{_SCRIPTS} do not read {' '.join(unread)} EVAL_BLOCK_SIZE EVAL_TOKENS; make train does"


def _plain(text: str) -> str:
    # A line break would end the comment and run what follows; other control characters would drive a terminal.
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
