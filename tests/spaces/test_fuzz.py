"""Whatever a space file holds, reading it gives a sound space or one line, and nothing else."""

import datetime
import json
from collections.abc import Callable
from dataclasses import asdict
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from results.export import export_toml
from results.study.atomic import write_document
from results.study.folder import Study
from results.study.tables import TRIALS, write_table
from search.tune.optuna_searcher import SpaceSearcher
from spaces.domains import active_point
from spaces.overrides import Settings, with_overrides
from spaces.read.load import load_space, space_from_tables, space_from_toml
from spaces.read.parameters import KINDS, SEARCHABLE
from spaces.read.space_files import SPACES_DIRECTORY, parse_toml, read_space_text
from spaces.read.toml_table import TOP_KEYS
from spaces.space import SearchSpace
from tests.documents import sound_document
from tests.rows import trial_row
from trainable.config import BASELINES, HYPERPARAMETERS, LR_SCHEDULES, TrialConfig, without_seed
from trainable.errors import UserError

SHIPPED = [parse_toml(read_space_text(path), path.name) for path in sorted(SPACES_DIRECTORY.glob("*.toml"))]

TEXT = (SPACES_DIRECTORY / "smoke.toml").read_text(encoding="utf-8")
quick = settings(
    max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)

numbers = (
    st.sampled_from([0, 1, 2, 4, 8, 32, 128, 12_288, 2**63 - 1, -(2**63), 0.0, 0.1, 1e-5, 1.0, 5e-324, 1.8e308])
    | st.integers()
    | st.floats()
)
words = st.sampled_from([*LR_SCHEDULES, *BASELINES, "asha", "none", "tpe", "grid", "random", ""]) | st.text(max_size=8)
scalars = numbers | words | st.booleans() | st.just(datetime.datetime(2024, 1, 1))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def table(names: list[str], content: st.SearchStrategy[Any] = values) -> st.SearchStrategy[dict[str, Any]]:
    """Return dictionaries of mostly known names."""
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=4), content, max_size=4)


ends = st.tuples(numbers, numbers).map(list)
domains = st.fixed_dictionaries(
    {},
    optional={
        **{kind: st.lists(scalars, max_size=4) | ends | values for kind in KINDS},
        "when": table(list(SEARCHABLE), st.lists(scalars, max_size=3) | values),
        "step": values,
        "log": values,
    },
)
tables = st.fixed_dictionaries(
    {},
    optional={
        "trials": numbers | values,
        "description": values,
        "baseline": words | table([*HYPERPARAMETERS, "from", "warmup_frac"]),
        "budget": table(["tokens", "baseline_steps"], numbers),
        "evaluation": table(["block_size", "tokens", "count"]),
        "scheduler": table(["name", "grace_frac", "grace_tokens", "reduction_factor"]),
        "searcher": st.fixed_dictionaries({"name": words}),
        "search": table(list(SEARCHABLE), domains),
        "stability": table(["x"]),
    },
) | table(list(TOP_KEYS))


def attempt(make: Callable[[], SearchSpace]) -> SearchSpace | str:
    """Return the space, or the line that says why there is none."""
    try:
        return make()
    except UserError as error:
        return str(error)


def check(contents: dict[str, Any]) -> None:
    space = attempt(lambda: space_from_tables(contents, name="fuzz", path="fuzz.toml"))
    if isinstance(space, str):
        assert space.startswith("fuzz.toml: ")
        assert space.isprintable()
        return
    assert space.config_for(space.baseline_params()) == space.baseline
    assert space.evaluation_tokens()[-1] == space.budget.tokens
    assert space.baseline.tokens_per_step <= space.evaluation_tokens()[0]


def choice(name: str, others: list[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Return choices that hold the small baseline's value."""
    own = {"batch_size": 4, "block_size": 32}.get(name, HYPERPARAMETERS[name].default)
    picked = st.lists(st.sampled_from([other for other in others if other != own]), unique=True, max_size=2)
    return picked.flatmap(lambda values: st.permutations([own, *values])).map(lambda values: {"choice": values})


def when(parents: dict[str, dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Return no condition, or one on some values of one of the choices in `parents`."""
    if not parents:
        return st.just({})
    one = st.sampled_from(sorted(parents)).flatmap(
        lambda name: st.lists(st.sampled_from(parents[name]["choice"]), min_size=1, unique=True).map(
            lambda values: {"when": {name: values}}
        )
    )
    return st.just({}) | one


@st.composite
def plausible(draw: st.DrawFn) -> dict[str, Any]:
    """Return the tables of a file that is most often sound, with conditions that nest."""
    search: dict[str, Any] = {}
    menu: list[tuple[str, list[Any]]] = [
        ("lr_schedule", list(LR_SCHEDULES)),
        ("batch_size", [2, 8, 16]),
        ("block_size", [16, 64]),
        ("grad_accum_steps", [2, 3]),
        ("precision", ["bf16", "fp16"]),
        ("dropout", [0, 0.5]),
    ]
    for name, others in draw(st.permutations(menu)):
        if draw(st.booleans()):
            parents = {key: domain for key, domain in search.items() if "choice" in domain}
            search[name] = draw(choice(name, others)) | draw(when(parents))
    if draw(st.booleans()):
        warmup = draw(st.sampled_from([("warmup_frac", {"uniform": [0, 1]}), ("warmup_steps", {"int": [0, 20]})]))
        search[warmup[0]] = warmup[1] | draw(when({k: d for k, d in search.items() if "choice" in d}))
    grace: dict[str, Any] = draw(st.sampled_from([{"grace_frac": 0.2}, {"grace_tokens": 1_000}, {"name": "none"}, {}]))
    return {
        "trials": draw(st.integers(1, 30)),
        "baseline": {"batch_size": 4, "block_size": 32},
        "budget": {"tokens": draw(st.integers(4_000, 40_000))},
        "evaluation": {"tokens": 256, "count": draw(st.integers(1, 12))},
        "scheduler": grace | {"reduction_factor": draw(st.integers(2, 5))},
        "search": search,
    }


def as_toml(value: Any) -> str:
    """Return a value as TOML writes it in a line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {as_toml(one)}" for key, one in value.items()) + " }"
    return json.dumps(value)


@st.composite
def written(draw: st.DrawFn, contents: dict[str, Any]) -> str:
    """Return the tables as a file: inline, dotted or under headers, in any order, with LF or CRLF."""
    top, below = [], []
    for key, value in contents.items():
        style = draw(st.sampled_from(["inline", "dotted", "header"])) if isinstance(value, dict) else "inline"
        if style == "inline":
            top.append(f"{key} = {as_toml(value)}")
        elif style == "dotted":
            top += [f"{key}.{name} = {as_toml(one)}" for name, one in value.items()]
        else:
            below.append("\n".join([f"[{key}]  # why", *(f"{name} = {as_toml(one)}" for name, one in value.items())]))
    return draw(st.sampled_from(["\n", "\r\n"])).join("\n".join([*top, *draw(st.permutations(below))]).split("\n"))


@quick
@given(plausible(), st.data())
def test_every_point_of_a_space_that_is_accepted_can_be_trained(contents: dict[str, Any], data: st.DataObject) -> None:
    space = attempt(lambda: space_from_tables(contents, name="fuzz", path="fuzz.toml"))
    if isinstance(space, str):
        assert space.startswith("fuzz.toml: ")
        return
    for _ in range(5):
        params = {p.name: data.draw(st.sampled_from(p.domain.examples())) for p in space.parameters}
        config = space.config_for(params)
        assert config.tokens_per_step <= space.evaluation_tokens()[0]
        assert 0 <= space.budget.tokens - config.training_steps * config.tokens_per_step < config.tokens_per_step
    pins = {"dropout": 0.3, "precision": "bf16"}
    changed = attempt(lambda: with_overrides(space, Settings(budget_tokens=2 * space.budget.tokens, pins=pins)))
    if isinstance(changed, str):
        assert changed.startswith("fuzz.toml: nothing is left to search. Unset ")
    else:
        assert changed.config_for(changed.baseline_params()) == changed.baseline


@settings(quick, max_examples=50)
@given(plausible(), st.randoms(use_true_random=False))
def test_every_proposal_of_a_search_is_a_point_of_its_file(contents: dict[str, Any], chance: Random) -> None:
    # Enough for the ladder of rates and the ends of the sizes.
    contents |= {"trials": 14, "budget": {"tokens": 200_000}}
    contents["search"]["learning_rate"] = {"log_uniform": [1e-6, 1e-1]}
    space = attempt(lambda: space_from_tables(contents, name="fuzz", path="fuzz.toml"))
    if isinstance(space, str):
        return
    searcher, configs = SpaceSearcher(space), []
    while isinstance(proposal := searcher.suggest("t"), dict):
        point, config = proposal["point"], TrialConfig(**proposal["trial"])
        assert point == active_point(space.parameters, dict.fromkeys(p.name for p in space.parameters) | point)
        assert config == space.config_for(point)
        for one in space.parameters:
            value = point.get(one.name, space.baseline_params().get(one.name))
            assert value is None or one.domain.contains(value)
        configs.append(without_seed(config))
        status: Any = chance.choice(["completed", "unstable", "out_of_memory", "failed"])
        searcher.log.end(proposal["trial_id"], status, chance.uniform(3, 5) if status == "completed" else None)
    assert configs[0] == without_seed(space.baseline)
    assert len(set(configs)) == len(configs)


@quick
@given(plausible(), st.data())
def test_an_exported_space_is_the_space_around_the_winner(
    tmp_path_factory: Any, contents: dict[str, Any], data: st.DataObject
) -> None:
    """However the tables of the file are written."""
    text = "# Größe\n" + data.draw(written(contents))
    space = attempt(lambda: space_from_toml(text, name="fuzz", path="fuzz.toml"))
    if isinstance(space, str):
        assert "not valid TOML" not in space
        return
    point = {p.name: data.draw(st.sampled_from(p.domain.examples())) for p in space.parameters}
    winner = space.config_for(point)
    study = Study(tmp_path_factory.mktemp("study"))
    rows = [trial_row(0, val_loss=4.5, **asdict(space.baseline)), trial_row(1, val_loss=4.2, **asdict(winner))]
    write_table(study.trials_path, rows, TRIALS)
    file = {"name": "fuzz", "path": "fuzz.toml", "description": "", "toml": space.toml}
    write_document(study.study_json, sound_document("s", space=file, budget_tokens=space.budget.tokens))
    again = space_from_toml(export_toml(study), name="fuzz", path="fuzz.toml")
    assert again.baseline == winner
    # Without a warm-up the winner has a share of 0, which a range may not hold.
    parameters = {one.name: one for one in again.parameters if one.name != "warmup_frac"}
    assert parameters == {one.name: one for one in space.parameters if one.name != "warmup_frac"}
    assert all(getattr(again, name) == getattr(space, name) for name in ("budget", "scheduler", "searcher", "trials"))


@quick
@given(tables)
def test_arbitrary_tables(contents: dict[str, Any]) -> None:
    check(contents)


@quick
@given(st.sampled_from(SHIPPED), tables)
def test_a_sound_file_with_some_tables_replaced(sound: dict[str, Any], contents: dict[str, Any]) -> None:
    check(sound | contents)


@quick
@given(st.sampled_from(SHIPPED), st.sampled_from(SEARCHABLE), domains)
def test_a_sound_file_with_one_domain_replaced(sound: dict[str, Any], name: str, domain: dict[str, Any]) -> None:
    check(sound | {"search": sound["search"] | {name: domain}})


@quick
@given(st.integers(0, len(TEXT)), st.integers(0, 20), st.binary(max_size=10))
def test_a_sound_file_with_a_hole_and_other_bytes_in_it(tmp_path_factory: Any, at: int, cut: int, put: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    data = TEXT.encode()
    path.write_bytes(data[:at] + put + data[at + cut :])
    space = attempt(lambda: load_space(str(path)))
    assert not isinstance(space, str) or space.isprintable()


@quick
@given(
    st.sampled_from(["plateau", "before_after", "schedule", "smoke"]),
    st.dictionaries(st.sampled_from(sorted(HYPERPARAMETERS)) | st.text(max_size=4), scalars, max_size=4),
    st.none() | st.integers(),
    st.none() | st.integers() | st.integers(1, 10**7),
    st.none() | st.sampled_from([("some", config) for config in BASELINES.values()]),
)
def test_arbitrary_settings(
    name: str, pins: dict[str, Any], trials: int | None, budget: int | None, other: Any
) -> None:
    loaded = load_space(name)
    space = attempt(
        lambda: with_overrides(loaded, Settings(pins=pins, trials=trials, budget_tokens=budget, baseline=other))
    )
    if isinstance(space, str):
        assert space
        return
    for parameter in space.parameters:
        assert parameter.name not in pins
    config = space.config_for(space.baseline_params())
    assert config == space.baseline
    for pinned, value in pins.items():
        assert getattr(config, pinned) == value or (pinned == "warmup_steps" and not config.has_warmup)
