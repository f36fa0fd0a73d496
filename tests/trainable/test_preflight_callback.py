"""PreflightCallback in real Trainers: faults stop the script with the finding, a sound one trains as without it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.utils.data import Dataset
from transformers import PreTrainedModel, T5Config, T5ForConditionalGeneration, Trainer, TrainingArguments

from tests.trainable.makers import MakeModel
from trainable.config import TrialConfig
from trainable.data.tokens import Corpus
from trainable.errors import UserError
from trainable.model.lora import add_adapters
from trainable.preflight import PreflightCallback

BLOCK = 24


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Windows of a corpus as a script has them: right labels are the ids themselves."""

    def __init__(self, corpus: Corpus, *, shift: int = 0) -> None:
        self.tokens, self.shift = torch.tensor(corpus.train.astype("int64")), shift

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = index * 31
        return {
            "input_ids": self.tokens[start : start + BLOCK],
            "labels": self.tokens[start + self.shift : start + self.shift + BLOCK],
        }


class OwnLoss(Trainer):  # type: ignore[misc]
    """Computes the loss itself, from logits and labels that `shift` moves once more."""

    shift = 1

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        output = model(input_ids=inputs["input_ids"])
        logits, targets = output.logits[:, : -self.shift], inputs["labels"][:, self.shift :]
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), label_smoothing=0.1)
        return (loss, output) if return_outputs else loss


class FusedLoss(Trainer):  # type: ignore[misc]
    """Computes the loss from the hidden states and the head's weights, without the head's own forward, as TRL does."""

    shift, sign = 1, 1

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        hidden = model.base_model(input_ids=inputs["input_ids"]).last_hidden_state
        logits = hidden[:, : -self.shift] @ model.get_output_embeddings().weight.T
        return self.sign * F.cross_entropy(logits.flatten(0, 1), inputs["labels"][:, self.shift :].flatten())


@pytest.fixture
def train(corpus: Corpus, tmp_path: Path) -> Callable[..., tuple[PreTrainedModel, PreflightCallback | None]]:
    """Return a function that trains a model with a Trainer, with the callback unless told otherwise."""

    def run(
        model: PreTrainedModel,
        *,
        trainer_class: type[Trainer] = Trainer,
        shift: int = 0,
        watched: bool = True,
        optimizers: Any = (None, None),
        data: Dataset[Any] | None = None,
        **options: Any,
    ) -> tuple[PreTrainedModel, PreflightCallback | None]:
        settings: dict[str, Any] = {
            "max_steps": 4,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-4,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        callback = PreflightCallback() if watched else None
        trainer = trainer_class(
            model=model,
            args=TrainingArguments(output_dir=str(tmp_path), **{**settings, **options}),
            train_dataset=data or Windows(corpus, shift=shift),
            optimizers=optimizers,
            callbacks=[callback] if callback else [],
        )
        trainer.train()
        return model, callback

    return run


SOUND: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {}),
    "llama, accumulated and clipped": ("llama", {"gradient_accumulation_steps": 2, "max_grad_norm": 0.5}),
    "untied, warm-up from 0": ("untied", {"warmup_steps": 50, "weight_decay": 0.1, "learning_rate": 5e-5}),
    "bf16": ("gpt2", {"bf16": True}),
    "own loss": ("llama", {"trainer_class": OwnLoss, "weight_decay": 0.1}),
    "a fused loss": ("llama", {"trainer_class": FusedLoss}),
    "label smoothing": ("gpt2", {"label_smoothing_factor": 0.1}),
    "gradient checkpointing": ("llama", {"activation_checkpointing": True}),
    "adafactor": ("gpt2", {"optim": "adafactor"}),
    "sgd": ("untied", {"optim": "sgd", "learning_rate": 1e-2}),
    "unfused, cosine": ("llama", {"optim": "adamw_torch", "lr_scheduler_type": "cosine", "warmup_steps": 1}),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_scripts_pass(name: str, make_model: MakeModel, train: Callable[..., Any]) -> None:
    family, options = SOUND[name]
    _, callback = train(make_model(family, dropout=0.1), **options)
    found = {check.name: check.status for check in callback.checks}
    expected = dict.fromkeys(("labels", "loss scale", "causality", "gradient reach", "optimizer updates"), "pass")
    assert found == expected, callback.checks


def test_an_encoder_decoders_labels_are_another_text(train: Callable[..., Any], corpus: Corpus) -> None:
    """Its target may repeat the input, as in correcting or denoising, and stands at the decoder's own positions."""
    config = T5Config(
        vocab_size=corpus.vocab_size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0
    )
    _, callback = train(T5ForConditionalGeneration(config))
    assert {check.name: check.status for check in callback.checks} == {
        "labels": "skipped",
        "gradient reach": "pass",
        "optimizer updates": "pass",
    }


def test_it_changes_nothing_and_leaves_nothing(make_model: MakeModel, train: Callable[..., Any]) -> None:
    plain, _ = train(make_model(dropout=0.1), watched=False)
    watched, callback = train(make_model(dropout=0.1))
    assert len(callback.checks) == 5
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), watched.parameters(), strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in watched.modules())


def _hooks(model: torch.nn.Module) -> Iterator[Any]:
    for module in model.modules():
        yield from (*module._forward_hooks.values(), *module._forward_pre_hooks.values())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_collator_that_shifts_labels_too_is_stopped_before_the_first_step(
    accumulate: int, make_model: MakeModel, train: Callable[..., Any]
) -> None:
    model = make_model("llama")
    before = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(UserError, match="shifted twice, in the batch and again in the model"):
        train(model, shift=1, gradient_accumulation_steps=accumulate)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert list(_hooks(model)) == []


@pytest.mark.parametrize(("shift", "own_shift", "advice"), [(1, 1, "shifted twice"), (0, 2, "shifted twice")])
def test_a_loss_of_their_own_that_shifts_twice_is_stopped(
    shift: int, own_shift: int, advice: str, make_model: MakeModel, train: Callable[..., Any]
) -> None:
    class Twice(OwnLoss):
        pass

    Twice.shift = own_shift
    with pytest.raises(UserError, match=advice):
        train(make_model(), trainer_class=Twice, shift=shift)


@pytest.mark.parametrize(
    ("by", "sign", "words"),
    [(2, 1, r"\+2 100%.*shifted twice"), (3, 1, r"\+3 100%.*too often"), (1, -1, "next token less likely")],
)
@pytest.mark.parametrize("family", ["gpt2", "untied"])
def test_a_fused_loss_of_other_targets_is_stopped(
    by: int, sign: int, words: str, family: str, make_model: MakeModel, train: Callable[..., Any]
) -> None:
    class Wrong(FusedLoss):
        shift = by

    Wrong.sign = sign
    with pytest.raises(UserError, match=words):
        train(make_model(family), trainer_class=Wrong)


def test_a_head_that_cannot_be_read_is_left_alone(
    make_model: MakeModel, train: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainable.preflight.target_watch.type", lambda weight: object, raising=False)
    _, callback = train(make_model(), trainer_class=FusedLoss)
    assert [check.status for check in callback.checks if check.name == "labels"] == ["skipped"]


def test_masked_prompts_and_padding_are_no_fault(
    make_model: MakeModel, corpus: Corpus, train: Callable[..., Any]
) -> None:
    class Masked(Windows):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            item = super().__getitem__(index)
            labels = item["labels"].clone()
            labels[: BLOCK // 2] = -100
            return {**item, "labels": labels, "attention_mask": torch.ones_like(labels)}

    _, callback = train(make_model(), data=Masked(corpus))
    assert callback.checks[0].status == "pass", callback.checks


@pytest.mark.parametrize("accumulate", [1, 3])
def test_labels_that_are_all_masked_are_named(
    accumulate: int, make_model: MakeModel, corpus: Corpus, train: Callable[..., Any]
) -> None:
    class AllMasked(Windows):
        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            item = super().__getitem__(index)
            return {**item, "labels": torch.full_like(item["labels"], -100)}

    with pytest.raises(UserError, match=r"labels: .*every label is -100|labels: .*labels that are all -100"):
        train(make_model(), data=AllMasked(corpus), gradient_accumulation_steps=accumulate)


@pytest.mark.parametrize("shift", [0, 1])
def test_the_first_labels_are_looked_at_whichever_micro_batch_has_them(
    shift: int, make_model: MakeModel, corpus: Corpus, train: Callable[..., Any]
) -> None:
    class MaskedAtFirst(Windows):
        seen = 0

        def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
            item = super().__getitem__(index)
            self.seen += 1
            return {**item, "labels": torch.full_like(item["labels"], -100)} if self.seen <= 4 else item

    options = {"data": MaskedAtFirst(corpus, shift=shift), "gradient_accumulation_steps": 2}
    if shift:
        with pytest.raises(UserError, match="shifted twice"):
            train(make_model(), **options)
    else:
        _, callback = train(make_model(), **options)
        assert callback.checks[0].status == "pass", callback.checks


def test_weights_in_float16_are_named(make_model: MakeModel, train: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"in float16 .*Keep weights in fp32"):
        train(make_model().half())


def test_a_layer_without_gradient_is_stopped(make_model: MakeModel, train: Callable[..., Any]) -> None:
    model = make_model()
    model.transformer.h[0].mlp.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(UserError, match=r"6 of 28 trainable tensors have no gradient.*transformer\.h\.0\.ln_2"):
        train(model)


def test_a_parameter_missing_from_the_optimizer_is_stopped(make_model: MakeModel, train: Callable[..., Any]) -> None:
    model = make_model()
    some = [weight for name, weight in model.named_parameters() if ".h.1." not in name]
    with pytest.raises(UserError, match=r"12 of 28 trainable tensors not in the optimizer: transformer\.h\.1"):
        train(model, optimizers=(torch.optim.AdamW(some, lr=1e-4), None))


class Swallows(Trainer):  # type: ignore[misc]
    """Its optimizer's step() does nothing."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        optimizer = super().create_optimizer(*args, **kwargs)
        optimizer.step = lambda *args, **kwargs: None
        return optimizer


class ZeroesEarly(Trainer):  # type: ignore[misc]
    """Its gradients are gone before the step."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        self.model.zero_grad()
        return loss


class StepsTheScheduleToo(Trainer):  # type: ignore[misc]
    """Its learning rate falls twice as fast as meant."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step:  # torch itself warns of one before the first step
            self.lr_scheduler.step()
        return super().training_step(*args, **kwargs)


class LossOfOnesOwn(OwnLoss):
    """`kind` of the negative log-likelihoods."""

    kind: Callable[[torch.Tensor], torch.Tensor]

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **more: Any) -> Any:
        output = model(input_ids=inputs["input_ids"])
        logits, targets = output.logits[:, :-1], inputs["labels"][:, 1:]
        loss = type(self).kind(F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none"))
        return (loss, output) if return_outputs else loss


class Ascends(LossOfOnesOwn):
    """Maximises the loss."""

    kind = staticmethod(lambda losses: -losses.mean())


class Sums(LossOfOnesOwn):
    """Sums over the tokens."""

    kind = staticmethod(torch.sum)


class Means(LossOfOnesOwn):
    """Does not know of accumulation."""

    kind = staticmethod(torch.mean)


@pytest.mark.parametrize(
    ("trainer_class", "steps", "words"),
    [
        (Swallows, 1, r"step\(\) was not called in 1 steps"),
        (Swallows, 30, r"step\(\) was not called in 20 steps"),
        (ZeroesEarly, 4, "28 of 28 trainable tensors without gradient"),
        (StepsTheScheduleToo, 4, "moved on by 3 steps in 2"),
        (Ascends, 1, "makes the next token less likely"),
    ],
)
def test_a_trainer_that_does_not_train_is_stopped(
    trainer_class: type[Trainer], steps: int, words: str, make_model: MakeModel, train: Callable[..., Any]
) -> None:
    with pytest.raises(UserError, match=words):
        train(make_model(), trainer_class=trainer_class, max_steps=steps)


@pytest.mark.parametrize(
    ("trainer_class", "options", "name", "words"),
    [
        (Sums, {}, "loss scale", "92 times the mean of its 92 tokens"),
        (Means, {"gradient_accumulation_steps": 4}, "loss scale", "1 times the mean of its 92 tokens"),
    ],
)
def test_a_loss_of_another_scale_is_told(
    trainer_class: type[Trainer],
    options: dict[str, Any],
    name: str,
    words: str,
    make_model: MakeModel,
    train: Callable[..., Any],
) -> None:
    _, callback = train(make_model(), trainer_class=trainer_class, **options)
    (warned,) = (check for check in callback.checks if check.status != "pass")
    assert warned.name == name
    assert words in warned.measured


def test_an_optimizer_that_contradicts_the_arguments_is_told(make_model: MakeModel, train: Callable[..., Any]) -> None:
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    _, callback = train(model, optimizers=(optimizer, None), weight_decay=0.1)
    (warned,) = (check for check in callback.checks if check.status != "pass")
    assert (warned.name, warned.measured) == ("training arguments", "learning_rate=0.0001 and 0.001 in the optimizer")


def test_adapters_behind_a_warm_up_from_0_are_no_fault(make_model: MakeModel, train: Callable[..., Any]) -> None:
    model = make_model("llama")
    add_adapters(model, TrialConfig(use_lora=True))
    _, callback = train(model, warmup_steps=2)
    assert {check.status for check in callback.checks} == {"pass"}, callback.checks


def test_a_model_that_sees_the_future_is_stopped(make_model: MakeModel, train: Callable[..., Any]) -> None:
    model = make_model("llama")
    # Every position gets the mean of all of them.
    model.model.layers[0].register_forward_hook(lambda module, args, output: output + output.mean(1, keepdim=True))
    with pytest.raises(UserError, match="causality"):
        train(model)


def test_it_takes_a_second_at_most(make_model: MakeModel, train: Callable[..., Any]) -> None:
    train(make_model(), watched=False)
    times_s = []
    for watched in (False, True):
        started = time.process_time()
        train(make_model(), watched=watched)
        times_s.append(time.process_time() - started)
    assert times_s[1] - times_s[0] < 1.0
