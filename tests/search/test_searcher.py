"""Who is proposed, in which order, and what Optuna's own study knows after each kind of ending."""

import warnings
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from search.searcher import ListSearcher, SpaceSearcher
from spaces.load import load_space, space_from_tables
from spaces.space import SearchSpace
from trainable.config import BEFORE, DOCUMENTED, TrialConfig
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
