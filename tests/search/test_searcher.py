"""Who is proposed, in which order, and what Optuna's own study knows after each kind of ending."""

import json
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher

from results.study.planned_run import PlannedRun
from search.tune.history import KnownTrial, WarmStart, known_trials
from search.tune.optuna_searcher import ListSearcher, SamplerView, SpaceSearcher, told_as
from search.tune.trial_log import TrialLog
from spaces.budget import Budget
from spaces.read.load import load_space, space_from_tables
from spaces.space import SearchSpace
from trainable.config import BEFORE, DOCUMENTED, TrialConfig, config_from

SEARCH = {
    "batch_size": {"choice": [2, 4, 8]},
    "learning_rate": {"log_uniform": [1e-5, 1e-1]},
    "lr_schedule": {"choice": ["constant", "warmup_cosine"]},
    "weight_decay": {"uniform": [0.0, 0.1]},
    "grad_accum_steps": {"int": [1, 3]},
    "warmup_frac": {"uniform": [0.01, 0.3], "when": {"lr_schedule": ["warmup_cosine"]}},
}


def make_space(searcher: str = "tpe", *, trials: int = 12) -> SearchSpace:
    tables: dict[str, Any] = {
        "trials": trials,
        "baseline": {"batch_size": 4, "block_size": 32},
        "budget": {"tokens": 12_800},
        "evaluation": {"tokens": 256, "count": 4},
        "searcher": {"name": searcher},
        "search": SEARCH,
    }
    return space_from_tables(tables, name="small", path="small.toml")


def propose(searcher: SpaceSearcher, count: int) -> list[dict[str, Any]]:
    """Return the next proposals; each trial fails at once, from which nothing is learned."""
    proposals = []
    for number in range(count):
        proposals.append(propose_one(searcher, number))
        searcher.log.end(proposals[-1]["trial_id"], "failed", None)
    return proposals


def propose_one(searcher: SpaceSearcher, number: int) -> dict[str, Any]:
    proposal = searcher.suggest(f"t{number}")
    assert isinstance(proposal, dict)
    return proposal


def make_searcher(
    space: SearchSpace, *, seed: int = 0, trials: Sequence[KnownTrial] = (), **known: Any
) -> SpaceSearcher:
    space = replace(space, baseline=replace(space.baseline, seed=seed))
    searcher = SpaceSearcher(space, trials=trials, **known)
    # Without rungs: what is known of a trial before its end is another test's.
    searcher.log = TrialLog(trials)
    return searcher


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_the_first_trial_is_the_baseline_and_they_are_numbered(name: str) -> None:
    space = make_space(name)
    proposals = propose(make_searcher(space), 12)
    assert [proposal["trial_id"] for proposal in proposals] == list(range(12))
    assert proposals[0]["trial"] == asdict(space.baseline)
    assert all(asdict(TrialConfig(**proposal["trial"])) == proposal["trial"] for proposal in proposals)
    assert len({str(proposal["trial"]) for proposal in proposals}) == 12


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_a_conditional_parameter_is_asked_for_only_when_it_is_active(name: str) -> None:
    points = [proposal["point"] for proposal in propose(make_searcher(make_space(name)), 12)]
    assert {point["lr_schedule"] for point in points} == {"constant", "warmup_cosine"}
    for point in points:
        assert ("warmup_frac" in point) == (point["lr_schedule"] == "warmup_cosine")
        assert set(point) | {"warmup_frac"} == set(SEARCH)


def test_proposals_lie_in_their_domains() -> None:
    space = make_space("random", trials=30)
    for proposal in propose(make_searcher(space, seed=5), 30):
        config = TrialConfig(**proposal["trial"])
        assert config.batch_size in (2, 4, 8)
        assert config.grad_accum_steps in (1, 2, 3)
        assert 1e-5 <= config.learning_rate <= 1e-1
        assert 0.0 <= config.weight_decay <= 0.1
        assert config.training_steps == 12_800 // config.tokens_per_step
        assert (config.warmup_steps > 0) == (config.lr_schedule == "warmup_cosine")


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_the_same_seed_and_endings_propose_the_same(name: str) -> None:
    def points_of(seed: int) -> list[dict[str, Any]]:
        searcher = make_searcher(make_space(name), seed=seed)
        points = []
        for number in range(12):
            proposal = propose_one(searcher, number)
            points.append(proposal["point"])
            loss = 5.0 - proposal["trial"]["learning_rate"] * 10
            searcher.log.end(number, "completed", loss)
        return points

    assert points_of(0) == points_of(0)
    assert points_of(0)[1:] != points_of(1)[1:]
    assert points_of(0)[0] == points_of(1)[0]


def ended(status: Any, *, val_loss: float | None = 6.5) -> KnownTrial:
    space = make_space()
    return KnownTrial(
        trial_id=1,
        status=status,
        config=space.baseline,
        point=space.baseline_params(),
        losses=((0, 7.5), (1600, 7.0)),
        val_loss=val_loss,
    )


@pytest.mark.parametrize("changed", [{"batch_size": 3}, {"batch_size": "4"}, {"dropout": 0.1}])
def test_a_point_that_the_space_has_not_is_not_told(changed: dict[str, Any]) -> None:
    trial = ended("completed")
    assert (
        told_as(replace(trial, point={**(trial.point or {}), **changed}), SamplerView(make_space().parameters)) is None
    )


def test_a_completed_trial_is_told_its_loss() -> None:
    told = told_as(ended("completed"), SamplerView(make_space().parameters))
    assert told is not None
    assert (told.state, told.value) == (TrialState.COMPLETE, 6.5)


def test_a_stopped_trial_is_pruned_at_its_last_loss_by_tokens() -> None:
    told = told_as(ended("stopped"), SamplerView(make_space().parameters))
    assert told is not None
    assert (told.state, told.intermediate_values) == (TrialState.PRUNED, {1600: 7.0})


@pytest.mark.parametrize(
    ("status", "val_loss"),
    [("unstable", 6.5), ("out_of_memory", None), ("completed", None), ("completed", float("nan"))],
)
def test_a_trial_without_a_loss_to_show_is_pruned_before_anything_was_measured(status: str, val_loss: Any) -> None:
    told = told_as(ended(status, val_loss=val_loss), SamplerView(make_space().parameters))
    assert told is not None
    assert (told.state, told.value, told.intermediate_values) == (TrialState.PRUNED, None, {})


def test_a_failed_trial_teaches_nothing() -> None:
    assert told_as(ended("failed"), SamplerView(make_space().parameters)) is None


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_a_trial_under_way_is_told_as_running(status: str) -> None:
    told = told_as(ended(status), SamplerView(make_space().parameters))
    assert told is not None
    # The batch of 4 is the second of three.
    assert (told.state, told.params) == (TrialState.RUNNING, {**make_space().baseline_params(), "batch_size": 1})


def test_tpe_ranks_a_trial_that_broke_behind_every_stopped_one() -> None:
    """By Optuna's own ranking: a penalty told as COMPLETE would stand before every PRUNED trial."""
    from optuna.samplers._tpe.sampler import _split_trials

    endings = ["unstable", "completed", "stopped", "out_of_memory", "stopped", "failed"]
    study = optuna.create_study()
    told = [told_as(ended(status), SamplerView(make_space().parameters)) for status in endings]
    study.add_trials([trial for trial in told if trial is not None])
    # Without the failed one: the completed one, the two stopped ones, then the two that broke.
    for count, good in enumerate([{1}, {1, 2}, {1, 2, 4}], start=1):
        below, above = _split_trials(study, study.trials, count)
        assert {trial.number for trial in below} == good
        assert len(above) == 5 - count


def test_tpe_proposes_away_from_where_trials_break() -> None:
    """All rates above 1e-3 diverge and those below are stopped."""
    searcher = make_searcher(make_space(trials=40))
    rates = []
    for number in range(40):
        rates.append(propose_one(searcher, number)["trial"]["learning_rate"])
        if number == 0:
            searcher.log.end(0, "completed", 6.0)
        elif rates[-1] > 1e-3:
            searcher.log.end(number, "unstable", None)
        else:
            searcher.log.evaluate(number, 1600, 7.0 + rates[-1])
            searcher.log.end(number, "stopped", 7.0 - rates[-1])
    assert sum(rate > 1e-3 for rate in rates[20:]) <= 5


def test_tpe_goes_on_after_every_kind_of_ending() -> None:
    searcher = make_searcher(make_space(trials=40))
    endings: list[Any] = ["completed", "stopped", "unstable", "out_of_memory", "failed"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(40):
            # None is as large as those that run out of memory, so that the search goes on.
            assert isinstance(searcher.suggest(f"t{number}"), dict)
            searcher.log.evaluate(number, 0, 7.5)
            searcher.log.end(number, endings[number % 5] if number % 5 != 3 else "unstable", 5.0)


def test_tpe_learns_where_trials_do_well() -> None:
    """Loss falls with the rate here; past the random start the proposals move towards high rates."""
    searcher = make_searcher(make_space(trials=30))
    rates = []
    for number in range(30):
        proposal = propose_one(searcher, number)
        rates.append(proposal["trial"]["learning_rate"])
        searcher.log.end(number, "completed", 5.0 - 10 * rates[-1])
    start, end = sorted(rates[1:11]), sorted(rates[-10:])
    assert end[5] > 3 * start[5]


def test_a_grid_hands_out_every_cell_once_the_baseline_first() -> None:
    space = load_space("before_after")
    proposals = propose(make_searcher(space), space.trials)
    assert space.trials == 16
    assert proposals[0]["trial"] == asdict(space.baseline)
    cells = [
        tuple(proposal["trial"][name] for name in ("batch_size", "block_size", "learning_rate", "lr_schedule"))
        for proposal in proposals
    ]
    assert len(set(cells)) == 16
    assert {cell[0] for cell in cells} == {8, 32}
    assert {cell[1] for cell in cells} == {128, 256}
    assert {cell[2] for cell in cells} == {1e-5, 2e-5}
    assert {cell[3] for cell in cells} == {"constant", "warmup_cosine"}
    assert (DOCUMENTED.batch_size, DOCUMENTED.block_size, DOCUMENTED.learning_rate, DOCUMENTED.lr_schedule) == cells[0]
    assert (BEFORE.batch_size, BEFORE.block_size, BEFORE.learning_rate, BEFORE.lr_schedule) in cells[1:]


def test_every_cell_of_the_grid_has_the_warm_up_of_its_schedule() -> None:
    for proposal in propose(make_searcher(load_space("before_after")), 16):
        config = TrialConfig(**proposal["trial"])
        share = 0.1 if config.lr_schedule == "warmup_cosine" else 0.0
        assert config.warmup_steps == round(share * config.training_steps)


def test_a_list_is_handed_out_in_order_and_then_is_finished() -> None:
    runs = [
        PlannedRun(trial_id=trial_id, config=config, purpose="confirmation")
        for trial_id, config in ((7, DOCUMENTED), (9, BEFORE))
    ]
    budget = Budget(tokens=8192)
    searcher = ListSearcher(runs, lambda one: budget.milestones(one, (8192,)))
    nothing_else = {"point": None, "refusal": None}
    first, second = searcher.suggest("a"), searcher.suggest("b")
    assert first == {"trial_id": 7, "trial": asdict(DOCUMENTED), "milestones": ((8192, 2),), **nothing_else}
    assert second == {"trial_id": 9, "trial": asdict(BEFORE), "milestones": ((8192, 4),), **nothing_else}
    searcher.on_trial_complete("a", None, error=True)
    assert searcher.suggest("c") == Searcher.FINISHED
    assert searcher.suggest("d") == Searcher.FINISHED
    assert not searcher.exhausted


def test_nothing_is_written_where_ray_saves_a_searcher(tmp_path: Any) -> None:
    path = tmp_path / "searcher.pkl"
    make_searcher(make_space()).save(str(path))
    assert not path.exists()


MILESTONES = (1600, 3200, 6400, 9600, 12_800)
GRID = {
    "batch_size": {"choice": [2, 4, 8]},
    "learning_rate": {"choice": [1e-3, 1e-2, 3e-2]},
    "grad_accum_steps": {"choice": [1, 3]},
}


class Life:
    """A search on one slot as Ray would run it, over made-up losses, with the tables that it leaves behind."""

    def __init__(self, name: str) -> None:
        self.space = make_space(name, trials=18) if name != "grid" else self._grid()
        self.rows: list[dict[str, Any]] = []
        self.metrics: list[dict[str, Any]] = []
        self.rays_name = "trial"
        self.begin([])

    @staticmethod
    def _grid() -> SearchSpace:
        tables = {
            "baseline": {"batch_size": 4, "block_size": 32, "learning_rate": 1e-3},
            "budget": {"tokens": 12_800},
            "evaluation": {"tokens": 256, "count": 4},
            "searcher": {"name": "grid"},
            "search": GRID,
        }
        return space_from_tables(tables, name="small", path="small.toml")

    def begin(self, trials: list[KnownTrial]) -> None:
        self.searcher = SpaceSearcher(self.space, trials=trials)
        self.log = self.searcher.log

    def die(self) -> None:
        """Forget all but the tables."""
        known = known_trials(
            self.rows, self.metrics, milestones=lambda one: self.space.budget.milestones(one, MILESTONES)
        )
        self.begin(known)

    def trial(self, *, evaluations: int = 99, checkpoint: int = 0) -> bool:
        """Run the next trial, or go on with the one that was cut off, from its evaluation number `checkpoint`.

        It is cut off after so many `evaluations`. Returns False when the search is over.
        """
        self.rays_name = f"a new {self.rays_name}"
        proposal = self.searcher.suggest(self.rays_name)
        if not isinstance(proposal, dict):
            return False
        number, config = proposal["trial_id"], TrialConfig(**proposal["trial"])
        if number == len(self.rows):
            self.rows.append({"trial_id": number, **asdict(config), "point": json.dumps(proposal["point"])})
            self.rows[-1].update(status="running", val_loss=None)
        row = self.rows[number]
        assert config_from(row) == config
        assert json.loads(row["point"]) == proposal["point"]
        if proposal["refusal"]:
            row["status"] = "out_of_memory"
            self.log.end(number, "out_of_memory", None)
            return True
        for index, tokens in list(enumerate((0, *MILESTONES)))[checkpoint:]:
            if index == evaluations:
                return True
            if self._evaluated(row, config, tokens):
                return True
        raise AssertionError("the last evaluation ends a trial")

    def _evaluated(self, row: dict[str, Any], config: TrialConfig, tokens: int) -> bool:
        """Bring a trial to its next evaluation; return whether that is its end."""
        status: Any = self._broken(config) if tokens == 1600 else ""
        if status:
            row["status"] = status
            self.log.end(row["trial_id"], status, None)
            return True
        loss = 9.0 - 60 * config.learning_rate * (1 + config.weight_decay) * tokens / 12_800 - config.batch_size / 97
        steps = tokens // config.tokens_per_step
        self.metrics = [
            one for one in self.metrics if one["trial_id"] != row["trial_id"] or one["optimizer_steps"] < steps
        ]
        self.metrics.append({"trial_id": row["trial_id"], "optimizer_steps": steps, "val_loss": loss})
        row["val_loss"] = loss
        if tokens == MILESTONES[-1]:
            row["status"] = "completed"
            self.log.end(row["trial_id"], "completed", loss)
            return True
        if not self.log.evaluate(row["trial_id"], tokens, loss):
            row["status"] = "stopped"
            self.log.end(row["trial_id"], "stopped", loss)
            return True
        return False

    @staticmethod
    def _broken(config: TrialConfig) -> str:
        if config.batch_size == 8:
            return "out_of_memory"
        if config.learning_rate > 0.013:
            return "unstable"
        # A fault strikes anywhere.
        return "failed" if zlib.crc32(repr(config).encode()) % 5 == 0 else ""

    def to_its_end(self) -> None:
        while len(self.rows) < self.space.trials and self.trial():
            pass


@pytest.fixture(scope="module", params=["tpe", "random", "grid"])
def whole(request: pytest.FixtureRequest) -> Life:
    """A search that nothing happens to."""
    life = Life(request.param)
    life.to_its_end()
    return life


def test_the_search_that_nothing_happens_to_has_every_ending(whole: Life) -> None:
    statuses = {row["status"] for row in whole.rows}
    assert statuses == {"completed", "stopped", "unstable", "out_of_memory", "failed"}


def same_search(life: Life, whole: Life) -> None:
    assert life.rows == whole.rows
    assert sorted(life.metrics, key=str) == sorted(whole.metrics, key=str)
    assert life.log.recorded == whole.log.recorded


def test_a_search_that_died_between_two_trials_proposes_what_it_would_have_proposed(whole: Life) -> None:
    for cut in range(len(whole.rows) + 1):
        life = Life(whole.space.searcher)
        for _ in range(cut):
            life.trial()
        life.die()
        life.to_its_end()
        same_search(life, whole)


@pytest.mark.parametrize("evaluations", range(1, 6))
def test_a_search_that_died_in_the_middle_of_a_trial_goes_on_with_it(whole: Life, evaluations: int) -> None:
    for cut in range(len(whole.rows)):
        for checkpoint in range(evaluations):
            life = Life(whole.space.searcher)
            for _ in range(cut):
                life.trial()
            life.trial(evaluations=evaluations)
            if life.rows[-1]["status"] != "running":
                break
            life.rows[-1]["status"] = "interrupted"
            life.die()
            life.trial(checkpoint=checkpoint)
            life.to_its_end()
            same_search(life, whole)


def test_a_search_that_died_at_every_evaluation_ends_as_one_that_never_did(whole: Life) -> None:
    life = Life(whole.space.searcher)
    while len(life.rows) < life.space.trials or life.rows[-1]["status"] == "running":
        begun = len(life.rows)
        if not life.trial(evaluations=1):
            break
        evaluations = 1
        while life.rows[-1]["status"] == "running":
            life.die()
            evaluations += 1
            life.trial(evaluations=evaluations, checkpoint=evaluations - 2)
        assert len(life.rows) == begun + 1
        life.die()
    same_search(life, whole)


def test_several_that_were_cut_off_come_back_in_order_under_their_numbers_before_anything_new() -> None:
    space = make_space("random")
    proposals = propose(make_searcher(space), 12)
    statuses = ("completed", "interrupted", "stopped", "running")
    trials = [known(one, status) for one, status in zip(proposals, statuses, strict=False)]
    # Two runs that confirm something have taken the numbers in between.
    again = propose(make_searcher(space, trials=trials, other_ids=(4, 5)), 10)
    assert again[:2] == [proposals[1], proposals[3]]
    assert [one["trial_id"] for one in again[2:]] == list(range(6, 14))
    assert [one["point"] for one in again[2:]] == [one["point"] for one in proposals[4:]]


def test_one_that_was_cut_off_and_is_stopped_before_its_turn_is_not_run_nor_replaced() -> None:
    """As where a study of two slots goes on in one: the first trial decides on the second."""
    space = make_space("random", trials=3)
    proposals = propose(make_searcher(space), 3)
    baseline, first, second = (known(one, "interrupted") for one in proposals)
    rungs = [(tokens, 5.0) for tokens in space.rung_tokens()]
    trials = [replace(baseline, status="completed"), replace(first, losses=()), replace(second, losses=tuple(rungs))]
    searcher = SpaceSearcher(space, trials=trials)
    log = searcher.log
    assert searcher.trials_left == 2
    assert searcher.suggest("t") == proposals[1]
    log.evaluate(1, space.rung_tokens()[0], 4.0)
    assert log.take_stops() == [2]
    assert searcher.suggest("t") == Searcher.FINISHED
    assert not searcher.exhausted


def known(proposal: dict[str, Any], status: Any) -> KnownTrial:
    config = TrialConfig(**proposal["trial"])
    losses = ((0, 7.5), (1600, 7.0))
    return KnownTrial(
        trial_id=proposal["trial_id"],
        status=status,
        config=config,
        point=proposal["point"],
        losses=losses,
        val_loss=6.5,
    )


@pytest.mark.parametrize("name", ["tpe", "random"])
@pytest.mark.parametrize("ending", ["completed", "stopped", "unstable", "out_of_memory", "failed"])
def test_after_each_ending_a_resumed_search_proposes_what_the_uninterrupted_one_does(name: str, ending: Any) -> None:
    """Also where some still run: the sampler is told the very same trials."""
    space = make_space(name, trials=30)
    alive = make_searcher(space)
    for number in range(14):
        batch_size = propose_one(alive, number)["trial"]["batch_size"]
        for tokens in (0, 1600):
            alive.log.evaluate(number, tokens, 7.5 - number / 10)
        if number < 12:
            alive.log.end(number, ending if batch_size == 8 else "completed", 7.5 - number / 10)
    assert ending in {trial.status for trial in alive.log.trials}
    before = alive.log.trials
    resumed = make_searcher(space, trials=before)
    assert [one["trial_id"] for one in propose(resumed, 2)] == [12, 13]
    # Those two are under way in both, and what is told of the others must not hang on who was asked when.
    again = [propose_one(resumed, number) for number in range(14, 20)]
    assert again == [propose_one(alive, number) for number in range(14, 20)]


def test_a_warm_started_random_search_repeats_none_of_its_sources_draws() -> None:
    space = make_space("random", trials=24)
    proposals = propose(make_searcher(space), 20)
    told = [replace(known(one, "completed"), trial_id=-1 - number) for number, one in enumerate(proposals[:8])]
    first = dict(proposals[5]["point"])
    warm_start = WarmStart(source="x", told=told, first_points=[first])
    again = propose(make_searcher(space, warm_start=warm_start), 12)
    assert [one["trial_id"] for one in again] == list(range(12))
    assert again[0]["point"] == proposals[0]["point"]
    assert again[1]["point"] == first
    # Each proposal of a random search depends on its place alone, which follows those that are told.
    assert [one["point"] for one in again[2:]] == [one["point"] for one in proposals[10:]]


def test_a_warm_start_moves_tpe_at_once() -> None:
    """A source whose trials do better at higher rates: no random start is needed to know it."""
    space = make_space()
    source = propose(make_searcher(make_space(trials=30), seed=1), 30)
    told = [
        replace(known(one, "completed"), trial_id=-1 - number, val_loss=7.0 - 10 * one["trial"]["learning_rate"])
        for number, one in enumerate(source)
    ]
    warm_start = WarmStart(source="x", told=told)
    rates = []
    for given in (warm_start, None):
        proposals = propose(make_searcher(space, warm_start=given), 9)[1:]
        rates.append(sorted(one["trial"]["learning_rate"] for one in proposals)[4])
    assert rates[0] > 3 * rates[1]


@pytest.mark.parametrize("seed", range(5))
def test_a_small_space_of_choices_is_tried_whole_and_nothing_in_it_twice(seed: int) -> None:
    tables: dict[str, Any] = {
        "trials": 30,
        "baseline": {"batch_size": 4, "block_size": 32, "learning_rate": 1e-3},
        "budget": {"tokens": 12_800},
        "evaluation": {"tokens": 256, "count": 4},
        "searcher": {"name": "tpe"},
        "search": {**GRID, "grad_accum_steps": {"int": [1, 3]}},
    }
    searcher = make_searcher(space_from_tables(tables, name="small", path="small.toml"), seed=seed)
    configs = []
    while isinstance(proposal := searcher.suggest("t"), dict):
        configs.append(TrialConfig(**proposal["trial"]))
        searcher.log.end(proposal["trial_id"], "completed", configs[-1].learning_rate)
    assert proposal == Searcher.FINISHED
    assert len(set(configs)) == len(configs) == 27
    assert searcher.exhausted


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_what_differs_only_in_what_no_trial_reads_is_not_run_again(name: str) -> None:
    """A rank without adapters trains the same run: of the four points of the space three are different."""
    tables: dict[str, Any] = {
        "trials": 8,
        "baseline": {"batch_size": 4, "block_size": 32},
        "budget": {"tokens": 12_800},
        "evaluation": {"tokens": 256, "count": 4},
        "searcher": {"name": name},
        "search": {"use_lora": {"choice": [False, True]}, "lora_rank": {"choice": [4, 8]}},
    }
    searcher = make_searcher(space_from_tables(tables, name="small", path="small.toml"))
    found = []
    while isinstance(proposal := searcher.suggest("t"), dict):
        found.append((proposal["trial"]["use_lora"], proposal["trial"]["lora_rank"]))
        searcher.log.end(proposal["trial_id"], "completed", 4.0)
    assert sorted(found) == [(False, 8), (True, 4), (True, 8)]
    assert searcher.exhausted


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_no_shape_as_large_as_one_that_ran_out_of_memory_is_proposed_again_once_that_is_known(name: str) -> None:
    space = make_space(name, trials=21)
    proposals = propose(make_searcher(space), 12)
    large = next(one for one in proposals[1:] if one["trial"]["batch_size"] == 4)
    ran_out = known({**large, "trial_id": 1}, "out_of_memory")
    searcher = make_searcher(space, trials=[known(proposals[0], "completed"), ran_out])
    again = propose(searcher, 19)
    assert [one["trial_id"] for one in again] == list(range(2, 21))
    # A third of the trials may be under way before one's end is used, whatever the number of slots.
    assert {one["trial"]["batch_size"] for one in again[6:]} == {2}
    assert {one["trial"]["batch_size"] for one in again[:6]} > {2}


def test_what_needs_less_than_a_trial_that_ran_out_of_memory_is_run() -> None:
    """Adapters where all weights did not fit, and bf16 where fp32 did not; and not the other way round."""
    tables: dict[str, Any] = {
        "baseline": {"batch_size": 4, "block_size": 32, "precision": "bf16"},
        "budget": {"tokens": 12_800},
        "evaluation": {"tokens": 256, "count": 4},
        "searcher": {"name": "grid"},
        "search": {
            "use_lora": {"choice": [True, False]},
            "precision": {"choice": ["fp32", "bf16"]},
            "learning_rate": {"choice": [1e-5, 1e-4, 1e-3]},
        },
    }
    searcher = make_searcher(space_from_tables(tables, name="small", path="small.toml"))
    refused = set()
    while isinstance(proposal := searcher.suggest("t"), dict):
        number, trial = proposal["trial_id"], proposal["trial"]
        # The baseline, all weights in bf16, runs out of memory.
        searcher.log.end(number, "completed" if number else "out_of_memory", 5.0)
        if proposal["refusal"]:
            refused.add((trial["use_lora"], trial["precision"]))
    assert number == 11
    assert refused == {(False, "bf16"), (False, "fp32")}


def test_a_search_with_no_shape_left_is_over() -> None:
    space = make_space("random")
    trials = [known(one, "completed") for one in propose(make_searcher(space), 10)]
    trials[1] = replace(trials[1], status="out_of_memory", config=replace(space.baseline, batch_size=1))
    searcher = make_searcher(space, trials=trials)
    assert searcher.suggest("t1") == Searcher.FINISHED
    assert searcher.exhausted


def test_a_proposal_waits_for_what_it_is_made_from_and_for_nothing_else() -> None:
    """The first rung, or the end before it, of all numbered eight before and more; the end of those 24 before."""
    searcher = SpaceSearcher(make_space("random", trials=40))
    log = searcher.log
    for number in range(8):
        assert isinstance(searcher.suggest("t"), dict), number
    assert searcher.suggest("t") is None
    log.end(3, "failed", None)
    assert searcher.suggest("t") is None
    log.evaluate(0, make_space().rung_tokens()[0], 5.0)
    for number in range(1, 8):
        log.end(number, "failed", None)
    for number in range(8, 24):
        assert isinstance(searcher.suggest("t"), dict), number
        log.end(number, "failed", None)
    # 24 numbers after the baseline its end is part of what is known.
    assert searcher.suggest("t") is None
    log.end(0, "completed", 4.0)
    assert isinstance(searcher.suggest("t"), dict)


def test_a_number_that_was_given_out_right_before_a_kill_is_given_again_first() -> None:
    space = make_space("random")
    proposals = propose(make_searcher(space), 6)
    trials = [known(one, "completed") for number, one in enumerate(proposals) if number not in (0, 4)]
    again = propose(make_searcher(space, trials=trials), 3)
    assert again[:2] == [proposals[0], proposals[4]]
    assert again[2]["trial_id"] == 6


def test_a_grid_has_a_row_for_every_cell_and_does_not_run_those_that_are_too_large() -> None:
    searcher = make_searcher(Life("grid").space)
    proposals: list[dict[str, Any]] = []
    while isinstance(proposal := searcher.suggest("t"), dict):
        searcher.log.end(len(proposals), "completed" if proposals else "out_of_memory", 5.0)
        proposals.append(proposal)
    # The baseline itself ran out of memory; six cells on that is known, and its batch and larger ones are refused.
    assert proposals[0]["trial"]["batch_size"] == 4
    assert len({str(one["point"]) for one in proposals}) == len(proposals) == 18
    for number, one in enumerate(proposals):
        assert (one["refusal"] is not None) == (number >= 6 and one["trial"]["batch_size"] >= 4)
    assert {one["refusal"] for one in proposals} == {None, "not run: as large as trial 0, which ran out of memory"}
    assert not searcher.exhausted


def test_a_resumed_grid_runs_every_cell_once() -> None:
    """Those that were cut off under their own number, also where confirmation runs have taken the numbers after."""
    space = Life("grid").space
    proposals = propose(make_searcher(space), 7)
    statuses = ["completed", "interrupted", "stopped", "running", "failed", "unstable", "interrupted"]
    trials = [known(*pair) for pair in zip(proposals, statuses, strict=True)]
    searcher = make_searcher(space, trials=trials, other_ids=range(7, 12))
    rest = []
    while isinstance(proposal := searcher.suggest("t"), dict):
        searcher.log.end(proposal["trial_id"], "failed", None)
        rest.append(proposal)
    assert rest[:3] == [proposals[1], proposals[3], proposals[6]]
    assert [one["trial_id"] for one in rest[3:]] == list(range(12, 23))
    assert len({str(one["point"]) for one in (*proposals, *rest)}) == 18


def test_a_grid_goes_on_with_the_cells_that_have_not_run_wherever_they_stand_in_the_list() -> None:
    """An older version ran cells that are the same, such as warm-ups of a constant rate, one after the other."""
    space = Life("grid").space
    proposals = propose(make_searcher(space), 18)
    twin = {**proposals[1], "trial_id": 2}
    later = [{**proposals[2], "trial_id": 3}, {**proposals[17], "trial_id": 4}]
    trials = [known(one, "completed") for one in (*proposals[:2], twin, *later)]
    searcher = make_searcher(space, trials=trials)
    assert searcher.trials_left == 14
    rest = propose(searcher, 14)
    assert [one["trial"] for one in rest] == [one["trial"] for one in proposals[3:17]]
    assert searcher.suggest("t") == Searcher.FINISHED
    assert not searcher.exhausted
