"""When a search ends before its last trial: exact numbers, and what is never decided too early."""

import math
from pathlib import Path

import pytest

from results.study.folder import Study
from search.tune.early_end import (
    FILE_NAME,
    early_end,
    expected_gain,
    paired_noise,
    read_part_losses,
    write_part_losses,
)
from search.tune.history import KnownTrial
from trainable.config import TrialConfig
from trainable.errors import UserError
from trainable.rows import TrialStatus


def trial(number: int, loss: float, status: TrialStatus = "completed", *, parts: tuple[float, ...] = ()) -> KnownTrial:
    config = TrialConfig()
    return KnownTrial(trial_id=number, status=status, config=config, point={}, val_loss=loss, part_losses=parts)


def noisy(number: int, loss: float, noise: float = 0.02) -> KnownTrial:
    """A completed trial; the difference from trial 1 has a standard error of `noise`."""
    shift = noise if number > 1 else 0.0
    return trial(number, loss, parts=(loss - shift, loss + shift))


def search_of(*losses: float, stopped: int = 9) -> list[KnownTrial]:
    """A baseline at 5.0, trials that completed with these losses, and some that were stopped."""
    completed = [noisy(number, loss) for number, loss in enumerate(losses, start=1)]
    others = [trial(len(completed) + number, 4.9, "stopped") for number in range(1, stopped + 1)]
    return [trial(0, 5.0), *completed, *others]


def test_the_gain_is_the_expected_improvement_of_normal_losses() -> None:
    # Mean 4.1, deviation 0.1 * sqrt(2): 0.1414 * (phi(-0.7071) - 0.7071 * Phi(-0.7071)).
    assert expected_gain([4.0, 4.2], best=4.0, trials_to_complete=2.0) == pytest.approx(2 * 0.019963, rel=1e-4)
    # A best that lies far below what the others lose is hardly beaten.
    assert expected_gain([4.0, 4.2], best=3.5, trials_to_complete=2.0) < 1e-5
    assert expected_gain([4.0, 4.0], best=4.0, trials_to_complete=2.0) == 0.0


def test_the_noise_is_the_standard_error_of_the_paired_difference() -> None:
    best, other = trial(1, 4.0, parts=(3.0, 4.0, 5.0)), trial(2, 4.1, parts=(3.2, 4.1, 5.0))
    assert paired_noise([best, other]) == pytest.approx(0.1 / math.sqrt(3))
    # What both have in common is no noise.
    assert paired_noise([best, trial(2, 5.0, parts=(4.0, 5.0, 6.0))]) == pytest.approx(0.0)
    assert paired_noise([best, trial(2, 4.1)]) is None


def test_it_ends_where_the_next_ones_gain_less_than_the_noise() -> None:
    end = early_end(search_of(4.0, 4.01, 4.02), trials=18, most_trials=24)
    assert end is not None
    assert (end.trials, end.most_trials) == (18, 24)
    # Six are left, of which as many complete as did of the 12: one and a half.
    assert end.gain_nats == pytest.approx(expected_gain([4.0, 4.01, 4.02], best=4.0, trials_to_complete=1.5))
    assert end.gain_nats < end.noise_nats == pytest.approx(0.02)
    assert early_end(search_of(4.0, 4.3, 4.6), trials=18, most_trials=24) is None


@pytest.mark.parametrize(
    ("known", "trials"),
    [
        (search_of(4.0, 4.01, 4.02), 17),
        ([], 18),
        (search_of(4.0), 18),
        # Of three trials that ended the best third is one.
        (search_of(4.0, 4.01, stopped=1), 18),
        ([trial(0, 5.0), *(trial(number, 4.0 + number / 100) for number in range(1, 10))], 18),
    ],
    ids=["before three quarters", "nothing known", "one completed", "too few ended", "no losses by part"],
)
def test_it_goes_on_where_little_is_known(known: list[KnownTrial], trials: int) -> None:
    assert early_end(known, trials=trials, most_trials=24) is None


def test_where_none_is_stopped_the_bad_ones_do_not_count() -> None:
    known = [trial(0, 5.0), *(noisy(number, 4.0 + 0.01 * number) for number in range(1, 5))]
    bad = [noisy(number, 6.0 + number) for number in range(5, 13)]
    assert early_end([*known, *bad], trials=18, most_trials=24) is not None


@pytest.mark.parametrize("text", ['{"1": [NaN, 4.0]}', '{"1": ["4.0"]}', '{"one": [4.0]}', '{"1": 4.0}', "[]"])
def test_losses_by_part_that_are_none_are_a_line(text: str, tmp_path: Path) -> None:
    """Of NaN the search would end: no gain is compared with it."""
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(UserError, match=r"part_losses\.json: not a study's losses by part"):
        read_part_losses(Study(tmp_path))


def test_losses_by_part_are_kept(tmp_path: Path) -> None:
    assert read_part_losses(Study(tmp_path)) == {}
    write_part_losses(Study(tmp_path), [trial(1, 4.0, parts=(3.0, 4.0)), trial(2, 5.0)])
    assert read_part_losses(Study(tmp_path)) == {1: (3.0, 4.0)}
