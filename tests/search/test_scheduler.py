"""Exact decisions of the scheduler on planted sequences."""

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from search.tune.asha import TokenASHA
from search.tune.history import KnownTrial, TrialLog
from trainable.config import TrialConfig

RUNGS = (100, 300, 900)
BASELINE = TrialConfig(learning_rate=1e-5)
OTHER = TrialConfig(learning_rate=1e-4)


def make_scheduler(
    *known: KnownTrial, rung_tokens: tuple[int, ...] = RUNGS, reduction_factor: int = 3, baseline_id: int = 0
) -> TokenASHA:
    """A scheduler whose log knows 40 trials that were proposed, or what is `known` of them."""
    log = TrialLog(begun(trial_id, BASELINE if trial_id == baseline_id else OTHER) for trial_id in range(40))
    for trial in known:
        log.begin(trial)
    return TokenASHA(
        log,
        rung_tokens=rung_tokens,
        reduction_factor=reduction_factor,
        is_baseline=lambda config: replace(config, seed=0) == BASELINE,
    )


def begun(trial_id: int, config: TrialConfig, *losses: tuple[int, float]) -> KnownTrial:
    return KnownTrial(trial_id=trial_id, status="running", config=config, point={}, losses=losses)


def decisions(scheduler: TokenASHA, reports: Sequence[tuple[int, int, float]]) -> list[bool]:
    """Return whether each (trial_id, fidelity_tokens, objective), in this order, goes on."""
    return [scheduler.goes_on(*report) for report in reports]


def test_the_best_third_of_those_who_reached_the_rung_so_far_go_on() -> None:
    scheduler = make_scheduler()
    losses = [5.0, 6.0, 4.0, 4.5, 3.0, 3.5, 3.2, 4.4, 2.9]
    reports = [(trial_id, 100, loss) for trial_id, loss in enumerate(losses, start=1)]
    # Of 1 to 5 trials the best one goes on, of 6 to 8 the best two, of 9 the best three.
    assert decisions(scheduler, reports) == [True, False, True, False, True, True, True, False, True]
    assert scheduler.recorded == [dict(enumerate(losses, start=1)), {}, {}]


@pytest.mark.parametrize(("reduction_factor", "kept"), [(2, 4), (3, 2), (4, 2), (8, 1), (100, 1)])
def test_the_reduction_factor_sets_how_many_are_kept(reduction_factor: int, kept: int) -> None:
    for place in range(8):
        scheduler = make_scheduler(reduction_factor=reduction_factor)
        decisions(scheduler, [(trial_id, 100, float(trial_id)) for trial_id in range(1, 8)])
        assert scheduler.goes_on(8, 100, place + 0.5) is (place < kept)


def test_a_trial_is_judged_at_the_highest_rung_it_reached_and_nowhere_below() -> None:
    """A large batch passes several rungs at once; its late loss must not be compared with the others' early ones."""
    scheduler = make_scheduler()
    assert scheduler.goes_on(1, 100, 4.0)
    assert scheduler.goes_on(2, 450, 9.0)
    assert scheduler.recorded == [{1: 4.0}, {2: 9.0}, {}]
    assert not scheduler.goes_on(1, 300, 9.5)
    assert scheduler.recorded == [{1: 4.0}, {2: 9.0, 1: 9.5}, {}]


def test_a_trial_is_judged_once_at_a_rung() -> None:
    scheduler = make_scheduler()
    assert decisions(scheduler, [(1, 100, 5.0), (2, 120, 4.0), (1, 200, 7.0), (1, 299, 8.0)]) == [True] * 4
    assert scheduler.recorded[0] == {1: 5.0, 2: 4.0}


def test_before_the_first_rung_everything_goes_on_unrecorded() -> None:
    scheduler = make_scheduler()
    assert decisions(scheduler, [(1, 0, 5.0), (2, 0, 99.0), (3, 99, 98.0)]) == [True] * 3
    assert scheduler.recorded == [{}, {}, {}]


def test_the_baseline_is_never_stopped_and_still_counts() -> None:
    scheduler = make_scheduler()
    assert scheduler.goes_on(1, 100, 4.0)
    assert scheduler.goes_on(0, 100, 9.0)
    assert scheduler.recorded[0] == {1: 4.0, 0: 9.0}
    strong = make_scheduler()
    assert strong.goes_on(0, 100, 4.0)
    assert not strong.goes_on(1, 100, 4.1)
    assert strong.goes_on(2, 100, 3.9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tokens", [0, 50, 100, 900])
def test_what_is_not_finite_is_stopped_and_moves_nobody_elses_rung(bad: float, tokens: int) -> None:
    scheduler = make_scheduler()
    assert scheduler.goes_on(1, 100, 5.0)
    assert not scheduler.goes_on(2, tokens, bad)
    assert scheduler.goes_on(0, tokens, bad)
    assert scheduler.recorded == [{1: 5.0}, {}, {}]
    assert scheduler.goes_on(3, 100, 4.9)
    assert not scheduler.goes_on(4, 100, 5.1)


def test_equals_go_on_together() -> None:
    scheduler = make_scheduler()
    assert decisions(scheduler, [(trial_id, 100, 4.0) for trial_id in range(5)]) == [True] * 5
    assert not scheduler.goes_on(5, 100, math.nextafter(4.0, 5.0))


def test_without_rungs_nothing_is_stopped_but_what_is_not_finite() -> None:
    scheduler = make_scheduler(rung_tokens=())
    assert decisions(scheduler, [(1, 0, 1.0), (2, 10**9, 1e9), (3, 10**9, 2e9)]) == [True] * 3
    assert not scheduler.goes_on(4, 10**9, math.inf)
    assert scheduler.rung_of(10**9) is None


@pytest.mark.parametrize(("tokens", "rung"), [(0, None), (99, None), (100, 0), (299, 0), (300, 1), (899, 1), (900, 2)])
def test_the_rung_of_a_number_of_tokens(tokens: int, rung: int | None) -> None:
    assert make_scheduler().rung_of(tokens) == rung


def test_in_every_order_of_arrival_the_best_goes_on_and_the_same_is_known_in_the_end() -> None:
    losses = {1: 3.0, 2: 3.1, 3: 3.2, 4: 3.3, 5: 3.4, 6: 3.5}
    for order in itertools.permutations(losses):
        scheduler = make_scheduler()
        went_on = {trial_id for trial_id in order if scheduler.goes_on(trial_id, 100, losses[trial_id])}
        seen: list[float] = []
        for trial_id in order:
            seen.append(losses[trial_id])
            among_the_best = losses[trial_id] in sorted(seen)[: max(1, len(seen) // 3)]
            assert (trial_id in went_on) == among_the_best
        assert 1 in went_on
        assert scheduler.recorded[0] == losses


@pytest.mark.parametrize(
    ("objective", "decision"),
    [(4.0, TrialScheduler.CONTINUE), (6.0, TrialScheduler.STOP), (math.nan, TrialScheduler.STOP)],
)
def test_rays_words_for_it(objective: float, decision: str) -> None:
    scheduler = make_scheduler()
    scheduler.goes_on(0, 100, 5.0)
    trial = Trial("SearchTrial", config={"trial_id": 7}, stub=True)
    result: dict[str, Any] = {"fidelity_tokens": 100, "objective": objective}
    assert scheduler.on_trial_result(None, trial, result) == decision


def test_the_debug_string_counts_each_rung() -> None:
    scheduler = make_scheduler(rung_tokens=(1000, 3000))
    decisions(scheduler, [(0, 1000, 5.0), (1, 1000, 4.0), (0, 3000, 4.0)])
    assert scheduler.debug_string() == "ASHA on tokens: 1,000: 2, 3,000: 1"


def test_what_an_earlier_run_recorded_stands_as_it_was() -> None:
    """The first loss at each rung."""
    scheduler = make_scheduler(
        begun(0, BASELINE, (0, 7.0), (100, 6.0), (200, 5.0), (300, 4.0), (450, 3.0)),
        begun(2, OTHER, (0, 7.0), (950, 2.0)),
    )
    assert scheduler.recorded == [{0: 6.0}, {0: 4.0}, {2: 2.0}]


def test_after_a_resume_the_rungs_decide_as_they_would_have() -> None:
    draw = random.Random(0)
    reports = [(trial_id, tokens, draw.random()) for trial_id in range(1, 30) for tokens in (0, 60, 100, 210, 300, 900)]
    whole = make_scheduler()
    decided = decisions(whole, reports)
    assert 0 < sum(decided) < len(decided)
    for cut in range(0, len(reports), 7):
        first = make_scheduler()
        before = decisions(first, reports[:cut])
        known: dict[int, list[tuple[int, float]]] = {}
        for trial_id, tokens, loss in reports[:cut]:
            known.setdefault(trial_id, []).append((tokens, loss))
        second = make_scheduler(*(begun(trial_id, OTHER, *losses) for trial_id, losses in known.items()))
        assert second.recorded == first.recorded
        assert before + decisions(second, reports[cut:]) == decided
        assert second.recorded == whole.recorded


def test_a_trial_that_passes_a_rung_again_is_not_judged_again() -> None:
    scheduler = make_scheduler(begun(1, OTHER, (100, 5.0)), begun(2, OTHER, (100, 3.0)))
    assert scheduler.goes_on(1, 100, 5.0)
    assert not scheduler.goes_on(3, 100, 4.0)


def test_the_baseline_is_the_configuration_and_not_a_number() -> None:
    scheduler = make_scheduler(baseline_id=7)
    assert decisions(scheduler, [(1, 100, 4.0), (0, 100, 9.0), (7, 100, 9.5), (7, 300, math.nan)]) == [
        True,
        False,
        True,
        True,
    ]
