"""Who is proposed, in which order, and what Optuna's own study knows after each kind of ending."""

import json
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search.tune.asha import TokenASHA
from search.tune.history import NO_HISTORY, History, KnownTrial, known_trials
from search.tune.optuna_searcher import ListSearcher, SpaceSearcher
from spaces.read.load import load_space, space_from_tables
from spaces.space import SearchSpace
from trainable.config import BEFORE, DOCUMENTED, TrialConfig, config_from
from trainable.fidelity import PENALTY_NATS

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
    return [propose_one(searcher, number) for number in range(count)]


def propose_one(searcher: SpaceSearcher, number: int) -> dict[str, Any]:
    proposal = searcher.suggest(f"t{number}")
    assert isinstance(proposal, dict)
    return proposal


def result(status: str, objective: float, tokens: int) -> dict[str, Any]:
    """A result as Ray hands it on, as far as a searcher reads it."""
    return {"status": status, "objective": objective, "fidelity_tokens": tokens, "training_iteration": 99}


def optunas(searcher: SpaceSearcher) -> Sequence[FrozenTrial]:
    study: optuna.Study = searcher._ot_study
    trials: Sequence[FrozenTrial] = study.get_trials(deepcopy=False)
    return trials


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_the_first_trial_is_the_baseline_and_they_are_numbered(name: str) -> None:
    space = make_space(name)
    proposals = propose(SpaceSearcher(space, seed=0), 12)
    assert [proposal["trial_id"] for proposal in proposals] == list(range(12))
    assert proposals[0]["trial"] == asdict(space.baseline)
    assert all(asdict(TrialConfig(**proposal["trial"])) == proposal["trial"] for proposal in proposals)
    assert len({str(proposal["trial"]) for proposal in proposals}) == 12


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_a_conditional_parameter_is_asked_for_only_when_it_is_active(name: str) -> None:
    searcher = SpaceSearcher(make_space(name), seed=0)
    propose(searcher, 12)
    schedules = [trial.params["lr_schedule"] for trial in optunas(searcher)]
    assert set(schedules) == {"constant", "warmup_cosine"}
    for trial in optunas(searcher):
        assert ("warmup_frac" in trial.params) == (trial.params["lr_schedule"] == "warmup_cosine")
        assert set(trial.params) | {"warmup_frac"} == set(SEARCH)


def test_proposals_lie_in_their_domains() -> None:
    space = make_space("random")
    for proposal in propose(SpaceSearcher(space, seed=5), 30):
        config = TrialConfig(**proposal["trial"])
        assert config.batch_size in (2, 4, 8)
        assert config.grad_accum_steps in (1, 2, 3)
        assert 1e-5 <= config.learning_rate <= 1e-1
        assert 0.0 <= config.weight_decay <= 0.1
        assert config.training_steps == 12_800 // config.tokens_per_step
        assert (config.warmup_steps > 0) == (config.lr_schedule == "warmup_cosine")


@pytest.mark.parametrize("name", ["tpe", "random"])
def test_the_same_seed_and_endings_propose_the_same(name: str) -> None:
    def proposals_of(seed: int) -> list[dict[str, Any]]:
        searcher = SpaceSearcher(make_space(name), seed=seed)
        proposals = []
        for number in range(12):
            proposal = propose_one(searcher, number)
            proposals.append(proposal)
            loss = 5.0 - proposal["trial"]["learning_rate"] * 10
            searcher.on_trial_complete(f"t{number}", result("completed", loss, 12_800))
        return proposals

    assert proposals_of(0) == proposals_of(0)
    assert proposals_of(0)[1:] != proposals_of(1)[1:]
    assert proposals_of(0)[0] == proposals_of(1)[0]


def test_a_completed_trial_is_told_its_loss() -> None:
    searcher = SpaceSearcher(make_space(), seed=0)
    propose(searcher, 1)
    searcher.on_trial_result("t0", result("running", 7.5, 0))
    searcher.on_trial_result("t0", result("running", 6.0, 3200))
    searcher.on_trial_complete("t0", result("completed", 5.25, 12_800))
    [told] = optunas(searcher)
    assert told.state is TrialState.COMPLETE
    assert told.value == 5.25
    assert told.intermediate_values == {0: 7.5, 3200: 6.0}


def test_a_stopped_trial_is_pruned_with_its_losses_by_tokens_the_last_one_too() -> None:
    """Ray hands a searcher every result but the one at which the scheduler stops a trial."""
    searcher = SpaceSearcher(make_space(), seed=0)
    propose(searcher, 1)
    searcher.on_trial_result("t0", result("running", 7.5, 0))
    searcher.on_trial_complete("t0", result("running", 7.25, 1423))
    [told] = optunas(searcher)
    assert told.state is TrialState.PRUNED
    assert told.intermediate_values == {0: 7.5, 1423: 7.25}


def test_a_trial_that_went_back_to_its_checkpoint_is_not_told_twice() -> None:
    searcher = SpaceSearcher(make_space(), seed=0)
    propose(searcher, 1)
    for tokens, loss in ((0, 7.5), (3200, 6.0), (0, 7.5), (3200, 6.0), (6400, 5.5)):
        searcher.on_trial_result("t0", result("running", loss, tokens))
    [told] = optunas(searcher)
    assert told.intermediate_values == {0: 7.5, 3200: 6.0, 6400: 5.5}


@pytest.mark.parametrize("status", ["unstable", "out_of_memory"])
def test_a_trial_that_broke_is_told_a_bad_and_finite_value(status: str) -> None:
    searcher = SpaceSearcher(make_space(), seed=0)
    propose(searcher, 2)
    searcher.on_trial_result("t1", result("running", 7.5, 0))
    searcher.on_trial_complete("t1", result(status, PENALTY_NATS, 0))
    told = optunas(searcher)[1]
    assert told.state is TrialState.COMPLETE
    assert told.value == PENALTY_NATS == 1000.0


def test_a_failed_trial_teaches_nothing() -> None:
    searcher = SpaceSearcher(make_space(), seed=0)
    propose(searcher, 1)
    searcher.on_trial_complete("t0", None, error=True)
    [told] = optunas(searcher)
    assert told.state is TrialState.FAIL
    assert told.value is None


def test_tpe_goes_on_after_every_kind_of_ending() -> None:
    searcher = SpaceSearcher(make_space(trials=40), seed=0)
    endings = [
        ("completed", 5.0, 12_800),
        ("running", 6.0, 1423),
        ("unstable", PENALTY_NATS, 0),
        ("out_of_memory", PENALTY_NATS, 0),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number in range(40):
            assert searcher.suggest(f"t{number}") is not None
            if number % 5 == 4:
                searcher.on_trial_complete(f"t{number}", None, error=True)
            else:
                searcher.on_trial_complete(f"t{number}", result(*endings[number % 5]))
    assert all(trial.state.is_finished() for trial in optunas(searcher))


def test_tpe_learns_where_trials_do_well() -> None:
    """Loss falls with the rate here; past the random start the proposals move towards high rates."""
    searcher = SpaceSearcher(make_space(trials=30), seed=0)
    rates = []
    for number in range(30):
        proposal = propose_one(searcher, number)
        rates.append(proposal["trial"]["learning_rate"])
        searcher.on_trial_complete(f"t{number}", result("completed", 5.0 - 10 * rates[-1], 12_800))
    start, end = sorted(rates[1:11]), sorted(rates[-10:])
    assert end[5] > 3 * start[5]


def test_a_grid_hands_out_every_cell_once_the_baseline_first() -> None:
    space = load_space("before_after")
    proposals = propose(SpaceSearcher(space, seed=0), space.trials)
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
    for proposal in propose(SpaceSearcher(load_space("before_after"), seed=0), 16):
        config = TrialConfig(**proposal["trial"])
        share = 0.1 if config.lr_schedule == "warmup_cosine" else 0.0
        assert config.warmup_steps == round(share * config.training_steps)


def test_a_list_is_handed_out_in_order_and_then_is_finished() -> None:
    searcher = ListSearcher({0: DOCUMENTED, 1: BEFORE})
    assert searcher.suggest("a") == {"trial_id": 0, "trial": asdict(DOCUMENTED)}
    assert searcher.suggest("b") == {"trial_id": 1, "trial": asdict(BEFORE)}
    searcher.on_trial_complete("a", None, error=True)
    assert searcher.suggest("c") == Searcher.FINISHED
    assert searcher.suggest("d") == Searcher.FINISHED


def test_a_list_can_be_numbered_from_anywhere() -> None:
    searcher = ListSearcher({7: BEFORE})
    proposal = searcher.suggest("a")
    assert isinstance(proposal, dict)
    assert proposal["trial_id"] == 7


def test_nothing_is_written_where_ray_saves_a_searcher(tmp_path: Any) -> None:
    path = tmp_path / "searcher.pkl"
    SpaceSearcher(make_space(), seed=0).save(str(path))
    ListSearcher({0: DOCUMENTED}).save(str(path))
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
        self.begin(NO_HISTORY)

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

    def begin(self, past: History) -> None:
        self.searcher = SpaceSearcher(self.space, seed=0, past=past)
        self.scheduler = TokenASHA(rung_tokens=(1600, 6400), reduction_factor=3)
        self.scheduler.replay((*past.lessons, *past.trials))

    def die(self) -> None:
        """Forget all but the tables."""
        known = known_trials(self.rows, self.metrics, milestones_tokens=MILESTONES)
        self.begin(History(trials=known, next_trial_id=len(self.rows)))

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
        for index, tokens in list(enumerate((0, *MILESTONES)))[checkpoint:]:
            if index == evaluations:
                return True
            if self._evaluated(row, config, tokens):
                return True
        raise AssertionError("the last evaluation ends a trial")

    def _evaluated(self, row: dict[str, Any], config: TrialConfig, tokens: int) -> bool:
        """Bring a trial to its next evaluation; return whether that is its end."""
        status = self._broken(config) if tokens == 1600 else ""
        if status:
            failed = status == "failed"
            told = None if failed else result(status, PENALTY_NATS, 0)
            row["status"] = status
            if status == "out_of_memory":
                self.searcher.avoid(config)
            self.searcher.on_trial_complete(self.rays_name, told, error=failed)
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
            self.searcher.on_trial_complete(self.rays_name, result("completed", loss, tokens))
            return True
        if not self.scheduler.goes_on(row["trial_id"], tokens, loss):
            row["status"] = "stopped"
            self.searcher.on_trial_complete(self.rays_name, result("running", loss, tokens))
            return True
        self.searcher.on_trial_result(self.rays_name, result("running", loss, tokens))
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
    assert life.scheduler.recorded == whole.scheduler.recorded


def test_a_search_that_died_between_two_trials_proposes_what_it_would_have_proposed(whole: Life) -> None:
    for cut in range(len(whole.rows) + 1):
        life = Life(whole.space.searcher.name)
        for _ in range(cut):
            life.trial()
        life.die()
        life.to_its_end()
        same_search(life, whole)


@pytest.mark.parametrize("evaluations", range(1, 6))
def test_a_search_that_died_in_the_middle_of_a_trial_goes_on_with_it(whole: Life, evaluations: int) -> None:
    for cut in range(len(whole.rows)):
        for checkpoint in range(evaluations):
            life = Life(whole.space.searcher.name)
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
    life = Life(whole.space.searcher.name)
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
    proposals = propose(SpaceSearcher(space, seed=0), 12)
    past = History(
        trials=[
            known(proposals[0], "completed"),
            known(proposals[1], "interrupted"),
            known(proposals[2], "stopped"),
            known(proposals[3], "running"),
        ],
        # Two runs that confirm something have taken the numbers in between.
        next_trial_id=6,
    )
    again = propose(SpaceSearcher(space, seed=0, past=past), 10)
    assert again[:2] == [proposals[1], proposals[3]]
    assert [one["trial_id"] for one in again[2:]] == list(range(6, 14))
    assert [one["point"] for one in again[2:]] == [one["point"] for one in proposals[4:]]


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


def test_a_past_is_told_as_it_would_have_been() -> None:
    space = make_space("random")
    proposals = propose(SpaceSearcher(space, seed=0), 5)
    endings = ["completed", "stopped", "unstable", "out_of_memory", "failed"]
    past = History(trials=[known(*pair) for pair in zip(proposals, endings, strict=True)], next_trial_id=5)
    told = optunas(SpaceSearcher(space, seed=0, past=past))
    assert [(trial.state, trial.value) for trial in told] == [
        (TrialState.COMPLETE, 6.5),
        (TrialState.PRUNED, 7.0),
        (TrialState.COMPLETE, PENALTY_NATS),
        (TrialState.COMPLETE, PENALTY_NATS),
    ]
    assert all(trial.intermediate_values == {0: 7.5, 1600: 7.0} for trial in told)
    assert [trial.params for trial in told] == [proposal["point"] for proposal in proposals[:4]]


def test_lessons_are_told_and_take_no_place_in_the_order() -> None:
    space = make_space("random")
    proposals = propose(SpaceSearcher(space, seed=0), 12)
    lesson = replace(known(proposals[7], "completed"), trial_id=-8)
    first = dict(proposals[5]["point"])
    searcher = SpaceSearcher(space, seed=0, past=History(lessons=[lesson], first_points=[first]))
    again = propose(searcher, 12)
    assert [one["trial_id"] for one in again] == list(range(12))
    assert again[0]["point"] == proposals[0]["point"]
    assert again[1]["point"] == first
    # Each proposal of a random search depends on its place alone.
    assert again[2:] == proposals[2:]
    assert [trial.value for trial in optunas(searcher) if trial.state is TrialState.COMPLETE] == [6.5]


@pytest.mark.parametrize("name", ["tpe", "random"])
@pytest.mark.parametrize("from_the_past", [True, False])
def test_no_shape_as_large_as_one_that_ran_out_of_memory_is_proposed_again(name: str, from_the_past: bool) -> None:
    space = make_space(name)
    proposals = propose(SpaceSearcher(space, seed=0), 12)
    large = next(one for one in proposals[1:] if one["trial"]["batch_size"] == 4)
    if from_the_past:
        ran_out = known({**large, "trial_id": 1}, "out_of_memory")
        past = History(trials=[known(proposals[0], "completed"), ran_out], next_trial_id=2)
        searcher = SpaceSearcher(space, seed=0, past=past)
    else:
        searcher = SpaceSearcher(space, seed=0)
        propose_one(searcher, 99)
        searcher.avoid(TrialConfig(**large["trial"]))
    again = propose(searcher, 20)
    assert {one["trial"]["batch_size"] for one in again} == {2}
    assert [one["trial_id"] for one in again] == list(range(again[0]["trial_id"], again[0]["trial_id"] + 20))


def test_a_search_with_no_shape_left_is_over() -> None:
    space = make_space("random")
    searcher = SpaceSearcher(space, seed=0)
    assert propose_one(searcher, 0)["trial"] == asdict(space.baseline)
    searcher.avoid(TrialConfig(batch_size=1, block_size=2))
    assert searcher.suggest("t1") == Searcher.FINISHED


def test_a_grid_leaves_out_the_cells_that_are_too_large_and_ends() -> None:
    life = Life("grid")
    life.searcher.avoid(TrialConfig(batch_size=4, block_size=32))
    proposals = propose(life.searcher, 7)
    # The baseline, at 4 itself, comes all the same.
    assert proposals[0]["trial"] == asdict(life.space.baseline)
    assert [one["trial"]["batch_size"] for one in proposals[1:]] == [2] * 6
    assert life.searcher.suggest("one more") == Searcher.FINISHED
