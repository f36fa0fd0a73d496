"""Exact decisions of the scheduler on planted sequences."""

import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler

from search.tune.asha import TokenASHA
from search.tune.history import KnownTrial
from search.tune.trial_log import TrialLog
from trainable.config import TrialConfig

RUNGS = (100, 300, 900)
BASELINE = TrialConfig(learning_rate=1e-5)
OTHER = TrialConfig(learning_rate=1e-4)


def make_log(*known: KnownTrial, rung_tokens: tuple[int, ...] = RUNGS, reduction_factor: int = 3) -> TrialLog:
    """A log of the trials that are `known`; of a number given later it learns when that trial first reports."""
    return TrialLog(
        known,
        rung_tokens=rung_tokens,
        reduction_factor=reduction_factor,
        baseline=BASELINE,
    )


class Scheduler:
    """Verdicts on trials that are proposed right before they first report, in the order they report in."""

    def __init__(self, *known: KnownTrial, log: TrialLog | None = None, baseline_id: int = 0, **rungs: Any) -> None:
        self.log = log or make_log(*known, **rungs)
        self._baseline_id = baseline_id

    def goes_on(self, trial_id: int, fidelity_tokens: int, objective: float) -> bool:
        if trial_id not in {trial.trial_id for trial in self.log.trials}:
            self.log.begin(begun(trial_id, BASELINE if trial_id == self._baseline_id else OTHER))
        return self.log.evaluate(trial_id, fidelity_tokens, objective)

    @property
    def recorded(self) -> list[dict[int, float]]:
        return self.log.recorded


def begun(trial_id: int, config: TrialConfig, *losses: tuple[int, float]) -> KnownTrial:
    return KnownTrial(trial_id=trial_id, status="running", config=config, point={}, losses=losses)


def decisions(scheduler: Scheduler, reports: Sequence[tuple[int, int, float]]) -> list[bool]:
    """Return whether each (trial_id, fidelity_tokens, objective), in this order, goes on."""
    return [scheduler.goes_on(*report) for report in reports]


def test_the_best_third_of_those_who_reached_the_rung_so_far_go_on() -> None:
    scheduler = Scheduler()
    losses = [5.0, 6.0, 4.0, 4.5, 3.0, 3.5, 3.2, 4.4, 2.9]
    reports = [(trial_id, 100, loss) for trial_id, loss in enumerate(losses, start=1)]
    # Of 1 to 5 trials the best one goes on, of 6 to 8 the best two, of 9 the best three.
    assert decisions(scheduler, reports) == [True, False, True, False, True, True, True, False, True]
    assert scheduler.recorded == [dict(enumerate(losses, start=1)), {}, {}]


@pytest.mark.parametrize(("reduction_factor", "kept"), [(2, 4), (3, 2), (4, 2), (8, 1), (100, 1)])
def test_the_reduction_factor_sets_how_many_are_kept(reduction_factor: int, kept: int) -> None:
    for place in range(8):
        scheduler = Scheduler(reduction_factor=reduction_factor)
        decisions(scheduler, [(trial_id, 100, float(trial_id)) for trial_id in range(1, 8)])
        assert scheduler.goes_on(8, 100, place + 0.5) is (place < kept)


def test_a_trial_is_judged_at_the_highest_rung_it_reached_and_nowhere_below() -> None:
    """A large batch passes several rungs at once; its late loss must not be compared with the others' early ones."""
    scheduler = Scheduler()
    assert scheduler.goes_on(1, 100, 4.0)
    assert scheduler.goes_on(2, 450, 9.0)
    assert scheduler.recorded == [{1: 4.0}, {2: 9.0}, {}]
    assert not scheduler.goes_on(3, 300, 9.5)
    assert scheduler.recorded == [{1: 4.0}, {2: 9.0, 3: 9.5}, {}]


def test_a_trial_is_judged_once_at_a_rung() -> None:
    scheduler = Scheduler()
    assert decisions(scheduler, [(1, 100, 5.0), (2, 120, 4.0), (1, 200, 7.0), (1, 299, 8.0)]) == [True] * 4
    assert scheduler.recorded[0] == {1: 5.0, 2: 4.0}


def test_before_the_first_rung_everything_goes_on_unrecorded() -> None:
    scheduler = Scheduler()
    assert decisions(scheduler, [(1, 0, 5.0), (2, 0, 99.0), (3, 99, 98.0)]) == [True] * 3
    assert scheduler.recorded == [{}, {}, {}]


def test_the_baseline_is_never_stopped_and_still_counts() -> None:
    scheduler = Scheduler()
    assert scheduler.goes_on(1, 100, 4.0)
    assert scheduler.goes_on(0, 100, 9.0)
    assert scheduler.recorded[0] == {1: 4.0, 0: 9.0}
    strong = Scheduler()
    assert strong.goes_on(0, 100, 4.0)
    assert not strong.goes_on(1, 100, 4.1)
    assert strong.goes_on(2, 100, 3.9)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("tokens", [0, 50, 100, 900])
def test_what_is_not_finite_is_stopped_and_moves_nobody_elses_rung(bad: float, tokens: int) -> None:
    scheduler = Scheduler()
    assert scheduler.goes_on(1, 100, 5.0)
    assert not scheduler.goes_on(2, tokens, bad)
    assert scheduler.goes_on(0, tokens, bad)
    assert scheduler.recorded == [{1: 5.0}, {}, {}]
    assert scheduler.goes_on(3, 100, 4.9)
    assert not scheduler.goes_on(4, 100, 5.1)


def test_equals_go_on_together() -> None:
    scheduler = Scheduler()
    assert decisions(scheduler, [(trial_id, 100, 4.0) for trial_id in range(5)]) == [True] * 5
    assert not scheduler.goes_on(5, 100, math.nextafter(4.0, 5.0))


def test_without_rungs_nothing_is_stopped_but_what_is_not_finite() -> None:
    scheduler = Scheduler(rung_tokens=())
    assert decisions(scheduler, [(1, 0, 1.0), (2, 10**9, 1e9), (3, 10**9, 2e9)]) == [True] * 3
    assert not scheduler.goes_on(4, 10**9, math.inf)
    assert scheduler.log.rung_of(10**9) is None


@pytest.mark.parametrize(("tokens", "rung"), [(0, None), (99, None), (100, 0), (299, 0), (300, 1), (899, 1), (900, 2)])
def test_the_rung_of_a_number_of_tokens(tokens: int, rung: int | None) -> None:
    assert make_log().rung_of(tokens) == rung


def test_a_trial_trains_on_until_those_numbered_before_it_are_there_and_then_ends_at_the_rung() -> None:
    log = make_log(begun(0, BASELINE), *(begun(number, OTHER) for number in (1, 2)))
    scheduler = Scheduler(log=log)
    assert scheduler.goes_on(2, 0, 8.0)
    assert scheduler.goes_on(2, 100, 6.0)
    assert scheduler.goes_on(2, 300, 5.0)
    assert scheduler.goes_on(0, 100, 7.0)
    assert (log.stopped_at(2), log.take_stops()) == (None, [])
    # Trial 1 is better than it at the rung: of three one is kept.
    assert scheduler.goes_on(1, 100, 5.5)
    assert (log.stopped_at(2), log.take_stops(), log.take_stops()) == (0, [2], [])
    assert not scheduler.goes_on(2, 450, 4.0)
    assert (log[2].status, log[2].losses, log[2].val_loss) == ("stopped", ((0, 8.0), (100, 6.0)), 6.0)
    # What it had at the higher rung counts for nobody.
    assert scheduler.goes_on(1, 300, 5.4)
    assert log.stopped_at(1) is None


@pytest.mark.parametrize("status", ["completed", "unstable", "out_of_memory", "failed"])
def test_a_trial_that_ended_before_its_verdict_ends_as_stopped_at_the_rung(status: Any) -> None:
    log = make_log(begun(0, BASELINE), *(begun(number, OTHER) for number in (1, 2)))
    scheduler = Scheduler(log=log)
    assert scheduler.goes_on(2, 100, 6.0)
    log.end(2, status, 4.0)
    assert (log[2].status, log.is_settled(2)) == (status, False)
    scheduler.goes_on(0, 100, 5.0)
    assert (log[2].status, log.is_settled(2)) == ("stopped", True)
    assert log.take_stops() == [2]


def test_a_trial_that_ends_before_a_rung_keeps_nobody_waiting() -> None:
    log = make_log(begun(0, BASELINE), *(begun(number, OTHER) for number in (1, 2)))
    scheduler = Scheduler(log=log)
    assert scheduler.goes_on(0, 100, 7.0)
    assert scheduler.goes_on(2, 100, 6.0)
    log.end(2, "completed", 4.0)
    assert not log.is_settled(2)
    log.end(1, "unstable", None)
    assert (log.is_settled(2), log[2].status) == (True, "completed")


def test_a_trial_that_lost_its_worker_is_stopped_when_it_is_back_at_the_rung() -> None:
    log = make_log(begun(0, BASELINE, (100, 5.0)), begun(1, OTHER, (0, 8.0), (60, 7.0), (100, 6.0)))
    scheduler = Scheduler(log=log)
    assert log.stopped_at(1) == 0
    assert decisions(scheduler, [(1, 0, 8.0), (1, 60, 7.0), (1, 100, 6.0)]) == [True, True, False]


def test_in_every_order_of_arrival_the_verdicts_are_those_of_one_slot() -> None:
    """Three rungs; 300 orders of 12 trials, of which some jump a rung and some break."""
    draw = random.Random(0)
    for _ in range(300):
        reports: dict[int, list[tuple[int, float]]] = {
            number: [
                (tokens, draw.random() + 100 / tokens) for tokens in draw.choice([RUNGS, RUNGS, (100,), (300, 900)])
            ]
            for number in range(12)
        }
        endings = []
        for one_slot in (True, False):
            log = make_log(begun(0, BASELINE), *(begun(number, OTHER) for number in range(1, 12)))
            scheduler = Scheduler(log=log)
            left = {number: list(losses) for number, losses in reports.items()}
            while left:
                number = min(left) if one_slot else draw.choice(list(left))
                # One that has passed all its evaluations breaks at 300, or completes.
                if not left[number] or not scheduler.goes_on(number, *left[number].pop(0)):
                    del left[number]
                    log.end(number, "unstable" if reports[number][-1][0] < 900 else "completed", 1.0)
            assert all(log.is_settled(number) for number in range(12))
            endings.append(log.trials)
        assert endings[0] == endings[1]
        assert endings[0][0].status != "stopped"


@pytest.mark.parametrize(
    ("objective", "decision"),
    [(4.0, TrialScheduler.CONTINUE), (6.0, TrialScheduler.STOP), (math.nan, TrialScheduler.STOP)],
)
def test_rays_words_for_it(objective: float, decision: str) -> None:
    log = make_log(begun(0, BASELINE), begun(7, OTHER))
    log.evaluate(0, 100, 5.0)
    trial = Trial("SearchTrial", config={"trial_id": 7}, stub=True)
    result: dict[str, Any] = {"fidelity_tokens": 100, "objective": objective}
    assert TokenASHA(log).on_trial_result(None, trial, result) == decision


def test_what_an_earlier_run_recorded_stands_as_it_was() -> None:
    """The first loss at each rung."""
    scheduler = Scheduler(
        begun(0, BASELINE, (0, 7.0), (100, 6.0), (200, 5.0), (300, 4.0), (450, 3.0)),
        begun(2, OTHER, (0, 7.0), (950, 2.0)),
    )
    assert scheduler.recorded == [{0: 6.0}, {0: 4.0}, {2: 2.0}]


def test_after_a_resume_the_rungs_decide_as_they_would_have() -> None:
    draw = random.Random(0)
    reports = [(trial_id, tokens, draw.random()) for trial_id in range(1, 30) for tokens in (0, 60, 100, 210, 300, 900)]
    whole = Scheduler()
    decided = decisions(whole, reports)
    assert 0 < sum(decided) < len(decided)
    for cut in range(0, len(reports), 7):
        first = Scheduler()
        before = decisions(first, reports[:cut])
        known: dict[int, list[tuple[int, float]]] = {}
        for trial_id, tokens, loss in reports[:cut]:
            known.setdefault(trial_id, []).append((tokens, loss))
        second = Scheduler(*(begun(trial_id, OTHER, *losses) for trial_id, losses in known.items()))
        assert second.recorded == first.recorded
        assert before + decisions(second, reports[cut:]) == decided
        assert second.recorded == whole.recorded


def test_a_trial_that_passes_a_rung_again_is_not_judged_again() -> None:
    scheduler = Scheduler(begun(1, OTHER, (100, 5.0)), begun(2, OTHER, (100, 3.0)))
    assert scheduler.goes_on(1, 100, 5.0)
    assert not scheduler.goes_on(3, 100, 4.0)


def test_the_baseline_is_the_configuration_and_not_a_number() -> None:
    scheduler = Scheduler(baseline_id=7)
    reports = [(0, 100, 4.0), (1, 100, 9.0), (7, 100, 9.5), (7, 300, math.nan)]
    assert decisions(scheduler, reports) == [True, False, True, True]
