"""Options: the user's variables, from the environment or as NAME=value, parsed and checked once, before all else.

A new variable is one field, among those of its group in `make help`: its type has the bounds, its docstring is printed.
Hyperparameters are TrialConfig's fields.
"""

import importlib.util
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from stat import S_IFREG
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    ValidationInfo,
    WrapValidator,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from results.study.paths import expanded
from results.words import list_words
from search import IS_CHECKOUT
from search.option_names import TYPED_NAMES, VENV, as_variable, make_names, nearly, references, space_hint, typed_names
from spaces.budget import parse_duration
from trainable.config import (
    BEFORE,
    ENV_NAMES,
    FALSE_WORDS,
    HYPERPARAMETERS,
    SCHEDULES_WITH_WARMUP,
    TRUE_WORDS,
    TrialConfig,
    parse_hyperparameter,
    variable_of,
)
from trainable.data.remote_files import files_at
from trainable.data.text_documents import WHOLE_FILES, Documents, parse_documents
from trainable.errors import UserError, did_you_mean, full_reason, redacted
from trainable.regular_files import file_type

MAX_COUNT = 10**15
MOST_A_DEVICE = 16
"""Trials on a CPU core or a GPU. Each is a process of half a gibibyte, which begins before their memory is checked."""
NOT_PARSED = {
    "int_parsing": "is not a whole number",
    "int_parsing_size": "is too large",
    "float_parsing": "is not a number",
    "bool_parsing": "must be True or False",
    "string_unicode": "is not UTF-8 text",
}
BOUND_WORDS = {"ge": "at least", "gt": "more than", "le": "at most"}
LONGEST_SHOWN = 60
NUMBER = r"((?:\d{1,3}(?:,\d{3})+|\d[\d_]*)(?:\.\d+)?(?:[eE]\+?\d+)?)([kKmMgGbB]?)"
"""Of tokens: 400000, 400_000, 400,000, 4e5 or 400k. A comma that is not of thousands is some languages' point."""
SCALES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}
GCS_PATIENCE_S = 60
LENGTHS = ("BUDGET_TIME", "BUDGET_TOKENS", "STEPS")
"""The variables that set how long a run is: one of them at most."""


def _tokens(value: Any) -> Any:
    match = re.fullmatch(NUMBER, str(value))
    if match is None:
        raise ValueError("is not a number of tokens such as 400000, 400k or 8M")
    return _scaled(match[1], match[2])


def _scaled(number: str, unit: str) -> int:
    # Capped, because an infinite float cannot be rounded; the bound refuses both.
    return round(min(float(re.sub("[_,]", "", number)) * SCALES[unit.lower()], 10 * MAX_COUNT))


class MoreTrials(int):
    """TRIALS=+2: two more than the study has."""


def _more(value: Any, parsed: Callable[[Any], int | str]) -> int | str:
    number = parsed(value)
    return MoreTrials(number) if isinstance(number, int) and str(value).startswith("+") else number


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


def _compile_mode(value: Any) -> Any:
    return {**dict.fromkeys(TRUE_WORDS, "on"), **dict.fromkeys(FALSE_WORDS, "off")}.get(value, value)


def _device(value: str) -> str:
    if value.lower().partition(":")[0] not in ("cuda", "mps", "cpu"):
        raise ValueError("is not a device. Choose cuda, mps or cpu, or unset it.")
    return value.lower()


def parse_range(text: str) -> tuple[int, int]:
    """Return the token positions (first, end) of a range such as 2.0M-2.5M, 500K-1M or 0-20000, half-open.

    Raises UserError for anything else and for an empty or reversed range.
    """
    match = re.fullmatch(rf"\s*{NUMBER}\s*[-–:]\s*{NUMBER}\s*", text)
    if match is None:
        raise UserError(f"RANGE={text!r} is not a range of token positions. Write it as 2.0M-2.5M, 500K-1M or 0-20000.")
    first, end = _scaled(*match.group(1, 2)), _scaled(*match.group(3, 4))
    if first >= end:
        raise UserError(f"RANGE={text} must end after it starts. Write it as 2.0M-2.5M, 500K-1M or 0-20000.")
    return first, end


def _storage(value: str) -> str:
    if "://" not in value:
        return str(expanded(value, "STORAGE"))
    if value.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in value:
        # By default a bucket that does not answer is retried for a quarter of an hour.
        value += ("&" if "?" in value else "?") + f"retry_limit_seconds={GCS_PATIENCE_S}"
    files_at(value)
    return value


def _optuna_storage(value: str) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    url = value if "://" in value else f"sqlite:///{expanded(value, 'OPTUNA_STORAGE')}"
    try:
        address = make_url(url)
        address.get_dialect().import_dbapi()
    except (ArgumentError, ImportError, ValueError) as error:
        # pydantic fails on an error message that is not UTF-8.
        raise ValueError(f"is not a database that can be opened: {UserError(full_reason(error))}") from None
    if address.get_backend_name() == "sqlite":
        path, is_usable = Path(address.database or ""), False
        with suppress(OSError):  # a name that no file can have
            is_usable = path != Path() and path.parent.is_dir() and file_type(path) in (S_IFREG, None)
        if not is_usable:
            raise ValueError("must be a file in a folder that exists, or a database URL")
    return url


def _installed(value: str, info: ValidationInfo) -> str:
    library, name = str(info.field_name), _env_name(str(info.field_name))
    if importlib.util.find_spec(library) is None:
        raise UserError(f"{name} is set but {library} is not installed. Install it into .venv, or unset {name}.")
    return value


def _wandb(value: str) -> str:
    if len(value) > 128 or re.search(r"[/\\#?%:]", value):
        raise ValueError("cannot name a project: W&B takes up to 128 characters, none of them one of / \\ # ? % :")
    return value


# Not pydantic's own str and Path, which refuse what is not UTF-8: a path may be such.
Text = InstanceOf[str]
# With a bound pydantic looks into the text.
Utf8 = Annotated[str, Field(min_length=1)]
PathText = Annotated[InstanceOf[str], "of a file or a folder, or of something else"]
AbsolutePath = Annotated[
    InstanceOf[Path], BeforeValidator(lambda value, info: expanded(str(value), _env_name(info.field_name)))
]
Whole = Annotated[int, Field(ge=1, le=MAX_COUNT)]
WholeOrAuto = Annotated[Whole | Literal["auto"], BeforeValidator(_lower)]
Tokens = Annotated[int, BeforeValidator(_tokens), Field(ge=1, le=MAX_COUNT)]
Duration = Annotated[float, BeforeValidator(parse_duration)]
Share = Annotated[float, Field(gt=0, le=1)]
Documented = Literal["before", "documented"]


class ReadBy:
    """The make targets that read a variable, where not all do. ALSO_READ_BY adds those that read as one of them."""

    def __init__(self, *targets: str) -> None:
        self.targets = targets


class Options(BaseModel):
    """The variables that are set; None for one that is not. A variable's name is its field's in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=False, use_attribute_docstrings=True)

    hyperparameters: Mapping[str, bool | int | float | str] = Field(default={}, exclude=True)
    """Those that are set, by field name."""
    texts: Mapping[str, str] = Field(default={}, exclude=True)
    """Every set variable as it was written, by name."""
    typed: frozenset[str] = Field(default=frozenset(), exclude=True)
    """Names of those on the command line, which the environment may hold with another value."""

    space: Annotated[PathText | None, ReadBy("a new search", "spaces")] = None
    """the space file, by a name in spaces/ or a path (default plateau)"""
    study: Text | None = None
    """name of the study to make, or to read (default: made from space and time; latest)"""
    trials: Annotated[Annotated[WholeOrAuto, WrapValidator(_more)] | None, ReadBy("a search")] = None
    """number of trials, the baseline included, or auto to end once more would gain too little; resume: +2 for two
    more"""
    budget_tokens: Tokens | None = None
    """training tokens of a full-length trial, e.g. 400000, 4e5 or 8M; export, train STUDY=: stretch the winner to so
    many"""
    budget_time: Duration | None = None
    """device time of a full-length trial in place of tokens: 10m, 90s, 1h30m or 600 (seconds)"""
    baseline: Annotated[PathText | None, ReadBy("a new search")] = None
    """the baseline's settings: documented, before, a study, a .env file or a checkpoint"""
    warm_start: Annotated[Text | None, ReadBy("a search")] = None
    """a study whose results the searcher learns from, its best runs first"""
    confirm: Annotated[bool | None, ReadBy("a search")] = None
    """1 confirms the best trials on fresh seeds at the end; a resume goes on with it, or with 0 does not"""
    skip_preflight: bool = False
    """1 skips the preflight of search and train"""
    force: Annotated[bool, ReadBy("resume")] = False
    """1 goes on although the space file has changed"""
    gpt2_model_name: PathText | None = None
    """tiny (the default), tiny-scratch, gpt2-scratch, a folder of save_pretrained, or a hub name"""
    training_data_source: AbsolutePath | None = None
    """text file or folder of text files (default: the Python language reference)"""
    validation_data_source: AbsolutePath | None = None
    """text file or folder held out whole (default: the last tenth of the training text)"""
    documents: Annotated[InstanceOf[Documents], BeforeValidator(parse_documents)] = WHOLE_FILES
    """how the text is split into documents: file, line, blank-line or jsonl:FIELD (default file)"""
    checkpoint_path: AbsolutePath | None = None
    """train: go on from this checkpoint; search: every trial starts from its weights"""
    sample_prompt: Utf8 | None = None
    """prompt of the samples in the report (default: the first prose of the held-out text)"""
    model_type: Literal["gpt2"] | None = None
    """gpt2, the only type there is"""
    device: Annotated[Text, BeforeValidator(_device)] | None = None
    """cuda, mps or cpu (default: the first there is; a study goes on with its own where that is here)"""
    concurrency: Annotated[WholeOrAuto | None, ReadBy("search")] = None
    """trials at the same time, or auto to measure (default: one a core, one a GPU, one on MPS)"""
    threads: Annotated[Whole, Field(le=1024)] | None = None
    """CPU threads of a trial (default 1 on the CPU, beside a GPU a share of the cores); train: of the run"""
    gpu_fraction: Annotated[Share, Field(ge=1 / MOST_A_DEVICE), ReadBy("search")] = 1.0
    """share of a CUDA GPU that one trial gets"""
    gradient_checkpointing: bool = False
    """1 computes each layer twice to save memory; the losses stay the same (default 0)"""
    compile: Annotated[Literal["auto", "on", "off"], BeforeValidator(_compile_mode), BeforeValidator(_lower)] = "auto"
    """0, 1 or auto: compile the model's layers (default auto: long runs on CUDA)"""
    checkpoint_interval_s: Annotated[Whole, ReadBy("search")] = 60
    """seconds of training between two checkpoints of a trial"""
    evaluation_timeout_s: Annotated[Whole, ReadBy("search")] = 3600
    """seconds without an evaluation after which a trial counts as hung"""
    address: Annotated[Text | None, ReadBy("search")] = None
    """an existing Ray cluster: auto or host:port (default: this machine alone)"""
    storage: Annotated[PathText | None, BeforeValidator(_storage)] = None
    """a folder that all nodes see, s3:// or gs://: holds checkpoints and a mirror of the tables"""
    studies_dir: PathText | None = None
    """where studies are kept (default results/studies)"""
    cache_dir: PathText | None = None
    """where tokens and tokenizers are kept (default .cache)"""
    tensorboard: Annotated[bool, ReadBy("search")] = False
    """1 writes TensorBoard event files into the study; a resume goes on with them"""
    optuna_storage: Annotated[PathText | None, BeforeValidator(_optuna_storage), ReadBy("a search", "baseline")] = None
    """SQLite file or database URL for optuna-dashboard"""
    mlflow: Annotated[Text | None, BeforeValidator(_installed), ReadBy("search")] = None
    """an MLflow tracking URI, where mlflow is installed"""
    wandb: Annotated[Text | None, BeforeValidator(_wandb), BeforeValidator(_installed), ReadBy("search")] = None
    """a Weights & Biases project, where wandb is installed"""
    weights_only: Annotated[bool, ReadBy("train")] = False
    """True starts at step 0 from the checkpoint's weights, as a search does"""
    resume_steps: Annotated[Whole | None, ReadBy("train")] = None
    """steps to add to the checkpoint's, or with STUDY to its winner's"""
    resume_lr: Annotated[Literal["stretch", "hold"], ReadBy("train")] = "stretch"
    """stretch the schedule over the added steps, or hold its last rate"""
    eval_block_size: Annotated[Whole, Field(ge=2), ReadBy("train")] = 128
    """context of the evaluation in tokens (default 128, the documented block)"""
    eval_tokens: Annotated[Tokens | None, ReadBy("train")] = None
    """held-out tokens scored per evaluation (default 16384)"""
    eval_interval: Annotated[Whole, ReadBy("train")] = 500
    """steps between evaluations"""
    enable_checkpoints: Annotated[bool, ReadBy("train")] = True
    """keep checkpoints, True or False (default True)"""
    checkpoint_interval: Annotated[Whole, ReadBy("train")] = 500
    """steps between checkpoints"""
    save_model: Annotated[AbsolutePath | None, ReadBy("train")] = None
    """write the trained model to this folder too, as make model does"""
    use_lr_warmup: bool | None = None
    """True or False: warm-up and cosine, or constant, where LR_SCHEDULE is not set"""
    compare: Annotated[Documented | None, ReadBy("baseline")] = None
    """before, to run that configuration beside the documented one"""
    top: Annotated[Whole, Field(le=100), ReadBy("confirm")] = 2
    """how many of the best trials"""
    seeds: Annotated[Annotated[Whole, Field(le=1000)] | None, ReadBy("confirm", "attribute")] = None
    """fresh seeds of each of the best (default 5), or of each combination (default 3)"""
    from_: Annotated[Documented | None, ReadBy("attribute")] = None
    """documented or before (default before)"""
    to: Annotated[Documented | None, ReadBy("attribute")] = None
    """documented or before (default documented)"""
    format: Annotated[Literal["env", "json", "toml", "cli"], ReadBy("export")] = "env"
    """env, json, toml or cli"""
    out: Annotated[AbsolutePath | None, ReadBy("model")] = None
    """the folder to write (default: model-TRIAL in the study's folder)"""
    dtype: Annotated[Literal["fp32", "bf16", "fp16"] | None, ReadBy("model", "train")] = None
    """number format of the saved model: fp32, bf16, fp16 (default: the base's own)"""
    merge: Annotated[bool, ReadBy("model", "train")] = False
    """1 merges LoRA adapters into their base (default: adapters only)"""
    target: Annotated[PathText | None, ReadBy("diagnose")] = None
    """a study, STUDY/TRIAL, a checkpoint, a folder of them, or a text log"""
    range: Annotated[tuple[int, int] | None, BeforeValidator(parse_range), ReadBy("audit")] = None
    """token positions to look at, e.g. 2.0M-2.5M"""
    clean: Annotated[AbsolutePath | None, ReadBy("audit")] = None
    """write a cleaned copy of the text to this file"""
    steps: Annotated[Whole | None, ReadBy("export", "train")] = None
    """stretch the winner's schedule to so many optimizer steps"""
    exported_from: Text | None = None
    """set by make export: the study whose best configuration the variables are"""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.use_lr_warmup and self.hyperparameters.get("lr_schedule") == "constant":
            raise UserError("USE_LR_WARMUP=True contradicts LR_SCHEDULE=constant. Unset one of them.")
        if len(self.lengths) > 1:
            raise UserError(f"{' and '.join(self.lengths)} set the length of the same run. Unset all but one.")
        if self.concurrency == "auto" and self.address:
            raise UserError("CONCURRENCY=auto measures this machine. On a cluster write a number, or unset it.")
        if self.eval_tokens is not None and self.eval_tokens < self.eval_block_size:
            raise UserError(f"EVAL_TOKENS={self.eval_tokens} is less than a block of {self.eval_block_size}. Raise it.")
        return self

    @property
    def lengths(self) -> list[str]:
        """Which of LENGTHS are set."""
        return [name for name in LENGTHS if name in self.texts]

    @property
    def is_study_exported(self) -> bool:
        """Whether STUDY is set in the shell, so that a later command for another study must unset it."""
        return "STUDY" in self.texts and "STUDY" not in self.typed

    def trials_after(self, planned: int) -> int | None:
        """Return TRIALS for a study with `planned` trials; None if no number is set."""
        if isinstance(self.trials, str):
            return None
        return self.trials + planned if isinstance(self.trials, MoreTrials) else self.trials

    def explicit_hyperparameters(self) -> dict[str, bool | int | float | str]:
        """Return the hyperparameters that are set, by field name, USE_LR_WARMUP translated."""
        given = dict(self.hyperparameters)
        if self.use_lr_warmup is not None:
            given.setdefault("lr_schedule", "warmup_cosine" if self.use_lr_warmup else "constant")
        return given


def _env_name(field: str) -> str:
    return field.rstrip("_").upper()


FIELDS: Mapping[str, FieldInfo] = {
    _env_name(name): spec for name, spec in Options.model_fields.items() if not spec.exclude
}
"""Every variable besides the hyperparameters."""
OF_PATHS = {name for name, spec in FIELDS.items() if {PathText, AbsolutePath}.intersection(get_args(spec.annotation))}
"""Variables that take a file or a folder."""
FOLDERS = {"STUDIES_DIR": "results/studies", "CACHE_DIR": ".cache"}
"""With their places where they are not set: in the checkout, or in the folder of an installed command."""
ALSO_READ_BY: Mapping[str, tuple[str, ...]] = {
    "a search": ("search", "resume", "preflight"),
    "a new search": ("search", "resume", "baseline", "preflight"),
    "search": ("search", "resume", "baseline", "preflight", "confirm", "attribute", "model"),
    "baseline": ("baseline", "resume", "preflight"),
    "confirm": ("confirm", "search", "resume"),
}
"""The make targets that read what is described as for one of these."""
KNOWN = (*FIELDS, *ENV_NAMES)


def read_options(assignments: Sequence[str]) -> Options:
    """Return the options from NAME=value words, else from the environment; an empty value counts as not set.

    Raises UserError for an unknown name among the words or on make's command line, and for a wrong value.
    """
    texts = {name: text for name in KNOWN if (text := os.environ.get(name, "").strip())}
    for word in assignments:
        name, equals, text = word.partition("=")
        if not equals:
            near = space_hint(word) or did_you_mean(f"{word.upper()}=", [f"{name}=" for name in KNOWN])
            raise UserError(f"{word!r} is not of the form NAME=value.{near}")
        _check_name(name)
        texts[name] = text.strip()
    for name in make_names(os.environ):
        _check_name(name)
    for name, place in FOLDERS.items():
        # Ray's workers and their children read these two from the environment.
        os.environ[name] = texts.get(name) or ("" if IS_CHECKOUT else str(Path.cwd() / place))
    return parse_options({name: text for name, text in texts.items() if text}, typed=typed(assignments))


def overlooked() -> list[str]:
    """Return a line for each name in the environment that is probably a misspelt variable, and for each typed value of
    which make has taken a part for its own."""
    return [
        f"{name} is set in the environment and is not a variable of this program. Did you mean {meant}?"
        for name, meant in nearly(os.environ, KNOWN).items()
    ] + [
        f"{name}: make reads {word} as a variable of its own. A $ is written $$ there."
        for name, word in references(os.environ).items()
    ]


def unread(options: Options, target: str) -> list[str]:
    """Return a line for each variable on the command line that the make target does not read."""
    if target == "help":
        return []
    lines = []
    for name in sorted(options.typed.intersection(KNOWN)):
        names = _readers(name)
        if names and not any(target in ALSO_READ_BY.get(one, (one,)) for one in names):
            lines.append(f"{name} is read by {list_words(names)}, not by {target}")
        elif "confirm" in names and target == "search" and not options.confirm:
            lines.append(f"{name} is read by a search with CONFIRM=1 alone")
    return lines


def _readers(name: str) -> tuple[str, ...]:
    """Return the make targets that a variable is for; none where it is for any of them."""
    if name in ENV_NAMES:
        return ("a new search", "train")
    return next((one.targets for one in FIELDS[name].metadata if isinstance(one, ReadBy)), ())


def typed(assignments: Sequence[str]) -> frozenset[str]:
    """Return the names of the variables on the command line, make's or our own."""
    return frozenset(word.partition("=")[0] for word in assignments).union(typed_names(os.environ))


def typed_folders(options: Options) -> str:
    """Return the folders named on the command line, as a later command must repeat them."""
    from results.export import make_words

    values = {**os.environ, **options.texts}
    words = make_words({name: values.get(name) for name in (*FOLDERS, "STORAGE", VENV) if name in options.typed})
    return f" {words}" if words else ""


def with_origin(message: str, typed_now: Collection[str]) -> str:
    """Return the message; if it names variables that `make export` set, with the command that unsets them.

    typed_now: variables on the command line, whose values the export did not set.
    """
    study = os.environ.get("EXPORTED_FROM", "")
    if not study:
        return message
    from results.export import ENV_ORDER

    exported = [name for name in ENV_ORDER if os.environ.get(name) and name not in typed_now]
    named = [name for name in exported if re.search(rf"\b{name}\b", message)]
    if not named:
        return message
    verb = "were" if len(named) > 1 else "was"
    return f"{message} {', '.join(named)} {verb} set by the export of study {study}; unset {' '.join(ENV_ORDER)}"


def with_place(message: str, typed_now: Collection[str]) -> str:
    """Return the message; if it names a typed path that `make -C` reads in its own folder, with where it is instead."""
    from results.export import make_words

    called_from = os.environ.get("MAKE_CALLED_FROM")
    for name in sorted(OF_PATHS.intersection(typed_now)) if called_from else ():
        text = os.environ.get(name, "")
        there = f"{called_from}/{text}"
        if text and text in message and os.path.lexists(there) and not os.path.lexists(text):
            return f"{message} With -C make reads paths in {Path.cwd()}: {make_words({name: there})}"
    return message


def parse_options(texts: Mapping[str, str], *, typed: frozenset[str] = frozenset()) -> Options:
    """Return the options from texts by variable name. Raises UserError for the first that is wrong."""
    texts = with_newest_schedule(texts, typed)
    hyperparameters = {
        field: parse_hyperparameter(field, texts[name]) for name, field in ENV_NAMES.items() if name in texts
    }
    fields = {field: texts[name] for field in Options.model_fields if (name := _env_name(field)) in texts}
    try:
        return Options(texts=texts, typed=typed, hyperparameters=hyperparameters, **fields)
    except ValidationError as refused:
        raise _refusal(refused.errors()[0], texts) from None


def with_newest_schedule(texts: Mapping[str, str], newer: Collection[str]) -> Mapping[str, str]:
    """Return `texts`; where `newer` has one of the two that say the schedule, without what it replaces."""
    # An export sets both, and the warm-up.
    replaced = {"LR_SCHEDULE": ("USE_LR_WARMUP",), "USE_LR_WARMUP": ("LR_SCHEDULE", "WARMUP_STEPS")}
    said = [name for name in replaced if name in newer and name in texts]
    older = replaced[said[0]] if len(said) == 1 else ()
    return {name: text for name, text in texts.items() if name in newer or name not in older}


def _refusal(error: ErrorDetails, texts: Mapping[str, str]) -> UserError:
    details = error.get("ctx", {})
    cause = details.pop("error", None)
    if isinstance(cause, UserError):
        return cause
    name = _env_name(str(error["loc"][0]))
    text = redacted(texts[name])
    text = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
    if error["type"] == "literal_error":
        known = re.findall(r"'([^']+)'", details["expected"])
        return UserError(f"{name}={text} is not known.{did_you_mean(text, known)}")
    cause = cause or NOT_PARSED.get(error["type"])
    if cause is None:
        [(law, bound)] = details.items()
        cause = f"must be {BOUND_WORDS[law]} {'10^15' if bound == MAX_COUNT else f'{bound:g}'}"
    # A cause with a remedy of its own needs no description of the variable.
    remedy = "" if ". " in str(cause) else f". {name}: {describe_variable(name)}."
    return UserError(f"{name}={text!r} {cause}{remedy}")


def _check_name(name: str) -> None:
    if name not in KNOWN:
        word = TYPED_NAMES.get(name.upper(), as_variable(name))
        raise UserError(f"there is no variable {name!r}.{did_you_mean(word, KNOWN)}")


def check_lora(given: Mapping[str, object], *, uses_lora: bool) -> None:
    """Raise UserError for a LoRA setting without adapters to train, unless USE_LORA=False is set too."""
    unread = [name for name in given if name.startswith("lora_")]
    if unread and not uses_lora and "use_lora" not in given:
        names = ", ".join(variable_of(name) for name in unread)
        raise UserError(f"{names}: without USE_LORA no adapters are trained. Set USE_LORA=True or False.")


def with_default_warmup(
    given: Mapping[str, bool | int | float | str], base: TrialConfig
) -> dict[str, bool | int | float | str]:
    """Return `given`, with `before`'s share of warm-up if the schedule warms up and no length is set."""
    schedule = given.get("lr_schedule", base.lr_schedule)
    if schedule not in SCHEDULES_WITH_WARMUP or "warmup_steps" in given or base.has_warmup:
        return dict(given)
    training_steps = int(given.get("training_steps", base.training_steps))
    return {**given, "warmup_steps": round(training_steps * BEFORE.warmup_steps / BEFORE.training_steps)}


def describe_variable(name: str) -> str:
    """Return a variable's meaning and default."""
    if name in ENV_NAMES:
        spec = HYPERPARAMETERS[ENV_NAMES[name]]
        kind = ", ".join(spec.metadata["choices"]) or spec.metadata["unit"]
        return f"{kind} (documented: {spec.default})"
    readers = f"{', '.join(_readers(name))}: " if _readers(name) else ""
    default, words = FIELDS[name].default, readers + " ".join(str(FIELDS[name].description).split())
    if default is None or isinstance(default, bool) or "(default" in words:
        return words
    return f"{words} (default {f'{default:g}' if isinstance(default, float) else default})"
