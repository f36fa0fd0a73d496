"""The memory estimate against what can be reckoned by hand, and the check on both sides of a limit."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.makers import MakeModel, MakeTrial
from trainable.data.tokens import Corpus
from trainable.device.cpu_kernels import tune_for_cpu
from trainable.device.cpu_kernels.attention import as_on_mps
from trainable.evaluation import EvalProtocol
from trainable.preflight import memory
from trainable.preflight.memory import (
    PROCESS_BYTES,
    PROCESS_FACTOR,
    CheckpointRoom,
    check_disk,
    check_memory,
    checkpoint_bytes,
    estimate_step_bytes,
)

PROTOCOL = EvalProtocol(block_size=16, tokens=64)


def test_the_estimate_holds_weights_gradients_and_adam_and_grows_with_the_batch(
    make_model: MakeModel, make_trial: MakeTrial
) -> None:
    model = make_model()
    weights = sum(4 * weight.numel() for weight in model.parameters())
    small, double, triple = (
        estimate_step_bytes(model, make_trial(batch_size=size, block_size=64)) for size in (16, 32, 48)
    )
    assert small > 4 * weights
    assert triple - double == pytest.approx(double - small, rel=0.05)
    # The residual stream alone is kept at least six times in two layers.
    assert double - small > 16 * 64 * 32 * 4 * 6
    assert all(weight.grad is None for weight in model.parameters())


def test_a_second_micro_batch_finds_the_gradients_of_the_first(make_model: MakeModel, make_trial: MakeTrial) -> None:
    model = make_model()
    weights = sum(weight.nbytes for weight in model.parameters())
    one, two, four = (
        estimate_step_bytes(model, make_trial(batch_size=16, block_size=64, grad_accum_steps=count))
        for count in (1, 2, 4)
    )
    assert two - one == pytest.approx(weights, rel=0.05)
    assert four == two


def test_on_a_gpu_the_second_step_is_measured_which_begins_with_the_moments(
    make_model: MakeModel, make_trial: MakeTrial, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    monkeypatch.setattr(memory, "new_state", lambda config, *_, **__: made.append(config))
    monkeypatch.setattr(memory, "train", lambda *_, **__: ())
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 1 << 30)
    for kind, steps in (("cuda", 2), ("cpu", 1)):
        device = torch.device(kind)
        peak = memory._peak_bytes_of_a_step(make_model(), corpus, make_trial(grad_accum_steps=8), PROTOCOL, device)
        assert peak == (1 << 30 if kind == "cuda" else None)
        assert (made[-1].training_steps, made[-1].grad_accum_steps) == (steps, steps)


def test_a_large_batch_is_extrapolated_to_what_it_would_measure(
    make_model: MakeModel, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = make_model(), make_trial(batch_size=40, block_size=64)
    monkeypatch.setattr(memory, "MEASURED_TOKENS", 40 * 64)
    measured = estimate_step_bytes(model, config)
    monkeypatch.setattr(memory, "MEASURED_TOKENS", 10 * 64)
    assert estimate_step_bytes(model, config) == pytest.approx(measured, rel=0.1)


def test_the_step_is_refused_made_or_left_out(make_model: MakeModel, make_trial: MakeTrial, corpus: Corpus) -> None:
    model, config = make_model(), make_trial(batch_size=8, block_size=32)
    needed = round(PROCESS_FACTOR * estimate_step_bytes(model, config)) + PROCESS_BYTES + checkpoint_bytes(model)

    def check(available_bytes: int | None, s_per_token: float = 0.0) -> tuple[str, str]:
        found = check_memory(model, corpus, config, PROTOCOL, available_bytes=available_bytes, s_per_token=s_per_token)
        return found.status, found.measured.rpartition("(")[2]

    weights = [weight.detach().clone() for weight in model.parameters()]
    assert check(needed - 1) == ("fail", "estimated, not tried)")
    assert check(needed * 2, s_per_token=1.0) == ("pass", "estimated)")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert check(needed) == ("warn", "a real step was run)")
    assert check(needed * 2) == ("pass", "a real step was run)")
    assert not torch.equal(next(model.parameters()), weights[0])


def test_running_out_for_real_fails(
    make_model: MakeModel, make_trial: MakeTrial, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*_: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    model = make_model()
    model.register_forward_pre_hook(exhausted)
    monkeypatch.setattr("trainable.preflight.memory.estimate_step_bytes", lambda *_: 1)
    check = check_memory(model, corpus, make_trial(), PROTOCOL, available_bytes=1 << 40, s_per_token=0.0)
    assert check.status == "fail"
    assert "ran out of memory" in check.measured


def test_the_moments_are_gone_when_memory_is_given_back(
    make_model: MakeModel, make_trial: MakeTrial, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    def optimizers() -> int:
        gc.collect()
        return sum(issubclass(type(one), torch.optim.Optimizer) and bool(one.state) for one in gc.get_objects())

    alive: list[int] = []
    monkeypatch.setattr("trainable.preflight.memory.release_memory", lambda device: alive.append(optimizers()))
    before = optimizers()
    check_memory(make_model(), corpus, make_trial(), PROTOCOL, available_bytes=1 << 40, s_per_token=0.0)
    assert alive == [before]


def test_a_checkpoint_is_the_weights_and_two_moments_of_what_is_trained(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    weights = sum(4 * weight.numel() for weight in model.parameters())
    buffers = sum(buffer.numel() * buffer.element_size() for buffer in model.buffers())
    assert checkpoint_bytes(model) == 3 * weights + buffers
    frozen = model.get_parameter("transformer.wpe.weight").requires_grad_(False)
    assert checkpoint_bytes(model) == 3 * weights + buffers - 8 * frozen.numel()

    room = CheckpointRoom(folder=tmp_path / "not" / "yet" / "there", count=10)
    found = check_disk(model, room)
    assert found.status == "pass"
    # A small model's checkpoints are not 0.00 GiB.
    kept = checkpoint_bytes(model) / (1 << 20)
    assert found.measured == f"10 checkpoints of {kept:.1f} MiB at a time: {10 * kept:.1f} MiB"
    assert check_disk(model, CheckpointRoom(folder=tmp_path, count=1 << 40)).status == "fail"
    assert check_disk(model, CheckpointRoom(folder=None, count=1)).status == "skipped"


def test_more_than_a_runs_share_of_a_gpu_fails_though_the_step_was_made(
    make_model: MakeModel, make_trial: MakeTrial, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = make_model(), make_trial()
    monkeypatch.setattr(memory, "_estimate", lambda *_: 1)
    monkeypatch.setattr(memory, "_peak_bytes_of_a_step", lambda *_: 1000)
    found = {}
    for available_bytes in (999, 1000, 2000):
        check = check_memory(model, corpus, config, PROTOCOL, available_bytes=available_bytes, s_per_token=0.0)
        found[available_bytes] = check.status
    assert found == {999: "fail", 1000: "warn", 2000: "pass"}


def test_on_mps_attention_keeps_the_weights_of_all_pairs(make_model: MakeModel, make_trial: MakeTrial) -> None:
    model, config = make_model(dropout=0.1), make_trial(batch_size=8, block_size=64)
    tune_for_cpu(model)
    here = estimate_step_bytes(model, config)
    with as_on_mps():
        there = estimate_step_bytes(model, config)
    # Two layers of two heads each: at least one tensor more of (B, H, T, T).
    assert there - here >= 2 * (8 * 2 * 64 * 64) * 4
