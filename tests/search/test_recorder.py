"""What Ray reports, entered: each kind of ending closes its row, tells the view, and keeps what is known."""

import io
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, NodeDiedError, OutOfMemoryError, RayActorError, RayTaskError
from ray.tune.experiment import Trial
from rich.console import Console

from results.study.folder import Study
from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from search.terminal.live_view import StudyView
from search.tune.history import KnownTrial, known_trials
from search.tune.recorder import StudyRecorder
from search.tune.trial_log import TrialLog
from tests.rows import evaluation
from trainable.checkpoint.checkpoint_store import CheckpointStore
from trainable.config import DOCUMENTED
from trainable.rows import StepRow, TrialStatus, Verdict

MILESTONES = ((100, 10), (300, 30))


class Recording:
    """A recorder over a real ledger and view, fed as Ray feeds callbacks."""

    def __init__(self, folder: Path) -> None:
        (folder / "steps").mkdir()
        self.study = Study(folder)
        self.ledger = Ledger(self.study)
        console = Console(file=io.StringIO(), width=200)
        view = StudyView(study=self.study, ledger=self.ledger, trials_planned=4, console=console)
        self.ended: list[int] = []
        self.counter = folder / "vmstat"
        self.killed(0)
        begun = [KnownTrial(trial_id=n, status="running", config=DOCUMENTED, point=None) for n in range(5)]
        self.known = TrialLog(begun, rung_tokens=(100, 300))
        self.recorder = self._recorder(view)

    def live_again(self) -> None:
        """Go on from the tables alone, as after the process was killed."""
        self.ledger = Ledger(self.study)
        known = known_trials(self.ledger.trials(), self.ledger.metrics(), milestones=lambda _: MILESTONES)
        self.known = TrialLog(known, rung_tokens=(100, 300))
        view = StudyView(study=self.study, ledger=self.ledger, trials_planned=4, console=Console(file=io.StringIO()))
        self.recorder = self._recorder(view)

    def _recorder(self, view: StudyView) -> StudyRecorder:
        folder = self.study.path
        return StudyRecorder(
            self.ledger,
            self.known,
            view,
            planned_run=lambda trial_id: PlannedRun(
                trial_id=trial_id, config=DOCUMENTED, purpose="search", is_baseline=trial_id == 0
            ),
            checkpoints_of=lambda trial_id: CheckpointStore(root=str(folder / "checkpoints"), trial_id=trial_id),
            on_ended=self.ended.append,
            evaluation_timeout_s=3600.0,
            oom_counter_of=lambda pid: self.counter,
        )

    def killed(self, oom_kills: int) -> None:
        self.counter.write_text(f"pgfault 9\noom_kill {oom_kills}\n")

    def start(self, trial_id: int) -> Trial:
        config = {"trial_id": trial_id, "trial": asdict(DOCUMENTED), "milestones": MILESTONES}
        trial = Trial("SearchTrial", config=config, stub=True)
        self.recorder.on_trial_start(iteration=1, trials=[trial], trial=trial)
        return trial

    def report(self, trial: Trial, **changes: Any) -> None:
        result = {
            "status": "running",
            "done": False,
            "metrics": None,
            "steps": [],
            "verdict": None,
            "evidence": "",
            "saved": False,
            "notes": [],
            "input_fault": None,
        }
        result |= {"fidelity_tokens": 0, "optimizer_steps": 0, "tokens_seen": 0, "active_s": 0.0, **changes}
        self.recorder.on_trial_result(iteration=1, trials=[trial], trial=trial, result=result)
        # Ray adds keys of its own, which nobody reads.
        trial.run_metadata.last_result = result
        if result["done"]:
            self.recorder.on_trial_complete(iteration=1, trials=[trial], trial=trial)

    def fail(self, trial: Trial, error: Exception | None) -> None:
        self.recorder.on_trial_error(iteration=1, trials=[trial], trial=self._failed(trial, error))

    def lose(self, trial: Trial, error: Exception) -> None:
        self.recorder.on_trial_recover(iteration=1, trials=[], trial=self._failed(trial, error))

    def _failed(self, trial: Trial, error: Exception | None) -> Any:
        """Return the trial with the files that Ray's own handle_error() writes for one within an experiment."""
        folder = self.study.path / f"ray-{trial.config['trial_id']}"
        folder.mkdir(exist_ok=True)
        failed = SimpleNamespace(
            config=trial.config,
            last_result=trial.last_result,
            is_restoring=False,
            local_path=folder,
            run_metadata=SimpleNamespace(num_failures=1, invalidate_cache=lambda: None),
            pickled_error_file=str(folder / "error.pkl"),
            error_file=error and str(folder / "error.txt"),
            _handle_ray_actor_error=lambda _: None,
            _handle_ray_task_error=lambda _: None,
        )
        if error is not None:
            Trial.handle_error(failed, error)
        return failed

    def row(self, trial_id: int) -> dict[str, Any]:
        return next(row for row in self.ledger.trials() if row["trial_id"] == trial_id)

    @property
    def log(self) -> str:
        return self.study.log_path.read_text()


@pytest.fixture
def recording(tmp_path: Path) -> Recording:
    return Recording(tmp_path)


def metrics(tokens: int, val_loss: float = 5.0) -> dict[str, Any]:
    return asdict(evaluation(tokens // 10, val_loss, active_s=tokens / 100))


def step(number: int) -> dict[str, Any]:
    row = StepRow(
        optimizer_steps=number,
        tokens_seen=number * 10,
        train_loss=5.0,
        grad_norm=1.0,
        learning_rate=1e-5,
        step_time_s=0.1,
    )
    return asdict(row)


def test_a_trial_from_its_start_to_its_end(recording: Recording) -> None:
    trial = recording.start(0)
    assert recording.row(0)["status"] == "running"
    assert recording.row(0)["is_baseline"] is True
    recording.report(trial, metrics=metrics(0))
    recording.report(trial, metrics=metrics(100), steps=[step(n) for n in range(1, 11)], fidelity_tokens=100)
    assert recording.row(0)["rung"] == 0
    assert recording.ended == []
    recording.report(trial, metrics=metrics(1000, 4.0), status="completed", done=True, fidelity_tokens=1000)
    row = recording.row(0)
    assert (row["status"], row["val_loss"], row["rung"], row["tokens_seen"]) == ("completed", 4.0, 1, 1000)
    assert row["ended_at"] is not None
    assert recording.ended == [0]
    assert (recording.known[0].status, recording.known[0].val_loss) == ("completed", 4.0)
    assert len(recording.study.metrics()) == 3
    assert "baseline completed: val loss 4.0000" in recording.log


def test_a_trial_that_the_scheduler_ends_is_stopped(recording: Recording) -> None:
    trial = recording.start(1)
    recording.report(trial, metrics=metrics(100), fidelity_tokens=100)
    recording.recorder.on_trial_complete(iteration=1, trials=[trial], trial=trial)
    assert recording.row(1)["status"] == "stopped"
    assert recording.row(1)["is_baseline"] is False
    assert recording.ended == [1]
    assert (recording.known[1].status, recording.known[1].val_loss) == ("stopped", 5.0)
    assert (
        "trial 1 stopped at under 0.1% of the budget: val loss 5.0000 at its rung, not among the best there"
        in recording.log
    )


def test_an_unstable_trial_has_its_verdict_and_its_last_step(recording: Recording) -> None:
    trial = recording.start(1)
    recording.report(trial, metrics=metrics(0))
    verdict = asdict(Verdict(reason="nonfinite", step=4, evidence="loss nan"))
    steps = [step(n) for n in range(1, 5)]
    recording.report(
        trial, status="unstable", done=True, verdict=verdict, steps=steps, optimizer_steps=4, tokens_seen=40
    )
    row = recording.row(1)
    assert (row["status"], row["verdict"]) == ("unstable", "nonfinite at step 4: loss nan")
    assert (row["optimizer_steps"], row["tokens_seen"]) == (4, 40)
    # The evaluation at step 0 came before it went wrong.
    assert (row["val_loss"], row["best_val_loss"], row["end_loss"]) == (None, 5.0, 5.0)
    assert "trial 1 unstable: nonfinite at step 4: loss nan" in recording.log


def test_out_of_memory_is_told_with_what_did_not_fit(recording: Recording) -> None:
    trial = recording.start(1)
    evidence = "batch_size=32 x block_size=128 does not fit in cpu memory"
    recording.report(trial, status="out_of_memory", done=True, evidence=evidence)
    assert recording.row(1)["status"] == "out_of_memory"
    assert recording.row(1)["verdict"] is None
    assert f"trial 1 out of memory at 0% of the budget: {evidence}" in recording.log


def test_a_failed_trial_is_told_with_the_last_line_of_its_error(recording: Recording, tmp_path: Path) -> None:
    trial = recording.start(2)
    recording.report(trial, metrics=metrics(100), fidelity_tokens=100)
    text = "\x1b[36mray::train()\x1b[39m\n  File x.py\nValueError: no such thing\n\n"
    recording.fail(trial, RayTaskError("train", text, ValueError("no such thing")))
    assert recording.row(2)["status"] == "failed"
    assert recording.row(2)["val_loss"] == 5.0
    assert "trial 2 failed at under 0.1% of the budget: ValueError: no such thing; batch 32" in recording.log
    assert "ray::train()\n  File x.py" in recording.log
    assert "\x1b" not in recording.log


def test_a_worker_that_is_lost_before_its_trial_began_is_no_fault_of_ours(recording: Recording, tmp_path: Path) -> None:
    config = {"trial_id": 1, "trial": asdict(DOCUMENTED), "milestones": MILESTONES}
    recording.lose(Trial("SearchTrial", config=config, stub=True), ActorDiedError())
    assert "trial 1 lost its worker; it starts again" in recording.log
    trial = recording.start(1)
    recording.report(trial, status="completed", done=True)
    assert recording.row(1)["status"] == "completed"


def test_a_failure_without_an_error_file_is_still_a_failure(recording: Recording) -> None:
    trial = recording.start(2)
    recording.fail(trial, None)
    assert recording.row(2)["status"] == "failed"
    assert "trial 2 failed at 0% of the budget: unknown error" in recording.log


def test_a_trial_started_again_keeps_its_row_and_passes_its_steps_again(recording: Recording) -> None:
    trial = recording.start(1)
    recording.report(trial, metrics=metrics(0))
    recording.report(trial, metrics=metrics(100), steps=[step(n) for n in range(1, 11)])
    recording.recorder.on_trial_start(iteration=1, trials=[trial], trial=trial)
    recording.report(trial, metrics=metrics(50), steps=[step(n) for n in range(3, 6)])
    assert len(recording.ledger.trials()) == 1
    assert [row["tokens_seen"] for row in recording.ledger.metrics()] == [0, 50]


def test_an_evaluation_before_a_long_silence_is_written_all_the_same(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = recording.start(1)
    recording.report(trial, metrics=metrics(100), steps=[step(n) for n in range(1, 11)])
    recording.recorder.on_step_end(iteration=1, trials=[trial])
    # The ledger has just written the start; it waits a few seconds before it writes again.
    assert recording.study.metrics() == []
    monkeypatch.setattr(recording.ledger, "_flush_interval_s", 0.0)
    recording.recorder.on_step_end(iteration=2, trials=[trial])
    assert [row["tokens_seen"] for row in recording.study.metrics()] == [100]
    assert recording.study.steps_path(1).exists()


def test_what_led_to_a_checkpoint_is_written_at_once(recording: Recording) -> None:
    trial = recording.start(1)
    recording.report(trial, metrics=metrics(0))
    assert recording.study.metrics() == []
    recording.report(trial, metrics=metrics(100), steps=[step(n) for n in range(1, 11)], saved=True)
    assert [row["tokens_seen"] for row in recording.study.metrics()] == [0, 100]
    assert Ledger(recording.study).known_steps(1, [10, 30]) == 10


def test_a_checkpoint_between_two_evaluations_is_gone_on_from(recording: Recording) -> None:
    folder = recording.study.checkpoint_dir(1)
    folder.mkdir(parents=True)
    trial = recording.start(1)
    recording.report(trial, metrics=metrics(100), steps=[step(n) for n in range(1, 11)])
    recording.report(trial, steps=[step(n) for n in range(11, 21)], saved=True)
    for steps in (20, 21):
        (folder / f"step_{steps:08d}.pt").touch()
    recording.recorder.on_trial_start(iteration=1, trials=[trial], trial=trial)
    assert [path.name for path in folder.iterdir()] == ["step_00000020.pt"]


def test_a_trial_never_goes_on_from_a_checkpoint_beyond_what_is_known_of_it(recording: Recording) -> None:
    """It was written right before the driver died, or in an earlier life of the study."""
    folder = recording.study.checkpoint_dir(1)
    folder.mkdir(parents=True)

    def left() -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    (folder / "step_00000005.pt").touch()
    trial = recording.start(1)
    assert left() == []
    recording.report(trial, metrics=metrics(100), steps=[step(n) for n in range(1, 11)])
    for steps in (5, 10, 11):
        (folder / f"step_{steps:08d}.pt").touch()
    recording.recorder.on_trial_start(iteration=1, trials=[trial], trial=trial)
    assert left() == ["step_00000005.pt", "step_00000010.pt"]


RAISED = RayTaskError("train", "ray::SearchTrial.train()\nValueError: no labels", ValueError("no labels"))
BY_RAY = RayActorError(error_msg="1 worker(s) were killed due to the node running low on memory. Memory on the node")
"""As the engine hands on what Ray's memory monitor does."""


@pytest.mark.parametrize(
    ("error", "kills", "status"),
    [
        (ActorDiedError(), 1, "out_of_memory"),
        (BY_RAY, 0, "out_of_memory"),
        (ActorDiedError(), 0, "failed"),
        (RAISED, 1, "failed"),
    ],
    ids=["killed", "killed by Ray", "crashed", "raised while a neighbour was killed"],
)
def test_a_worker_that_the_system_killed_for_memory_is_told_apart(
    recording: Recording, error: Exception, kills: int, status: str
) -> None:
    recording.killed(7)
    trial = recording.start(1)
    recording.killed(7 + kills)
    recording.fail(trial, error)
    assert recording.row(1)["status"] == status
    assert recording.known[1].status == status


def test_a_kill_explains_one_death(recording: Recording, tmp_path: Path) -> None:
    first, second, third = (recording.start(trial_id) for trial_id in (1, 2, 3))
    recording.killed(1)
    recording.lose(first, ActorDiedError())
    recording.fail(second, ActorDiedError())
    recording.killed(2)
    recording.fail(third, ActorDiedError())
    recording.killed(3)
    recording.fail(first, ActorDiedError())
    assert [recording.row(trial_id)["status"] for trial_id in (1, 2, 3)] == ["out_of_memory", "failed", "out_of_memory"]


def test_a_kill_before_a_trial_was_last_heard_of_is_not_its_own(recording: Recording, tmp_path: Path) -> None:
    heard = recording.start(1)
    recording.killed(1)
    recording.report(heard, metrics=metrics(100))
    for trial in (recording.start(2), heard):
        recording.fail(trial, ActorDiedError())
        assert recording.row(trial.config["trial_id"])["status"] == "failed"


def test_an_earlier_failure_is_not_the_last_one(recording: Recording) -> None:
    trial = recording.start(1)
    recording.lose(trial, BY_RAY)
    recording.fail(trial, RAISED)
    assert recording.row(1)["status"] == "failed"


@pytest.mark.parametrize("error", [OutOfMemoryError("the node running low on memory"), NodeDiedError("its node died")])
def test_what_ray_says_of_a_worker_ends_its_trial_and_not_the_search(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    from search.tune.engine import ActorManager

    errors: list[Exception] = []
    actor = SimpleNamespace(actor_id=1, _on_error=None)
    task = SimpleNamespace(_tracked_actor=actor, _on_error=lambda _, error: errors.append(error))
    monkeypatch.setattr(ActorManager, "_cleanup_actor", lambda _, tracked_actor: None)
    ActorManager(resource_manager=None)._actor_task_failed(task, error)
    [told] = errors
    assert isinstance(told, RayActorError)
    assert str(told) == str(error)


def test_a_gone_input_is_kept_and_ends_no_trial(recording: Recording) -> None:
    trial = recording.start(1)
    recording.report(trial, input_fault=("the input is gone: /x", "Restore it"))
    recording.report(trial, input_fault=("the input is gone: /y", "Restore it"))
    assert recording.recorder.input_fault == ("the input is gone: /x", "Restore it")
    recording.recorder.interrupt()
    assert recording.row(1)["status"] == "interrupted"


@pytest.mark.parametrize("status", ["completed", "unstable", "running"])
def test_a_row_ends_at_the_rung_whose_verdict_came_after_its_trial_had_gone_on(
    recording: Recording, status: TrialStatus
) -> None:
    """What it trained beyond stays as its cost, and its evaluations there are gone."""
    first, second = recording.start(0), recording.start(1)
    for tokens, loss in ((0, 7.0), (100, 6.0), (300, 5.0)):
        recording.report(second, metrics=metrics(tokens, loss), fidelity_tokens=tokens)
        recording.known.evaluate(1, tokens, loss)
    verdict = asdict(Verdict(reason="nonfinite", step=40, evidence="")) if status == "unstable" else None
    last = {"tokens_seen": 400, "optimizer_steps": 40, "verdict": verdict}
    if status != "running":
        recording.report(second, status=status, done=True, steps=[step(40)], **last)
        assert recording.row(1)["status"] == status
    recording.known.evaluate(0, 100, 5.5)
    recording.report(first, metrics=metrics(100, 5.5), fidelity_tokens=100)
    if status == "running":
        assert recording.row(1)["status"] == "running"
        recording.report(second, metrics=metrics(400, 4.0), fidelity_tokens=300, **last)
        recording.recorder.on_trial_complete(iteration=1, trials=[second], trial=second)
    row = recording.row(1)
    assert (row["status"], row["verdict"], row["rung"], row["val_loss"]) == ("stopped", None, 0, 6.0)
    assert (row["best_val_loss"], row["end_loss"]) == (6.0, None)
    assert (row["tokens_seen"], row["optimizer_steps"]) == (400, 40)
    assert [one["val_loss"] for one in recording.study.metrics() if one["trial_id"] == 1] == [7.0, 6.0]
    assert recording.log.count("trial 1 stopped") == 1


def test_a_trial_whose_verdict_came_right_before_the_process_was_killed_ends_at_the_rung(recording: Recording) -> None:
    trials = recording.start(0), recording.start(1)
    for number, losses in ((1, (7.0, 6.0, 5.0)), (0, (7.0, 5.5))):
        for tokens, loss in zip((0, 100, 300), losses, strict=False):
            recording.known.evaluate(number, tokens, loss)
            recording.report(trials[number], metrics=metrics(tokens, loss), fidelity_tokens=tokens)
    assert (recording.known.stopped_at(1), recording.row(1)["status"]) == (0, "running")
    recording.ledger.flush()
    recording.live_again()
    recording.recorder.end_late_stops()
    assert [row["status"] for row in recording.study.trials()] == ["interrupted", "stopped"]
    row = recording.row(1)
    assert (row["rung"], row["val_loss"], row["optimizer_steps"]) == (0, 6.0, 30)


@pytest.mark.parametrize("status", ["completed", "stopped"])
def test_a_death_while_a_late_verdict_is_written_leaves_no_loss_of_a_later_rung(
    recording: Recording, status: TrialStatus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a row that has ended at its rung all is on disk, or nothing."""
    first, second = recording.start(0), recording.start(1)
    for tokens, loss in ((0, 7.0), (100, 6.0), (300, 5.0)):
        recording.known.evaluate(1, tokens, loss)
        recording.report(second, metrics=metrics(tokens, loss), fidelity_tokens=tokens)
    recording.known.evaluate(0, 100, 5.5)
    recording.report(first, metrics=metrics(100, 5.5), fidelity_tokens=100)

    seen: list[tuple[str, int, float]] = []
    write = Ledger.flush

    def flush(ledger: Ledger) -> None:
        write(ledger)
        row = recording.study.trials()[1]
        seen.append((row["status"], row["rung"], row["val_loss"]))

    monkeypatch.setattr(Ledger, "flush", flush)
    done = status == "completed"
    recording.report(second, status="completed" if done else "running", done=done, metrics=metrics(400, 4.0))
    if not done:
        recording.recorder.on_trial_complete(iteration=1, trials=[second], trial=second)
    assert {one for one in seen if one[0] not in ("running", "interrupted")} == {("stopped", 0, 6.0)}


def test_the_log_has_the_loss_that_the_row_has(recording: Recording, tmp_path: Path) -> None:
    """Where the last result was a checkpoint too: a resumed search knows the row alone."""
    trial = recording.start(1)
    recording.report(trial, metrics=metrics(100, 5.5))
    recording.report(trial, steps=[step(11)], saved=True)
    recording.fail(trial, None)
    assert recording.known[1].val_loss == recording.row(1)["val_loss"] == 5.5
