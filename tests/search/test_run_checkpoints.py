"""Which checkpoints a run keeps, and what it says of the best one."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from search.setup.run_checkpoints import RunCheckpoints


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(state: Any, path: Path, **names: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{state.optimizer_steps} {names}")

    monkeypatch.setattr("trainable.checkpoint.checkpoint.save_checkpoint", save)


def run(folder: Path, losses: dict[int, float], *, interval: int | None = 2, last: int = 20) -> RunCheckpoints:
    kept = RunCheckpoints(folder=folder, interval_steps=interval, model_name="mine", corpus_fingerprint="f")
    state: Any = SimpleNamespace(optimizer_steps=0)
    rows: list[dict[str, Any]] = []
    for step in range(last + 1):
        state.optimizer_steps = step
        if step:
            kept.after_step(state)
        if step in losses:
            loss = losses[step] if math.isfinite(losses[step]) else None
            rows.append({"optimizer_steps": step, "val_loss": loss})
            kept.after_evaluation(state, rows)
    kept.at_end(state, begun_at_step=0)
    return kept


def names(folder: Path) -> list[int]:
    return sorted(int(path.stem[5:]) for path in folder.glob("*")) if folder.exists() else []


def test_the_newest_three_and_the_best_are_kept(tmp_path: Path) -> None:
    kept = run(tmp_path, {0: 9.0, 5: 4.0, 7: 3.0, 12: 5.0, 20: 3.5})
    assert names(tmp_path) == [7, 16, 18, 20]
    assert kept.best_path == tmp_path / "step_00000007.pt"
    assert kept.words == f"lowest validation loss 3.0000 at step 7: {tmp_path / 'step_00000007.pt'}"
    assert kept.warning is None


def test_the_first_evaluation_is_of_what_was_there_before_and_is_not_saved(tmp_path: Path) -> None:
    kept = run(tmp_path, {0: 3.0, 10: 4.0, 20: 5.0}, interval=100)
    assert names(tmp_path) == [10, 20]
    worse = "the run makes the model worse: its val loss starts at 3.0000 and ends at 5.0000, +2.0000 nats/token"
    assert kept.warning == f"{worse}, and no evaluation was below the start"


def test_a_run_that_ends_above_its_start_says_where_it_was_better(tmp_path: Path) -> None:
    kept = run(tmp_path, {0: 3.0, 10: 2.5, 20: 3.0}, interval=100)
    same = "the run makes the model no better: its val loss starts at 3.0000 and ends at 3.0000, +0.0000 nats/token"
    assert kept.warning == f"{same}; at step 10 it was better, 2.5000"
    kept = run(tmp_path, {0: 3.0, 10: 2.5, 20: 3.00002}, interval=100)
    worse = "the run makes the model worse: its val loss starts at 3.0000 and ends at 3.0000, +2.0e-05 nats/token"
    assert kept.warning == f"{worse}; at step 10 it was better, 2.5000"


def test_a_loss_that_is_not_finite_is_never_the_best(tmp_path: Path) -> None:
    kept = run(tmp_path, {0: 9.0, 4: math.nan, 6: math.inf, 8: 8.0}, interval=100, last=8)
    assert (kept.best_step, names(tmp_path)) == (8, [8])


def test_a_run_that_got_nowhere_keeps_nothing(tmp_path: Path) -> None:
    kept = run(tmp_path, {0: 9.0}, last=0)
    assert (names(tmp_path), kept.words, kept.warning) == ([], None, None)


def test_without_checkpoints_the_best_is_told_alone(tmp_path: Path) -> None:
    kept = run(tmp_path, {0: 9.0, 10: 4.0}, interval=None)
    assert (names(tmp_path), kept.best_path) == ([], None)
    assert kept.words == "lowest validation loss 4.0000 at step 10"
