"""The evaluation: the same windows always, each token scored once in fp32, and no trace of it left in the run."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from results.words import scored_tokens
from tests.trainable.makers import MakeModel
from trainable import evaluation
from trainable.data.tokens import Corpus
from trainable.errors import UserError
from trainable.evaluation import EvalProtocol, eval_windows, evaluate, evaluate_start
from trainable.loss import next_token_losses

PROTOCOL = EvalProtocol(block_size=16, tokens=512)


def positions(length: int) -> "np.ndarray[tuple[int], np.dtype[np.uint32]]":
    return np.arange(length, dtype=np.uint32)


@settings(derandomize=True, deadline=None, max_examples=200)
@given(length=st.integers(4, 5000), block_size=st.integers(2, 70), tokens=st.integers(2, 6000))
def test_each_token_is_scored_once_with_half_a_block_before_it(length: int, block_size: int, tokens: int) -> None:
    block_size, tokens = min(block_size, length - 1), max(tokens, block_size)
    windows = eval_windows(positions(length), EvalProtocol(block_size=block_size, tokens=tokens))
    assert windows.shape[1] == block_size + 1
    assert (windows[:, 1:] == windows[:, :-1] + 1).all()
    assert windows[0, 0] == 0
    assert windows.max() < length
    scored = windows[:, -(block_size // 2) :]
    assert torch.bincount(scored.flatten()).max() == 1
    assert (scored - windows[:, :1] >= block_size / 2).all()
    asked = {"evaluation": {"block_size": block_size, "tokens": tokens}, "corpus": {"val_tokens": length}}
    assert scored.numel() == scored_tokens(asked) <= tokens
    possible = (length - 1 - block_size) // (block_size // 2) + 1
    assert len(windows) == min(possible, tokens // (block_size // 2))


def test_windows_are_spread_evenly_from_end_to_end() -> None:
    starts = eval_windows(positions(10_000), PROTOCOL)[:, 0]
    assert len(starts) == 64
    assert (starts % 8 == 0).all()
    assert starts[0] == 0
    assert starts[-1] == 9976  # the last multiple of 8 that leaves 17 tokens
    gaps = starts.diff()
    assert gaps.max() - gaps.min() <= 8


def test_a_large_budget_scores_all_there_is() -> None:
    windows = eval_windows(positions(1000), EvalProtocol(block_size=16, tokens=10**6))
    assert windows[:, -8:].flatten().tolist() == list(range(9, 1000 - 7))


def test_windows_are_the_same_at_every_call(corpus: Corpus) -> None:
    first, second = eval_windows(corpus.val, PROTOCOL), eval_windows(corpus.val, PROTOCOL)
    assert first.dtype == torch.int64
    assert torch.equal(first, second)
    assert first[0].tolist() == corpus.val[:17].tolist()


def test_it_is_the_mean_over_the_second_halves(make_model: MakeModel, corpus: Corpus) -> None:
    for block_size in (16, 15):
        windows = eval_windows(corpus.val, EvalProtocol(block_size=block_size, tokens=512))
        model = make_model().eval()
        with torch.no_grad():
            losses = next_token_losses(model, windows)
        expected = losses[:, -(block_size // 2) :].double().mean().item()
        assert evaluate(model, windows) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "untied", "llama"])
def test_twice_is_bit_equal_with_dropout_in_the_model(make_model: MakeModel, corpus: Corpus, family: str) -> None:
    windows = eval_windows(corpus.val, PROTOCOL)
    model, without = make_model(family, dropout=0.5), make_model(family, dropout=0.0)
    model.train()
    losses = [evaluate(model, windows) for _ in range(3)]
    assert losses == [evaluate(without, windows)] * 3
    assert 5 < losses[0] < 7  # ln 300 = 5.70


def test_no_random_number_is_drawn_and_no_gradient_left(make_model: MakeModel, corpus: Corpus) -> None:
    model = make_model(dropout=0.5)
    model.train()
    before = torch.get_rng_state()
    evaluate(model, eval_windows(corpus.val, PROTOCOL))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    evaluation_after = next_token_losses(model, eval_windows(corpus.val, PROTOCOL))
    assert evaluation_after.requires_grad  # inference mode ended with it


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_it_is_fp32_whatever_the_autocast_around_it(
    make_model: MakeModel, corpus: Corpus, precision: torch.dtype
) -> None:
    model, windows = make_model(), eval_windows(corpus.val, PROTOCOL)
    exact = evaluate(model, windows)
    with torch.autocast("cpu", dtype=precision):
        within = evaluate(model, windows)
        model.eval()
        with torch.no_grad():
            rough = next_token_losses(model, windows)[:, -8:].mean().item()
    assert within == exact
    assert rough != pytest.approx(exact, rel=1e-7)


def test_how_windows_are_batched_does_not_matter(
    make_model: MakeModel, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, windows = make_model(), eval_windows(corpus.val, PROTOCOL)
    whole = evaluate(model, windows)
    for tokens_per_forward in (1, 100, 17 * 63):
        monkeypatch.setattr(evaluation, "EVAL_TOKENS_PER_FORWARD", tokens_per_forward)
        assert evaluate(model, windows) == pytest.approx(whole, rel=1e-6)
    shuffled = windows[torch.randperm(len(windows))]
    assert evaluate(model, shuffled) == pytest.approx(whole, rel=1e-6)


def test_logits_that_exist_as_a_whole_are_no_more_than_memory_has_room_for(
    make_model: MakeModel, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, windows = make_model(), eval_windows(corpus.val, PROTOCOL)
    whole, sizes = evaluate(model, windows), list[int]()
    monkeypatch.setattr(evaluation, "find_head", lambda _: None)
    monkeypatch.setattr("trainable.loss.find_head", lambda _: None)
    monkeypatch.setattr(evaluation, "EVAL_LOGITS", 300 * 60)
    model.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.logits.numel()))
    assert evaluate(model, windows) == pytest.approx(whole, rel=1e-6)
    assert max(sizes) <= 300 * 60


def test_every_module_is_left_in_its_own_mode(make_model: MakeModel, corpus: Corpus) -> None:
    model = make_model()
    model.train()
    model.get_submodule("transformer.h.0").eval()
    modes = [module.training for module in model.modules()]
    evaluate(model, eval_windows(corpus.val, PROTOCOL))
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(IndexError):
        evaluate(model, torch.full((2, 17), 300))
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2


def test_a_nan_in_the_weights_is_a_nan_loss(make_model: MakeModel, corpus: Corpus) -> None:
    model = make_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[:] = torch.nan
    assert np.isnan(evaluate(model, eval_windows(corpus.val, PROTOCOL)))


def test_a_training_text_shorter_than_a_held_out_block_has_a_start_too(make_model: MakeModel, corpus: Corpus) -> None:
    short = replace(corpus, sha256=None, validation=corpus)
    vars(short)["tokens"] = corpus.tokens[:20]
    start = evaluate_start(make_model(), short, EvalProtocol(block_size=32, tokens=64))
    assert math.isfinite(start.train_loss)


def test_a_protocol_without_a_whole_block_is_refused() -> None:
    assert EvalProtocol(block_size=2, tokens=2).tokens == 2
    with pytest.raises(UserError, match="EVAL_BLOCK_SIZE=1 must be at least 2"):
        EvalProtocol(block_size=1, tokens=100)
    with pytest.raises(UserError, match="EVAL_TOKENS=127 must be at least EVAL_BLOCK_SIZE=128"):
        EvalProtocol(block_size=128, tokens=127)
