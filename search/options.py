"""The variables a person sets, on the command line of make or in the environment: their names, meanings and parsing."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from results.study.paths import expanded
from trainable.config import (
    BEFORE,
    ENV_NAMES,
    HYPERPARAMETERS,
    SCHEDULES_WITH_WARMUP,
    TrialConfig,
    parse_hyperparameter,
)
from trainable.errors import UserError, did_you_mean

VARIABLES: Mapping[str, str] = MappingProxyType(
    {
        "SPACE": "space file: a name in spaces/ or a path (default plateau)",
        "STUDY": "name of the study to make, or to read (default: made from space and time; latest)",
        "TRIALS": "number of trials, the baseline included",
        "BUDGET_TOKENS": "training tokens of a full-length trial, e.g. 400000 or 8M",
        "WARM_START": "search: a study whose results the searcher learns from, its best run first",
        "FORCE": "resume: 1 goes on although the space file has changed since",
        "BASELINE": "documented, before, or a study whose best configuration is the baseline",
        "CONCURRENCY": "trials at the same time, or auto to measure (default: one a core, one a GPU, one on MPS)",
        "CHECKPOINT_INTERVAL_S": "search: seconds of training between two checkpoints of a trial (default 60)",
        "EVALUATION_TIMEOUT_S": "seconds without an evaluation after which a trial counts as hung (default 3600)",
        "ADDRESS": "an existing Ray cluster: auto, host:port or ray://host:port (default: this machine alone)",
        "STORAGE": "a folder that all nodes see, s3:// or gs://: holds checkpoints and a mirror of the tables",
        "GPU_FRACTION": "share of a CUDA GPU that one trial gets (default 1)",
        "GPT2_MODEL_NAME": "tiny, gpt2-scratch, a folder made by save_pretrained, or a hub name (default tiny)",
        "TRAINING_DATA_SOURCE": "text file or folder of text files (default: the English that comes with Python)",
        "CHECKPOINT_PATH": "train: go on from this checkpoint; search: every trial starts from its weights",
        "WEIGHTS_ONLY": "train: True takes the checkpoint's weights and starts at step 0, as a search does",
        "RESUME_STEPS": "train: steps to add to the checkpoint's",
        "DEVICE": "cuda, mps or cpu (default: the first there is)",
        "GRADIENT_CHECKPOINTING": "1 computes each layer twice to save memory; the losses stay the same (default 0)",
        "COMPILE": "0, 1 or auto: compile the model's layers (default auto: long runs on CUDA)",
        "EVAL_BLOCK_SIZE": "train: context of the evaluation in tokens (default 128, the documented block)",
        "EVAL_TOKENS": "train: held-out tokens scored per evaluation (default 16384)",
        "EVAL_INTERVAL": "train: steps between evaluations (default 500)",
        "CHECKPOINT_INTERVAL": "train: steps between checkpoints (default 500)",
        "ENABLE_CHECKPOINTS": "train: True or False (default True)",
        "USE_LR_WARMUP": "True or False: warm-up and cosine, or constant, where LR_SCHEDULE is not set",
        "COMPARE": "baseline: before, to run that configuration beside the documented one",
        "CONFIRM": "search: 1 confirms the best trials on fresh seeds at the end",
        "TOP": "confirm: how many of the best trials (default 2)",
        "SEEDS": "confirm: fresh seeds for each (default 5); attribute: seeds of each combination (default 3)",
        "FROM": "attribute: documented or before (default before)",
        "TO": "attribute: documented or before (default documented)",
        "FORMAT": "export: env, json, toml or cli (default env)",
        "TARGET": "diagnose: a study, STUDY/TRIAL, a checkpoint, a folder of them, or a text log",
        "RANGE": "audit: token positions to look at, e.g. 2.0M-2.5M",
        "CLEAN": "audit: write a cleaned copy of the text to this file",
        "SKIP_PREFLIGHT": "1: search or train although preflight failed",
        "TENSORBOARD": "search: 1 writes TensorBoard event files into the study",
        "OPTUNA_STORAGE": "search: an SQLite file or a database URL that optuna-dashboard reads",
        "MLFLOW": "search: an MLflow tracking URI, where mlflow is installed",
        "WANDB": "search: a Weights & Biases project, where wandb is installed",
        "MODEL_TYPE": "gpt2, the only type there is",
    }
)
"""Every variable besides the hyperparameters and the two folders below, with its meaning."""

FOLDERS: Mapping[str, str] = MappingProxyType(
    {
        "STUDIES_DIR": "where studies are kept (default results/studies)",
        "CACHE_DIR": "where tokens and tokenizers are kept (default .cache)",
    }
)
KNOWN = (*VARIABLES, *FOLDERS, *ENV_NAMES)
_MAKE_OWN = re.compile(r"MAKE\w*|SHELL|PYTHON|VENV|\.\w+|CURDIR|MFLAGS|ARGS")


@dataclass(frozen=True)
class Variables:
    """The values that are set, by variable name; an empty one counts as not set."""

    values: Mapping[str, str]

    def text(self, name: str) -> str | None:
        """Return the value or None."""
        assert name in KNOWN, name
        return self.values.get(name)

    def path(self, name: str) -> Path | None:
        """Return the value as an absolute path or None. Raises UserError for the home of nobody."""
        text = self.text(name)
        return expanded(text, name) if text else None

    def whole(self, name: str, *, low: int = 1) -> int | None:
        """Return the value as a whole number of at least `low`, or None. Raises UserError naming the variable."""
        text = self.text(name)
        if text is None:
            return None
        try:
            value = int(text)
        except ValueError:
            raise UserError(f"{name}={text!r} is not a whole number; it is the {VARIABLES[name]}.") from None
        if not low <= value <= 10**15:
            raise UserError(f"{name}={value} must be between {low} and 10^15; it is the {VARIABLES[name]}.")
        return value

    def tokens(self, name: str) -> int | None:
        """Return a number of tokens such as 400000, 400_000, 400k or 1.5M, or None."""
        text = self.text(name)
        if text is None:
            return None
        match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([kKmMgGbB]?)", text.strip())
        if match is None:
            raise UserError(f"{name}={text!r} is not a number of tokens such as 400000, 400k or 8M.")
        scale = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}[match[2].lower()]
        value = float(match[1].replace("_", "")) * scale
        if not 1 <= value <= 10**15:
            raise UserError(f"{name}={text} must be between 1 and 10^15 tokens; write it like 400000, 400k or 8M.")
        return round(value)

    def share(self, name: str, default: float) -> float:
        """Return a number in (0, 1]."""
        text = self.text(name)
        try:
            value = default if text is None else float(text)
        except ValueError:
            value = -1.0
        if not 0 < value <= 1:
            raise UserError(f"{name}={text!r} must be a number above 0 and at most 1; it is the {VARIABLES[name]}.")
        return value

    def flag(self, name: str) -> bool | None:
        """Return True or False as the owner's scripts write them (1 and 0, yes and no too), or None."""
        text = self.text(name)
        if text is None:
            return None
        word = text.strip().lower()
        if word not in {"true", "1", "yes", "false", "0", "no"}:
            raise UserError(f"{name}={text!r} must be True or False.")
        return word in {"true", "1", "yes"}


def read_variables(assignments: Sequence[str]) -> Variables:
    """Return what is set by NAME=value words, else by the environment.

    Raises UserError for an unknown name among the words or on make's command line, with the nearest known one.
    """
    values = {name: text for name in KNOWN if (text := os.environ.get(name, "").strip())}
    for word in assignments:
        name, equals, text = word.partition("=")
        if not equals:
            raise UserError(f"{word!r} is not of the form NAME=value.{did_you_mean(word.upper(), KNOWN)}")
        _check_name(name)
        values[name] = text.strip()
    for word in _make_words():
        name, equals, _ = word.partition("=")
        if equals and not _MAKE_OWN.fullmatch(name):
            _check_name(name)
    for name in FOLDERS:
        # Where later code looks for them: there too a blank one counts as not set.
        if os.environ.get(name, "") != values.get(name, ""):
            os.environ[name] = values.get(name, "")
    _check_owner_variables(Variables(values))
    return Variables(MappingProxyType({name: text for name, text in values.items() if text}))


def _make_words() -> list[str]:
    # make hands its command-line variables down in the environment, where an unknown one would pass unnoticed.
    flags = os.environ.get("MAKEFLAGS", "")
    if "--" not in flags or os.environ.get("MAKELEVEL") != "1":
        return []
    # make escapes blanks and backslashes, and leaves quotes as they are.
    return re.findall(r"(?:\\.|[^\s\\])+", flags.partition("-- ")[2])


def _check_name(name: str) -> None:
    if name not in KNOWN:
        raise UserError(f"there is no variable {name!r}.{did_you_mean(name, KNOWN)}")


def _check_owner_variables(variables: Variables) -> None:
    model_type = variables.text("MODEL_TYPE")
    if model_type not in (None, "gpt2"):
        raise UserError(f"MODEL_TYPE={model_type} is not supported; unset it and name the model by GPT2_MODEL_NAME.")


def explicit_hyperparameters(variables: Variables) -> dict[str, bool | int | float | str]:
    """Return the hyperparameters that are set, by field name, USE_LR_WARMUP translated. Raises UserError."""
    given = {
        name: parse_hyperparameter(name, text)
        for env, name in ENV_NAMES.items()
        if (text := variables.text(env)) is not None
    }
    warmup = variables.flag("USE_LR_WARMUP")
    if warmup and given.get("lr_schedule") == "constant":
        raise UserError("USE_LR_WARMUP=True contradicts LR_SCHEDULE=constant. Unset one of them.")
    if warmup is not None and "lr_schedule" not in given:
        given["lr_schedule"] = "warmup_cosine" if warmup else "constant"
    return given


def with_default_warmup(
    given: Mapping[str, bool | int | float | str], base: TrialConfig
) -> dict[str, bool | int | float | str]:
    """Return `given` plus `before`'s share of warm-up where a schedule that warms up is asked for and no length is."""
    schedule = given.get("lr_schedule", base.lr_schedule)
    if schedule not in SCHEDULES_WITH_WARMUP or "warmup_steps" in given or base.has_warmup:
        return dict(given)
    training_steps = int(given.get("training_steps", base.training_steps))
    return {**given, "warmup_steps": round(training_steps * BEFORE.warmup_steps / BEFORE.training_steps)}


def describe_variables() -> list[tuple[str, str]]:
    """Return (name, meaning) of every variable, hyperparameters first."""
    hyperparameters = [
        (
            spec.metadata["env"],
            f"{', '.join(spec.metadata['choices']) or spec.metadata['unit']} (documented: {spec.default})",
        )
        for spec in HYPERPARAMETERS.values()
    ]
    return [*hyperparameters, *VARIABLES.items(), *FOLDERS.items()]
