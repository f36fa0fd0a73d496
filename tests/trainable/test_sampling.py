"""How a model goes on with a prompt: the same for a seed, and nothing else of the process is changed by it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from trainable.errors import UserError
from trainable.sampling import PROMPT_TOKENS, SAMPLE_TOKENS, default_prompt, prompt_ids, sample

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from trainable.data.tokens import Corpus

MakeModel = Callable[..., "PreTrainedModel"]


@pytest.fixture
def prompt(tokenizer: "Tokenizer", corpus: "Corpus") -> str:
    return default_prompt(tokenizer, corpus.val)


@pytest.mark.parametrize("family", ["gpt2", "llama", "neox"])
def test_a_seed_says_the_same_words_and_another_seed_others(
    make_model: MakeModel, tokenizer: "Tokenizer", prompt: str, family: str
) -> None:
    model = make_model(family)
    first = sample(model, tokenizer, prompt, seed=1)
    torch.manual_seed(99)
    assert sample(model, tokenizer, prompt, seed=1) == first
    assert sample(model, tokenizer, prompt, seed=2) != first


def test_the_processs_random_numbers_and_the_models_mode_stay(
    make_model: MakeModel, tokenizer: "Tokenizer", prompt: str
) -> None:
    model = make_model(dropout=0.5).train()
    before = torch.get_rng_state()
    first = sample(model, tokenizer, prompt)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    # Without dropout, which would draw another text each time.
    assert sample(model.eval(), tokenizer, prompt) == first
    assert not model.training


def test_the_likeliest_token_follows_the_prompt_and_what_was_said_so_far(
    make_model: MakeModel, tokenizer: "Tokenizer", prompt: str
) -> None:
    model = make_model().eval()
    ids = prompt_ids(tokenizer, prompt)
    start = len(ids)
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert sample(model, tokenizer, prompt, tokens=12, temperature=0) == tokenizer.decode(ids[start:])


def test_an_end_of_text_token_ends_it(make_model: MakeModel, tokenizer: "Tokenizer", prompt: str) -> None:
    model = make_model()
    whole = sample(model, tokenizer, prompt, tokens=12, temperature=0)
    third = _greedy(model, prompt_ids(tokenizer, prompt), 3)
    model.config.eos_token_id = third[-1]
    expected = third[: third.index(third[-1]) + 1]
    assert sample(model, tokenizer, prompt, tokens=12, temperature=0) == tokenizer.decode(expected)
    assert len(expected) < 12
    # A model may have several.
    model.config.eos_token_id = [-1, third[-1]]
    assert sample(model, tokenizer, prompt, tokens=12, temperature=0) == tokenizer.decode(expected)
    model.config.eos_token_id = None
    assert sample(model, tokenizer, prompt, tokens=12, temperature=0) == whole


def _greedy(model: "PreTrainedModel", ids: list[int], count: int) -> list[int]:
    start = len(ids)
    ids = list(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model.eval()(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[start:]


def test_of_a_long_prompt_the_end_counts_that_the_context_holds(
    make_model: MakeModel, tokenizer: "Tokenizer", corpus: "Corpus"
) -> None:
    model = make_model(n_positions=16)
    long = tokenizer.decode(corpus.val[:200].tolist())
    ids = prompt_ids(tokenizer, long)
    assert len(ids) > 16 + SAMPLE_TOKENS
    expected = _greedy(model, ids[-16:], 1)
    assert sample(model, tokenizer, long, tokens=1, temperature=0) == tokenizer.decode(expected)
    assert sample(model, tokenizer, long) != ""


def test_rows_of_the_embedding_without_a_token_are_never_drawn(
    make_model: MakeModel, tokenizer: "Tokenizer", prompt: str
) -> None:
    model = make_model("untied", vocab_size=310)
    with torch.no_grad():
        model.lm_head.weight[300:] = 100 * torch.sign(model.lm_head.weight[300:])
    assert len(prompt_ids(tokenizer, sample(model, tokenizer, prompt))) > 0


def test_a_prompt_of_no_token_is_refused(make_model: MakeModel, tokenizer: "Tokenizer") -> None:
    with pytest.raises(UserError, match="SAMPLE_PROMPT='' has no token"):
        sample(make_model(), tokenizer, "")


def test_the_default_prompt_is_whole_words_of_the_held_out_text(tokenizer: "Tokenizer", corpus: "Corpus") -> None:
    text = tokenizer.decode(corpus.val[: PROMPT_TOKENS + 1].tolist())
    prompt = default_prompt(tokenizer, corpus.val)
    assert prompt in " ".join(text.split())
    assert 2 < len(prompt_ids(tokenizer, prompt)) <= PROMPT_TOKENS + 1
    # Neither the rest of a word before nor the beginning of one after.
    every = set(tokenizer.decode(corpus.val[:2000].tolist()).split()[1:-1])
    assert set(prompt.split()) <= every


@pytest.mark.parametrize(
    ("text", "expected"),
    [("one", "one"), ("one two", "one two"), (" one two three four", "one two three"), ("x one two three", "one two")],
)
def test_the_default_prompt_of_a_few_words(tokenizer: "Tokenizer", text: str, expected: str) -> None:
    ids = np.array(tokenizer.encode(text).ids, dtype=np.uint16)
    assert default_prompt(tokenizer, ids, tokens=len(ids)) == expected


def test_the_default_prompt_is_prose_where_the_held_out_text_begins_in_a_table(tokenizer: "Tokenizer") -> None:
    table, prose = (
        "| - | -- | +----+ |\n" * 9,
        "a few words of prose, as people write them, follow the table in the text",
    )
    ids = np.array(tokenizer.encode(table + prose).ids, dtype=np.uint16)
    assert default_prompt(tokenizer, ids) in prose
    ids = np.array(tokenizer.encode(table).ids, dtype=np.uint16)
    assert default_prompt(tokenizer, ids).startswith("- | -- |")


def test_the_default_prompt_begins_a_sentence_where_one_begins(tokenizer: "Tokenizer") -> None:
    text = (
        "the rest of what was cut, e.g. here. Then a sentence of some words begins and goes on for a good while, as it"
    )
    ids = np.array(tokenizer.encode(text * 3).ids, dtype=np.uint16)
    prompt = default_prompt(tokenizer, ids)
    assert prompt.startswith("Then a sentence of")
    assert prompt in text
    assert len(prompt_ids(tokenizer, prompt)) <= PROMPT_TOKENS + 1


def test_half_a_character_at_the_cut_is_no_part_of_the_prompt(tokenizer: "Tokenizer") -> None:
    ids = np.array(tokenizer.encode("語" * 9).ids, dtype=np.uint16)  # three tokens each
    assert default_prompt(tokenizer, ids[1:], tokens=9) == "語語"
