"""What the tables of an earlier run say, as the searcher and the rungs were told it then."""

import json
from dataclasses import asdict
from typing import Any

import pytest

from search.tune.history import KnownTrial, known_trials
from search.tune.trial_log import TrialLog
from spaces.budget import Budget, Milestones
from trainable.config import TrialConfig
from trainable.rows import ENDINGS, PENALTY_NATS, TrialStatus

CONFIG = TrialConfig(batch_size=4, block_size=25, grad_accum_steps=2, training_steps=15)
POINT = {"batch_size": 4, "learning_rate": 1e-3}
BUDGET = Budget(tokens=3100)


def milestones(config: TrialConfig) -> Milestones:
    return BUDGET.milestones(config, (1000, 2000, 3000, 3100))


"""At 200 tokens a step: steps 5, 10, 15 and, after 3,000 tokens, 15 again."""


def row(trial_id: int, status: TrialStatus, **changes: Any) -> dict[str, Any]:
    return {
        "trial_id": trial_id,
        "status": status,
        "point": json.dumps(POINT),
        "val_loss": 4.0,
        **asdict(CONFIG),
        **changes,
    }


def evaluations(trial_id: int, *losses: float | None, steps: tuple[int, ...] = (0, 5, 10, 15)) -> list[dict[str, Any]]:
    pairs = zip(steps, losses, strict=False)
    return [{"trial_id": trial_id, "optimizer_steps": step, "val_loss": loss} for step, loss in pairs]


def test_a_trial_is_known_by_its_row() -> None:
    [trial] = known_trials([row(7, "completed")], evaluations(7, 7.0, 6.0, 5.0, 4.0), milestones=milestones)
    assert (trial.trial_id, trial.status, trial.config, trial.val_loss) == (7, "completed", CONFIG, 4.0)
    assert trial.point == POINT


@pytest.mark.parametrize("status", ["running", "interrupted", *ENDINGS])
def test_every_evaluation_but_the_final_one_is_known(status: TrialStatus) -> None:
    """That is the trial's value, and no rung sees it. The process may have died before the row said so."""
    [trial] = known_trials([row(1, status)], evaluations(1, 7.0, 6.0, 5.0, 4.0), milestones=milestones)
    assert trial.losses == ((0, 7.0), (1000, 6.0), (2000, 5.0))
    assert trial.ended == (status in ENDINGS)


def test_an_evaluation_counts_as_the_highest_milestone_it_reached() -> None:
    [trial] = known_trials([row(1, "stopped")], evaluations(1, 7.0, 5.0, steps=(0, 14)), milestones=milestones)
    assert trial.losses == ((0, 7.0), (2000, 5.0))


def test_a_loss_that_was_no_number_counts_as_the_penalty() -> None:
    [trial] = known_trials([row(1, "stopped")], evaluations(1, 7.0, None), milestones=milestones)
    assert trial.losses == ((0, 7.0), (1000, PENALTY_NATS))


def test_evaluations_of_others_are_theirs() -> None:
    rows = [row(0, "stopped"), row(3, "stopped")]
    metrics = [*evaluations(0, 7.0), *evaluations(2, 1.0), *evaluations(3, 8.0, 6.5)]
    first, second = known_trials(rows, metrics, milestones=milestones)
    assert first.losses == ((0, 7.0),)
    assert second.losses == ((0, 8.0), (1000, 6.5))


def test_a_trial_that_was_only_begun_and_one_without_a_point() -> None:
    begun, listed = known_trials(
        [row(0, "running", val_loss=None), row(1, "running", point=None)], [], milestones=milestones
    )
    assert (begun.losses, begun.val_loss) == ((), None)
    assert listed.point is None


def test_rows_of_something_else_are_a_key_error() -> None:
    with pytest.raises(KeyError):
        known_trials([{"trial_id": 1, "status": "completed"}], [], milestones=milestones)


def test_a_log_carried_on_knows_what_the_tables_will_say() -> None:
    """A trial that goes back to its checkpoint is noted once, and stands in the order of the numbers."""
    log = TrialLog()
    for trial_id in (3, 1):
        log.begin(KnownTrial(trial_id=trial_id, status="running", config=CONFIG, point=POINT))
    for tokens, loss in ((0, 7.0), (1000, 6.0), (0, 7.0), (1000, 6.5), (2000, 5.0)):
        log.evaluate(1, tokens, loss)
    log.end(1, "completed", 4.0)
    tables = known_trials(
        [row(1, "completed"), row(3, "running", val_loss=None)],
        evaluations(1, 7.0, 6.0, 5.0, 4.0),
        milestones=milestones,
    )
    assert log.trials == tables
    assert log[1].ended
    assert not log[3].ended
