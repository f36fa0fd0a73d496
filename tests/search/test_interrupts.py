"""Ctrl-C and SIGTERM: everything so far is saved and told, nothing is left running; and every trial's first weights."""

import os
import signal
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from results.study.folder import Study
from search.terminal.signals import Interrupts
from trainable.config import TrialConfig
from trainable.evaluation import EvalProtocol, eval_windows, evaluate

SPACE = """
description = "Long enough to be interrupted"
trials = 4

[baseline]
batch_size = 4
block_size = 32

[budget]
tokens = 800_000

[evaluation]
tokens = 512
count = 200

[scheduler]
name = "none"

[searcher]
name = "random"

[search]
learning_rate = { log_uniform = [1e-6, 1e-3] }
"""


def test_the_first_signal_is_noted_and_the_second_does_what_it_always_did() -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert interrupts.code is None
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupts.code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_is_heard_while_the_handlers_are_put_in_place_and_taken_away(monkeypatch: pytest.MonkeyPatch) -> None:
    before, replaced = signal.getsignal(signal.SIGINT), signal.signal
    interrupts = Interrupts()

    def and_one_comes(number: int, handler: Any) -> Any:
        earlier = replaced(number, handler)
        if number == signal.SIGINT:
            monkeypatch.setattr(signal, "signal", replaced)
            os.kill(os.getpid(), signal.SIGINT if handler != before else signal.SIGTERM)
        return earlier

    monkeypatch.setattr(signal, "signal", and_one_comes)
    with interrupts:
        assert interrupts.code == 130
    assert signal.getsignal(signal.SIGINT) is before
    interrupts = Interrupts()
    with interrupts:
        monkeypatch.setattr(signal, "signal", and_one_comes)
    assert interrupts.code == 143
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_sigterm_has_a_code_of_its_own() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.code == 143
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_closed_terminal_is_noted_however_often_it_is_told() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.code == 129
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with Interrupts() as under_nohup, under_nohup:
            os.kill(os.getpid(), signal.SIGHUP)
            assert under_nohup.code is None
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("interrupted", [True, False])
def test_what_a_library_does_about_a_signal_does_not_come_back_after_one(interrupted: bool) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def librarys(number: int, frame: object) -> None:
        raise AssertionError

    with Interrupts() as interrupts:
        signal.signal(signal.SIGTERM, librarys)
        with interrupts:
            if interrupted:
                os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is (before if interrupted else librarys)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture(scope="module")
def checkpoint(spec: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A checkpoint of a few steps and its loss under the study's evaluation."""
    import torch

    from trainable.checkpoint.checkpoint import save_checkpoint
    from trainable.loop import train
    from trainable.run import start_run

    torch.set_num_threads(1)
    protocol = EvalProtocol(block_size=32, tokens=512)
    config = TrialConfig(batch_size=4, block_size=32, learning_rate=1e-3, training_steps=12)
    state = start_run(replace(spec, protocol=protocol), config)
    for _ in train(state, spec.corpus, protocol, eval_steps=()):
        pass
    path = tmp_path_factory.mktemp("checkpoint") / "step_00000012.pt"
    save_checkpoint(state, path, model_name=spec.model_name, corpus_fingerprint=spec.corpus.fingerprint)
    return path, evaluate(state.model, eval_windows(spec.corpus.val, protocol))


@pytest.fixture(scope="module")
def interrupted(start: Any, studies: Path, checkpoint: tuple[Path, float], tmp_path_factory: Any) -> Any:
    """A search from that checkpoint, ended by Ctrl-C when both running trials have trained a while."""
    space = tmp_path_factory.mktemp("spaces") / "long.toml"
    space.write_text(SPACE)
    metrics_path = studies / "interrupted" / "metrics.parquet"

    def both_have_trained() -> bool:
        rows = pq.read_table(metrics_path).to_pylist() if metrics_path.exists() else []
        return {row["trial_id"] for row in rows if row["tokens_seen"] > 0} == {0, 1}

    running = start(
        "run",
        f"SPACE={space}",
        "STUDY=interrupted",
        "CONCURRENCY=2",
        "SKIP_PREFLIGHT=1",
        f"CHECKPOINT_PATH={checkpoint[0]}",
    )
    running.wait_for(both_have_trained)
    # Trials run at the driver's priority, not after everything else on the machine.
    assert {worker.nice() for worker in running.workers()} == {psutil.Process(running.process.pid).nice()}
    if sys.platform == "linux":
        # They are forked off the command's fork server, and have imported neither torch nor transformers.
        assert {worker.parent().ppid() for worker in running.workers()} == {running.process.pid}
    # A terminal sends it to the whole group.
    os.killpg(running.process.pid, signal.SIGINT)
    return Study(studies / "interrupted"), running.ended(), running.orphans()


def test_ctrl_c_ends_with_130_and_leaves_no_process(interrupted: Any) -> None:
    _, ran, orphans = interrupted
    assert ran.code == 130
    assert orphans == []
    assert "Traceback" not in ran.stderr


def test_everything_so_far_is_saved(interrupted: Any) -> None:
    study, _, _ = interrupted
    trials = study.trials()
    assert [row["status"] for row in trials] == ["interrupted", "interrupted"]
    assert all(row["ended_at"] is not None for row in trials)
    for row in trials:
        steps = pq.read_table(study.steps_path(row["trial_id"])).to_pylist()
        # Saved where it was left, which may lie beyond the last evaluation.
        assert steps[-1]["tokens_seen"] >= row["tokens_seen"] > 0
        seen = [metrics["tokens_seen"] for metrics in study.metrics() if metrics["trial_id"] == row["trial_id"]]
        assert seen[-1] == row["tokens_seen"]
        assert seen[0] == 0


def test_the_summary_is_printed_with_how_far_each_came(interrupted: Any) -> None:
    study, ran, _ = interrupted
    assert "2 interrupted" in ran.stdout
    assert "No trial was completed, so there is no best configuration" in ran.stdout
    named = [line.split()[0] for line in ran.stdout.splitlines() if line.endswith(" interrupted")]
    assert [name for name in named if name in ("baseline", "1")] in (["baseline", "1"], ["1", "baseline"])
    assert str(study.path) in ran.stdout


def test_nothing_half_written_is_left(interrupted: Any) -> None:
    study, _, _ = interrupted
    assert not (study.path / "ray").exists()
    hidden = [path for path in study.path.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"]
    assert [path for path in hidden if path.name != ".lock" and path.suffix != ".previous"] == []
    assert not study.best_env.exists()


def test_every_trial_starts_from_the_checkpoints_weights(interrupted: Any, checkpoint: tuple[Path, float]) -> None:
    study, ran, _ = interrupted
    first = [row["val_loss"] for row in study.metrics() if row["tokens_seen"] == 0]
    assert first == [checkpoint[1]] * 2
    assert [row["optimizer_steps"] for row in study.metrics() if row["tokens_seen"] == 0] == [0, 0]
    assert study.document()["checkpoint_path"] == str(checkpoint[0])
    assert f"every trial from the weights of {checkpoint[0]}" in ran.stdout


def test_sigterm_ends_as_cleanly_with_143(start: Any, studies: Path) -> None:
    study = Study(studies / "terminated")
    running = start(
        "run", "SPACE=smoke", "STUDY=terminated", "BUDGET_TOKENS=4M", "CONCURRENCY=1", "SKIP_PREFLIGHT=1", "--json"
    )
    running.wait_for(lambda: study.trials_path.exists() and len(study.trials()) == 1)
    running.process.send_signal(signal.SIGTERM)
    ran = running.ended()
    assert ran.code == 143
    assert running.orphans() == []
    assert ran.document["endings"] == {"interrupted": 1}
    assert [row["status"] for row in study.trials()] == ["interrupted"]
    assert not (study.path / "ray").exists()
    assert "Traceback" not in ran.stderr


def test_ctrl_c_before_ray_is_up(start: Any, studies: Path) -> None:
    study = Study(studies / "early")
    running = start("run", "SPACE=smoke", "STUDY=early", "SKIP_PREFLIGHT=1", "--json")
    running.wait_for(study.log_path.exists)
    running.process.send_signal(signal.SIGINT)
    ran = running.ended()
    assert ran.code == 130
    assert running.orphans() == []
    assert study.trials() == []
    assert ran.document["endings"] == {}
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_speed_is_measured_ends_the_processes_that_measure_it(start: Any, number: int) -> None:
    running = start("run", "SPACE=smoke", "BUDGET_TIME=60", "CONCURRENCY=1", "SKIP_PREFLIGHT=1")
    command = psutil.Process(running.process.pid)

    def imports_torch() -> bool:
        with suppress(psutil.NoSuchProcess):  # git's, which says the commit, is over in a moment
            started = [child for child in command.children() if "spawn_main" in " ".join(child.cmdline())]
            return any(child.cpu_times().user > 0.3 for child in started)
        return False

    running.wait_for(imports_torch)
    # A terminal sends Ctrl-C to the whole group.
    os.killpg(command.pid, number) if number == signal.SIGINT else command.send_signal(number)
    ran = running.ended()
    assert ran.code == 128 + number
    assert running.orphans() == []
    assert "Traceback" not in ran.stderr
    assert "leaked" not in ran.stderr
