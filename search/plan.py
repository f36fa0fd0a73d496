"""A study fully decided and checked, before anything is written: from variables to a Plan."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from results.ranking import best_trial
from results.study import check_study_name, new_study_name, open_study, studies_dir
from search.inputs import Inputs, Loaded, check_fit, check_inputs, load_inputs
from search.mirrors import Mirrors, read_mirrors
from search.terminal import Preparing
from search.variables import Variables, explicit_hyperparameters
from spaces.load import load_space
from spaces.space import SearchSpace
from trainable.config import BASELINES, HYPERPARAMETERS, TrialConfig, config_from
from trainable.errors import UserError
from trainable.stability import make_rules

if TYPE_CHECKING:
    from search.engine import Slots

DEFAULT_SPACE = "plateau"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a study's run depends on."""

    kind: str
    """search or baseline."""
    name: str
    space: SearchSpace
    pins: Mapping[str, Any]
    inputs: Inputs
    loaded: Loaded
    slots: "Slots"
    configs: Sequence[TrialConfig] | None
    """The trials where the space does not propose them."""
    largest: TrialConfig
    """A configuration with the longest block and the largest batch that can come."""
    mirrors: Mirrors
    notes: Sequence[str]
    """What the person should know of how their variables were read."""


def make_plan(variables: Variables, *, kind: str, progress: Preparing, compare: str | None = None) -> Plan:
    """Return the study that the variables ask for.

    kind "search" runs the space; "baseline" its baseline alone, and beside it the story's configuration `compare`.
    Raises UserError; nothing is written before it returns.
    """
    pins, notes = _pins(variables)
    space = load_space(variables.text("SPACE") or DEFAULT_SPACE)
    if kind == "baseline":
        space = space.baseline_alone()
    space = space.with_overrides(
        trials=variables.whole("TRIALS") if kind == "search" else None,
        budget_tokens=variables.tokens("BUDGET_TOKENS"),
        pins=pins,
        baseline=_baseline(variables),
    )
    make_rules(space.stability)
    name = study_name(variables, space.name if kind == "search" else kind)
    check_slot_variables(variables)
    mirrors = read_mirrors(variables)
    configs = _configs(space, compare) if kind == "baseline" else None
    inputs = check_inputs(variables, progress=progress)
    loaded = load_inputs(
        inputs,
        block_size=space.evaluation.block_size,
        eval_tokens=space.evaluation.tokens,
        stability=space.stability,
        init_from=inputs.checkpoint_path,
        progress=progress,
    )
    largest = max(configs, key=lambda config: config.tokens_per_step) if configs else largest_config(space)
    progress("checking that model, text and space fit together", 0.0)
    check_fit(loaded, configs or [space.baseline, largest])
    return Plan(
        kind=kind,
        name=name,
        space=space,
        pins=pins,
        inputs=inputs,
        loaded=loaded,
        slots=slots_for(loaded, variables),
        configs=configs,
        largest=largest,
        mirrors=mirrors,
        notes=notes,
    )


def largest_config(space: SearchSpace) -> TrialConfig:
    """Return the baseline with the longest block the space can propose, and the largest batch at it."""
    values: dict[str, Any] = {
        parameter.name: max(parameter.domain.examples())
        for parameter in space.parameters
        if parameter.name in ("batch_size", "block_size")
    }
    return replace(space.baseline, **values)


def _pins(variables: Variables) -> tuple[dict[str, Any], list[str]]:
    pins = explicit_hyperparameters(variables)
    notes = []
    if pins.pop("training_steps", None) is not None:
        notes.append("TRAINING_STEPS is not read by a search: its budget is in tokens (BUDGET_TOKENS).")
    pinned = [f"{HYPERPARAMETERS[name].metadata['env']}={value}" for name, value in pins.items() if name != "seed"]
    if pinned:
        notes.append(f"pinned by your environment, for the baseline too: {', '.join(pinned)}")
    return pins, notes


def _baseline(variables: Variables) -> tuple[str, TrialConfig] | None:
    """Return the baseline that BASELINE names: the story's, or a study's best configuration."""
    name = variables.text("BASELINE")
    if name is None:
        return None
    if name in BASELINES:
        return name, BASELINES[name]
    study = open_study(name, but_kind="train")
    best = best_trial(study.trials())
    if best is None:
        raise UserError(f"BASELINE={name}: study {study.name} has no completed trial. Name another study.")
    return f"{study.name} trial {best['trial_id']}", config_from(best)


def _configs(space: SearchSpace, compare: str | None) -> list[TrialConfig]:
    configs = [space.baseline]
    if compare is not None:
        if compare not in BASELINES:
            raise UserError(f"COMPARE={compare} is not a documented configuration. Known: {', '.join(BASELINES)}.")
        configs.append(space.with_overrides(baseline=(compare, BASELINES[compare])).baseline)
    return configs


def study_name(variables: Variables, stem: str) -> str:
    """Return STUDY, checked to be free, or a new name made from `stem` and the time. Raises UserError."""
    name = variables.text("STUDY")
    if name is None:
        return new_study_name(stem, datetime.now())
    check_study_name(name)
    if (studies_dir() / name).exists():
        raise UserError(f"study {name} exists. Choose another STUDY= name.")
    return name


def check_slot_variables(variables: Variables) -> tuple[int | None, float]:
    """Return CONCURRENCY and GPU_FRACTION. Raises UserError."""
    return variables.whole("CONCURRENCY"), variables.share("GPU_FRACTION", 1.0)


def slots_for(loaded: Loaded, variables: Variables) -> "Slots":
    """Return how many trials run at once on the device that was loaded."""
    from search.engine import device_slots
    from trainable.device import cpu_cores

    concurrency, gpu_frac = check_slot_variables(variables)
    info = loaded.device_info
    return device_slots(
        info.type, device_count=info.count, cores=cpu_cores(), concurrency=concurrency, gpu_frac=gpu_frac
    )
