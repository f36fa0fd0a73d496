"""The loss: transformers' own to float precision, gradients too, and the next token's, not the one after it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config, GPTJConfig, GraniteConfig, PreTrainedModel

from tests.trainable.makers import MakeModel
from trainable import loss as loss_module
from trainable.head import Head, find_head
from trainable.loss import next_token_loss, next_token_losses


@pytest.fixture
def family(request: pytest.FixtureRequest, make_model: MakeModel) -> PreTrainedModel:
    """Plain heads (tied, untied), one with a bias, those that multiply or divide their logits, and one that caps them:
    at its start and later in training."""
    torch.manual_seed(0)
    if request.param in ("multiplied", "divided"):
        shapes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        kind, scale = (CohereConfig, {"logit_scale": 0.25}) if request.param == "multiplied" else (GraniteConfig, {})
        scale = scale or {"logits_scaling": 8.0}
        scaled: PreTrainedModel = AutoModelForCausalLM.from_config(kind(vocab_size=300, **shapes, **scale))
        return scaled
    if request.param == "biased":
        shapes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64, "rotary_dim": 8}
        model: PreTrainedModel = AutoModelForCausalLM.from_config(GPTJConfig(vocab_size=300, **shapes))
        torch.nn.init.normal_(model.get_output_embeddings().bias)
        return model
    if request.param.startswith("capped"):
        shapes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
        config = Gemma2Config(vocab_size=300, **shapes, **heads, final_logit_softcapping=30.0)
        model = AutoModelForCausalLM.from_config(config)
        if request.param == "capped, trained":
            next_token_loss(model, random_tokens(1, 5))  # whatever is found out about the head is found out now
            with torch.no_grad():
                model.get_output_embeddings().weight.mul_(50)
        return model
    return make_model(request.param)


def random_tokens(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 300, shape, generator=torch.Generator().manual_seed(seed))


def gradients_of(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


FAMILIES = ["gpt2", "untied", "llama", "biased", "multiplied", "divided", "capped", "capped, trained"]


@pytest.mark.parametrize("family", FAMILIES, indirect=True)
@pytest.mark.parametrize("shape", [(3, 17), (100, 41)])
def test_it_is_transformers_own_loss_and_gradient(family: PreTrainedModel, shape: tuple[int, int]) -> None:
    tokens = random_tokens(*shape)
    own = next_token_loss(family, tokens)
    theirs = family(input_ids=tokens, labels=tokens).loss
    assert own.shape == ()
    assert own.item() == pytest.approx(theirs.item(), rel=1e-5)
    expected, given = gradients_of(family, theirs), gradients_of(family, own)
    assert given.keys() == expected.keys()
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(given[name], gradient, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("gpt2", Head()),
        ("biased", Head()),
        ("multiplied", Head(scale=0.25)),
        ("divided", Head(scale=1 / 8)),
        ("capped", Head(softcap=30.0)),
    ],
    indirect=["family"],
)
def test_a_head_is_found_out_and_no_logits_of_all_tokens_exist(family: PreTrainedModel, head: Head) -> None:
    assert find_head(family) == head
    wholes: list[object] = []
    handle = family.get_output_embeddings().register_forward_hook(lambda *_: wholes.append(_))
    next_token_loss(family, random_tokens(3, 17)).backward()  # type: ignore[no-untyped-call]
    next_token_losses(family, random_tokens(3, 17))
    handle.remove()
    assert wholes == []


def test_a_head_that_no_number_of_the_configuration_explains_is_left_to_the_model(make_model: MakeModel) -> None:
    model = make_model()
    handle = model.get_output_embeddings().register_forward_hook(lambda _module, _inputs, logits: logits.sin())
    assert find_head(model) is None
    tokens = random_tokens(3, 17)
    assert next_token_loss(model, tokens).item() == pytest.approx(model(tokens, labels=tokens).loss.item(), rel=1e-5)
    handle.remove()


@pytest.mark.parametrize("family", ["gpt2", "llama", "biased", "divided", "capped"], indirect=True)
def test_the_gradient_is_that_of_the_scaled_loss(family: PreTrainedModel) -> None:
    tokens = random_tokens(2, 9)
    once, scaled = (gradients_of(family, factor * next_token_loss(family, tokens)) for factor in (1.0, 1024.0))
    for name, gradient in once.items():
        torch.testing.assert_close(scaled[name], 1024 * gradient, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES[:-1], indirect=True)
def test_every_position_is_scored_by_the_token_after_it_and_no_other(family: PreTrainedModel) -> None:
    tokens = random_tokens(4, 17)
    with torch.no_grad():
        losses = next_token_losses(family, tokens)
        log_probabilities = family(input_ids=tokens).logits.log_softmax(-1)  # (B, T + 1, V)
    assert losses.shape == (4, 16)
    assert losses.dtype == torch.float32
    profile: dict[int, int] = {}
    for offset in (-1, 0, 1, 2, 3):
        positions = range(max(0, -offset), 17 - max(1, offset))
        for position in positions:
            wanted = -log_probabilities[range(4), position, tokens[:, position + offset]]
            if (losses[:, position] - wanted).abs().max() < 1e-4:
                profile[offset] = profile.get(offset, 0) + 1
    assert profile == {1: 16}
    with torch.no_grad():
        assert next_token_loss(family, tokens).item() == pytest.approx(losses.mean().item(), rel=1e-6)


@pytest.mark.parametrize("family", FAMILIES[:-1], indirect=True)
def test_the_last_positions_alone_are_those_of_all(family: PreTrainedModel) -> None:
    tokens = random_tokens(4, 17)
    with torch.no_grad():
        losses = next_token_losses(family, tokens)
        for last in (1, 8, 16):
            torch.testing.assert_close(next_token_losses(family, tokens, last=last), losses[:, -last:])


def test_later_tokens_do_not_move_earlier_losses(make_model: MakeModel) -> None:
    model, tokens = make_model(), random_tokens(2, 17)
    changed = tokens.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 300
    with torch.no_grad():
        before, after = next_token_losses(model, tokens), next_token_losses(model, changed)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).all()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_fp32_and_near(make_model: MakeModel, precision: torch.dtype) -> None:
    model, tokens = make_model(), random_tokens(3, 17)
    exact = next_token_loss(model, tokens)
    exact_gradients = gradients_of(model, exact)
    with torch.autocast("cpu", dtype=precision):
        near = next_token_loss(model, tokens)
    assert near.dtype == torch.float32
    assert near.item() == pytest.approx(exact.item(), rel=2e-3)
    near_gradients = gradients_of(model, near)
    for name in ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "transformer.ln_f.weight"):
        assert near_gradients[name].dtype == torch.float32
        cosine = torch.cosine_similarity(near_gradients[name].flatten(), exact_gradients[name].flatten(), dim=0)
        assert cosine > 0.99


@pytest.mark.parametrize("family", ["gpt2", "untied", "llama"], indirect=True)
def test_a_frozen_heads_gradient_is_not_computed(family: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(3, 17)
    expected = gradients_of(family, next_token_loss(family, tokens))
    head = family.get_output_embeddings().weight
    head.requires_grad_(False)
    monkeypatch.setattr(loss_module, "_add_product", None)  # what the head's gradient is summed by
    found = gradients_of(family, next_token_loss(family, tokens))
    others = [name for name in expected if family.get_parameter(name) is not head]
    assert list(found) == others
    for name in others:
        torch.testing.assert_close(found[name], expected[name], msg=name)


def test_dropout_masks_the_gradient_pass_too(make_model: MakeModel) -> None:
    model, tokens = make_model(dropout=0.5), random_tokens(2, 17)
    model.train()
    losses = {next_token_loss(model, tokens).item() for _ in range(3)}
    model.eval()
    assert len(losses) == 3
    assert len({next_token_loss(model, tokens).item() for _ in range(3)}) == 1
