"""BASELINE: the settings that a search starts from, by a built-in name, a study, or a file of the user's.

A file is a .env, a checkpoint with its hyperparameters, a Trainer's checkpoint folder, or a model folder of ours. Lines
say what was read, ignored and missing: a comparison with a baseline that is not the user's own proves nothing.
"""

import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from stat import S_IFREG
from typing import Any

from results.study.folder import LATEST, Study, find_study, list_studies, open_study
from results.study.paths import expanded
from results.winner import winner_of
from results.words import config_words, value_words
from search.option_names import as_variable
from search.options import KNOWN, check_lora, parse_options, with_default_warmup
from trainable.checkpoint.checkpoint_path import CHECKPOINT_SUFFIXES, check_links, checkpoint_folders, trainer_state
from trainable.checkpoint.trainer_args import read_trainer_args
from trainable.config import (
    BASELINES,
    DOCUMENTED,
    ENV_NAMES,
    HYPERPARAMETERS,
    OTHER_NAMES,
    TrialConfig,
    config_from,
    make_config,
)
from trainable.errors import UserError, as_user_error, did_you_mean, first_of
from trainable.model.model_names import RECORD
from trainable.regular_files import file_type, json_object, read_regular

BLANKS = re.compile(r"^(\s*(?:(?:export|set)\s+)?\w+)\s*=\s*(?!\w+=)")
"""Around the sign, where python-dotenv takes them and a shell does not."""
LR_SCHEDULES_OF_TRAINER: Mapping[str, str] = {
    "linear": "linear",
    "cosine": "warmup_cosine",
    "constant": "constant",
    "constant_with_warmup": "warmup_constant",
}
"""By the Trainer's name; its schedules warm up from 0 and decay to 0."""
NO_ENV: Mapping[str, str] = {
    ".toml": "is a space file, which has a [baseline] of its own. Name it by SPACE",
    ".json": "is no .env file. Name the study or the folder that it is from",
}
"""By suffix, of what this program writes too."""
LONGEST_LINE = 10_000
"""shlex takes time quadratic in the length of a line."""
PRECISIONS_OF_DTYPES: Mapping[str, str] = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
MOST_SHOWN = 8


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A baseline, and lines on how it was read."""

    name: str
    config: TrialConfig
    notes: tuple[str, ...] = ()


_Read = tuple[Mapping[str, Any], Sequence[str]]
"""Values by hyperparameter; and what a file says besides, which a baseline does not take."""


def read_baseline(text: str) -> Baseline:
    """Return what BASELINE=text names. Raises UserError if it does not exist or cannot be read."""
    if text in BASELINES:
        return Baseline(name=text, config=BASELINES[text])
    path = expanded(text, "BASELINE")
    # What a shell completes: the file that makes the folder what it is.
    path = path.parent if path.name in ("trainer_state.json", "training_args.bin", "study.json") else path
    with as_user_error(OSError, f"BASELINE={text}", "Name a .env file, a checkpoint, a folder or a study."):
        kind, kind_of_document = file_type(path), file_type(Study(path).study_json)
    is_path = "/" in text or text.endswith((".env", *CHECKPOINT_SUFFIXES))
    studies = [] if is_path else [study.name for study in list_studies()]
    if is_path or (kind is not None and text not in studies):
        if kind_of_document != S_IFREG:
            return _of_file(text, path)
        study = Study(path)
    elif text != LATEST and find_study(text) is None:
        near = did_you_mean(text, [*BASELINES, *studies])
        raise UserError(f"BASELINE={text} is no built-in configuration, file, folder or study.{near}")
    else:
        study = open_study(text)
    best = winner_of(study).trial
    if best is None:
        raise UserError(f"BASELINE={text}: study {study.name} has no completed trial. Name another study.")
    return Baseline(name=f"{study.name} trial {best['trial_id']}", config=config_from(best))


def _of_file(text: str, path: Path) -> Baseline:
    where = f"BASELINE={text}"
    if not path.exists():
        raise UserError(f"{where}: there is no such file. Name a .env file, a checkpoint, a folder or a study.")
    if path.is_dir():
        check_links(path, where)
        values, others = _of_model_folder(where, path) if (path / RECORD).is_file() else _of_trainer(where, path)
    else:
        values, others = _of_checkpoint(path) if path.suffix in CHECKPOINT_SUFFIXES else _of_env(where, path)
    left = first_of(others, MOST_SHOWN)
    if not values:
        raise UserError(f"{where} says no hyperparameter{left and f'; it holds {left}'}. Name another file.")
    try:
        config = make_config(DOCUMENTED, with_default_warmup(values, DOCUMENTED))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    missing = [
        f"{name} {value_words(getattr(config, name))}"
        for name in HYPERPARAMETERS
        if name not in values
        and name not in ("seed", "training_steps", "min_lr_frac", "decay_frac")
        and config.reads(name)
        and (name != "use_lora" or config.use_lora)
    ]
    notes = [f"baseline {text}: {config_words(asdict(config))}"]
    notes += [f"{text} does not say {', '.join(missing)}: taken as documented"] if missing else []
    notes += [f"{text} also says {left}, which a baseline does not take"] if left else []
    return Baseline(name=path.name, config=config, notes=tuple(notes))


def _of_env(where: str, path: Path) -> _Read:
    if path.suffix in NO_ENV:
        raise UserError(f"{where} {NO_ENV[path.suffix]}.")
    with as_user_error((OSError, UnicodeDecodeError), f"{where} cannot be read as text", "Name a .env file."):
        lines = read_regular(path).decode("utf-8-sig").splitlines()
    # Not the others: the new study has its own model, text and folders.
    taken = (*ENV_NAMES, "USE_LR_WARMUP")
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        for name, text in _assignments(f"{where} line {number}", line):
            if name in taken and ("$" in text or "`" in text):
                refers = f"{name} refers to another variable, which is not followed. Write its value."
                raise UserError(f"{where} line {number}: {refers}")
            texts[name] = text
    unknown = [name for name in texts if name not in KNOWN]
    for name in unknown:
        near = did_you_mean(as_variable(name), ENV_NAMES)
        if "Did you mean" in near:
            raise UserError(f"{where}: there is no variable {name!r}.{near}")
    try:
        options = parse_options({name: text for name, text in texts.items() if name in taken and text})
        values = options.explicit_hyperparameters()
        check_lora(values, uses_lora=bool(values.get("use_lora")))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    left = [name for name, text in texts.items() if name in KNOWN and name not in taken and text]
    return values, [*left, *(f"{name} (not known)" for name in unknown)]


def _assignments(where: str, line: str) -> list[tuple[str, str]]:
    if len(line) > LONGEST_LINE:
        raise UserError(f"{where} is not NAME=value: it has {len(line):,} characters.")
    try:
        words = shlex.split(BLANKS.sub(r"\1=", line), comments=True)
    except ValueError as error:
        raise UserError(f"{where} is not NAME=value: {error}.") from None
    words = words[1:] if words[:1] in (["export"], ["set"]) else words
    found = []
    for word in words:
        name, equals, text = word.rstrip(";").partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"{where} is not NAME=value: {line.strip()[:60]!r}.")
        found.append((name, text.strip()))
    return found


def _of_checkpoint(path: Path) -> _Read:
    from trainable.checkpoint.checkpoint import read_checkpoint
    from trainable.checkpoint.foreign import settings_in

    checkpoint = read_checkpoint(path)
    if checkpoint.config is not None:
        return asdict(checkpoint.config), ()
    return _translated(settings_in(checkpoint.payload))


def _of_model_folder(where: str, path: Path) -> _Read:
    values = (json_object(path / RECORD) or {}).get("hyperparameters")
    if not isinstance(values, dict):
        raise UserError(f"{where}: its {RECORD} does not say the hyperparameters. Name another folder.")
    return values, ()


def _of_trainer(where: str, path: Path) -> _Read:
    state, arguments = trainer_state(path), read_trainer_args(path)
    if state is None and not arguments:
        inside = checkpoint_folders(path)
        other = f"one of those in it, such as {inside[-1]}" if inside else "another folder"
        raise UserError(f"{where} is not a Trainer's checkpoint-N: it has no trainer_state.json. Name {other}.")
    history = (state or {}).get("log_history")
    state = {name: value for name, value in (state or {}).items() if isinstance(value, int | float)}
    # In the arguments -1 means as many as the epochs take, which only the state says.
    steps = state.get("max_steps") or max(0, arguments.get("max_steps", 0)) or None
    values: dict[str, Any] = {
        "batch_size": state.get("train_batch_size") or arguments.get("per_device_train_batch_size"),
        "training_steps": steps,
    }
    left: list[str] = []
    if arguments:
        for name in ("learning_rate", "weight_decay", "seed", "gradient_accumulation_steps", "max_grad_norm"):
            values[OTHER_NAMES.get(name, name)] = arguments.get(name)
        values["precision"] = "bf16" if arguments.get("bf16") else "fp16" if arguments.get("fp16") else "fp32"
        schedule = str(arguments.get("lr_scheduler_type"))
        if schedule in LR_SCHEDULES_OF_TRAINER:
            values |= {"lr_schedule": LR_SCHEDULES_OF_TRAINER[schedule], "min_lr_frac": 0.0}
            asked = arguments.get("warmup_steps") or arguments.get("warmup_ratio") or 0
            # Below 1 it is a share of the run, in warmup_steps too since transformers 5.
            whole = steps or DOCUMENTED.training_steps
            values["warmup_steps"] = math.ceil(asked * whole) if asked < 1 else int(asked)
        else:
            left.append(f"lr_scheduler_type {schedule}")
        optimizer = str(arguments.get("optim", "adamw"))
        left += [] if optimizer.startswith("adamw") else [f"optim {optimizer}"]
    else:
        values |= _logged_rate(history, left)
    tokens, done = state.get("num_input_tokens_seen"), state.get("global_step")
    if tokens and done and values["batch_size"]:
        values["block_size"] = tokens // (done * values["batch_size"] * (values.get("grad_accum_steps") or 1))
    if (adapters := json_object(path / "adapter_config.json")) is not None:
        values |= _of_adapters(adapters, left)
    return {name: value for name, value in values.items() if value is not None}, left


def _of_adapters(settings: Mapping[str, Any], left: list[str]) -> dict[str, Any]:
    """Return LoRA's hyperparameters by peft's settings; what ours do not have is added to `left`."""
    names = ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform")
    left += [f"{name} {value_words(settings[name])}" for name in names if settings.get(name)]
    targets = settings.get("target_modules")
    if isinstance(targets, list):
        targets = ",".join(sorted(map(str, targets)))
    elif targets != "all-linear":
        left += [f"target_modules {targets}"] if targets else []
        targets = None
    return {
        "use_lora": True,
        "lora_rank": settings.get("r"),
        "lora_alpha": settings.get("lora_alpha"),
        "lora_dropout": settings.get("lora_dropout"),
        "lora_targets": targets,
    }


def _logged_rate(history: Any, left: list[str]) -> dict[str, Any]:
    rows = history if isinstance(history, list) else []
    found = [row.get("learning_rate") for row in rows if isinstance(row, dict)]
    rates = [rate for rate in found if isinstance(rate, int | float)]
    if rates and min(rates) < max(rates):
        left.append("a rate that changes, without saying by which schedule")
    return {"learning_rate": max(rates)} if rates else {}


def _translated(settings: Mapping[str, Any]) -> _Read:
    named = {name.lower(): value for name, value in settings.items() if value is not None}
    values: dict[str, Any] = {}
    left: list[str] = []
    for name, value in _as_ours({OTHER_NAMES.get(name, name): value for name, value in named.items()}).items():
        ours = value
        if name == "lr_schedule" and value not in HYPERPARAMETERS[name].metadata["choices"]:
            ours = LR_SCHEDULES_OF_TRAINER.get(str(value))
        if name in HYPERPARAMETERS and ours is not None:
            values[name] = ours
        else:
            left.append(f"{name} {value_words(value)}")
    return values, left


def _as_ours(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings under our names with the flags and values of training.py and nanoGPT translated too."""
    ours = dict(settings)
    decays = next((ours.pop(name) for name in ("use_lr_warmup", "decay_lr") if isinstance(ours.get(name), bool)), None)
    if decays is not None:
        ours.setdefault("lr_schedule", "warmup_cosine" if decays else "constant")
    peak, lowest = ours.get("learning_rate"), ours.get("min_lr")
    if decays and isinstance(lowest, int | float) and isinstance(peak, int | float) and 0 <= lowest <= peak > 0:
        ours["min_lr_frac"] = ours.pop("min_lr") / peak
    if ours.get("dtype") in PRECISIONS_OF_DTYPES:
        ours["precision"] = PRECISIONS_OF_DTYPES[ours.pop("dtype")]
    # Equal to the run's length it adds nothing.
    if ours.get("lr_decay_iters") == ours.get("training_steps"):
        ours.pop("lr_decay_iters", None)
    return ours
