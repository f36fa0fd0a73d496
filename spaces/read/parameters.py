"""The [search] table read into parameters with domains and conditions; the rest of the file is elsewhere."""

from collections.abc import Mapping
from typing import Any

from spaces.domains import Choice, Condition, Domain, FloatRange, IntRange, SearchParameter
from spaces.read.toml_table import Table, shown
from spaces.warmup import WARMUP_FRAC
from trainable.config import DOCUMENTED, HYPERPARAMETERS, make_config
from trainable.errors import UserError, did_you_mean

NOT_SEARCHED = {
    "training_steps": "which cannot be searched: every trial gets the same tokens. Set [budget] tokens.",
    "seed": "which cannot be searched: a seed is never tuned. Confirm the winner on fresh seeds instead.",
}
SEARCHABLE = (*(name for name in HYPERPARAMETERS if name not in NOT_SEARCHED), WARMUP_FRAC)
KINDS = ("choice", "uniform", "log_uniform", "int")
MAX_CHOICES = 1_000


def read_value(table: Table, key: str, name: str, value: Any) -> Any:
    """Return a value of hyperparameter `name` in its own type; `key` names it in the error.

    Raises UserError when no TrialConfig takes it.
    """
    if name == WARMUP_FRAC:
        share = table.finite(value, key)
        if not 0 <= share <= 1:
            raise table.error(f"is {share:g}; a share of the run must be at least 0 and at most 1.", key)
        return share
    if isinstance(value, (dict, list)):
        raise table.error(f"must be one value, not {shown(value)}.", key)
    try:
        return getattr(make_config(DOCUMENTED, {name: value}), name)
    except UserError as error:
        raise table.error(f"does not fit: {error}", key) from None


def read_parameters(search: Table) -> tuple[SearchParameter, ...]:
    """Return the parameters of the [search] table, parents before their children."""
    search.allow(SEARCHABLE, why_not=NOT_SEARCHED)
    if not search.values:
        raise search.error("has no parameter. Name at least one, such as batch_size = { choice = [8, 16] }.")
    if search.has("warmup_steps") and search.has(WARMUP_FRAC):
        raise search.error("has warmup_steps and warmup_frac, which set the same thing. Drop one.")
    example = " Write it like { choice = [8, 16] }; a fixed value belongs in [baseline]."
    tables = {name: search.table(name, remedy=example) for name in search.values}
    domains = {name: _read_domain(table, name) for name, table in tables.items()}
    conditions = {name: _read_condition(table, domains) for name, table in tables.items()}
    unordered = [SearchParameter(name, domains[name], conditions[name]) for name in domains]
    return _parents_first(search, unordered)


def _read_domain(table: Table, name: str) -> Domain:
    table.allow((*KINDS, "when", "step", "log"))
    kind = table.one_of(KINDS, remedy="Write it like { choice = [8, 16] }.")
    for option in ("step", "log"):
        if table.has(option) and kind != "int":
            raise table.error(f"is for int ranges only, not for {kind}.", option)
    if kind == "choice":
        return _read_choice(table, name)
    value_type = float if name == WARMUP_FRAC else HYPERPARAMETERS[name].type
    if (kind == "int") != (value_type is int) or value_type in (str, bool):
        ranges = "uniform or log_uniform" if value_type is float else "int"
        fit = "choice" if value_type in (str, bool) else f"choice, {ranges}"
        raise table.error(f"cannot be searched by {kind}. Use {fit}.")
    low, high = (read_value(table, kind, name, value) for value in table.array(kind, length=2))
    if low >= high:
        raise table.error(f"goes from {low:g} to {high:g}; the first number must be the smaller one.", kind)
    if (kind == "log_uniform" or table.values.get("log")) and low <= 0:
        raise table.error(f"starts at {low:g}; on a log scale the smaller number must be more than 0.", kind)
    if kind == "int":
        return _read_int_range(table, low, high)
    return FloatRange(low, high, log=kind == "log_uniform")


def _read_choice(table: Table, name: str) -> Choice:
    values: list[Any] = []
    array = table.array("choice")
    if len(array) > MAX_CHOICES:
        raise table.error(f"has {len(array)} values, more than {MAX_CHOICES}. Use a range.", "choice")
    for item in array:
        value = read_value(table, "choice", name, item)
        if value in values:
            raise table.error(f"has {shown(value)} twice. Drop one.", "choice")
        values.append(value)
    return Choice(tuple(values))


def _read_int_range(table: Table, low: int, high: int) -> IntRange:
    step, log = table.integer("step", 1), table.values.get("log", False)
    if not isinstance(log, bool):
        raise table.error(f"must be true or false, not {shown(log)}.", "log")
    if log and step != 1:
        raise table.error("cannot be combined with log = true. Drop one, or list the values in a choice.", "step")
    if step < 1 or (high - low) % step != 0:
        raise table.error(f"is {step}; it must be at least 1 and lead from {low} to {high} exactly.", "step")
    return IntRange(low, high, step=step, log=log)


def _read_condition(table: Table, domains: Mapping[str, Domain]) -> Condition | None:
    if not table.has("when"):
        return None
    example = 'Write it like { lr_schedule = ["linear"] }.'
    when = table.table("when", remedy=f" {example}")
    if len(when.values) != 1:
        raise when.error(f"must name one parameter, not {len(when.values)}. {example}")
    parent = next(iter(when.values))
    if parent not in domains:
        raise when.error(f"names {shown(parent)}, which is not searched here.{did_you_mean(parent[:60], domains)}")
    domain = domains[parent]
    if not isinstance(domain, Choice) or parent == WARMUP_FRAC:
        what = "a share" if parent == WARMUP_FRAC else domain
        raise when.error(f"names '{parent}', {what}; a condition needs a hyperparameter searched by choice.")
    values = tuple(read_value(when, parent, parent, value) for value in when.array(parent))
    for value in values:
        if not domain.contains(value):
            raise when.error(f"has {shown(value)}, which is not in its {domain}.", parent)
    return Condition(parent, values)


def _parents_first(search: Table, parameters: list[SearchParameter]) -> tuple[SearchParameter, ...]:
    placed: dict[str, SearchParameter] = {}
    while len(placed) < len(parameters):
        ready = [
            p for p in parameters if p.name not in placed and (p.condition is None or p.condition.parent in placed)
        ]
        if not ready:
            circle = sorted(p.name for p in parameters if p.name not in placed)
            raise search.error(f"has conditions that go in a circle: {', '.join(circle)}. Drop one 'when'.")
        placed[ready[0].name] = ready[0]
    return tuple(placed.values())
