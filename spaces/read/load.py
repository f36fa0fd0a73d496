"""A space file read into a SearchSpace, which checks itself as a whole."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, Literal, cast, get_args

from spaces.budget import MAX_TOKENS, Budget
from spaces.domains import every_point
from spaces.protocol import AUTO, AUTO_TRIALS, Evaluation, Scheduler, Searcher
from spaces.read.parameters import read_parameters, read_value
from spaces.read.space_files import find_space_file, parse_toml, read_space_text, shown_path
from spaces.read.toml_table import TOP_KEYS, Table, check_integers, shown
from spaces.space import SearchSpace
from spaces.warmup import WARMUP_FRAC
from trainable.config import BASELINES, HYPERPARAMETERS, TrialConfig, make_config
from trainable.errors import UserError
from trainable.stability.rules import StabilityRules, make_rules

_NO_FILE = " A file or a study is named on the command line, by BASELINE=."


def load_space(name_or_path: str) -> SearchSpace:
    """Return the space of that name in spaces/, or in the file at that path, which ends in .toml.

    Raises UserError, one line with file, table and key, for the first thing wrong with it.
    """
    path = find_space_file(name_or_path)
    return space_from_toml(read_space_text(path), name=path.stem, path=shown_path(path))


def space_from_toml(text: str, *, name: str, path: str) -> SearchSpace:
    """Return the space that a file's text says. Raises UserError, one line that begins with `path`."""
    space = space_from_tables(parse_toml(text, path), name=name, path=path)
    # A copy by replace() would make every check again, and every cell of a grid.
    object.__setattr__(space, "toml", text)
    return space


def space_from_tables(tables: Mapping[str, Any], *, name: str, path: str) -> SearchSpace:
    """Return the space that a parsed file says. Raises UserError, one line that begins with `path`."""
    top = Table(path, "", tables)
    top.allow(TOP_KEYS, why_not={"seed": "which SEED sets for a study."})
    check_integers(top)
    description = " ".join(top.text("description", "").split())
    baseline_name, baseline, warmup_frac = _read_baseline(top)
    evaluation = _read_evaluation(top.table("evaluation"), baseline)
    budget = _read_budget(top.table("budget"), baseline)
    scheduler = _read_scheduler(top.table("scheduler"), budget.tokens)
    of_searcher = top.table("searcher")
    of_searcher.allow(("name",), why_not={"seed": "which SEED sets for a study."})
    searcher = cast(Searcher, of_searcher.text("name", "tpe", get_args(Searcher)))
    if not top.has("trials") and searcher != "grid":
        raise top.error('has no trials. Say how many, such as trials = 24, or set [searcher] name = "grid".')
    ends_early = (asked := top.values.get("trials")) == AUTO
    if isinstance(asked, str) and not ends_early:
        raise top.error(f'must be a whole number such as {AUTO_TRIALS}, or "{AUTO}", not {shown(asked)}.', "trials")
    trials = AUTO_TRIALS if ends_early else top.integer("trials", 1)
    space = SearchSpace(
        name=name,
        path=path,
        description=description,
        baseline_name=baseline_name,
        baseline=baseline,
        parameters=read_parameters(top.table("search")),
        budget=budget,
        evaluation=evaluation,
        scheduler=scheduler,
        searcher=searcher,
        trials=trials,
        ends_early=ends_early,
        stability=_read_stability(top.table("stability")),
        baseline_warmup_frac=warmup_frac,
    )
    # Cells that are one run may be counted each: in a file as in a study of an older version.
    if top.has("trials") and trials != space.trials and trials != sum(1 for _ in every_point(space.parameters)):
        raise top.error(f"is {trials}, and the grid has {space.trials} cells, which are all run. Drop it.", "trials")
    return space


def _read_baseline(top: Table) -> tuple[str, TrialConfig, float | None]:
    if not isinstance(top.values.get("baseline", ""), dict):
        name = top.text("baseline", "documented", BASELINES, remedy=_NO_FILE)
        return name, BASELINES[name], None
    table = top.table("baseline")
    names = [key for key in HYPERPARAMETERS if key != "seed"]
    table.allow(("from", *names, WARMUP_FRAC), why_not={"seed": "which SEED sets for every trial of a study."})
    if table.has("warmup_steps") and table.has(WARMUP_FRAC):
        raise table.error("has warmup_steps and warmup_frac, which set the same thing. Drop one.")
    name = table.text("from", "documented", BASELINES, remedy=_NO_FILE)
    values = {key: read_value(table, key, key, value) for key, value in table.values.items() if key != "from"}
    warmup_frac = values.pop(WARMUP_FRAC, None)
    try:
        config = make_config(BASELINES[name], values)
    except UserError as error:
        raise table.error(f"does not fit together: {error}") from None
    is_changed = config != BASELINES[name] or warmup_frac is not None
    return f"{name}, changed" if is_changed else name, config, warmup_frac


def _read_budget(table: Table, baseline: TrialConfig) -> Budget:
    kinds = ("tokens", "baseline_steps", "device_minutes")
    table.allow(kinds)
    kind = table.one_of(kinds, remedy="Write it like tokens = 400_000.")
    if kind == "device_minutes":
        return Budget(tokens=MAX_TOKENS, device_s=60 * table.finite(table.values[kind], kind))
    if (amount := table.integer(kind, 400_000)) < 1:
        raise table.error(f"is {amount}; it must be at least 1.", kind)
    return Budget(tokens=amount if kind == "tokens" else amount * baseline.tokens_per_step)


def _read_evaluation(table: Table, baseline: TrialConfig) -> Evaluation:
    table.allow(("block_size", "tokens", "count"))
    return Evaluation(
        block_size=table.integer("block_size", baseline.block_size),
        tokens=table.integer("tokens", 4096),
        count=table.integer("count", 8),
        follows_baseline=not table.has("block_size"),
    )


def _read_scheduler(table: Table, budget_tokens: int) -> Scheduler:
    table.allow(("name", "grace_frac", "grace_tokens", "reduction_factor"))
    name = cast(Literal["asha", "none"], table.text("name", "asha", ("asha", "none")))
    reduction_factor = table.integer("reduction_factor", 3)
    if table.has("grace_frac") and table.has("grace_tokens"):
        raise table.error("has grace_frac and grace_tokens, which set the same thing. Drop one.")
    if table.has("grace_tokens"):
        return Scheduler(name, table.integer("grace_tokens", 1), reduction_factor)
    grace_frac = table.finite(table.values.get("grace_frac", 1 / 9), "grace_frac")
    if not 0 < grace_frac < 1:
        raise table.error(f"is {grace_frac:g}; a share of the budget is more than 0 and less than 1.", "grace_frac")
    return Scheduler(name, math.ceil(grace_frac * budget_tokens), reduction_factor, grace_frac)


def _read_stability(table: Table) -> dict[str, Any]:
    table.allow(spec.name for spec in fields(StabilityRules))
    try:
        make_rules(table.values)
    except UserError as error:
        raise table.error(str(error).removeprefix("[stability] ")) from None
    return dict(table.values)
