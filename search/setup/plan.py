"""A plan: a study, new or reopened, with everything that its runs need. It is checked before anything is written."""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from results.study.folder import (
    Study,
    check_studies_dir,
    check_study_name,
    new_study_name,
    open_study,
    studies_dir,
    study_exists,
)
from search.cluster.connection import check_port
from search.cluster.study_storage import probed
from search.options import MoreTrials, Options, check_lora
from search.setup.inputs import Loaded, check_fit, check_inputs, load_inputs
from search.setup.settings import read_settings
from search.setup.slots import measured_speeds, slots_for
from search.setup.study_record import asked_of, study_document
from search.terminal.console import Preparing
from search.trackers.trackers import check_mirrors
from search.tune.fork_server import unusable_characters
from search.tune.history import WarmStart, best_trials, warm_start_from
from search.tune.resources import Slots, check_concurrency
from spaces.budget import Budget, Milestones, budget_of
from spaces.check import largest_points
from spaces.overrides import Settings, space_of_kind, unread_words, widening_words, with_overrides
from spaces.read.load import load_space
from spaces.space import SearchSpace
from trainable.config import BASELINES, TrialConfig, config_from, shape_of
from trainable.errors import MachineError, UserError, redacted
from trainable.stability import make_rules

DEFAULT_SPACE = "plateau"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study and everything that its runs depend on."""

    study: Study
    """Its folder."""
    is_new: bool
    """Whether the folder has yet to be made."""
    document: Mapping[str, Any]
    """study.json, as it is or will be."""
    loaded: Loaded
    slots: Slots
    baseline: TrialConfig
    """Runs of it, on any seed, are ended by a non-finite loss alone."""
    budget: Budget
    milestones_tokens: tuple[int, ...]
    """Where every run is evaluated; the last is the budget."""
    space: SearchSpace | None = None
    """Proposes the study's own trials; None for a confirmation and an attribution."""
    configs: Sequence[TrialConfig] = ()
    """What runs instead in a baseline's study and an attribution's."""
    warm_start: WarmStart | None = None
    """Results of another study, for the searcher."""
    notes: Sequence[str] = ()
    """Lines for the user on how the variables were read."""
    with_speeds: "Callable[[Preparing], Plan] | None" = None
    """Of a new study under a budget of time: measures the speeds of its shapes and returns the plan with them, once
    preflight, which needs none, has passed. None for any other study."""

    @property
    def options(self) -> Options:
        """With the study's own model, text and checkpoint where the variables name none."""
        return self.loaded.inputs.options

    @property
    def name(self) -> str:
        """The study's."""
        return self.study.name

    @property
    def kind(self) -> str:
        """search, baseline or attribute."""
        return str(self.document["kind"])

    def milestones(self, config: TrialConfig) -> Milestones:
        """Return where a run of the configuration is evaluated."""
        return self.budget.milestones(config, self.milestones_tokens)

    @property
    def largest(self) -> TrialConfig:
        """The configuration that needs the most memory."""
        return _largest(self.baseline, self.configs, self.space)


def make_plan(options: Options, *, kind: str, progress: Preparing) -> Plan:
    """Return the study that the variables ask for.

    kind "search" runs the space; "baseline" its baseline alone, and beside it the built-in configuration COMPARE.
    Raises UserError; nothing is written before it returns.
    """
    if isinstance(options.trials, MoreTrials):
        raise UserError(f"TRIALS=+{options.trials:d} adds to a study: make resume STUDY=...; a new one takes a number.")
    settings, notes = read_settings(options)
    if kind == "baseline":
        settings = replace(settings, confirm=None)
    file = load_space(options.space or DEFAULT_SPACE)
    source = open_study(options.warm_start) if options.warm_start and kind == "search" else None
    return plan_study(file, settings, options, kind=kind, notes=notes, progress=progress, warm_start=source)


def plan_study(
    file: SearchSpace,
    settings: Settings,
    options: Options,
    *,
    kind: str,
    notes: Sequence[str],
    progress: Preparing,
    warm_start: Study | None,
    timed: Mapping[str, Any] | None = None,
) -> Plan:
    """Return a new study over a space file's content with the settings in it. Raises UserError.

    timed: study.json of another study, whose speeds hold on the same slots of the same device; a budget of time has the
    others measured: see Plan.with_speeds.
    """
    draft = space_of_kind(file, settings, kind)
    if draft.budget.device_s is not None and options.address is not None:
        raise UserError("BUDGET_TIME measures this machine's speed. On a cluster set BUDGET_TOKENS.")
    check_lora(settings.pins, uses_lora=bool(draft.baseline.use_lora or draft.domain("use_lora")))
    if warm_start is not None:
        best_trials(warm_start, warm_start.trials())  # before the text is read and speeds are measured
    study = Study(studies_dir() / study_name(options, draft.name if kind == "search" else kind))
    check_mirrors(options, progress, new_study=study.name)
    configs = baseline_configs(draft, settings) if kind == "baseline" else []
    if configs[1:] == configs[:1] != []:
        raise UserError(f"COMPARE={settings.compare} is the baseline itself. Unset it, or name another.")
    loaded = load_for(asked_of(kind, draft, settings, trials_planned=draft.trials), options, progress)
    progress("checking that model, text and settings fit together", 0.0)
    check_fit(loaded, configs or [draft.baseline, *largest_configs(draft), *_with_lora(draft)])

    def of_space(space: SearchSpace, slots: Slots | None = None) -> Plan:
        configs = baseline_configs(space, settings) if kind == "baseline" else []
        learned = warm_start_from(warm_start, space, loaded.facts) if warm_start else None
        told = [*widening_words(file, draft), *unread_words(draft), *([learned.words(space)] if learned else [])]
        return planned(
            study,
            asked_of(kind, space, settings, trials_planned=len(configs) or space.trials),
            loaded,
            progress,
            slots=slots,
            space=space,
            configs=configs,
            warm_start=learned,
            notes=[*notes, *told],
        )

    plan = of_space(draft)

    def with_speeds(progress: Preparing) -> Plan:
        device_s, shapes = draft.budget.device_s, [*draft.shapes(), *map(shape_of, configs)]
        assert device_s is not None
        known = budget_of(timed).speeds if timed and timed["device"] == plan.document["device"] else None
        found = measured_speeds(loaded, plan.slots, shapes, known=known, device_s=device_s, progress=progress)
        return of_space(space_of_kind(file, settings, kind, found), plan.slots)

    return replace(plan, with_speeds=None if draft.budget.device_s is None else with_speeds)


def load_for(document: Mapping[str, Any], options: Options, progress: Preparing, *, joins: bool = True) -> Loaded:
    """Return what a study of that document runs on, under its evaluation. Raises UserError, MachineError.

    joins: join the cluster at ADDRESS too. What can be refused without the text is refused before it is tokenized.
    """
    # A reopened study's too: somebody may have edited them, and a worker would find out.
    make_rules(document.get("stability") or {})
    if joins:
        if options.address is None:
            ray = find_spec("ray")
            check_worker_paths(sys.executable, str(ray and ray.origin))
            # More than any device here can hold: no machine has more GPUs than cores.
            check_concurrency(options.concurrency, os.cpu_count() or 1)
            if options.storage is not None:
                with probed(options.storage):
                    pass
        elif options.address != "auto":
            check_port(options.address)
    return load_inputs(
        check_inputs(options, progress=progress),
        block_size=document["evaluation"]["block_size"],
        eval_tokens=document["evaluation"]["tokens"],
        own_device=(document.get("device") or {}).get("type"),
        stability=document.get("stability"),
        init_from=options.checkpoint_path,
        progress=progress,
        joins=joins,
    )


def check_worker_paths(*paths: str) -> None:
    """Raise MachineError for a path from which Ray could not start a worker: it would wait for ever."""
    for path in paths:
        if found := unusable_characters(path):
            raise MachineError(
                f"Ray cannot start workers from {path!r}: its command lines do not carry {found[0]!r}. Move the "
                "virtual environment to a path without quotes and backslashes (make VENV=/other/folder)."
            )


def planned(
    study: Study,
    document: Mapping[str, Any],
    loaded: Loaded,
    progress: Preparing,
    *,
    slots: Slots | None = None,
    space: SearchSpace | None = None,
    configs: Sequence[TrialConfig],
    warm_start: WarmStart | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return the plan of a study.

    document: study.json; of a new study without what was found, which the plan's document says too.
    """
    is_new, baseline = "created_at" not in document, config_from(document["baseline"])
    slots = slots or slots_for(loaded, loaded.inputs.options, _largest(baseline, configs, space), progress)
    if (storage := loaded.inputs.options.storage) is not None:
        # Once set it stays, for the first checkpoints are there.
        document = {"storage": redacted(storage), **document}
    shared = {"slots": slots.count, "threads_per_slot": slots.threads, "gpu_frac": slots.gpu_frac}
    return Plan(
        study=study,
        is_new=is_new,
        document=study_document(study.name, document, loaded=loaded, slots=shared) if is_new else document,
        loaded=loaded,
        slots=slots,
        baseline=baseline,
        budget=budget_of(document),
        milestones_tokens=tuple(document["evaluation"]["milestones_tokens"]),
        space=space,
        configs=configs,
        warm_start=warm_start,
        notes=[*notes, *slots.notes, *([loaded.cluster.words] if loaded.cluster else [])],
    )


def _largest(baseline: TrialConfig, configs: Sequence[TrialConfig], space: SearchSpace | None) -> TrialConfig:
    if not configs and space is not None:
        configs = largest_configs(space)
    return max(
        configs or [baseline],
        key=lambda one: (
            one.batch_size * one.block_size,
            one.block_size,
            not one.use_lora,
            one.precision == "fp32",
            one.dropout > 0,
            one.grad_accum_steps > 1,
            one.lora_rank,
            _layers(one.lora_targets),
        ),
    )


def _layers(lora_targets: str) -> float:
    """Return how many kinds of layers get adapters, as far as the names tell."""
    return math.inf if lora_targets == "all-linear" else lora_targets.count(",")


def largest_configs(space: SearchSpace) -> list[TrialConfig]:
    """Return the baseline at the largest sizes that the space can propose; several where one depends on another."""
    # Gradients and moments of every weight, activations in full precision, and adapters of every layer.
    most = {"use_lora": lambda value: not value, "precision": "fp32".__eq__, "lora_targets": _layers}
    domains = {name: domain for name in most if (domain := space.domain(name)) is not None}
    # Of several that are the most, the baseline's own.
    values = {name: (getattr(space.baseline, name), *domain.examples()) for name, domain in domains.items()}
    searched = {name: max(known, key=most[name]) for name, known in values.items()}
    # Dropout's masks are memory too, on a CPU the attention's weights, and the gradients that a micro-batch adds to.
    sizes = ("batch_size", "block_size", "lora_rank", "dropout", "grad_accum_steps")
    return [
        replace(space.baseline, **{name: point[name] for name in sizes if name in point}, **searched)
        for point in largest_points(space.parameters, sizes)
    ]


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
        configs.append(with_overrides(space, Settings(baseline=compared)).baseline)
    return configs


def study_name(options: Options, stem: str) -> str:
    """Return STUDY, checked to be free, or a new name made from `stem` and the time. Raises UserError."""
    check_studies_dir()
    name = options.study
    if name is None:
        return new_study_name(stem, datetime.now())
    check_study_name(name)
    if (studies_dir() / name).exists():
        raise study_exists(name)
    return name
