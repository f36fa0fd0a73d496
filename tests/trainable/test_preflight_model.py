"""Broken models that no folder can hold, made by hand from a real GPT-2, and their healthy twins."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests.trainable.makers import MakeModel, MakeTrial
from trainable.data.tokens import Corpus
from trainable.evaluation import EvalProtocol, eval_windows
from trainable.preflight import configuration
from trainable.preflight.check_result import Check
from trainable.preflight.configuration import check_dropout, check_precision, check_schedule
from trainable.preflight.gradients import check_gradient_reach, check_slope, cut_modules
from trainable.preflight.initial_weights import BASE_NAME


@pytest.fixture
def windows(corpus: Corpus) -> torch.Tensor:
    """(32, 33) ids."""
    return eval_windows(corpus.train, EvalProtocol(block_size=32, tokens=512))


def _failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.status == "fail"}


def _without_gradients(model: PreTrainedModel, path: str) -> PreTrainedModel:
    module = model.get_submodule(path)
    module.forward = torch.no_grad()(module.forward)
    return model


class Lora(torch.nn.Module):
    """A low-rank addition to a frozen layer, which the buggy version runs under no_grad."""

    def __init__(self, base: Conv1D, *, buggy: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.buggy = buggy
        self.down = torch.nn.Parameter(torch.randn(base.nx, 4) * 0.02)
        self.up = torch.nn.Parameter(torch.randn(4, base.nf) * 0.02)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.buggy):
            base: torch.Tensor = self.base(hidden)
        return base + hidden @ self.down @ self.up


def _with_lora(model: PreTrainedModel, *, buggy: bool) -> PreTrainedModel:
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                with torch.no_grad():
                    child.weight.mul_(
                        8
                    )  # as large as training makes them: a random layer of this size adds next to nothing
                setattr(module, name, Lora(child, buggy=buggy))
    return model


@pytest.mark.parametrize("family", ["gpt2", "untied", "llama"])
def test_a_whole_model_passes(family: str, check_model: Callable[..., dict[str, Check]], make_model: MakeModel) -> None:
    checks = check_model(make_model(family, dropout=0.1))
    assert {check.status for check in checks.values()} == {"pass", "skipped"}
    assert [name for name, check in checks.items() if check.status == "skipped"] == ["checkpoint offsets", BASE_NAME]


def test_a_model_without_causal_mask_fails(check_model: Callable[..., dict[str, Check]], make_model: MakeModel) -> None:
    model = make_model()
    for module in model.modules():
        if hasattr(module, "is_causal"):
            module.is_causal = False
    checks = check_model(model)
    assert "causality" in _failed(checks)
    assert "causal mask" in checks["causality"].advice


def test_dropout_that_stays_on_in_evaluation_fails(
    check_model: Callable[..., dict[str, Check]], make_model: MakeModel
) -> None:
    model = make_model()
    layer = model.get_submodule("transformer.ln_f")
    layer.register_forward_hook(lambda *call: torch.nn.functional.dropout(call[2], 0.1, training=True))
    assert "evaluation repeats" in _failed(check_model(model))


def test_frozen_layers_are_named(check_model: Callable[..., dict[str, Check]], make_model: MakeModel) -> None:
    model = make_model()
    model.get_submodule("transformer.h.1.mlp").requires_grad_(False)
    checks = check_model(model)
    assert _failed(checks) == {"frozen layers"}
    assert "4 of 28 tensors frozen: transformer.h.1.mlp.c_fc.weight" in checks["frozen layers"].measured
    checks = check_model(make_model().requires_grad_(False))
    assert "frozen layers" in _failed(checks)
    assert "gradient slope" not in checks


@pytest.mark.parametrize("path", ["transformer.h.1.mlp.c_fc", "transformer.h.0.attn.c_attn"])
def test_a_layer_under_no_grad_is_named(
    path: str, check_model: Callable[..., dict[str, Check]], make_model: MakeModel
) -> None:
    checks = check_model(_without_gradients(make_model(), path))
    assert "gradient reach" in _failed(checks)
    assert f"{path}.weight" in checks["gradient reach"].measured
    assert f"cut in {path}" in checks["gradient reach"].measured


def test_a_detached_branch_is_named(check_model: Callable[..., dict[str, Check]], make_model: MakeModel) -> None:
    model = make_model()
    model.get_submodule("transformer.h.1.mlp").register_forward_hook(lambda *call: call[2].detach())
    checks = check_model(model)
    assert "gradient reach" in _failed(checks)
    assert "transformer.h.1.ln_2.weight" in checks["gradient reach"].measured


def test_lora_that_runs_the_frozen_layer_without_gradients_fails(make_model: MakeModel, windows: torch.Tensor) -> None:
    right, buggy = (_with_lora(make_model(), buggy=buggy) for buggy in (False, True))
    assert cut_modules(right, windows)[0] == []
    assert check_slope(right, windows[:4]).status == "pass"
    cut, _ = cut_modules(buggy, windows)
    assert cut[0] == "transformer.h.0.attn.c_attn.base"
    assert len(cut) == 8
    assert check_gradient_reach(buggy, cut).status == "fail"
    slope = check_slope(buggy, windows[:4])
    assert slope.status == "fail", slope
    assert "along transformer.h.0" in slope.measured
    assert "lost in or above transformer.h.1" in slope.advice


@pytest.mark.parametrize("seed", range(3))
def test_the_slope_is_one_and_leaves_weights_and_gradients_as_they_were(
    seed: int, make_model: MakeModel, windows: torch.Tensor
) -> None:
    model = make_model(seed=seed)
    model(input_ids=windows, labels=windows).loss.backward()
    before = [(weight.detach().clone(), weight.grad.clone()) for weight in model.parameters()]
    check = check_slope(model, windows[:4])
    assert check.measured.startswith(("1.000 ", "0.999 ", "1.001 ")), check
    for weight, (value, gradient) in zip(model.parameters(), before, strict=True):
        assert torch.equal(weight, value)
        assert torch.equal(weight.grad, gradient)


def test_a_processor_without_bf16_is_told_and_fp32_is_the_advice(
    make_model: MakeModel, make_trial: MakeTrial, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert configuration.times_as_slow("fp32") == 1.0
    assert configuration.times_as_slow("bf16") > 0.0
    for times, status in [(0.4, "pass"), (2.0, "pass"), (33.4, "warn")]:
        monkeypatch.setattr(configuration, "times_as_slow", lambda precision, times=times: times)
        check = check_precision(make_trial(precision="bf16"), make_model(), windows)
        assert check.status == status
    assert check.advice == (
        "Matrix products take 33 times as long in bf16 as in fp32 on this processor. Set PRECISION=fp32."
    )


def test_bf16_weights_stall_at_a_small_rate_and_autocast_does_not(
    make_model: MakeModel, make_trial: MakeTrial, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration, "times_as_slow", lambda precision: 1.0)
    small = make_trial(learning_rate=1e-5)
    stalled = check_precision(small, make_model().to(torch.bfloat16), windows)
    assert stalled.status == "warn"
    assert "rounded away" in stalled.measured
    assert check_precision(make_trial(learning_rate=1e-2), make_model().to(torch.bfloat16), windows).status == "pass"
    assert check_precision(make_trial(learning_rate=1e-5, precision="bf16"), make_model(), windows).status == "pass"
    assert check_precision(make_trial(precision="fp16"), make_model(), windows).status == "warn"


@pytest.mark.parametrize(("learning_rate", "status"), [(3.9e-3, "warn"), (4e-3, "pass")])
def test_a_step_of_half_a_spacing_moves_a_bf16_weight(
    learning_rate: float, status: str, make_model: MakeModel, make_trial: MakeTrial, windows: torch.Tensor
) -> None:
    model = make_model().to(torch.bfloat16)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.5)  # between 1 and 2 bf16 numbers lie 2^-7 = 7.8e-3 apart
    assert check_precision(make_trial(learning_rate=learning_rate), model, windows).status == status


def test_dropout_that_is_not_what_was_asked_for_is_said(make_model: MakeModel, make_trial: MakeTrial) -> None:
    config = make_trial(dropout=0.1)
    assert check_dropout(config, make_model(dropout=0.1)).status == "pass"
    assert check_dropout(make_trial(dropout=0.0), make_model("llama")).status == "pass"
    other = make_model(dropout=0.1)
    other.get_submodule("transformer.h.1.mlp").dropout = torch.nn.Dropout(0.5)
    found = check_dropout(config, other)
    assert (found.status, "1 not at 0.1: transformer.h.1.mlp.dropout" in found.measured) == ("warn", True)
    assert "changes nothing" in check_dropout(config, torch.nn.Linear(2, 2)).advice


@pytest.mark.parametrize(("is_new", "status"), [(False, "fail"), (True, None)])
def test_bf16_on_a_mac_that_has_none_is_told(
    is_new: bool, status: str | None, make_trial: MakeTrial, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: is_new)
    weight = SimpleNamespace(device=torch.device("mps"), dtype=torch.float64, requires_grad=True, numel=lambda: 1)
    on_mps: Any = SimpleNamespace(parameters=lambda: iter([weight]))
    if status is None:
        with pytest.raises(RuntimeError):  # it goes on to compute, for which there is no Mac here
            check_precision(make_trial(precision="bf16"), on_mps, windows)
        return
    check = check_precision(make_trial(precision="bf16"), on_mps, windows)
    assert (check.status, "PRECISION=fp16 or fp32" in check.advice) == (status, True)


@pytest.mark.parametrize(("rate", "status"), [(1e-12, "warn"), (1e-8, "pass")])
def test_a_rate_that_moves_no_fp32_weight_is_told(
    rate: float, status: str, make_model: MakeModel, make_trial: MakeTrial, windows: torch.Tensor
) -> None:
    check = check_precision(make_trial(learning_rate=rate), make_model(), windows)
    assert (check.status, "Raise LEARNING_RATE" in check.advice) == (status, status == "warn")


def test_a_model_that_overflows_fp16_fails(
    make_model: MakeModel, make_trial: MakeTrial, windows: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(configuration, "times_as_slow", lambda precision: 1.0)
    model = make_model()
    with torch.no_grad():
        model.get_submodule("transformer.h.0.mlp.c_fc").get_parameter("weight").mul_(1e7)
        model.get_submodule("transformer.h.0.mlp.c_proj").get_parameter("weight").mul_(1e-7)
    assert check_precision(make_trial(precision="fp16"), model, windows).status == "fail"
    assert check_precision(make_trial(precision="bf16"), model, windows).status == "pass"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({}, "pass"),
        ({"lr_schedule": "warmup_cosine", "warmup_steps": 50}, "pass"),
        ({"lr_schedule": "warmup_cosine", "warmup_steps": 51}, "warn"),
        ({"lr_schedule": "warmup_constant", "warmup_steps": 100}, "warn"),
        ({"warmup_steps": 90}, "pass"),
    ],
)
def test_a_warm_up_longer_than_half_the_run_is_named(
    changes: dict[str, Any], status: str, make_trial: MakeTrial
) -> None:
    check = check_schedule(make_trial(training_steps=100, **changes))
    assert (check.status, "WARMUP_STEPS" in check.advice) == (status, status == "warn")


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"learning_rate": 1e-2}, None),
        ({"learning_rate": 3e-2}, "LEARNING_RATE"),
        ({"learning_rate": 3.0, "lr_schedule": "warmup_cosine", "warmup_steps": 90}, "LEARNING_RATE"),
        ({"learning_rate": 3e-2, "use_lora": True}, None),
        ({"learning_rate": 0.1, "use_lora": True}, "LEARNING_RATE or LORA_ALPHA"),
        ({"learning_rate": 1e-3, "use_lora": True, "lora_alpha": 160}, None),
        ({"learning_rate": 1e-3, "use_lora": True, "lora_alpha": 1600}, "LEARNING_RATE or LORA_ALPHA"),
        ({"learning_rate": 1e-4, "weight_decay": 10.0}, None),
        ({"learning_rate": 1e-3, "weight_decay": 10.0}, "WEIGHT_DECAY"),
    ],
)
def test_what_ruins_any_weights_is_legal_and_warned_of(
    changes: dict[str, Any], variable: str | None, make_trial: MakeTrial
) -> None:
    check = check_schedule(make_trial(training_steps=100, **changes))
    assert (check.status, check.advice) == (("warn", check.advice) if variable else ("pass", ""))
    assert variable is None or f"Lower {variable}" in check.advice


def test_half_of_the_activations_is_too_much_to_lose(make_model: MakeModel, make_trial: MakeTrial) -> None:
    assert check_dropout(make_trial(dropout=0.4), make_model(dropout=0.4)).status == "pass"
    check = check_dropout(make_trial(dropout=0.5), make_model(dropout=0.5))
    assert (check.status, "Lower DROPOUT" in check.advice) == ("warn", True)
