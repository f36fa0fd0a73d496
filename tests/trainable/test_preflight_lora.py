"""What goes wrong with LoRA, planted in models of three families, and sound LoRA, which passes every check."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tests.trainable.makers import MakeSpec, MakeTrial
from trainable.config import TrialConfig
from trainable.model.lora import adapter_parameters
from trainable.preflight import run_preflight, training
from trainable.preflight.check_result import Check
from trainable.run import load_run_model
from trainable.state import TrainState, new_state

FAMILIES = ["gpt2", "llama", "neox"]
CheckModel = Callable[[PreTrainedModel], dict[str, Check]]


@pytest.fixture
def config(make_trial: MakeTrial) -> TrialConfig:
    """A short run with adapters."""
    return make_trial(use_lora=True, lora_dropout=0.1)


@pytest.fixture(params=FAMILIES)
def model(request: Any, make_spec: MakeSpec, config: TrialConfig) -> PreTrainedModel:
    """Random weights with adapters, of each family."""
    return load_run_model(make_spec(request.param), config, None)[0]


@pytest.fixture
def check(check_model: Callable[..., dict[str, Check]], config: TrialConfig) -> CheckModel:
    """Return a function that checks a model with random weights and gives the failed checks by name."""

    def failed(model: PreTrainedModel) -> dict[str, Check]:
        return {name: one for name, one in check_model(model, config).items() if one.status in ("fail", "warn")}

    return failed


@pytest.mark.parametrize("checkpointing", [False, True])
def test_sound_lora_passes(model: PreTrainedModel, check: CheckModel, checkpointing: bool) -> None:
    if checkpointing:
        from trainable.model.modes import checkpoint_layers

        checkpoint_layers(model)
    assert check(model) == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_whole_preflight_knows_lora(
    make_spec: MakeSpec, make_trial: MakeTrial, config: TrialConfig, tokenizer: Tokenizer, family: str
) -> None:
    # The models are random in folders: the checks of pretrained weights have their say, those of LoRA are silent.
    for largest in (config, make_trial(batch_size=8)):
        checks = {
            one.name: one for one in run_preflight(make_spec(family), config, tokenizer=tokenizer, largest=largest)
        }
        for name in ("LoRA adapters", "gradient reach", "gradient slope", "optimizer updates", "LoRA merge", "memory"):
            assert checks[name].status == "pass", checks[name]
        assert "frozen layers" not in checks


def test_fault_1_adapters_without_gradient(model: PreTrainedModel, check: CheckModel) -> None:
    for name, module in model.named_modules():
        if name.endswith("lora_B.default"):
            module.register_forward_hook(lambda _module, _inputs, output: output.detach())
    found = check(model)
    assert "gradient reach" in found
    assert "trainable tensors have no gradient" in found["gradient reach"].measured


def test_fault_1_one_adapter_without_gradient(model: PreTrainedModel, check: CheckModel) -> None:
    module = [module for name, module in model.named_modules() if name.endswith("lora_A.default")][-1]
    module.register_forward_hook(lambda _module, _inputs, output: output.detach())
    found = check(model)
    assert "lora_A" in found["gradient reach"].measured


def test_fault_1_frozen_adapters(model: PreTrainedModel, check: CheckModel) -> None:
    for _, weight in list(adapter_parameters(model))[:2]:
        weight.requires_grad_(False)
    assert "frozen" in check(model)["LoRA adapters"].advice


def test_fault_2_base_under_no_grad(model: PreTrainedModel, check: CheckModel) -> None:
    for name, module in model.named_modules():
        if name.endswith(".base_layer"):
            module.forward = torch.no_grad()(module.forward)
    found = check(model)
    assert "base_layer" in found["gradient reach"].measured
    assert "a frozen layer needs no no_grad" in found["gradient reach"].advice
    assert "gradient slope" in found


def test_fault_3_targets_that_match_nothing(make_spec: MakeSpec, config: TrialConfig, check: CheckModel) -> None:
    model = load_run_model(make_spec("gpt2"), TrialConfig(), None)[0]
    for freeze in (False, True):
        model.requires_grad_(not freeze)
        assert "match no layer" in check(model)["LoRA adapters"].advice


def test_fault_4_adapters_left_out_of_the_optimizer(
    model: PreTrainedModel, check: CheckModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_last(*args: Any, **kwargs: Any) -> TrainState:
        state = new_state(*args, **kwargs)
        state.optimizer.param_groups[0]["params"].pop()
        return state

    monkeypatch.setattr(training, "new_state", without_last)
    found = check(model)
    assert "not in the optimizer" in found["optimizer updates"].measured
    assert list(adapter_parameters(model))[-1][0] in found["optimizer updates"].measured


@pytest.mark.parametrize("fault", ["scale", "transposed"])
def test_fault_5_a_merged_model_that_differs(
    model: PreTrainedModel, check: CheckModel, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    from peft.tuners.lora import Linear

    right = Linear.get_delta_weight

    def wrong(self: Any, adapter: str) -> torch.Tensor:
        delta: torch.Tensor = right(self, adapter)
        return delta / self.scaling[adapter] if fault == "scale" else delta.flip(0)

    monkeypatch.setattr(Linear, "get_delta_weight", wrong)
    assert set(check(model)) == {"LoRA merge"}


def test_a_base_that_is_trained_too_is_named(model: PreTrainedModel, check: CheckModel) -> None:
    next(weight for name, weight in model.named_parameters() if "base_layer" in name).requires_grad_(True)
    assert "Freeze it" in check(model)["LoRA adapters"].advice
