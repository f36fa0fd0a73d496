"""Slots, what is kept of a study's checkpoints, and a trial in this process: how each of its endings is reported."""

import errno
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from pydantic import SecretStr

from results.confirmation.attempt import Attempt
from results.confirmation.paired_t import judge
from results.study.folder import Study
from results.study.ledger import Ledger
from results.study.planned_run import PlannedRun
from search.terminal.signals import Interrupts
from search.tune.engine import StopOnSignal, best_kept_of, prune_checkpoints, rays_own_faults
from spaces.overrides import ConfirmAtEnd, Settings
from trainable.config import DOCUMENTED, TrialConfig
from trainable.errors import MachineError, UserError
from trainable.loss import next_token_loss
from trainable.ray_trainable import SearchTrial
from trainable.rows import PENALTY_NATS, TrialStatus, Verdict

NOW = datetime(2025, 11, 25, 3, 10, tzinfo=UTC)
CONFIG = TrialConfig(batch_size=2, block_size=16, learning_rate=1e-3, training_steps=8, seed=3)
BUDGET_TOKENS = 8 * 32


def test_checkpoints_of_the_best_three_of_the_baseline_and_of_what_can_go_on_are_kept(tmp_path: Path) -> None:
    study = Study(tmp_path)
    (tmp_path / "steps").mkdir()
    ledger = Ledger(study)
    endings: list[tuple[TrialStatus, float]] = [
        ("completed", 9.0),
        ("completed", 5.0),
        ("completed", 4.0),
        ("completed", 6.0),
        ("completed", 4.5),
        ("stopped", 3.0),
        ("failed", 2.0),
        ("out_of_memory", 2.0),
        ("unstable", 2.0),
    ]
    for trial_id in range(len(endings) + 2):
        ledger.start_trial(
            PlannedRun(trial_id=trial_id, purpose="search", is_baseline=trial_id == 0, config=DOCUMENTED),
            started_at=NOW,
        )
        study.checkpoint_dir(trial_id).mkdir(parents=True)
        for step in (1, 2):
            (study.checkpoint_dir(trial_id) / f"step_{step:08d}.pt").write_bytes(b"x")
    for trial_id, (status, loss) in enumerate(endings):
        ledger._trials[trial_id].update(val_loss=loss)
        verdict = Verdict(reason="nonfinite", step=1, evidence="") if status == "unstable" else None
        ledger.end_trial(trial_id, status=status, verdict=verdict, ended_at=NOW)
    both = ["step_00000001.pt", "step_00000002.pt"]
    # One that was stopped just now may still be saving; one that completed has waited for that.
    for saving, left in ((5, {5: both}), (4, {}), (None, {})):
        prune_checkpoints(str(tmp_path / "checkpoints"), ledger, (), best_kept=3, saving=saving)
        kept = {int(path.name): sorted(file.name for file in path.iterdir()) for path in tmp_path.glob("checkpoints/*")}
        assert kept == {0: both[1:], 1: both[1:], 2: both[1:], 4: both[1:], 9: both, 10: both} | left


def test_what_may_win_once_others_are_proven_worse_is_kept(tmp_path: Path) -> None:
    study, settings = Study(tmp_path), Settings(confirm=ConfirmAtEnd(top=4, seeds=None))
    (tmp_path / "steps").mkdir()
    ledger = Ledger(study)
    for trial_id in range(12):
        run = PlannedRun(trial_id=trial_id, purpose="search", is_baseline=trial_id == 2, config=DOCUMENTED)
        ledger.start_trial(run, started_at=NOW)
        ledger._trials[trial_id].update(val_loss=5.0 + trial_id / 10)
        ledger.end_trial(trial_id, status="completed", verdict=None, ended_at=NOW)
    documents: list[dict[str, Any]] = [{"settings": asdict(settings)}, {}, {"settings": None}]
    assert [best_kept_of(document) for document in documents] == [5, 3, 3]
    same = {1: 6.0, 2: 6.1, 3: 5.9}
    verdicts = judge(dict.fromkeys(same, 5.0) | {1: 5.01}, {0: same, 1: same}, alpha=0.02, next_alpha=0.01)
    assert {verdict.outcome for verdict in verdicts} == {"worse"}
    attempt = Attempt(number=1, alpha=0.02, baseline=2, candidates=(0, 1), seeds=(1, 2, 3), verdicts=tuple(verdicts))
    for attempts, best_kept, left in (
        ((), 5, {0, 1, 2, 3, 4, 5}),
        ((), 3, {0, 1, 2, 3}),
        ((attempt,), 3, {0, 1, 2, 3, 4, 5}),
    ):
        for trial_id in range(12):
            study.checkpoint_dir(trial_id).mkdir(parents=True, exist_ok=True)
            (study.checkpoint_dir(trial_id) / "step_00000001.pt").write_bytes(b"x")
        prune_checkpoints(str(tmp_path / "checkpoints"), ledger, attempts, best_kept=best_kept)
        assert {int(path.name) for path in tmp_path.glob("checkpoints/*")} == left


def test_a_winners_checkpoint_is_kept_and_a_confirmations_own_is_not(tmp_path: Path) -> None:
    study = Study(tmp_path)
    (tmp_path / "steps").mkdir()
    ledger = Ledger(study)
    runs = [PlannedRun(trial_id=i, purpose="search", is_baseline=i == 0, config=DOCUMENTED) for i in range(7)]
    runs += [
        PlannedRun(trial_id=7, purpose="confirmation", of_trial=6, attempt=1, config=DOCUMENTED),
        PlannedRun(trial_id=8, purpose="attribution", combination="none", config=DOCUMENTED),
        PlannedRun(trial_id=9, purpose="confirmation", of_trial=6, attempt=1, config=replace(DOCUMENTED, seed=2)),
    ]
    for run in runs:
        ledger.start_trial(run, started_at=NOW)
        study.checkpoint_dir(run.trial_id).mkdir(parents=True)
        (study.checkpoint_dir(run.trial_id) / "step_00000001.pt").write_bytes(b"x")
        if run.trial_id < 9:
            # The runs that confirm and attribute are the best of all, and rank nowhere.
            ledger._trials[run.trial_id].update(val_loss=5.0 + run.trial_id / 10 if run.trial_id < 7 else 1.0)
            ledger.end_trial(run.trial_id, status="completed", verdict=None, ended_at=NOW)
    attempt = Attempt(number=1, alpha=0.025, baseline=0, candidates=(6,), seeds=(1, 2))
    prune_checkpoints(str(tmp_path / "checkpoints"), ledger, [attempt], best_kept=3)
    assert {int(path.name) for path in tmp_path.glob("checkpoints/*") if any(path.iterdir())} == {0, 1, 2, 3, 6, 9}


def test_tune_is_left_between_two_rounds_once_a_signal_came() -> None:
    interrupts = Interrupts()
    recorder: Any = SimpleNamespace(storage_error=None, input_fault=None)
    leave = StopOnSignal(interrupts, recorder, None, say=lambda line: None)
    with interrupts:
        leave.on_step_end(iteration=1, trials=[])
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.code == 143
        with pytest.raises(KeyboardInterrupt):
            leave.on_step_end(iteration=2, trials=[])


def test_running_trials_are_asked_to_save_before_tune_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupts, said = Interrupts(), list[str]()
    recorder: Any = SimpleNamespace(storage_error=None, input_fault=None)
    trials = [SimpleNamespace(trial_id=name, status="RUNNING") for name in "ab"]
    asked = tmp_path / "ray" / "leave"
    leave = StopOnSignal(interrupts, recorder, asked, say=said.append)
    leave.on_step_end(iteration=1, trials=trials)
    assert not asked.exists()
    interrupts.code = 130
    leave.on_step_end(iteration=2, trials=trials)
    assert asked.exists()
    leave.on_trial_result(iteration=2, trials=trials, trial=trials[0], result={"left": True})
    leave.on_trial_result(iteration=2, trials=trials, trial=trials[1], result={"left": False})
    leave.on_step_end(iteration=3, trials=trials)
    trials[1].status = "TERMINATED"
    with pytest.raises(KeyboardInterrupt):
        leave.on_step_end(iteration=4, trials=trials)
    assert said == ["saving 2 running trials ..."]
    # A trial that never answers is not waited for for ever.
    patient = StopOnSignal(interrupts, recorder, asked, say=said.append)
    trials[1].status = "RUNNING"
    patient.on_step_end(iteration=1, trials=trials)
    now = time.monotonic() + 1000
    monkeypatch.setattr("search.tune.engine.time.monotonic", lambda: now)
    with pytest.raises(KeyboardInterrupt):
        patient.on_step_end(iteration=2, trials=trials)


@pytest.mark.parametrize(
    ("error", "told", "line"),
    [
        (ConnectionError("GCS is gone"), MachineError, "Ray ended while the trials ran: GCS is gone; "),
        (ray.exceptions.GetTimeoutError("late"), MachineError, "Ray ended while the trials ran: late; "),
        (TimeoutError(), MachineError, "Ray ended while the trials ran: TimeoutError; "),
        (OSError(errno.ENOSPC, "full", "/ray/tune.json"), UserError, "/ray/tune.json: no space left on the device. "),
        (OSError(errno.ENOSPC, "full"), UserError, "no space left on the device. "),
    ],
)
def test_what_ray_cannot_do_is_never_told_as_the_studys(error: OSError, told: type[Exception], line: str) -> None:
    with pytest.raises(told) as caught, rays_own_faults("make resume STUDY=plateau"):
        raise error
    assert str(caught.value).startswith(line)
    assert str(caught.value).endswith("go on with: make resume STUDY=plateau")
    assert "cannot be written" not in str(caught.value)


@pytest.mark.parametrize("bug", [ZeroDivisionError(), PermissionError(errno.EACCES, "x"), ValueError("x")])
def test_a_bug_while_the_trials_run_stays_what_it_is(bug: Exception) -> None:
    with pytest.raises(type(bug)) as caught, rays_own_faults("make resume STUDY=plateau"):
        raise bug
    assert caught.value is bug


MakeTrial = Callable[..., SearchTrial]


@pytest.fixture
def make_config(spec: Any, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(config: TrialConfig = CONFIG, *, trial_id: int = 1, **changes: Any) -> dict[str, Any]:
        values = {
            "spec": spec,
            "shared_inputs": None,
            "trial": asdict(config),
            "baseline": asdict(DOCUMENTED),
            "trial_id": trial_id,
            "milestones": tuple((tokens, tokens // config.tokens_per_step) for tokens in (100, 200, BUDGET_TOKENS)),
            "checkpoint_root": SecretStr(str(tmp_path / "checkpoints")),
            "checkpoint_interval_s": 1e9,
            "leave_path": None,
            "evaluation_timeout_s": 600.0,
            "threads": 1,
            "memory_frac": 1.0,
        }
        return {**values, **changes}

    return make


@pytest.fixture
def make_trial(make_config: Callable[..., dict[str, Any]]) -> MakeTrial:
    def make(*args: Any, **kwargs: Any) -> SearchTrial:
        return SearchTrial(make_config(*args, **kwargs))

    return make


def to_the_end(trial: SearchTrial) -> list[dict[str, Any]]:
    results = [trial.step()]
    while not results[-1]["done"]:
        results.append(trial.step())
    return results


def test_a_trial_whose_input_is_gone_neither_fails_nor_trains(
    make_trial: MakeTrial, spec: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.ray_trainable.INPUT_FAULT_PAUSE_S", 0.0)
    path = tmp_path / "tokens.npy"
    shutil.copy(spec.corpus.path, path)
    moved = replace(spec, corpus=replace(spec.corpus, path=path))
    trial = make_trial(spec=moved)
    path.unlink()
    for _ in range(2):  # Tune asks again until the study is left
        result = trial.step()
        assert result["input_fault"] == (f"the input is gone: {path}", "It is made again by")
        assert (result["status"], result["done"], result["left"], result["metrics"]) == ("running", False, True, None)
    recorder: Any = SimpleNamespace(storage_error=None, input_fault=result["input_fault"])
    with pytest.raises(KeyboardInterrupt):
        StopOnSignal(Interrupts(), recorder, None, say=lambda line: None).on_step_end(iteration=1, trials=[])


def test_a_trackers_copy_of_a_trials_config_holds_no_password(make_config: Callable[..., dict[str, Any]]) -> None:
    config = make_config(checkpoint_root=SecretStr("s3://key:secret@bucket"))
    assert "secret@" not in str(config)
    assert str(config["checkpoint_root"]) == "**********"


def test_a_trial_reports_an_evaluation_a_step_and_what_it_took_to_get_there(make_trial: MakeTrial) -> None:
    results = to_the_end(make_trial())
    assert [result["status"] for result in results] == ["running"] * 3 + ["completed"]
    # 100 and 200 tokens are reached at the last whole steps of 32 tokens.
    assert [result["tokens_seen"] for result in results] == [0, 96, 192, 256]
    assert [result["fidelity_tokens"] for result in results] == [0, 100, 200, 256]
    assert [result["metrics"]["val_loss"] for result in results] == [result["objective"] for result in results]
    steps = [row["optimizer_steps"] for result in results for row in result["steps"]]
    assert steps == list(range(1, 9))


def test_a_large_batch_passes_milestones_and_says_the_highest(make_trial: MakeTrial) -> None:
    trial = make_trial(replace(CONFIG, batch_size=14, training_steps=1))
    assert [result["fidelity_tokens"] for result in to_the_end(trial)] == [0, 256]


def test_a_trial_has_its_last_checkpoint_and_until_its_end_is_written_down_the_one_before(
    make_trial: MakeTrial, tmp_path: Path
) -> None:
    results = to_the_end(make_trial(checkpoint_interval_s=0.0))
    # Nothing is saved at step 0; every step after it is, between the evaluations too.
    assert [(result["optimizer_steps"], result["saved"]) for result in results] == [(0, False)] + [
        (step, True) for step in range(1, 9)
    ]
    names = sorted(path.name for path in (tmp_path / "checkpoints" / "1").iterdir())
    assert names == ["step_00000007.pt", "step_00000008.pt"]


def test_a_trial_cut_off_between_two_evaluations_goes_on_as_if_it_had_not_been(make_trial: MakeTrial) -> None:
    whole = to_the_end(make_trial(trial_id=1))
    cut = make_trial(trial_id=2, checkpoint_interval_s=0.0)
    first = [cut.step() for _ in range(6)]
    cut.cleanup()
    assert first[-1]["optimizer_steps"] == 5
    assert (first[-1]["metrics"], first[-1]["objective"]) == (None, whole[1]["objective"])
    again = to_the_end(make_trial(trial_id=2))
    assert [result["optimizer_steps"] for result in again] == [6, 8]
    seen = [row for result in (*first, *again) for row in result["steps"]]
    losses = [(row["optimizer_steps"], row["train_loss"], row["grad_norm"]) for row in seen]
    assert losses == [
        (row["optimizer_steps"], row["train_loss"], row["grad_norm"]) for result in whole for row in result["steps"]
    ]
    for mine, other in zip((*first[:1], first[3], *again), whole, strict=True):
        for name in ("optimizer_steps", "val_loss", "train_loss", "grad_norm", "learning_rate"):
            assert mine["metrics"][name] == pytest.approx(other["metrics"][name], abs=0, nan_ok=True), name


def test_a_trial_saves_at_its_next_step_when_the_study_is_left(make_trial: MakeTrial, tmp_path: Path) -> None:
    leave = tmp_path / "leave"
    trial = make_trial(leave_path=leave)
    assert (trial.step()["left"], trial.step()["saved"]) == (False, False)
    leave.touch()
    asked = trial.step()
    assert (asked["optimizer_steps"], asked["saved"], asked["left"], asked["metrics"]) == (4, True, True, None)
    # It is on disk when it says so, and asked once.
    assert [path.name for path in (tmp_path / "checkpoints" / "1").iterdir()] == ["step_00000004.pt"]
    assert trial.step()["optimizer_steps"] == 6


def test_a_trial_that_has_not_begun_has_nothing_to_save(make_trial: MakeTrial, tmp_path: Path) -> None:
    (tmp_path / "leave").touch()
    first = make_trial(leave_path=tmp_path / "leave").step()
    assert (first["optimizer_steps"], first["saved"], first["left"]) == (0, False, True)


def test_a_reused_process_trains_as_a_new_one_does(
    make_trial: MakeTrial, make_config: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    other = replace(CONFIG, batch_size=4, training_steps=4, seed=9)
    fresh = to_the_end(make_trial(other, trial_id=2))
    reused = make_trial()
    reused.step()
    reused.step()
    assert reused.reset_config(make_config(other, trial_id=3)) is True
    assert [result["objective"] for result in to_the_end(reused)] == [result["objective"] for result in fresh]


def test_a_trial_started_again_goes_on_from_its_checkpoint_exactly(make_trial: MakeTrial, tmp_path: Path) -> None:
    whole = to_the_end(make_trial(trial_id=1))
    first = make_trial(trial_id=2, checkpoint_interval_s=0.0)
    while first.step()["tokens_seen"] < 192:
        pass
    first.cleanup()
    again = to_the_end(make_trial(trial_id=2))
    assert [result["tokens_seen"] for result in again] == [192, 256]
    assert again[0]["objective"] == whole[2]["objective"]
    assert again[-1]["objective"] == whole[-1]["objective"]
    assert again[-1]["steps"][-1]["train_loss"] == whole[-1]["steps"][-1]["train_loss"]


def test_a_trial_that_died_after_its_last_checkpoint_is_evaluated_again(make_trial: MakeTrial) -> None:
    whole = to_the_end(make_trial())
    again = to_the_end(make_trial())
    assert [(result["tokens_seen"], result["status"]) for result in again] == [(BUDGET_TOKENS, "completed")]
    assert again[-1]["objective"] == whole[-1]["objective"]


def raise_after(calls: int, error: BaseException) -> Callable[..., torch.Tensor]:
    left = calls

    def loss(model: Any, tokens: torch.Tensor) -> torch.Tensor:
        nonlocal left
        if left == 0:
            raise error
        left -= 1
        return next_token_loss(model, tokens)

    return loss


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
    ids=["cuda", "mps", "cpu", "host"],
)
def test_running_out_of_memory_is_an_ending_of_its_own_that_names_the_shape(
    error: BaseException, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.loop.next_token_loss", raise_after(4, error))
    result = to_the_end(make_trial())[-1]
    assert result["status"] == "out_of_memory"
    assert result["done"] is True
    assert result["evidence"] == "batch_size=2 x block_size=16 does not fit in cpu memory"
    assert result["objective"] == PENALTY_NATS
    assert result["metrics"] is None
    assert (result["optimizer_steps"], result["tokens_seen"]) == (4, 128)


def test_running_out_of_memory_at_once_has_seen_no_token(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*args: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr("trainable.ray_trainable.start_run", no_room)
    released: list[torch.device] = []
    monkeypatch.setattr("trainable.ray_trainable.release_memory", released.append)
    result = make_trial().step()
    assert (result["status"], result["tokens_seen"], result["fidelity_tokens"]) == ("out_of_memory", 0, 0)
    assert released == [torch.device("cpu")]


def test_a_worker_that_has_grown_ends_before_its_next_trial_begins(
    make_trial: MakeTrial, make_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exit_actor() -> None:
        raise SystemExit

    trial = make_trial()
    trial.step()
    monkeypatch.setattr("trainable.ray_trainable.has_grown", lambda device: True)
    monkeypatch.setattr("ray.actor.exit_actor", exit_actor)
    assert to_the_end(trial)[-1]["status"] == "completed"  # never in the midst of one
    # Tune would let a trial fail for good whose worker ends here.
    assert trial.reset_config(make_config(trial_id=2))
    with pytest.raises(SystemExit):
        trial.step()


def no_room(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("an extension's own words") from MemoryError()


@pytest.mark.parametrize(
    "where",
    [
        "trainable.ray_trainable.start_run",
        "trainable.loop.next_token_loss",
        "torch.Tensor.backward",
        "torch.amp.GradScaler.step",
        "trainable.loop.window_losses",
        "trainable.checkpoint.checkpoint_store._copied",
    ],
)
def test_wherever_a_trial_runs_out_of_memory_its_process_lets_go_and_trains_the_next(
    where: str, make_trial: MakeTrial, make_config: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = make_trial()
    with monkeypatch.context() as patch:
        patch.setattr(where, no_room)
        assert to_the_end(trial)[-1]["status"] == "out_of_memory"
    assert (trial._state, trial._rows) == (None, None)
    trial.reset_config(make_config(trial_id=2))
    assert to_the_end(trial)[-1]["status"] == "completed"


def test_a_checkpoint_that_found_no_memory_to_be_written_costs_no_trial(
    make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.checkpoint.checkpoint_store.write_payload", no_room)
    results = to_the_end(make_trial())
    assert results[-1]["status"] == "completed"
    assert results[-1]["notes"] == ["no checkpoint was saved: an extension's own words"]


def test_any_other_error_is_not_taken_for_it(make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainable.loop.next_token_loss", raise_after(1, RuntimeError("shapes do not match")))
    trial = make_trial()
    trial.step()
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trial.step()


def test_a_loss_that_is_no_number_ends_the_trial_at_that_step_with_a_finite_objective(make_trial: MakeTrial) -> None:
    wild = replace(CONFIG, learning_rate=100.0, weight_decay=10.0)
    result = to_the_end(make_trial(wild))[-1]
    assert result["status"] == "unstable"
    assert result["verdict"]["reason"] == "nonfinite"
    assert result["verdict"]["step"] == result["optimizer_steps"] < 8
    assert result["objective"] == PENALTY_NATS


def test_the_baseline_is_ended_by_nothing_else(make_trial: MakeTrial) -> None:
    baseline = make_trial(baseline=asdict(replace(CONFIG, seed=77)))
    other = make_trial()
    assert baseline._stop_on == ("nonfinite",)
    assert set(other._stop_on) > {"nonfinite", "divergence"}


def test_a_loss_far_above_that_of_guessing_ends_the_trial(make_trial: MakeTrial) -> None:
    result = to_the_end(make_trial(replace(CONFIG, learning_rate=30.0, weight_decay=0.0)))[-1]
    assert result["status"] == "unstable"
    assert result["verdict"]["reason"] == "divergence"
    assert "where guessing uniformly costs" in result["evidence"]
    assert result["objective"] == PENALTY_NATS
