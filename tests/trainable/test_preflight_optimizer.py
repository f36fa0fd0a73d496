"""check_optimizer: optimizers that do not do what they should are named, and sound ones of every kind pass."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from tests.trainable.makers import MakeModel
from trainable.config import TrialConfig
from trainable.data.tokens import Corpus, sample_batch
from trainable.model.lora import add_adapters
from trainable.preflight import check_optimizer

Step = Callable[[], None]
StepOf = Callable[..., Step]
HELD = ("c_fc.weight", "c_attn.weight")


class PutsBack(torch.optim.AdamW):
    """Some tensors are as before after every step."""

    held: tuple[torch.Tensor, ...] = ()

    def step(self, closure: Any = None) -> Any:
        before = [tensor.detach().clone() for tensor in self.held]
        result = super().step(closure)
        with torch.no_grad():
            for tensor, old in zip(self.held, before, strict=True):
                tensor.copy_(old)
        return result


class LosesInPlaceWrites(torch.optim.AdamW):
    """As on MPS with torch before 2.4: what is written in place into a tensor that is not contiguous is lost."""

    def step(self, closure: Any = None) -> Any:
        odd = [one for group in self.param_groups for one in group["params"] if not one.is_contiguous()]
        before = [one.detach().clone() for one in odd]
        result = super().step(closure)
        with torch.no_grad():
            for one, old in zip(odd, before, strict=True):
                one.copy_(old)
        return result


class ForgetsItsState(torch.optim.AdamW):
    """The moments of every step are those of its gradient alone."""

    def step(self, closure: Any = None) -> Any:
        self.state.clear()
        return super().step(closure)


class IgnoresItsRate(torch.optim.AdamW):
    """Every step is taken at the rate it was made with."""

    def step(self, closure: Any = None) -> Any:
        meant = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = self.defaults["lr"]
        result = super().step(closure)
        for group, rate in zip(self.param_groups, meant, strict=True):
            group["lr"] = rate
        return result


class CouplesItsDecay(torch.optim.AdamW):
    """Weight decay as Adam has it: in the gradient, where the second moment divides it away."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.add_decay = True

    def step(self, closure: Any = None) -> Any:
        with torch.no_grad():
            for group in self.param_groups:
                for one in group["params"]:
                    one.grad.add_(one, alpha=group["weight_decay"])
                    # What the parent takes off is put on first.
                    one.div_(1 - group["lr"] * group["weight_decay"])
        return super().step(closure)


@pytest.fixture
def batches(corpus: Corpus) -> Iterator[torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return iter(lambda: sample_batch(corpus.train, TrialConfig(batch_size=4, block_size=16), draws), None)


@pytest.fixture
def step_of(batches: Iterator[torch.Tensor]) -> StepOf:
    """Return a function that makes a training step as scripts have it."""

    def make(
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        *,
        clip: float | None = None,
        accumulate: int = 1,
        bf16: bool = False,
        schedule: Any = None,
        scaler: Any = None,
        zero: str = "after",
    ) -> Step:
        def step() -> None:
            for _ in range(accumulate):
                ids = next(batches)
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    loss = model(input_ids=ids, labels=ids).loss / accumulate
                (scaler.scale(loss) if scaler else loss).backward()
            if zero == "before":
                optimizer.zero_grad()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            if scaler:
                scaler.step(optimizer)
                scaler.update()
            else:
                optimizer.step()
            if schedule is not None:
                schedule.step()
            if zero == "after":
                optimizer.zero_grad()

        return step

    return make


def test_tensors_that_are_put_back_are_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    optimizer = PutsBack(model.parameters(), lr=1e-4)
    optimizer.held = tuple(weight for name, weight in model.named_parameters() if name.endswith(HELD))
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert check.status == "fail"
    assert check.measured.startswith("4 of 28 trainable tensors unchanged")
    assert "transformer.h.0.attn.c_attn.weight" in check.measured


def test_tensors_that_are_put_back_after_the_step_are_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model("llama")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    inner, held = step_of(model, optimizer), model.get_parameter("model.layers.1.mlp.up_proj.weight")

    def step() -> None:
        before = held.detach().clone()
        inner()
        with torch.no_grad():
            held.copy_(before)

    check = check_optimizer(model, optimizer, step)
    assert check.measured.startswith("1 of 21 trainable tensors unchanged"), check
    assert "model.layers.1.mlp.up_proj.weight" in check.measured


def test_parameters_missing_from_the_optimizer_are_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    some = [weight for name, weight in model.named_parameters() if "ln_" not in name]
    optimizer = torch.optim.AdamW(some, lr=1e-4)
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert check.status == "fail"
    assert check.measured.startswith("10 of 28 trainable tensors not in the optimizer: transformer.h.0.ln_1.weight")


def test_an_optimizer_of_another_model_is_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(make_model().parameters(), lr=1e-4)
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert check.measured.startswith("28 of 28 trainable tensors not in the optimizer")


def test_in_place_writes_lost_on_tensors_that_are_not_contiguous_are_named(
    make_model: MakeModel, step_of: StepOf
) -> None:
    model = make_model()
    block = model.get_submodule("transformer.h.0.mlp.c_fc")
    block.weight = torch.nn.Parameter(block.get_parameter("weight").detach().t().contiguous().t())
    optimizer = LosesInPlaceWrites(model.parameters(), lr=1e-4)
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert check.measured.startswith("1 of 28 trainable tensors unchanged"), check
    assert "transformer.h.0.mlp.c_fc.weight (not contiguous in memory)" in check.measured


def test_a_state_that_is_lost_between_steps_is_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    optimizer = ForgetsItsState(model.parameters(), lr=1e-4)
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert check.status == "fail"
    assert "not changed as AdamW would change them" in check.measured
    assert "keeps its state" in check.advice


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_another_weight_decay_than_the_groups_is_named(decay: float, make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=decay)
    check = check_optimizer(model, optimizer, step_of(model, optimizer), weight_decay=0.01)
    assert check.status == "fail"
    assert f"10 of 28 trainable tensors decay by {decay:g}" in check.measured
    assert "where 0.01 is meant" in check.measured


def test_a_decay_that_is_coupled_to_the_gradient_is_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    optimizer = CouplesItsDecay(model.parameters(), lr=1e-4, weight_decay=0.1)
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert check.status == "fail", check
    assert "not changed as AdamW would change them" in check.measured


def test_a_learning_rate_without_effect_is_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    optimizer = IgnoresItsRate(model.parameters(), lr=1e-3)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    # The hook before the step sees the rate of the groups, and the step takes another.
    assert check.status == "fail", check
    assert "10 times as much as at its learning rate" in check.measured


def test_a_schedule_on_another_optimizer_is_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    check = check_optimizer(model, optimizer, step_of(model, optimizer), learning_rate=1e-4)
    assert check.status == "fail"
    assert "learning rate 1.00e-03 in the optimizer's groups, 1.00e-04 meant" in check.measured


def test_a_rate_of_0_is_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert check.measured.startswith("28 of 28 trainable tensors at learning rate 0 in 2 steps")


def test_a_step_that_never_steps_is_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    optimizer, other = (torch.optim.AdamW(model.parameters(), lr=1e-4) for _ in range(2))
    assert "optimizer.step() was not called" in check_optimizer(model, optimizer, step_of(model, other)).measured


SETTINGS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a clip to 0": ({}, {"clip": 1e-46}, "28 of 28 trainable tensors without gradient"),
    "a clip to almost 0": ({}, {"clip": 1e-12}, "of the updates are rounded away"),
    "a huge eps": ({"eps": 1e8}, {}, "of the updates are rounded away"),
    "betas the wrong way round": ({"betas": (0.999, 0.9)}, {}, "betas 0.999 and 0.9"),
    "ascent": ({"maximize": True}, {}, "maximize"),
    "gradients zeroed too early": ({}, {"zero": "before"}, "28 of 28 trainable tensors without gradient in 2 steps"),
    "gradients never zeroed": ({}, {"zero": "never"}, "28 of 28 trainable tensors with the last step's gradient"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_that_train_nothing_or_the_wrong_way_are_named(name: str, make_model: MakeModel, step_of: StepOf) -> None:
    options, how, words = SETTINGS[name]
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), **{"lr": 1e-4, **options})
    check = check_optimizer(model, optimizer, step_of(model, optimizer, **how))
    assert check.status == "fail", check
    assert words in check.measured


def test_a_decay_that_is_in_the_gradient_is_named_where_adamws_is_meant(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    adam = torch.optim.Adam(model.parameters(), lr=1e-4, weight_decay=0.1)
    assert check_optimizer(model, adam, step_of(model, adam)).status == "warn"
    check = check_optimizer(model, adam, step_of(model, adam), weight_decay=0.1)
    assert (check.status, check.measured) == ("fail", "weight decay is added to the gradient (L2)")


def test_a_tensor_that_is_held_twice_is_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    optimizer.param_groups[0]["params"].append(model.get_parameter("transformer.ln_f.weight"))
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert "1 of 28 trainable tensors in the optimizer more than once: transformer.ln_f.weight" in check.measured


def test_a_head_that_has_lost_its_tie_is_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert check.status == "fail"
    assert "the head and the input embedding are two tensors" in check.measured


def test_tensors_without_gradient_are_named(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    for weight in model.transformer.h[0].mlp.parameters():
        weight.register_hook(torch.zeros_like)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert check.measured.startswith("4 of 28 trainable tensors without gradient in 2 steps: transformer.h.0.mlp.c_fc")


def test_an_upper_layer_frozen_alone_is_told_and_lower_ones_are_not(make_model: MakeModel, step_of: StepOf) -> None:
    for layer, status in ((0, "pass"), (1, "warn")):
        model = make_model()
        model.transformer.h[layer].requires_grad_(False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        check = check_optimizer(model, optimizer, step_of(model, optimizer))
        assert check.status == status, check
    assert "12 tensors frozen above trained ones: transformer.h.1.ln_1.weight" in check.measured


@pytest.mark.parametrize(("learning_rate", "status"), [(1e-5, "warn"), (1e-7, "fail"), (1e-4, "pass")])
def test_bf16_weights_too_coarse_for_the_rate_are_told(
    learning_rate: float, status: str, make_model: MakeModel, step_of: StepOf
) -> None:
    model = make_model().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    check = check_optimizer(model, optimizer, step_of(model, optimizer))
    assert check.status == status, check
    assert ("rounded away" in check.measured) is (status != "pass")


def test_adapters_behind_a_warm_up_from_0_pass(make_model: MakeModel, step_of: StepOf) -> None:
    # B begins as 0 and does not move in a first step at rate 0: A has no gradient in the second.
    model = make_model("llama").requires_grad_(False)
    add_adapters(model, TrialConfig(use_lora=True))
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-3)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    check = check_optimizer(model, optimizer, step_of(model, optimizer, schedule=warmup))
    assert check.status == "pass", check


def test_gradients_made_in_a_closure_pass(
    make_model: MakeModel, step_of: StepOf, batches: Iterator[torch.Tensor]
) -> None:
    model = make_model()
    optimizer = PutsBack(model.parameters(), lr=1e-4)

    def closure() -> Any:
        optimizer.zero_grad()
        ids = next(batches)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        return loss

    check = check_optimizer(model, optimizer, lambda: optimizer.step(closure))
    assert check.status == "pass", check
    optimizer.held = (model.get_parameter("transformer.wte.weight"),)
    assert check_optimizer(model, optimizer, lambda: optimizer.step(closure)).status == "fail"


def test_several_optimizers_of_one_model_are_watched_together(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model()
    vectors = [one for one in model.parameters() if one.dim() == 1]
    matrices = [one for one in model.parameters() if one.dim() > 1]
    adam, sgd = torch.optim.AdamW(vectors, lr=1e-3), torch.optim.SGD(matrices, lr=1e-1)
    inner = step_of(model, adam)

    def step() -> None:
        sgd.zero_grad()
        inner()
        sgd.step()

    check = check_optimizer(model, [adam, sgd], step)
    assert (check.status, check.measured) == ("pass", "28 of 28 tensors moved by AdamW and SGD in 2 steps")
    check = check_optimizer(model, [adam, sgd], inner)
    assert "optimizer.step() was not called" in check.measured


def _neox() -> PreTrainedModel:
    torch.manual_seed(0)
    shapes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=300, max_position_embeddings=64, **shapes))


def _decay_groups(model: PreTrainedModel) -> list[dict[str, Any]]:
    matrices = [one for one in model.parameters() if one.dim() > 1]
    vectors = [one for one in model.parameters() if one.dim() == 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


SOUND: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt2, tied": ("gpt2", {"lr": 1e-4}, {}),
    "gpt2, untied": ("untied", {"lr": 5e-3, "weight_decay": 0.1}, {"clip": 1.0}),
    "llama": ("llama", {"lr": 1e-3, "fused": True}, {}),
    "neox": ("neox", {"lr": 3e-4}, {"clip": 0.1}),
    "bf16 autocast": ("gpt2", {"lr": 1e-4, "fused": True}, {"bf16": True}),
    "llama in bf16 autocast, accumulated": ("llama", {"lr": 1e-5}, {"bf16": True, "accumulate": 3}),
    "accumulated and clipped": ("gpt2", {"lr": 6e-4}, {"accumulate": 4, "clip": 0.5}),
    "foreach, amsgrad": ("neox", {"lr": 1e-3, "foreach": True, "amsgrad": True}, {}),
    "other betas, a large eps": ("untied", {"lr": 1e-3, "betas": (0.8, 0.95), "eps": 1e-5}, {}),
    "a tiny rate": ("gpt2", {"lr": 1e-7}, {}),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_set_ups_pass(name: str, make_model: MakeModel, step_of: StepOf) -> None:
    family, options, how = SOUND[name]
    model = _neox() if family == "neox" else make_model(family)
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    check = check_optimizer(model, optimizer, step_of(model, optimizer, **how))
    assert check.status == "pass", check


def test_more_sound_set_ups_pass(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model(dropout=0.1)
    optimizer = torch.optim.AdamW(_decay_groups(model), lr=1e-3)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    check = check_optimizer(model, optimizer, step_of(model, optimizer, schedule=warmup))
    assert check.status == "pass", check

    # In the middle of a run, with moments.
    check = check_optimizer(model, optimizer, step_of(model, optimizer, schedule=warmup))
    assert check.status == "pass", check
    assert "28 of 28" in check.measured

    sgd = torch.optim.SGD(model.parameters(), lr=1e-2)
    check = check_optimizer(model, sgd, step_of(model, sgd))
    assert check.status == "pass", check
    assert "moved by SGD" in check.measured

    for weight in model.transformer.h[0].parameters():
        weight.requires_grad_(False)
    adam = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=1e-3, weight_decay=0.1)
    check = check_optimizer(model, adam, step_of(model, adam))
    assert (check.status, check.measured[-41:]) == ("warn", "; weight decay is added to the gradient (L2)"[-41:])


def test_weights_kept_in_bf16_pass_where_their_steps_can_be_read(make_model: MakeModel, step_of: StepOf) -> None:
    model = make_model().bfloat16()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    assert check_optimizer(model, optimizer, step_of(model, optimizer)).status == "pass"
