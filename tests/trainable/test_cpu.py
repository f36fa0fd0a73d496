"""The CPU's kernels do what torch's do: the same numbers without dropout, the same statistics with it."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import GPT2Config, GPT2LMHeadModel

from trainable.config import TrialConfig
from trainable.device.cpu_kernels import attention, linear, tune_for_cpu
from trainable.device.cpu_kernels.attention import _attention, _CausalAttention
from trainable.device.cpu_kernels.dropout import CPUDropout, dropout_mask
from trainable.device.cpu_kernels.linear import CPUConv1D, product
from trainable.loop import train
from trainable.rows import MetricsRow
from trainable.run import start_run

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=64, n_positions=160, bos_token_id=0, eos_token_id=0)


def model(**changes: Any) -> GPT2LMHeadModel:
    torch.manual_seed(1)
    config = GPT2Config(**{**CONFIG.to_dict(), **changes})
    made: GPT2LMHeadModel = GPT2LMHeadModel(config)
    return made


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_a_mask_drops_its_share_and_keeps_the_expectation(p: float) -> None:
    torch.manual_seed(0)
    count = 400_003
    mask = dropout_mask((count,), p)
    dropped = (mask == 0).double().mean().item()
    assert abs(dropped - p) < 4 * math.sqrt(p * (1 - p) / count) + 2**-17
    assert sorted(set(mask.tolist())) == [0.0, pytest.approx(1 / (1 - p), rel=2e-4)]
    # Neighbours, who come of the same random number, know nothing of each other.
    kept = (mask > 0).double() - (1 - p)
    for lag in (1, 2, 3, 4):
        correlation = (kept[:-lag] * kept[lag:]).mean() / (p * (1 - p))
        assert abs(correlation) < 4 / math.sqrt(count)


def test_masks_come_of_torchs_generator_alone() -> None:
    torch.manual_seed(3)
    first, second = dropout_mask((7, 5), 0.3), dropout_mask((7, 5), 0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout_mask((7, 5), 0.3), first)
    assert torch.equal(dropout_mask((7, 5), 0.3), second)
    assert not torch.equal(first, second)


def test_dropout_is_off_in_evaluation_and_at_0() -> None:
    inputs = torch.randn(4, 4)
    assert CPUDropout(0.0)(inputs) is inputs
    assert torch.equal(CPUDropout(0.5).eval()(inputs), inputs)
    assert torch.equal(dropout_mask((3,), 1.0), torch.zeros(3))


def attended_by_torch(parts: list[torch.Tensor], **keywords: Any) -> torch.Tensor:
    query, key, value = parts
    return F.scaled_dot_product_attention(query, key, value, is_causal=True, **keywords)


@pytest.mark.parametrize("length", [1, 5, 64, 65, 150])
def test_attention_without_dropout_is_torchs_gradients_too(length: int) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, length, 8, dtype=torch.float32, requires_grad=True) for _ in range(3)]
    weights = torch.randn(2, 3, length, 8)

    def result(attended: torch.Tensor) -> list[torch.Tensor]:
        return [attended.detach(), *torch.autograd.grad((attended * weights).sum(), parts)]

    mine = result(_CausalAttention.apply(*parts, 0.0, 8**-0.5))  # type: ignore[no-untyped-call]
    torchs = result(attended_by_torch(parts))
    for ours, theirs in zip(mine, torchs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_attention_with_dropout_is_torchs_on_average() -> None:
    torch.manual_seed(0)
    parts = [torch.randn(1, 1, 70, 4) for _ in range(3)]
    count = 3000
    total = sum(_CausalAttention.apply(*parts, 0.2, 0.5) for _ in range(count))  # type: ignore[no-untyped-call]
    expected = attended_by_torch(parts, scale=0.5)
    torch.testing.assert_close(total / count, expected, rtol=0, atol=0.06)


def test_a_gradient_through_dropout_is_that_of_the_masked_function() -> None:
    parts = [torch.randn(1, 2, 66, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]

    def masked(*tensors: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(5)
        attended: torch.Tensor = _CausalAttention.apply(*tensors, 0.3, 0.5)  # type: ignore[no-untyped-call]
        return attended.double()

    before = masked(*parts).detach()
    direction = [torch.randn_like(part) for part in parts]
    outputs = torch.randn_like(before)
    slopes = torch.autograd.grad((masked(*parts) * outputs).sum(), parts)
    slope = torch.stack([(one * way).sum() for one, way in zip(slopes, direction, strict=True)]).sum()
    step = 1e-3
    ahead, behind = (
        (masked(*(part + sign * step * way for part, way in zip(parts, direction, strict=True))) * outputs).sum()
        for sign in (1, -1)
    )
    assert slope.item() == pytest.approx((ahead - behind).item() / (2 * step), rel=2e-3)


@pytest.mark.parametrize("shapes", [((7, 5), (5, 3)), ((64, 32), (32, 96))])
def test_a_product_is_torchs(shapes: tuple[tuple[int, int], tuple[int, int]]) -> None:
    left, right = torch.randn(shapes[0]), torch.randn(shapes[1])
    bias = torch.randn(shapes[1][1])
    torch.testing.assert_close(product(left, right), left @ right)
    torch.testing.assert_close(product(left, right, bias), left @ right + bias)
    torch.testing.assert_close(product(left, right.t().contiguous().t(), bias), left @ right + bias)


@pytest.mark.parametrize("pdrop", [0.0, 0.1])
@pytest.mark.parametrize("has_avx512", [True, False])
def test_a_tuned_model_has_the_losses_and_gradients_of_transformers(
    has_avx512: bool, pdrop: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_HAS_AVX512", has_avx512)
    plain, tuned = (model(attn_pdrop=pdrop, resid_pdrop=pdrop, embd_pdrop=pdrop) for _ in range(2))
    names = list(tuned.state_dict())
    tune_for_cpu(tuned)
    assert list(tuned.state_dict()) == names
    assert tuned.config._attn_implementation == attention.UNMASKED_NAME
    assert sum(type(module) is CPUConv1D for module in tuned.modules()) == (8 if has_avx512 else 0)
    assert sum(type(module) is CPUDropout for module in tuned.modules()) == 7
    ids = torch.randint(64, (3, 130))
    losses = []
    for one in (plain, tuned):
        # With dropout only evaluation can be compared, number by number.
        one.train(pdrop == 0.0)
        loss = one(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    for (name, ours), theirs in zip(tuned.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_a_padding_mask_and_grouped_heads_are_left_to_torch() -> None:
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 6, 8)
    module: Any = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = 2, True
    grouped, _ = _attention(module, query, key, key, None, dropout=0.0)
    expected = F.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(grouped, expected.transpose(1, 2))


@pytest.mark.parametrize("said_by", ["layer", "call"])
def test_attention_that_is_not_causal_sees_the_future_under_dropout_too(said_by: str) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 6, 8) for _ in range(3)]
    module: Any = torch.nn.Module()
    module.is_causal = said_by != "layer"
    said: dict[str, Any] = {"is_causal": False} if said_by == "call" else {}
    query, key, value = parts
    attended, _ = _attention(module, query, key, value, None, dropout=1e-9, **said)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=False)
    torch.testing.assert_close(attended, expected.transpose(1, 2))


@pytest.mark.parametrize("frozen", [("weight",), ("weight", "bias"), ("bias",)])
def test_a_frozen_linear_layer_passes_the_gradient_on_and_keeps_none(frozen: tuple[str, ...]) -> None:
    layer: Any = model().transformer.h[0].attn.c_attn
    inputs = torch.randn(5, 32, requires_grad=True)
    expected = torch.autograd.grad(layer(inputs).square().sum(), [inputs, layer.weight, layer.bias])
    layer.__class__ = CPUConv1D
    for name in frozen:
        layer.get_parameter(name).requires_grad_(False)
    layer(inputs).square().sum().backward()
    for found, wanted in zip((inputs.grad, layer.weight.grad, layer.bias.grad), expected, strict=True):
        if found is not None:
            torch.testing.assert_close(found, wanted)
    assert [name for name, weight in layer.named_parameters() if weight.grad is None] == list(frozen)


def test_attention_takes_what_rotary_embeddings_leave_in_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, 70, 8) for _ in range(3))
    module: Any = torch.nn.Module()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        attended, _ = _attention(module, query, key, value.bfloat16(), None, dropout=1e-9)
        expected = attended_by_torch([query, key, value.bfloat16()])
    assert attended.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(attended, expected.transpose(1, 2), rtol=0.03, atol=0.03)


def test_bf16_comes_within_a_fiftieth_of_a_nat_of_fp32(make_spec: Any) -> None:
    spec = make_spec()
    config = TrialConfig(batch_size=4, block_size=16, learning_rate=3e-3, training_steps=200, dropout=0.0)
    losses = []
    for precision in ("fp32", "bf16"):
        state = start_run(spec, replace(config, precision=precision))
        rows = [row for row in train(state, spec.corpus, spec.protocol, eval_steps=()) if isinstance(row, MetricsRow)]
        losses.append(rows[-1].val_loss)
        assert rows[-1].val_loss < rows[0].val_loss - 0.5
    assert abs(losses[0] - losses[1]) < 0.02
