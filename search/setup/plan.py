"""A study fully decided and checked, before anything is written: from variables to a Plan."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from results.study.folder import Study, check_study_name, new_study_name, open_study, studies_dir, study_exists
from search.cluster.connection import check_port
from search.cluster.study_storage import checked_storage, remove_probe, write_probe
from search.options import Variables
from search.setup.inputs import Inputs, Loaded, check_fit, check_inputs, load_inputs
from search.setup.settings import Settings, read_settings
from search.terminal.console import Preparing
from search.trackers.trackers import Mirrors, check_mirrors, read_mirrors
from search.tune.concurrency_probe import best_concurrency, concurrency_words
from search.tune.history import WarmStart
from search.tune.resources import cluster_share
from search.tune.warm_start import warm_start_from
from spaces.read.load import load_space
from spaces.space import SearchSpace
from trainable.config import BASELINES, TrialConfig
from trainable.errors import UserError
from trainable.stability import make_rules

if TYPE_CHECKING:
    from search.tune.engine import Slots

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
    slots: "Slots"
    configs: Sequence[TrialConfig] | None
    """The trials where the space does not propose them."""
    largest: TrialConfig
    """A configuration with the longest block and the largest batch that can come."""
    mirrors: Mirrors
    warm_start: WarmStart | None
    """What another study teaches this one."""
    notes: Sequence[str]
    """What the person should know of how their variables were read."""


def make_plan(variables: Variables, *, kind: str, progress: Preparing, compare: str | None = None) -> Plan:
    """Return the study that the variables ask for.

    kind "search" runs the space; "baseline" its baseline alone, and beside it the story's configuration `compare`.
    Raises UserError; nothing is written before it returns.
    """
    settings, notes = read_settings(variables, compare=compare)
    file = load_space(variables.text("SPACE") or DEFAULT_SPACE)
    warm_start = variables.text("WARM_START") if kind == "search" else None
    return plan_study(
        file, settings, variables, kind=kind, notes=notes, progress=progress, warm_start=_source(warm_start)
    )


def plan_study(
    file: SearchSpace,
    settings: Settings,
    variables: Variables,
    *,
    kind: str,
    notes: Sequence[str],
    progress: Preparing,
    warm_start: Study | None = None,
) -> Plan:
    """Return a new study over a space file's content with the settings in it. Raises UserError."""
    space = settings.applied_to(file, kind)
    make_rules(space.stability)
    name = study_name(variables, space.name if kind == "search" else kind)
    check_slot_variables(variables)
    mirrors = read_mirrors(variables)
    check_mirrors(mirrors, progress, new_study=name)
    configs = baseline_configs(space, settings) if kind == "baseline" else None
    inputs = check_inputs(variables, progress=progress)
    loaded = load_inputs(
        inputs,
        block_size=space.evaluation.block_size,
        eval_tokens=space.evaluation.tokens,
        stability=space.stability,
        init_from=inputs.checkpoint_path,
        progress=progress,
        address=variables.text("ADDRESS"),
        storage=checked_storage(variables.text("STORAGE")),
    )
    largest = max(configs, key=lambda config: config.tokens_per_step) if configs else largest_config(space)
    progress("checking that model, text and space fit together", 0.0)
    check_fit(loaded, configs or [space.baseline, largest])
    told = warm_start_from(warm_start, space, loaded.facts) if warm_start else None
    return Plan(
        kind=kind,
        name=name,
        space=space,
        settings=settings,
        inputs=inputs,
        loaded=loaded,
        slots=slots_for(loaded, variables, space.baseline, progress),
        configs=configs,
        largest=largest,
        mirrors=mirrors,
        warm_start=told,
        notes=[
            *notes,
            *([told.words] if told else []),
            *([loaded.cluster.words] if loaded.cluster else []),
        ],
    )


def _source(name: str | None) -> Study | None:
    return open_study(name, but_kind="train") if name else None


def largest_config(space: SearchSpace) -> TrialConfig:
    """Return the baseline with the longest block the space can propose, and the largest batch at it."""
    values: dict[str, Any] = {
        parameter.name: max(parameter.domain.examples())
        for parameter in space.parameters
        if parameter.name in ("batch_size", "block_size")
    }
    return replace(space.baseline, **values)


def baseline_configs(space: SearchSpace, settings: Settings) -> list[TrialConfig]:
    """Return what `make baseline` runs. Raises UserError for a COMPARE that names no configuration of the story."""
    configs = [space.baseline]
    if settings.compare is not None:
        if settings.compare not in BASELINES:
            raise UserError(
                f"COMPARE={settings.compare} is not a documented configuration. Known: {', '.join(BASELINES)}."
            )
        compared = settings.compare, BASELINES[settings.compare]
        configs.append(space.with_overrides(baseline=compared).baseline)
    return configs


def study_name(variables: Variables, stem: str) -> str:
    """Return STUDY, checked to be free, or a new name made from `stem` and the time. Raises UserError."""
    name = variables.text("STUDY")
    if name is None:
        return new_study_name(stem, datetime.now())
    check_study_name(name)
    if (studies_dir() / name).exists():
        raise study_exists(name)
    return name


def check_slot_variables(variables: Variables) -> tuple[int | None, float]:
    """Return CONCURRENCY and GPU_FRACTION. Raises UserError."""
    checked_storage(variables.text("STORAGE"))
    address = variables.text("ADDRESS")
    if address not in (None, "auto"):
        check_port(str(address), str(address))
    for name in ("CHECKPOINT_INTERVAL_S", "EVALUATION_TIMEOUT_S"):
        variables.whole(name)
    if variables.text("CONCURRENCY") == "auto" and variables.text("ADDRESS"):
        raise UserError("CONCURRENCY=auto measures this machine. On a cluster write a number, or unset it.")
    concurrency = None if variables.text("CONCURRENCY") == "auto" else variables.whole("CONCURRENCY")
    return concurrency, variables.share("GPU_FRACTION", 1.0)


def slots_for(loaded: Loaded, variables: Variables, config: TrialConfig, progress: Preparing) -> "Slots":
    """Return how many trials run at once on the device that was loaded; `config` is what CONCURRENCY=auto measures."""
    from search.tune.engine import Slots, device_slots
    from trainable.device.device import cpu_cores

    concurrency, gpu_frac = check_slot_variables(variables)
    info = loaded.device_info
    storage = checked_storage(variables.text("STORAGE"))
    times_s = {
        name: float(seconds)
        for name in ("checkpoint_interval_s", "evaluation_timeout_s")
        if (seconds := variables.whole(name.upper())) is not None
    }
    if loaded.cluster is not None:
        share = cluster_share(loaded.cluster.nodes, info.type, concurrency=concurrency, gpu_frac=gpu_frac)
        slots = Slots(**asdict(share), address=loaded.cluster.address, device=info.type, storage=storage)
        return replace(slots, **times_s)  # type: ignore[arg-type]
    if storage is not None:
        remove_probe(storage, write_probe(storage)[0])
    if variables.text("CONCURRENCY") == "auto":
        from trainable.device.device import memory_bytes

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
    slots = device_slots(
        info.type, device_count=info.count, cores=cpu_cores(), concurrency=concurrency, gpu_frac=gpu_frac
    )
    return replace(slots, storage=storage, **times_s)  # type: ignore[arg-type]
