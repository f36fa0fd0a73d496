"""Which rates a search tries first, and what part of their range it goes on with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from search.tune.history import KnownTrial
from search.tune.optuna_searcher import SamplerView, SpaceSearcher, TrialSearcher
from search.tune.rate_ladder import ladder_points, narrowed, size_ends
from spaces.domains import FloatRange, active_point
from spaces.read.load import load_space, space_from_tables
from trainable.config import TrialConfig
from trainable.rows import TrialStatus

PLATEAU = load_space("plateau")
BASELINE = PLATEAU.baseline_params()


def test_the_ladder_is_the_baseline_at_rates_from_end_to_end_the_middle_first() -> None:
    points = ladder_points(PLATEAU.parameters, BASELINE, most=6)
    rates = [point["learning_rate"] for point in points]
    assert [f"{rate:.1e}" for rate in sorted(rates)] == [
        "2.4e-06",
        "1.3e-05",
        "7.3e-05",
        "4.1e-04",
        "2.3e-03",
        "1.3e-02",
    ]
    assert [f"{rate:.1e}" for rate in rates[:2]] == ["4.1e-04", "7.3e-05"]
    assert all({**point, "learning_rate": 1e-5} == BASELINE for point in points)


def test_the_baselines_own_rate_is_not_run_twice() -> None:
    # The middle of three rates over plateau's range is 1.7e-4.
    rates = [
        [one["learning_rate"] for one in ladder_points(PLATEAU.parameters, {**BASELINE, "learning_rate": rate}, most=3)]
        for rate in (1.7e-4, 1e-5)
    ]
    assert [[f"{rate:.1e}" for rate in ladder] for ladder in rates] == [
        ["5.4e-03", "5.6e-06"],
        ["1.7e-04", "5.4e-03", "5.6e-06"],
    ]


def test_a_narrow_range_or_a_small_study_has_no_ladder() -> None:
    narrow = [
        replace(one, domain=FloatRange(1e-4, 2e-3, log=True)) if one.name == "learning_rate" else one
        for one in PLATEAU.parameters
    ]
    assert ladder_points(narrow, BASELINE, most=6) == []
    assert ladder_points(PLATEAU.parameters, BASELINE, most=2) == []
    assert ladder_points(PLATEAU.parameters[:1], BASELINE, most=6) == []
    assert len(ladder_points(PLATEAU.parameters, BASELINE, most=3)) == 3


def found(rate: float, loss: float | None, *, at_tokens: int = 1000, status: TrialStatus = "stopped") -> KnownTrial:
    return KnownTrial(
        trial_id=0,
        status=status if loss else "unstable",
        config=replace(PLATEAU.baseline, learning_rate=rate),
        point=None,
        losses=((at_tokens, loss),) if loss else (),
        val_loss=loss,
    )


def window(*trials: KnownTrial) -> tuple[float, float]:
    domain: Any = next(one.domain for one in narrowed(PLATEAU.parameters, trials) if one.name == "learning_rate")
    return domain.low, domain.high


def test_the_range_is_narrowed_to_three_quarters_of_a_decade_around_the_best() -> None:
    assert window(found(1e-5, 4.4), found(1e-4, 4.2), found(1e-3, 4.3)) == pytest.approx((1.778e-5, 5.623e-4), rel=1e-3)
    # Only within its own ends.
    assert window(found(1e-6, 4.2), found(1e-4, 4.3)) == pytest.approx((1e-6, 5.623e-6), rel=1e-3)


def test_a_rate_that_broke_bounds_it_from_above() -> None:
    assert window(found(1e-3, 4.2), found(1e-2, None), found(4e-3, None)) == pytest.approx((1.778e-4, 4e-3), rel=1e-3)
    # One that broke below the best did so for another reason.
    assert window(found(1e-5, None), found(1e-3, 4.2)) == pytest.approx((1.778e-4, 5.623e-3), rel=1e-3)
    assert window(found(1e-3, None)) == (1e-6, 3e-2)
    # One whose worker was lost has shown nothing.
    lost = replace(found(4e-3, None), status="failed")
    assert window(found(1e-3, 4.2), lost) == window(found(1e-3, 4.2))


def test_who_got_furthest_is_the_best_whatever_is_ahead_at_the_first_rung() -> None:
    early, later = found(1e-2, 4.1), found(1e-3, 4.2, at_tokens=3000)
    assert window(early, later) == window(later)
    done = found(1e-4, 4.3, status="completed")
    assert window(early, later, done) == window(done)


def test_the_best_rate_goes_with_the_square_root_of_the_tokens_a_step_to_both_ends_of_the_sizes() -> None:
    small, large = size_ends(PLATEAU, [found(1e-4, 4.2), found(1e-3, 4.3)])
    assert small == {**BASELINE, "batch_size": 8, "block_size": 64, "learning_rate": pytest.approx(1e-4 / 8**0.5)}
    assert large == {**BASELINE, "batch_size": 64, "block_size": 256, "learning_rate": pytest.approx(2e-4)}
    # Never outside the range, and without a sound trial of the ladder there is no best rate.
    assert [one["learning_rate"] for one in size_ends(PLATEAU, [found(2e-6, 4.2)])] == [1e-6, 4e-6]
    assert size_ends(PLATEAU, [found(1e-3, None)]) == []


def test_an_end_of_the_sizes_is_a_point_of_the_space_where_other_sizes_depend_on_it() -> None:
    """The baseline's block of 256 does not go with a batch of 4, and its accumulation with 8 alone."""
    tables: dict[str, Any] = {
        "trials": 12,
        "baseline": {"batch_size": 8, "block_size": 256, "grad_accum_steps": 2},
        "budget": {"tokens": 400_000},
        "evaluation": {"tokens": 256},
        "search": {
            "batch_size": {"choice": [4, 8, 32]},
            "block_size": {"choice": [64, 128], "when": {"batch_size": [4]}},
            "grad_accum_steps": {"choice": [1, 2], "when": {"batch_size": [8]}},
            "learning_rate": {"log_uniform": [1e-6, 1e-2]},
        },
    }
    space = space_from_tables(tables, name="small", path="small.toml")
    small, large = size_ends(space, [found(1e-4, 4.2)])
    assert small == {"batch_size": 4, "block_size": 128, "learning_rate": pytest.approx(1e-4 / 2**0.5)}
    assert large == {"batch_size": 32, "learning_rate": pytest.approx(2e-4)}
    assert space.config_for(small).block_size == 128
    # The whole search keeps to the file.
    searcher = SpaceSearcher(space)
    for number in range(12):
        proposal: Any = searcher.suggest("")
        point = proposal["point"]
        assert point == active_point(space.parameters, {"block_size": None, "grad_accum_steps": None, **point})
        assert all(one.domain.contains(point[one.name]) for one in space.parameters if one.name in point)
        searcher.log.end(number, "completed", 4.0)


def rates_of_a_search(loss_of: Callable[[TrialConfig], float]) -> list[float]:
    """The rates of 24 trials that complete, each with the same loss at its first rung and at its end."""
    searcher = SpaceSearcher(PLATEAU)
    log, first_rung = searcher.log, PLATEAU.rung_tokens()[0]
    rates = []
    for number in range(24):
        proposal: Any = searcher.suggest("")
        config = TrialConfig(**proposal["trial"])
        rates.append(config.learning_rate)
        log.evaluate(number, first_rung, loss_of(config))
        log.end(number, "completed", loss_of(config))
    return rates


def test_a_better_size_moves_the_range_to_its_rate() -> None:
    def loss_of(config: TrialConfig) -> float:
        is_small = (config.batch_size, config.block_size) == (8, 64)
        return 4.0 if is_small else 5.0 + abs(config.learning_rate - 4e-4)

    rates = rates_of_a_search(loss_of)
    assert all(rates[7] / 5.63 < rate < rates[7] * 5.63 for rate in rates[9:])


def draw(searcher: TrialSearcher) -> float:
    proposal = searcher.suggest("")
    assert isinstance(proposal, dict)
    return float(proposal["trial"]["learning_rate"])


def test_the_search_goes_on_in_the_range_that_the_ladder_found() -> None:
    rates = rates_of_a_search(lambda config: 4.0 + abs(config.learning_rate - 4e-4))
    best = min(rates[:7], key=lambda rate: abs(rate - 4e-4))
    assert min(rates[:7]) < 3e-6
    assert max(rates[:7]) > 1e-2
    assert all(best / 5.63 < rate < best * 5.63 for rate in rates[7:])


def test_only_the_ladders_first_rung_is_waited_for_before_the_first_draw_and_its_ends_a_little_later() -> None:
    searcher = SpaceSearcher(PLATEAU)
    log, first_rung = searcher.log, PLATEAU.rung_tokens()[0]
    rates = []
    for _ in range(7):
        rates.append(draw(searcher))
    for number in range(7):
        assert searcher.suggest("") is None
        # Trials 1 and 2 are better than those before them, and go on.
        log.evaluate(number, first_rung, 5.0 - number / 10 if number < 3 else 6.0)
    # Both ends of the sizes at the best rate, by the square root of an 8th and of 4 times the tokens a step.
    small, large = draw(searcher), draw(searcher)
    assert (small, large) == pytest.approx((rates[2] / 8**0.5, rates[2] * 2))
    for number in (7, 8):
        assert searcher.suggest("") is None
        log.evaluate(number, first_rung, 6.0)
    assert all(rates[2] / 5.63 < draw(searcher) < rates[2] * 5.63 for _ in range(4))
    ends = {0: 5.0, 1: 4.0, 2: 4.5}
    for number in reversed(range(9)):
        assert searcher.suggest("") is None
        log.end(number, "completed" if number in ends else "stopped", ends.get(number, 6.0))
    # What was ahead at the first rung is behind at the end.
    assert rates[1] / 5.63 < draw(searcher) < rates[1] * 5.63


def test_the_sampler_sees_numbers_to_choose_from_in_their_order() -> None:
    view = SamplerView(PLATEAU.parameters)
    point = {"batch_size": 64, "block_size": 64, "learning_rate": 1e-4, "lr_schedule": "wsd", "warmup_frac": 0.1}
    coded = view.encoded(point)
    assert coded == {**point, "batch_size": 3, "block_size": 0}
    assert view.decoded(coded) == point
    assert view.encoded({**point, "learning_rate": 1.0}) is None
