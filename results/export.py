"""A study's winner in the formats of a shell, a program, a space file and make. It chooses and trains nothing."""

import json
import re
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from results.ranking import ending_counts, ranked_trials
from results.study.atomic import write_atomic
from results.study.document_model import INPUT_VARIABLES, RUN_VARIABLES, run_variables
from results.study.folder import Study
from results.study.paths import shown
from results.winner import Winner, evidence_words, lost_lead_words, notes, warning_words, way_words, winner_of
from results.winner import to_json as winner_json
from results.words import STATUS_LABELS, difference_words, evaluation_words, printable, statuses_words
from spaces.budget import Budget, budget_of
from spaces.domains import Choice, Domain, FloatRange
from spaces.overrides import Settings, space_of_document, with_overrides
from spaces.read.load import load_space, space_from_toml
from spaces.space import SearchSpace
from spaces.warmup import WARMUP_FRAC
from trainable.config import ENV_NAMES, TrialConfig, config_from
from trainable.errors import NothingToDoError, UserError
from trainable.model.model_names import DEFAULT_MODEL

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

ENV_ORDER: tuple[str, ...] = (
    *ENV_NAMES,
    "USE_LR_WARMUP",
    "MODEL_TYPE",
    *RUN_VARIABLES,
    "WEIGHTS_ONLY",
    "EVAL_BLOCK_SIZE",
    "EVAL_TOKENS",
    "EXPORTED_FROM",
)
"""The exported variables. Those that a study did not set are exported empty, which counts as not set: an older value
in the user's shell must not change the configuration."""
_WITH_ITS_INPUTS = "to search it with this study's model and text:"
_NOTES_OF_A_SPACE = re.compile(rf"\A# study .*\n(?:# .*\n)*?# {_WITH_ITS_INPUTS}.*\n+")
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
    document: Mapping[str, Any]
    """study.json."""


def export_env(study: Study, budget: Budget | None = None) -> str:
    """Return the study's winner as comments and `export NAME=value` lines, safe for a shell's eval.

    budget: of a longer or shorter run than the winner's, over which its schedule is stretched. Floats read back
    exactly. Raises UserError when no trial has completed or a file of the study is damaged.
    """
    best = _load(study, budget)
    lines = [f"# {line}" for line in (*_notes(best), *_script_notes(best))]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in _env(best).items()]
    return "\n".join(lines) + "\n"


def winner_env(study: Study, budget: Budget | None) -> dict[str, str]:
    """Return the winner's variables by name, empty where the study set none. Raises UserError as export_env does."""
    return _env(_load(study, budget))


def export_cli(study: Study, budget: Budget | None = None) -> str:
    """Return the study's winner as a `make train NAME=value ...` command. Raises UserError as export_env does."""
    return f"make train {make_words(winner_env(study, budget))}\n"


def train_command(study: Study, winner: Winner) -> str:
    """Return the command that trains the study's winner again. Raises UserError as export_env does."""
    if winner.standing == "trained":
        # STUDY would be the new run's name, which is taken.
        return export_cli(study).rstrip()
    return f"make train STUDY={shlex.quote(study.name)}"


def make_words(values: Mapping[str, str | None]) -> str:
    """Return the variables that have a value as a shell hands them to make."""
    given = {name: value.replace("$", "$$") for name, value in values.items() if value}
    # make drops blanks after the '='. A reference to the nameless variable, which is empty, keeps them.
    return shlex.join(f"{name}={'$()' if value[:1].isspace() else ''}{value}" for name, value in given.items())


def search_command(document: Mapping[str, Any], words: str) -> str:
    """Return `make search` with the words, and with what the study was run on and how, where not the defaults."""
    defaults = {"GPT2_MODEL_NAME": DEFAULT_MODEL, "DOCUMENTS": "file"}
    inputs = make_words({name: text for name, text in run_variables(document).items() if text != defaults.get(name)})
    return f"make search {words} {inputs}".rstrip()


def export_json(study: Study, budget: Budget | None = None) -> str:
    """Return the study's winner as a JSON object. Raises UserError as export_env does."""
    best = _load(study, budget)
    document = {
        "study": best.study,
        **{name: value for name, value in winner_json(best.winner).items() if name != "notes"},
        "tokens_seen": best.trial["tokens_seen"],
        "evaluation": {name: best.document["evaluation"][name] for name in ("block_size", "tokens")},
        **{name: best.document.get(name) for name in INPUT_VARIABLES},
        "hyperparameters": asdict(best.config),
        "env": _env(best),
        "notes": [*_notes(best), *_script_notes(best)],
    }
    return json.dumps(document, indent=2, allow_nan=False) + "\n"


def export_toml(study: Study, budget: Budget | None = None) -> str:
    """Return the study's own space as a file with the winner as its [baseline] and its comments kept.

    Its budget is `budget`, or the study's. A study that searched no space gives the plateau space. Raises UserError as
    export_env does, and where the study's space cannot be read any more, or what is written cannot be searched.
    """
    import tomlkit  # takes a tenth of a second, which no other format needs

    best = _load(study, budget)
    document, own = best.document, best.document.get("space")
    before = space_from_toml(own["toml"], name=own["name"], path=own["path"]) if own else load_space("plateau")
    # Those of the export that the study searched are of another winner.
    text = tomlkit.parse(_NOTES_OF_A_SPACE.sub("", before.toml))
    text.pop("baseline", None)
    studied = before
    with suppress(KeyError, TypeError, ValidationError):  # another version's study
        # What the study had pinned is searched no more, and what it had widened stays wide.
        studied = space_of_document(document)[0] if document["kind"] == "search" else before
    settings, in_file = Settings(baseline=(before.name, best.config)), budget or (budget_of(document) if own else None)
    if in_file is not None and in_file.device_s is not None:
        settings = replace(settings, device_s=in_file.device_s)
        text["budget"] = {"device_minutes": in_file.device_s / 60}
    elif in_file is not None:
        settings = replace(settings, budget_tokens=in_file.tokens)
        text["budget"] = {"tokens": in_file.tokens}
    # A budget that is too short for the largest shapes is refused here, with the least that works.
    after = with_overrides(studied, settings)
    _follow(text, before, after)
    # What the winner does not read is within the domains. A space has no seed: SEED sets it for every trial.
    baseline = {n: v if best.config.reads(n) else getattr(after.baseline, n) for n, v in asdict(best.config).items()}
    share = None if best.config.has_warmup else after.baseline_params().get(WARMUP_FRAC)
    warmup = {} if share is None else {WARMUP_FRAC: share, "warmup_steps": None}
    text["baseline"] = {n: v for n, v in {**baseline, **warmup, "seed": None}.items() if v is not None}
    written = tomlkit.dumps(text)
    space_from_toml(written, name=before.name, path="the exported space")
    inputs = f"{_WITH_ITS_INPUTS} {search_command(document, 'SPACE=...')}"
    return "".join(f"# {note}\n" for note in [*_notes(best), _plain(inputs)]) + "\n" + written.lstrip("\n")


def _follow(text: "TOMLDocument", before: SearchSpace, after: SearchSpace) -> None:
    """Change the [search] table of `before` to the parameters of `after`."""
    search: Any = text.get("search", {})
    left = {parameter.name: parameter for parameter in after.parameters}
    for parameter in before.parameters:
        now = left.get(parameter.name)
        if now is None:
            del search[parameter.name]
            continue
        if now.domain != parameter.domain:
            key, values = _as_toml(now.domain)
            search[parameter.name][key] = values
        if now.condition != parameter.condition:
            del search[parameter.name]["when"]
            if now.condition is not None:
                search[parameter.name]["when"] = {now.condition.parent: list(now.condition.values)}


def _as_toml(domain: Domain) -> tuple[str, list[Any]]:
    if isinstance(domain, Choice):
        return "choice", list(domain.values)
    if isinstance(domain, FloatRange):
        return "log_uniform" if domain.log else "uniform", [domain.low, domain.high]
    return "int", [domain.low, domain.high]


def write_best(study: Study) -> None:
    """Write the study's best.env and best.json. Raises UserError as export_env does, and OSError."""
    env, document = export_env(study), export_json(study)
    # A path that is not UTF-8 came in by surrogateescape and leaves by it.
    write_atomic(study.best_env, env.encode("utf-8", "surrogateescape"))
    write_atomic(study.best_json, document.encode())


def _load(study: Study, budget: Budget | None) -> _Best:
    winner = winner_of(study)
    trial = winner.trial
    if trial is None:
        ended = statuses_words(ending_counts(ranked_trials(study.trials())))
        raise NothingToDoError(f"study {study.name} has no completed trial to export ({ended or 'none has started'}).")
    config = config_from(trial)
    if budget is not None:
        config = budget.sized(config)
    document = study.document()
    for name in INPUT_VARIABLES:
        try:
            _check_text(document.get(name) or "")
        except ValueError as err:
            raise UserError(f"{shown(study.study_json)}: {name}: {err}.") from None
    return _Best(
        study=study.name,
        winner=winner,
        trial=trial,
        config=config if config.has_warmup else replace(config, warmup_steps=0),
        document=document,
    )


def _check_text(value: str) -> None:
    if "\0" in value:
        raise ValueError(f"{value!r} cannot be the text of a variable")
    # A path that is not UTF-8 came in by surrogateescape and leaves by it; other lone surrogates are no bytes at all.
    value.encode("utf-8", "surrogateescape")


def _env(best: _Best) -> dict[str, str]:
    document, own = best.document, run_variables(best.document)
    values: dict[str, Any] = {
        **{variable: getattr(best.config, name) for variable, name in ENV_NAMES.items()},
        "USE_LR_WARMUP": best.config.lr_schedule == "warmup_cosine" and best.config.warmup_steps > 0,
        "MODEL_TYPE": "gpt2",
        **{name: own.get(name) for name in RUN_VARIABLES},
        "WEIGHTS_ONLY": None if document.get("checkpoint_path") is None else True,
        "EVAL_BLOCK_SIZE": document["evaluation"]["block_size"],
        "EVAL_TOKENS": document["evaluation"]["tokens"],
        "EXPORTED_FROM": best.study,
    }
    assert tuple(values) == ENV_ORDER
    return {
        name: "" if value is None else value if isinstance(value, str) else repr(value)
        for name, value in values.items()
    }


def _notes(best: _Best) -> list[str]:
    trial, winner = best.trial, best.winner
    loss, base = f"val_loss {trial['val_loss']:.4f} nats/token", winner.baseline_val_loss
    if trial["is_baseline"]:
        loss += f"; this is the baseline: {lost_lead_words(winner) or 'no completed trial beat it'}"
    elif base is not None:
        loss += f"; baseline {base:.4f}; difference {difference_words(trial['val_loss'] - base)}"
    elif winner.standing != "trained":  # a run of train has no baseline
        status = STATUS_LABELS[winner.baseline["status"]] if winner.baseline else "not started"
        loss += f"; the baseline has not completed ({status})"
    lines = [
        f"study {best.study}, trial {trial['trial_id']}, after {trial['tokens_seen']} training tokens",
        loss,
        *filter(None, (way_words(winner), warning_words(winner))),
        evidence_words(winner),
        *notes(winner),
        *_stretch_notes(best),
        f"evaluated on the same {evaluation_words(best.document)} as every trial, fp32, dropout off",
    ]
    if (checkpoint_path := best.document.get("checkpoint_path")) is not None:
        lines.append(
            f"every trial took the weights alone from {checkpoint_path}, as WEIGHTS_ONLY=True says to make train; "
            f"{_SCRIPTS} would also continue its step count"
        )
    return [_plain(line) for line in lines]


def _stretch_notes(best: _Best) -> Iterable[str]:
    trained_steps = best.trial["training_steps"]
    if best.config.training_steps != trained_steps:
        how = "stretched" if best.config.training_steps > trained_steps else "shortened"
        # In pretraining the best rate falls with the horizon (Bjorck et al. 2024); here nobody has measured it.
        yield (
            f"the schedule is {how} from {trained_steps} to {best.config.training_steps} steps, warm-up and decay "
            "keep their shares of the run; learning rate and batch are as found, and no run of that length was measured"
        )


def _script_notes(best: _Best) -> Iterable[str]:
    schedule, warms_up = best.config.lr_schedule, best.config.warmup_steps > 0
    is_known = {"constant": True, "warmup_cosine": warms_up, "warmup_constant": not warms_up}.get(schedule, False)
    if not is_known:
        yield (
            f"{_SCRIPTS} know a constant rate and warm-up with cosine: "
            f"USE_LR_WARMUP cannot say LR_SCHEDULE={schedule} WARMUP_STEPS={best.config.warmup_steps}"
        )
    unread = [name for name in ENV_NAMES if name not in _SCRIPT_HYPERPARAMETERS]
    yield (
        f"{_SCRIPTS} do not read {' '.join(unread)} EVAL_BLOCK_SIZE EVAL_TOKENS "
        "COMPILE GRADIENT_CHECKPOINTING; make train does"
    )


def _plain(text: str) -> str:
    # A line break would end the comment and run what follows.
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")
