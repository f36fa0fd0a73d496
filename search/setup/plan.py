"""A study, new or opened again, with everything that its runs need: decided and checked before anything is written."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from results.study.folder import Study, check_study_name, new_study_name, open_study, studies_dir, study_exists
from results.study.planned_run import PlannedRun
from search.cluster.connection import check_port
from search.options import MoreTrials, Options, check_lora
from search.setup.inputs import Inputs, Loaded, check_fit, check_inputs, load_inputs
from search.setup.settings import read_settings
from search.setup.slots import slots_for
from search.setup.study_record import asked_of, study_document
from search.setup.trial_speeds import measured_speeds
from search.terminal.console import Preparing
from search.trackers.trackers import Mirrors, check_mirrors, read_mirrors
from search.tune.history import WarmStart
from search.tune.resources import Slots
from search.tune.warm_start import read_warm_start, warm_start_from
from spaces.budget import Budget, Milestones, Speeds, budget_of
from spaces.overrides import widening_words, with_overrides
from spaces.read.load import load_space
from spaces.space import SearchSpace
from spaces.user_settings import Settings
from trainable.config import BASELINES, TrialConfig, config_from, shape_of
from trainable.errors import UserError
from trainable.stability import make_rules

DEFAULT_SPACE = "plateau"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A study and everything that its runs depend on."""

    study: Study
    """Its folder."""
    is_new: bool
    """Whether the folder has yet to be made, when it is run."""
    document: Mapping[str, Any]
    """study.json, as it is or will be."""
    inputs: Inputs
    loaded: Loaded
    slots: Slots
    mirrors: Mirrors
    baseline: TrialConfig
    """A run of it, on whatever seed, is ended by nothing but a non-finite loss."""
    budget: Budget
    milestones_tokens: tuple[int, ...]
    """Where every run is evaluated; the last is the budget."""
    space: SearchSpace | None = None
    """What the study's own trials come of; None where other runs go into it."""
    configs: Sequence[TrialConfig] = ()
    """The runs that no space proposes."""
    warm_start: WarmStart | None = None
    """What another study teaches this one."""
    notes: Sequence[str] = ()
    """What the person should know of how their variables were read."""
    name_is_chosen: bool = True
    """By a person; a new study's other name becomes another one where it is taken meanwhile."""

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
        """A configuration with the longest block and the largest batch that can come."""
        return _largest(self.baseline, self.configs, self.space)


def make_plan(options: Options, *, kind: str, progress: Preparing, compare: str | None = None) -> Plan:
    """Return the study that the variables ask for.

    kind "search" runs the space; "baseline" its baseline alone, and beside it the built-in configuration `compare`.
    Raises UserError; nothing is written before it returns.
    """
    if isinstance(options.trials, MoreTrials):
        raise UserError(f"TRIALS=+{options.trials:d} adds to a study: make resume STUDY=...; a new one takes a number.")
    settings, notes = read_settings(options, compare=compare)
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
    warm_start: Study | None = None,
    speeds: Speeds | None = None,
) -> Plan:
    """Return a new study over a space file's content with the settings in it. Raises UserError.

    speeds: those of another study's that are known already; the rest is measured, where it is needed.
    """
    draft = settings.applied_to(file, kind)
    device_s = draft.budget.device_s
    if device_s is not None and options.address is not None:
        raise UserError("BUDGET_TIME measures this machine's speed. On a cluster set BUDGET_TOKENS.")
    check_lora(settings.pins, uses_lora=bool(draft.baseline.use_lora or draft.domain("use_lora")))
    make_rules(draft.stability)
    name = study_name(options, draft.name if kind == "search" else kind)
    if options.address not in (None, "auto"):
        check_port(str(options.address), str(options.address))

    def asked(space: SearchSpace) -> Asked:
        configs = baseline_configs(space, settings) if kind == "baseline" else []
        return Asked(
            document=asked_of(kind, space, settings, trials_planned=len(configs) or space.trials),
            space=space,
            configs=configs,
        )

    def check(loaded: Loaded) -> None:
        largest = [draft.baseline, largest_config(draft), *_with_lora(draft)]
        check_fit(loaded, list(asked(draft).configs) or largest)

    def timed(loaded: Loaded, slots: Slots) -> Asked:
        shapes = [*draft.shapes(), *map(shape_of, asked(draft).configs)]
        assert device_s is not None
        measured = measured_speeds(loaded, slots, shapes, known=speeds, device_s=device_s, progress=progress)
        return asked(settings.applied_to(file, kind, measured))

    plan = load_plan(
        Study(studies_dir() / name),
        asked(draft),
        options,
        progress,
        check=check,
        timed=timed if device_s is not None else None,
        source=warm_start,
        notes=[*notes, *widening_words(file, draft)],
    )
    return replace(plan, name_is_chosen=options.study is not None)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a study is to be, before it is known what it runs on."""

    document: Mapping[str, Any]
    """study.json, of a new study without what is found."""
    space: SearchSpace | None = None
    configs: Sequence[TrialConfig] = ()


def load_plan(
    study: Study,
    asked: Asked,
    options: Options,
    progress: Preparing,
    *,
    check: Callable[[Loaded], None],
    timed: Callable[[Loaded, Slots], Asked] | None = None,
    source: Study | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Return a study's plan: its inputs loaded under the protocol of its document, and found right by `check`.

    A new study's document says what is asked of it alone; the plan's says too what was found. timed: measures what a
    budget of time needs, and says then what is asked. source: a study to learn from. Raises UserError.
    """
    document, space = asked.document, asked.space
    is_new, mirrors = "created_at" not in document, read_mirrors(options)
    if space is not None:
        check_mirrors(mirrors, progress, new_study=study.name if is_new else None)
    inputs = check_inputs(options, progress=progress)
    loaded = load_inputs(
        inputs,
        block_size=document["evaluation"]["block_size"],
        eval_tokens=document["evaluation"]["tokens"],
        stability=document.get("stability", {}),
        init_from=inputs.checkpoint_path,
        progress=progress,
        address=options.address,
        storage=options.storage,
    )
    progress("checking that model, text and settings fit together", 0.0)
    if options.sample_prompt is not None:
        from trainable.sampling import prompt_ids

        prompt_ids(loaded.tokenizer, options.sample_prompt)
    check(loaded)
    largest = _largest(config_from(document["baseline"]), asked.configs, space)
    slots = slots_for(loaded, options, largest, progress)
    if timed is not None:
        asked = timed(loaded, slots)
        document, space = asked.document, asked.space
    warm_start = None
    if space is not None:
        warm_start = warm_start_from(source, space, loaded.facts) if source else read_warm_start(study)
    learns = [warm_start.words] if warm_start and is_new else []
    shared = {"slots": slots.count, "threads_per_slot": slots.threads, "gpu_frac": slots.gpu_frac}
    return Plan(
        study=study,
        is_new=is_new,
        document=study_document(study.name, document, loaded=loaded, slots=shared) if is_new else document,
        inputs=inputs,
        loaded=loaded,
        slots=slots,
        baseline=config_from(document["baseline"]),
        budget=budget_of(document),
        milestones_tokens=tuple(document["evaluation"]["milestones_tokens"]),
        space=space,
        configs=asked.configs,
        mirrors=mirrors,
        warm_start=warm_start,
        notes=[*notes, *learns, *slots.notes, *([loaded.cluster.words] if loaded.cluster else [])],
    )


def _largest(baseline: TrialConfig, configs: Sequence[TrialConfig], space: SearchSpace | None) -> TrialConfig:
    if configs or space is None:
        return max(configs or [baseline], key=lambda one: (one.tokens_per_step, not one.use_lora))
    return largest_config(space)


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
