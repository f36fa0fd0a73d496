"""`make attribute`: which of the changed settings did it? Every combination of them, really run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from results.attribution import (
    Coalition,
    Setting,
    attribute,
    changed_settings,
    coalitions,
    config_of,
    render,
    to_json,
    write_attribution,
)
from results.attribution.attribution_plot import write_plot
from results.ranking import baseline_trial, best_trial
from results.report.page import write_reports
from results.study.folder import Study, create_study, list_studies
from results.study.ledger import Ledger
from results.study.lock import hold
from results.study.paths import shown
from search.cluster.study_storage import TableMirror, open_or_fetch_study
from search.options import Options
from search.setup.inputs import check_fit
from search.setup.preflight_run import PREFLIGHT_FAILED, passes_preflight, study_room
from search.setup.reopen import Reopened, load_like, reopen, run_more
from search.setup.study_record import common_document
from search.terminal.console import Preparing, Terminal
from trainable.config import BASELINES, DOCUMENTED, TrialConfig, config_from, with_token_budget
from trainable.errors import UserError
from trainable.rows import ENDINGS

DEFAULT_BUDGET_TOKENS = 200_000
DEFAULT_SEEDS = 3
EVALUATIONS = 4
EVALUATION = {"block_size": DOCUMENTED.block_size, "tokens": 4096}


@dataclass(frozen=True, kw_only=True)
class Design:
    """The runs that an attribution needs."""

    before_name: str
    after_name: str
    settings: tuple[Setting, ...]
    configs: Mapping[tuple[Coalition, int], TrialConfig]
    """By combination and seed; the first is the configuration before any change."""
    budget_tokens: int
    source: Study | None
    """The study whose baseline and best are compared; its protocol holds, and its own trials are not run again."""

    @property
    def before(self) -> TrialConfig:
        """The configuration before any change."""
        return next(iter(self.configs.values()))

    @property
    def is_at_sources_budget(self) -> bool:
        """Whether the source's own trials are runs of this design too."""
        return self.source is not None and self.source.document()["budget_tokens"] == self.budget_tokens


def attribute_command(options: Options, terminal: Terminal) -> int:
    """Attribute the difference between FROM and TO, or STUDY's baseline and best; return the exit code."""
    design = make_design(options)
    with Preparing(terminal.console) as progress:
        study, opened = _open(design, options, progress)
        check_fit(opened.loaded, list(design.configs.values()))
    if not passes_preflight(
        options,
        opened.inputs,
        opened.loaded,
        design.before,
        largest=max(design.configs.values(), key=lambda config: config.tokens_per_step),
        runs_at_once=opened.slots.count_here,
        room=study_room(opened.slots),
        terminal=terminal,
    ):
        return PREFLIGHT_FAILED
    if study is None:
        study = create_study(opened.document["name"], opened.document)
        opened = replace(opened, study=study)
    with hold(study):
        code = _run_missing(design, opened, terminal)
    if code is not None:
        terminal.say(f"make attribute with the same words goes on; so far: {shown(study.path)}")
        return code
    return _conclude(design, study, terminal, opened.slots.storage)


def make_design(options: Options) -> Design:
    """Return what to run. Raises UserError for unknown names, or two configurations that do not differ."""
    budget_tokens = options.budget_tokens
    source = None
    if options.from_ or options.to:
        names = (options.from_ or "before", options.to or "documented")
        before, after = (BASELINES[name] for name in names)
    else:
        source, _ = open_or_fetch_study(options)
        base, best = baseline_trial(source.trials()), best_trial(source.trials())
        if base is None or best is None or best["is_baseline"]:
            raise UserError(f"study {source.name} has no trial better than its baseline: nothing to attribute.")
        names = (f"{source.name} baseline", f"{source.name} trial {best['trial_id']}")
        before, after = config_from(base), config_from(best)
        budget_tokens = budget_tokens or source.document()["budget_tokens"]
    budget_tokens = budget_tokens or DEFAULT_BUDGET_TOKENS
    settings = changed_settings(before, after)
    if not settings:
        raise UserError(f"{names[0]} and {names[1]} are the same configuration: nothing to attribute.")
    configs = {
        (coalition, seed): with_token_budget(
            replace(config_of(before, after, settings, coalition), seed=seed), budget_tokens
        )
        # A seed at a time, so that an interruption leaves whole seeds.
        for seed in range(before.seed, before.seed + (options.seeds or DEFAULT_SEEDS))
        for coalition in coalitions(len(settings))
    }
    return Design(
        before_name=names[0],
        after_name=names[1],
        settings=settings,
        configs=configs,
        budget_tokens=budget_tokens,
        source=source,
    )


def _open(design: Design, options: Options, progress: Preparing) -> tuple[Study | None, Reopened]:
    """Return the study of an earlier call with the same question, or None, and what its runs need."""
    name = f"attribute-{design.source.name}" if design.source else f"attribute-{design.before_name}-{design.after_name}"
    name = f"{name}-{design.budget_tokens}"
    existing = next((study for study in list_studies() if study.name == name), None)
    if existing is not None:
        return existing, reopen(existing, options, progress)
    like = design.source.document() if design.source else {"evaluation": EVALUATION}
    opened = load_like(like, options, progress, baseline=design.before)
    document = common_document(name, "attribute", loaded=opened.loaded)
    document["evaluation"]["milestones_tokens"] = (
        like["evaluation"]["milestones_tokens"]
        if design.is_at_sources_budget
        else [design.budget_tokens * part // EVALUATIONS for part in range(1, EVALUATIONS + 1)]
    )
    document.update(
        budget_tokens=design.budget_tokens,
        rung_tokens=[],
        baseline={"name": design.before_name, **asdict(design.before)},
        stability=like.get("stability", {}),
        seed=design.before.seed,
        trials_planned=len(design.configs),
    )
    return None, replace(opened, document=document)


def _run_missing(design: Design, opened: Reopened, terminal: Terminal) -> int | None:
    from search.tune.workload import list_workload

    ledger = Ledger.load(opened.study)
    known = _known_configs(design, opened.study)
    missing = [config for config in dict.fromkeys(design.configs.values()) if config not in known]
    if len(missing) < len(design.configs):
        terminal.say(f"{len(design.configs) - len(missing)} of {len(design.configs)} runs are known already")
    if not missing:
        return None
    cut_off = {config_from(row): row["trial_id"] for row in ledger.trials() if row["status"] not in ENDINGS}
    # 0 is kept for the configuration before any change, also where another study has run it.
    next_id = max((row["trial_id"] for row in ledger.trials()), default=-1 if design.before in missing else 0) + 1
    new = [config for config in missing if config not in cut_off]
    configs = {cut_off[config]: config for config in missing if config in cut_off} | dict(enumerate(new, next_id))
    return run_more(
        opened,
        lambda: list_workload(configs, baseline=opened.baseline, milestones_tokens=opened.milestones_tokens),
        terminal,
        ledger,
        lines=[f"study {opened.study.name}: {len(configs)} runs"],
    )


def _known_configs(design: Design, study: Study) -> dict[TrialConfig, dict[str, Any]]:
    """Return the ended full-length rows, of this study and of the one it asks about, by configuration."""
    rows: list[dict[str, Any]] = study.trials()
    if design.source is not None and design.is_at_sources_budget:
        rows = [*design.source.trials(), *rows]
    # A trial that the scheduler stopped has no loss at the full budget; it is run again.
    return {config_from(row): row for row in rows if row["status"] in ENDINGS and row["status"] != "stopped"}


def _conclude(design: Design, study: Study, terminal: Terminal, storage: str | None) -> int:
    known = _known_configs(design, study)
    losses: dict[Coalition, dict[int, float | None]] = {}
    for (coalition, seed), config in design.configs.items():
        row = known.get(config)
        completed = row is not None and row["status"] == "completed"
        losses.setdefault(coalition, {})[seed] = row["val_loss"] if row is not None and completed else None
    found = attribute(losses, design.settings, before_name=design.before_name, after_name=design.after_name)
    for place in _places(design, study):
        write_attribution(place, found)
        write_reports(place)
    picture = study.path / "attribution.png"
    write_plot(found, picture)
    if storage is not None:
        for place in _places(design, study):
            TableMirror(place, storage, terminal.say).close()
    terminal.console.print(render(found))
    terminal.say(f"picture: {shown(picture)}")
    terminal.document({"study": study.name, "path": str(study.path), **to_json(found)})
    return 0


def _places(design: Design, study: Study) -> Sequence[Study]:
    # The report of the study that was asked about shows it too.
    return [study] if design.source is None else [study, design.source]
