"""The content of study.json, as far as the program reads it: checked once, where it is read. It writes nothing."""

import math
from collections.abc import Mapping
from datetime import datetime
from textwrap import shorten
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from spaces.overrides import Positive, Seconds, Settings
from trainable.config import DOCUMENTED, config_from, make_config


def _time(text: str) -> str:
    # Other years overflow in some time zones.
    if not 1970 <= datetime.fromisoformat(text).year <= 9998:
        raise ValueError("a time before 1970 or after 9998")
    return text


def _configuration(table: dict[Any, Any]) -> dict[Any, Any]:
    try:
        config_from(table)
    except KeyError as missing:
        raise ValueError(f"{missing} is missing") from None
    return table


def _shapes(rows: list[dict[Any, Any]]) -> list[dict[Any, Any]]:
    for row in rows:
        make_config(DOCUMENTED, {name: value for name, value in row.items() if name != "step_s"})
        if not isinstance(row.get("step_s"), float) or not 0 < row["step_s"] < math.inf:
            raise ValueError("step_s must be seconds")
    return rows


# pydantic's own str refuses what is not UTF-8, which a path may be.
Text = InstanceOf[str]
Count = Annotated[int, Field(ge=0)]
Table = dict[Any, Any]
RunOption = Literal["EVAL_INTERVAL", "CHECKPOINT_INTERVAL", "ENABLE_CHECKPOINTS", "DTYPE", "MERGE", "SAVE_MODEL"]
"""What a run of train was told and its checkpoints do not hold. Nothing else: it is printed to be typed."""


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class _Corpus(_Part):
    fingerprint: Text
    train_tokens: Positive
    val_tokens: Count
    vocab_size: Positive
    # In nats; larger than that of any text.
    unigram_entropy: Annotated[float, Field(ge=0, le=100)]


class _Evaluation(_Part):
    block_size: Annotated[int, Field(ge=2)]
    tokens: Positive
    milestones_tokens: list[Count] = []


class _Start(_Part):
    # None where the loss is not finite.
    val_loss: Annotated[float, Field(allow_inf_nan=False)] | None
    train_loss: Annotated[float, Field(allow_inf_nan=False)] | None


class _Device(_Part):
    type: Text
    name: Text
    count: Count
    slots: Positive = 1
    threads_per_slot: Positive = 1
    compile: Literal["auto", "on", "off"] = "auto"
    gradient_checkpointing: bool = False


class _Space(_Part):
    name: Text
    path: Text
    description: Text
    toml: Text


class _DeviceTime(_Part):
    device_s: Seconds
    evaluations: Positive
    evaluation_s: Seconds
    shapes: Annotated[list[dict[Text, Any]], AfterValidator(_shapes)]


class _EarlyEnd(_Part):
    most_trials: Positive
    gain_nats: Annotated[float, Field(allow_inf_nan=False)]
    noise_nats: Annotated[float, Field(allow_inf_nan=False)]


_FAULTS = {
    "missing": "it is missing",
    "is_instance_of": "it must be a text",
    "model_type": "it must be a table",
    "dict_type": "it must be a table",
    "dataclass_type": "it must be a table",
    "unexpected_keyword_argument": "it is not known",
}


class StudyDocument(_Part):
    """study.json; its other values are for people."""

    name: Text
    kind: Literal["search", "baseline", "train", "attribute"]
    created_at: Annotated[Text, AfterValidator(_time)]
    model: Text
    model_fingerprint: Text | None = None
    data_source: Text | None
    validation_data_source: Text | None = None
    documents: Text = "file"
    checkpoint_path: Text | None
    checkpoint_fingerprint: Text | None = None
    corpus: _Corpus
    evaluation: _Evaluation
    start: _Start | None = None
    sample_prompt: Text | None = None
    # Without the password of a URI.
    storage: Text | None = None
    device: _Device
    versions: dict[Text, Text]
    git_commit: Text | None = None
    space: _Space | None = None
    budget_tokens: Positive
    device_time: _DeviceTime | None = None
    rung_tokens: list[Count] = []
    baseline: Annotated[Table, AfterValidator(_configuration)]
    settings: Settings | None = None
    # For the command that goes on with a run of train.
    run_options: dict[RunOption, Text] = {}
    trials_planned: Positive
    early_end: _EarlyEnd | None = None
    # Whether every configuration of the space has been run.
    exhausted: bool = False
    searcher: Table = {}
    scheduler: Table = {}
    stability: Table = {}
    seed: Count

    @field_validator("evaluation")
    @classmethod
    def _says_when(cls, evaluation: _Evaluation, info: ValidationInfo) -> _Evaluation:
        # A run of train is evaluated by its steps.
        if info.data.get("kind") != "train" and not evaluation.milestones_tokens:
            raise ValueError("milestones_tokens is missing")
        return evaluation


INPUT_VARIABLES: Mapping[str, str] = {
    "model": "GPT2_MODEL_NAME",
    "data_source": "TRAINING_DATA_SOURCE",
    "validation_data_source": "VALIDATION_DATA_SOURCE",
    "documents": "DOCUMENTS",
    "checkpoint_path": "CHECKPOINT_PATH",
}
"""The document's texts that name what a study was run on, each with the variable that takes it."""
HOW_TRIALS_TRAIN: Mapping[str, Any] = {"compile": "auto", "gradient_checkpointing": False}
"""Of its device, with their defaults: options of all runs, whichever command begins them. Others need other memory, or
have other last digits."""
RUN_VARIABLES = (*INPUT_VARIABLES.values(), *map(str.upper, HOW_TRIALS_TRAIN))


def run_variables(document: Mapping[str, Any]) -> dict[str, str]:
    """Return those of RUN_VARIABLES that a study's document sets, as a person would write them."""
    inputs = {variable: document[name] for name, variable in INPUT_VARIABLES.items() if document.get(name)}
    how = {name: document["device"].get(name, default) for name, default in HOW_TRIALS_TRAIN.items()}
    return inputs | {name.upper(): f"{value}" for name, value in how.items() if value != HOW_TRIALS_TRAIN[name]}


def document_fault(document: dict[str, Any]) -> str | None:
    """Return the first fault of a study's document in one line, None where it has none."""
    try:
        StudyDocument.model_validate(document)
    except ValidationError as refused:
        error = refused.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, error["loc"]))
        # pydantic speaks of instances and of our classes, but a person sees a file of texts, numbers and tables.
        what = _FAULTS.get(error["type"], error["msg"].removeprefix("Value error, "))
        return f"{where}: {shorten(what, 120, placeholder=' ...')}"
    return None
