"""A study fully decided and checked, before anything is written: from variables to a Plan."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from results.study.folder import Study, check_study_name, new_study_name, open_study, studies_dir, study_exists
from results.study.planned_run import PlannedRun
from search.cluster.connection import check_port
from search.cluster.nodes import Node
from search.cluster.study_storage import remove_probe, write_probe
from search.options import MoreTrials, Options
from search.setup.inputs import Inputs, Loaded, check_fit, check_inputs, load_inputs
from search.setup.settings import Settings, read_settings
from search.terminal.console import Preparing
from search.trackers.trackers import Mirrors, check_mirrors, read_mirrors
from search.tune.concurrency_probe import best_concurrency, concurrency_words
from search.tune.history import WarmStart
from search.tune.resources import Slots, slots_on
from search.tune.warm_start import warm_start_from
from spaces.overrides import widening_words, with_overrides
from spaces.read.load import load_space
from spaces.space import SearchSpace
from trainable.config import BASELINES, TrialConfig
from trainable.errors import UserError
from trainable.stability import make_rules

DEFAULT_SPACE = "plateau"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that a study's run depends on."""

    kind: str
    """search or baseline."""
    name: str
    space: SearchSpace
    settings: Settings
    inputs: Inputs
    loaded: Loaded
    slots: Slots
    configs: Sequence[TrialConfig] | None
    """The trials where the space does not propose them."""
    largest: TrialConfig
    """A configuration with the longest block and the largest batch that can come."""
    mirrors: Mirrors
    warm_start: WarmStart | None
    """What another study teaches this one."""
    notes: Sequence[str]
    """What the person should know of how their variables were read."""


def make_plan(options: Options, *, kind: str, progress: Preparing, compare: str | None = None) -> Plan:
    """Return the study that the variables ask for.

    kind "search" runs the space; "baseline" its baseline alone, and beside it the story's configuration `compare`.
    Raises UserError; nothing is written before it returns.
    """
    if isinstance(options.trials, MoreTrials):
        raise UserError(f"TRIALS=+{options.trials:d} adds to a study: make resume STUDY=...; a new one takes a number.")
    settings, notes = read_settings(options, compare=compare)
    file = load_space(options.space or DEFAULT_SPACE)
    warm_start = options.warm_start if kind == "search" else None
    return plan_study(
        file, settings, options, kind=kind, notes=notes, progress=progress, warm_start=_source(warm_start)
    )


def plan_study(
    file: SearchSpace,
    settings: Settings,
    options: Options,
    *,
    kind: str,
    notes: Sequence[str],
    progress: Preparing,
    warm_start: Study | None = None,
) -> Plan:
    """Return a new study over a space file's content with the settings in it. Raises UserError."""
    space = settings.applied_to(file, kind)
    make_rules(space.stability)
    name = study_name(options, space.name if kind == "search" else kind)
    if options.address not in (None, "auto"):
        check_port(str(options.address), str(options.address))
    mirrors = read_mirrors(options)
    check_mirrors(mirrors, progress, new_study=name)
    configs = baseline_configs(space, settings) if kind == "baseline" else None
    inputs = check_inputs(options, progress=progress)
    loaded = load_inputs(
        inputs,
        block_size=space.evaluation.block_size,
        eval_tokens=space.evaluation.tokens,
        stability=space.stability,
        init_from=inputs.checkpoint_path,
        progress=progress,
        address=options.address,
        storage=options.storage,
    )
    largest = largest_planned(space, configs)
    progress("checking that model, text and space fit together", 0.0)
    check_fit(loaded, configs or [space.baseline, largest, *_with_lora(space)])
    told = warm_start_from(warm_start, space, loaded.facts) if warm_start else None
    return Plan(
        kind=kind,
        name=name,
        space=space,
        settings=settings,
        inputs=inputs,
        loaded=loaded,
        slots=slots_for(loaded, options, space.baseline, progress),
        configs=configs,
        largest=largest,
        mirrors=mirrors,
        warm_start=told,
        notes=[
            *notes,
            *widening_words(file, space),
            *([told.words] if told else []),
            *([loaded.cluster.words] if loaded.cluster else []),
        ],
    )


def _source(name: str | None) -> Study | None:
    return open_study(name) if name else None


def largest_planned(space: SearchSpace, configs: Sequence[TrialConfig] | None) -> TrialConfig:
    """Return the largest of the listed trials, or where there is no list the largest that the space can propose."""
    return max(configs, key=lambda one: (one.tokens_per_step, not one.use_lora)) if configs else largest_config(space)


def largest_config(space: SearchSpace) -> TrialConfig:
    """Return the baseline with the longest block the space can propose, and the largest batch at it."""
    values: dict[str, Any] = {
        parameter.name: max(parameter.domain.examples())
        for parameter in space.parameters
        if parameter.name in ("batch_size", "block_size", "lora_rank")
    }
    lora = space.domain("use_lora")
    if lora is not None and False in lora.examples():
        values["use_lora"] = False  # gradients and moments of every weight
    return replace(space.baseline, **values)


def _with_lora(space: SearchSpace) -> list[TrialConfig]:
    """Return a configuration for each of the LORA_TARGETS that the space can propose."""
    use, targets = space.domain("use_lora"), space.domain("lora_targets")
    if True not in (use.examples() if use else [space.baseline.use_lora]):
        return []
    names = targets.examples() if targets else [space.baseline.lora_targets]
    return [replace(space.baseline, use_lora=True, lora_targets=str(name)) for name in names]


def baseline_configs(space: SearchSpace, settings: Settings) -> list[TrialConfig]:
    """Return what `make baseline` runs."""
    configs = [space.baseline]
    if settings.compare is not None:
        compared = settings.compare, BASELINES[settings.compare]
        configs.append(with_overrides(space, baseline=compared).baseline)
    return configs


def baseline_runs(configs: Sequence[TrialConfig]) -> list[PlannedRun]:
    """Return the runs of `make baseline`; the first is the baseline."""
    return [
        PlannedRun(trial_id=number, config=config, purpose="baseline", is_baseline=number == 0)
        for number, config in enumerate(configs)
    ]


def study_name(options: Options, stem: str) -> str:
    """Return STUDY, checked to be free, or a new name made from `stem` and the time. Raises UserError."""
    name = options.study
    if name is None:
        return new_study_name(stem, datetime.now())
    check_study_name(name)
    if (studies_dir() / name).exists():
        raise study_exists(name)
    return name


def slots_for(loaded: Loaded, options: Options, config: TrialConfig, progress: Preparing) -> Slots:
    """Return how many trials run at once on the device that was loaded; `config` is what CONCURRENCY=auto measures."""
    from trainable.device.device import cpu_cores, memory_bytes

    info, concurrency = loaded.device_info, options.concurrency
    if loaded.cluster is None and options.storage is not None:
        remove_probe(options.storage, write_probe(options.storage)[0])
    if concurrency == "auto":
        concurrency, tried = best_concurrency(
            loaded.spec,
            config,
            device_type=info.type,
            device_count=info.count,
            cores=cpu_cores(),
            memory_bytes=memory_bytes(info.type),
            progress=progress,
        )
        progress(concurrency_words(tried, concurrency), 1.0)
    here = Node(name="this machine", cpus=cpu_cores(), gpus=info.count if info.type == "cuda" else 0, is_ours=True)
    slots = slots_on(
        loaded.cluster.nodes if loaded.cluster else [here],
        info.type,
        concurrency=concurrency,
        gpu_frac=options.gpu_fraction,
    )
    return replace(
        slots,
        address=loaded.cluster.address if loaded.cluster else None,
        device=info.type if loaded.cluster else None,
        storage=options.storage,
        checkpoint_interval_s=float(options.checkpoint_interval_s),
        evaluation_timeout_s=float(options.evaluation_timeout_s),
    )
