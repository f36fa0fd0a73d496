"""check_labels on the scripts that people have: transformers' own loss, a loss by hand, wrappers, masks, tuples."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import PreTrainedModel

from tests.trainable.makers import MakeModel
from trainable.config import TrialConfig
from trainable.data.tokens import Corpus, sample_batch
from trainable.errors import UserError
from trainable.loss import next_token_losses
from trainable.preflight import check_labels, offset_profile


@pytest.fixture(scope="session")
def half_trained(make_model: MakeModel, corpus: Corpus) -> PreTrainedModel:
    """A model with dropout that has learned something."""
    model = make_model(dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batches = torch.Generator().manual_seed(0)
    for _ in range(80):
        some = sample_batch(corpus.train, TrialConfig(batch_size=16, block_size=32), batches)
        optimizer.zero_grad()
        model(input_ids=some, labels=some).loss.backward()
        optimizer.step()
    return model


@pytest.fixture
def tokens(corpus: Corpus) -> torch.Tensor:
    """(4, 33) ids."""
    return sample_batch(corpus.train, TrialConfig(batch_size=4, block_size=32), torch.Generator().manual_seed(1))


class Wrapper(torch.nn.Module):
    """As in an owner's script: the model is an attribute and the forward returns a pair."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        output = self.model(input_ids=ids, labels=targets)
        return output.logits, output.loss


class Bare(torch.nn.Module):
    """No model of transformers: without targets it answers for the last position alone, as nanoGPT does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(300, 16)
        self.head = torch.nn.Linear(16, 300)

    def forward(self, ids: torch.Tensor, targets: torch.Tensor | None = None) -> tuple[torch.Tensor, Any]:
        logits = self.head(self.embed(ids))
        if targets is None:
            return logits[:, -1:], None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def test_the_profile_at_plus_one_is_the_projects_loss(make_model: MakeModel, tokens: torch.Tensor) -> None:
    model = make_model().eval()
    profile = offset_profile(model, tokens)
    assert list(profile) == [-1, 0, 1, 2, 3]
    with torch.no_grad():
        assert profile[1] == pytest.approx(float(next_token_losses(model, tokens).mean()), abs=1e-5)
        logits = model(input_ids=tokens[:, :-1]).logits
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 2:].flatten())
    assert profile[2] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("as_function", [True, False])
def test_three_lines_in_a_script_tell_right_from_doubled(
    family: str, as_function: bool, make_model: MakeModel, tokens: torch.Tensor
) -> None:
    model = make_model(family).train()
    ids = tokens[:, :-1]

    def script(labels: torch.Tensor) -> Any:
        output = model(input_ids=ids, labels=labels)
        return (lambda: model(input_ids=ids, labels=labels).loss) if as_function else output.loss

    right = check_labels(model, {"input_ids": ids, "labels": ids}, script(ids))
    assert right.status == "pass", right
    right.raise_if_failed()
    doubled = check_labels(model, {"input_ids": ids, "labels": tokens[:, 1:]}, script(tokens[:, 1:]))
    assert doubled.status == "fail", doubled
    assert "+2" in doubled.measured
    assert "pass labels=input_ids" in doubled.advice
    with pytest.raises(UserError, match="shifted twice"):
        doubled.raise_if_failed()


def test_ids_alone_are_enough_once_something_is_learned(half_trained: PreTrainedModel, tokens: torch.Tensor) -> None:
    model = half_trained.eval()
    ids = tokens[:, :-1]
    assert check_labels(model, ids, model(input_ids=ids, labels=ids)).status == "pass"
    assert check_labels(model, tokens, model(input_ids=tokens, labels=tokens).loss.item()).status == "pass"
    assert check_labels(model, ids, model(input_ids=ids, labels=tokens[:, 1:])).status == "fail"
    by_hand = F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert check_labels(model, tokens, by_hand).status == "pass"


@pytest.mark.parametrize(("start", "status", "offset"), [(1, "pass", "+1"), (0, "fail", "+0")])
def test_a_loss_by_hand(start: int, status: str, offset: str, make_model: MakeModel, tokens: torch.Tensor) -> None:
    model = make_model()
    targets = tokens[:, start : start + 32]
    logits = model(input_ids=tokens[:, :-1]).logits
    loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    check = check_labels(model, (tokens[:, :-1], targets), loss)
    assert check.status == status, check
    assert check.measured.endswith(f"it is that of {offset}")


def test_labels_shifted_backwards(make_model: MakeModel, tokens: torch.Tensor) -> None:
    model = make_model()
    logits = model(input_ids=tokens).logits
    loss = F.cross_entropy(logits[:, 1:].flatten(0, 1), tokens[:, :-1].flatten())
    check = check_labels(model, tokens, loss)
    assert (check.status, "the wrong way" in check.advice) == ("fail", True), check


def test_a_wrapper_with_a_pair_as_output(make_model: MakeModel, tokens: torch.Tensor) -> None:
    wrapper = Wrapper(make_model())
    ids = tokens[:, :-1]
    assert check_labels(wrapper, (ids, ids), wrapper(ids, ids)).status == "pass"
    doubled = (ids, tokens[:, 1:])
    assert check_labels(wrapper, doubled, wrapper(*doubled)).status == "fail"


def test_a_model_of_ones_own(tokens: torch.Tensor) -> None:
    model = Bare()
    right = (tokens[:, :-1], tokens[:, 1:])
    assert check_labels(model, right, model(*right)).status == "pass"
    assert check_labels(model, right, lambda: model(tokens[:, :-1], tokens[:, :-1])[1]).status == "fail"
    with pytest.raises(UserError, match="returns no logits"):
        check_labels(torch.nn.Sequential(torch.nn.Embedding(300, 4), torch.nn.Flatten()), tokens, 1.0)


def test_masked_labels_and_padding(make_model: MakeModel, tokens: torch.Tensor) -> None:
    model = make_model()
    ids = tokens[:, :-1].clone()
    mask = torch.ones_like(ids)
    mask[:2, 20:] = 0
    ids[:2, 20:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :5] = -100
    batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    assert check_labels(model, batch, lambda: model(**batch)).status == "pass"
    shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], -100)], dim=1)
    doubled = {**batch, "labels": shifted}
    assert check_labels(model, doubled, lambda: model(**doubled)).status == "fail"
    unlabelled = {"input_ids": ids, "attention_mask": mask}
    padding_left_out = model(**unlabelled, labels=ids.masked_fill(mask == 0, -100)).loss
    padding_scored = model(**unlabelled, labels=ids).loss
    assert check_labels(model, unlabelled, padding_left_out).status == "pass"
    assert check_labels(model, unlabelled, padding_scored).status == "pass"


def test_labels_that_are_all_masked(make_model: MakeModel, tokens: torch.Tensor) -> None:
    labels = torch.full_like(tokens, -100)
    check = check_labels(make_model(), {"input_ids": tokens, "labels": labels}, math.nan)
    assert (check.status, check.measured) == ("fail", "the batch has no label to score")
    assert check.advice.endswith("every label is -100.")


def test_dropout_in_training_mode(half_trained: PreTrainedModel, tokens: torch.Tensor) -> None:
    model = half_trained.train()
    ids = tokens[:, :-1]
    assert check_labels(model, (ids, ids), model(input_ids=ids, labels=ids).loss).status == "pass"
    doubled = (ids, tokens[:, 1:])
    assert check_labels(model, doubled, model(input_ids=ids, labels=tokens[:, 1:]).loss).status == "fail"
    assert check_labels(model, doubled, lambda: model(input_ids=ids, labels=tokens[:, 1:]).loss).status == "fail"
    # No token before the last has it for its previous one: at offset -1 nothing is scored.
    last = torch.full_like(ids, -100).index_copy(1, torch.tensor([ids.shape[1] - 1]), ids[:, -1:])
    assert check_labels(model, (ids, last), model(input_ids=ids, labels=last).loss).status != "fail"
    assert check_labels(model, ids, math.nan).status == "fail"
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(math.inf)
    assert check_labels(model, ids, math.nan).status == "fail"


def test_a_loss_of_something_else_is_not_judged(make_model: MakeModel, tokens: torch.Tensor) -> None:
    model = make_model()
    assert check_labels(model, tokens, 1234.5).status == "warn"
    assert check_labels(model, tokens, float("nan")).status == "fail"


def test_it_leaves_modes_gradients_and_random_numbers_alone(make_model: MakeModel, tokens: torch.Tensor) -> None:
    model = make_model(dropout=0.5).train()
    frozen_part = model.get_submodule("transformer.h.0").eval()
    model(input_ids=tokens, labels=tokens).loss.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    random_numbers = torch.get_rng_state()
    check_labels(model, tokens, lambda: model(input_ids=tokens, labels=tokens).loss)
    check_labels(model, tokens, 5.7)
    assert model.training
    assert not frozen_part.training
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert all(torch.equal(a.grad, b) for a, b in zip(model.parameters(), gradients, strict=True))


@pytest.mark.parametrize(
    ("batch", "loss", "said"),
    [
        ("text", 1.0, "a str without token ids"),
        ({"ids": torch.zeros(1, 8)}, 1.0, "a dict without token ids"),
        (torch.zeros(2, 8), 1.0, "must be whole numbers"),
        (torch.zeros(2, 3, dtype=torch.long), 1.0, "at least 4 tokens"),
        ((torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)), 1.0, r"labels are \(2, 7\)"),
        (torch.zeros(2, 8, dtype=torch.long), torch.zeros(2, 8), "a Tensor, not one number"),
        (torch.zeros(2, 8, dtype=torch.long), "low", "a str, not one number"),
    ],
)
def test_what_cannot_be_read_is_said(batch: Any, loss: Any, said: str, make_model: MakeModel) -> None:
    with pytest.raises(UserError, match=said):
        check_labels(make_model(), batch, loss)
