"""A small text, its tokens, and real two-layer models in folders as save_pretrained leaves them."""

import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from trainable.config import TrialConfig

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

    from trainable.data.tokens import Corpus
    from trainable.preflight.check_result import Check
    from trainable.run import RunSpec

POSITIONS = 64


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """One thread, as bit-for-bit equality needs, and torch's global generator as it was."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    threads, rng = torch.get_num_threads(), torch.get_rng_state()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.set_rng_state(rng)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own; it exists once something is cached."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client library switched off, as HF_HUB_OFFLINE=1 does before it is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 70 kB of sentences over 80 words, some of them far more frequent than others."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnoprstuvw", k=draw.randint(2, 8))) for _ in range(80)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    lines = [" ".join(draw.choices(words, weights, k=12)) + ".\n" for _ in range(1200)]
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer(text_file: Path) -> "Tokenizer":
    """A byte-level BPE of 300 ids."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train([str(text_file)], trainer)
    assert tokenizer.get_vocab_size() == 300
    return tokenizer


@pytest.fixture(scope="session")
def corpus(text_file: Path, tokenizer: "Tokenizer", tmp_path_factory: pytest.TempPathFactory) -> "Corpus":
    """The text's tokens."""
    from trainable.data.tokens import load_corpus

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return load_corpus([text_file], tokenizer)


@pytest.fixture(scope="session")
def make_model() -> Callable[..., "PreTrainedModel"]:
    """Return a function that makes a two-layer model, 32 wide, of a family: gpt2, untied, llama or neox."""
    import torch
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        GPTNeoXConfig,
        GPTNeoXForCausalLM,
        LlamaConfig,
        LlamaForCausalLM,
    )

    def make(family: str = "gpt2", *, dropout: float = 0.0, seed: int = 0, **changes: Any) -> "PreTrainedModel":
        torch.manual_seed(seed)
        shared = {"vocab_size": 300, "bos_token_id": None, "eos_token_id": None}
        if family in ("llama", "neox"):
            shapes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
            limits = {"max_position_embeddings": POSITIONS, "attention_dropout": dropout}
            if family == "neox":
                limits["hidden_dropout"] = dropout
                return GPTNeoXForCausalLM(GPTNeoXConfig(**{**shared, **shapes, **limits, **changes}))
            return LlamaForCausalLM(LlamaConfig(**{**shared, **shapes, **limits, **changes}))
        shapes = {"n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": POSITIONS}
        dropouts = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
        tied = {"tie_word_embeddings": family != "untied"}
        return GPT2LMHeadModel(GPT2Config(**{**shared, **shapes, **dropouts, **tied, **changes}))

    return make


@pytest.fixture(scope="session")
def save_model(tokenizer: "Tokenizer") -> Callable[["PreTrainedModel", Path], Path]:
    """Return a function that saves a model and the tokenizer into a folder."""
    from transformers import PreTrainedTokenizerFast
    from transformers import logging as transformers_logging

    transformers_logging.disable_progress_bar()

    def save(model: "PreTrainedModel", folder: Path) -> Path:
        model.save_pretrained(folder)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def model_folders(
    make_model: Callable[..., "PreTrainedModel"],
    save_model: Callable[["PreTrainedModel", Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """A saved model folder by family; not to be written to."""
    root = tmp_path_factory.mktemp("models")
    return {family: save_model(make_model(family), root / family) for family in ("gpt2", "untied", "llama", "neox")}


@pytest.fixture
def make_spec(corpus: "Corpus", model_folders: dict[str, Path]) -> Callable[..., "RunSpec"]:
    """Return a function that makes the fixed part of a run on the CPU, of a family or a named model."""
    from trainable.evaluation import EvalProtocol
    from trainable.model.model_names import PRESETS
    from trainable.run import RunSpec

    def make(model: str = "gpt2", **changes: Any) -> "RunSpec":
        # A preset's own tokenizer fills its embedding on any text of a usual size.
        own = replace(corpus, vocab_size=PRESETS[model]["vocab_size"]) if model in PRESETS else corpus
        values: dict[str, Any] = {
            "model_name": str(model_folders.get(model, model)),
            "corpus": own,
            "protocol": EvalProtocol(block_size=16, tokens=256),
            "device": "cpu",
            "unigram_entropy": corpus.unigram_entropy,
        }
        return RunSpec(**{**values, **changes})

    return make


@pytest.fixture
def check_model(
    make_spec: Callable[..., "RunSpec"], tokenizer: "Tokenizer", make_trial: Callable[..., TrialConfig]
) -> Callable[..., dict[str, "Check"]]:
    """Return a function that checks a model with random weights and gives the checks by name."""
    from trainable.preflight.training import Setup, check_model_setup

    def check(model: "PreTrainedModel", config: TrialConfig | None = None) -> dict[str, "Check"]:
        config = config or make_trial()
        setup = Setup(spec=make_spec(), tokenizer=tokenizer, config=config, largest=config, origin="random")
        return {check.name: check for check in check_model_setup(model, setup)}

    return check


@pytest.fixture
def make_trial() -> Callable[..., TrialConfig]:
    """Return a function that makes the hyperparameters of a run of a few hundredths of a second."""

    def make(**changes: Any) -> TrialConfig:
        values: dict[str, Any] = {"batch_size": 4, "block_size": 16, "training_steps": 6, "learning_rate": 1e-3}
        return TrialConfig(**{**values, **changes})

    return make
