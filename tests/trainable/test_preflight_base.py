"""Doubled labels on a pretrained model: told from its base after a few steps, where the model alone looks sound."""

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from results.diagnosis.of_checkpoint import diagnose_checkpoints, report_of_checkpoints
from tests.trainable.makers import MakeModel, MakeSpec, MakeTrial, SaveModel
from trainable.checkpoint.exam.exam_facts import OffsetGain, learned_doubled_labels
from trainable.checkpoint.exam.examine import examine_checkpoints
from trainable.config import TrialConfig
from trainable.data.tokens import Corpus, load_corpus, sample_batch
from trainable.preflight import check_labels, run_preflight
from trainable.preflight.check_result import Check
from trainable.preflight.initial_weights import BASE_NAME

Tuned = Callable[..., Path]
Against = Callable[[Path, Corpus], Check]


def _train(model: PreTrainedModel, corpus: Corpus, *, steps: int, lr: float, block: int = 32, offset: int = 1) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    batches = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        tokens = sample_batch(corpus.train, TrialConfig(batch_size=16, block_size=block), batches)
        optimizer.zero_grad()
        # The model shifts its labels itself.
        model(input_ids=tokens[:, :-1], labels=tokens[:, 1:] if offset == 2 else tokens[:, :-1]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


@pytest.fixture(scope="session")
def pretrained(make_model: MakeModel, corpus: Corpus) -> PreTrainedModel:
    """A model that has learned the words of the text."""
    # The fixture that sees to one thread comes after those of the session.
    torch.set_num_threads(1)
    model = make_model()
    _train(model, corpus, steps=120, lr=5e-3)
    return model


@pytest.fixture(scope="session")
def base_folder(pretrained: PreTrainedModel, save_model: SaveModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(pretrained, tmp_path_factory.mktemp("base") / "pretrained")


@pytest.fixture(scope="session")
def other_text(text_file: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The same words, in other shares and lines."""
    words = text_file.read_text().split()
    draw = random.Random(1)
    rare = sorted(set(words))
    lines = [" ".join(draw.choices(words, k=5) + draw.choices(rare, k=4)) + "\n" for _ in range(800)]
    path = tmp_path_factory.mktemp("other") / "other.txt"
    path.write_text("".join(lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
        return load_corpus([path], tokenizer)


@pytest.fixture
def tuned(pretrained: PreTrainedModel, tmp_path: Path) -> Tuned:
    """Return a function that fine-tunes the model and writes an owner's checkpoint."""

    def tune(corpus: Corpus, *, steps: int, lr: float = 1e-3, block: int = 32, offset: int = 1) -> Path:
        model = copy.deepcopy(pretrained)
        _train(model, corpus, steps=steps, lr=lr, block=block, offset=offset)
        path = tmp_path / f"checkpoint_step{steps:06d}.pt"
        torch.save({"step": steps, "model_state_dict": model.state_dict()}, path)
        return path

    return tune


@pytest.fixture
def against_base(make_spec: MakeSpec, make_trial: MakeTrial, base_folder: Path, tokenizer: Tokenizer) -> Against:
    def run(path: Path, corpus: Corpus) -> Check:
        spec = make_spec(str(base_folder), corpus=corpus, init_from=path)
        checks = run_preflight(spec, make_trial(block_size=32), tokenizer=tokenizer)
        return next(check for check in checks if check.name == BASE_NAME)

    return run


@pytest.mark.parametrize("steps", [4, 18, 40])
def test_doubled_labels_are_named_in_preflight_and_diagnose(
    steps: int, tuned: Tuned, against_base: Against, other_text: Corpus, base_folder: Path
) -> None:
    path = tuned(other_text, steps=steps, offset=2)
    check = against_base(path, other_text)
    assert check.status == "fail", check
    assert "shifted twice" in check.advice

    (facts,) = examine_checkpoints([path], tokens=other_text.val, model_name=str(base_folder))
    found = diagnose_checkpoints([facts], unigram_entropy=other_text.unigram_entropy)
    assert any("labels were shifted twice" in one.summary for one in found), (facts.base_gains, found)


SOUND = [
    (4, 1e-5, 32, "own"),
    (4, 1e-4, 32, "other"),
    (4, 1e-3, 32, "other"),
    (4, 3e-3, 16, "own"),
    (18, 1e-4, 32, "own"),
    (18, 1e-3, 16, "other"),
    (18, 3e-3, 32, "other"),
    (40, 1e-4, 48, "other"),
    (40, 1e-3, 32, "own"),
    (40, 3e-3, 32, "other"),
]


@pytest.mark.parametrize(("steps", "lr", "block", "text"), SOUND)
def test_sound_fine_tunes_pass(
    steps: int,
    lr: float,
    block: int,
    text: str,
    tuned: Tuned,
    against_base: Against,
    corpus: Corpus,
    other_text: Corpus,
    base_folder: Path,
) -> None:
    used = corpus if text == "own" else other_text
    path = tuned(used, steps=steps, lr=lr, block=block)
    assert against_base(path, used).status == "pass"
    (facts,) = examine_checkpoints([path], tokens=used.val, model_name=str(base_folder))
    assert diagnose_checkpoints([facts], unigram_entropy=used.unigram_entropy) == []


def test_check_labels_looks_at_the_base_too(pretrained: PreTrainedModel, other_text: Corpus, tuned: Tuned) -> None:
    model = copy.deepcopy(pretrained)
    model.load_state_dict(torch.load(tuned(other_text, steps=4, offset=2))["model_state_dict"])
    tokens = sample_batch(other_text.train, TrialConfig(batch_size=32, block_size=32), torch.Generator().manual_seed(9))
    batch = {"input_ids": tokens, "labels": tokens}

    def loss() -> torch.Tensor:
        nats: torch.Tensor = model(**batch).loss
        return nats

    assert check_labels(model, batch, loss).status == "pass"
    check = check_labels(model, batch, loss, base=pretrained)
    assert check.status == "fail"
    assert "+2" in check.measured
    assert "shifted twice" in check.advice
    assert check_labels(pretrained, batch, lambda: pretrained(**batch).loss, base=pretrained).status == "pass"


def test_what_could_not_be_compared_is_said(tuned: Tuned, other_text: Corpus) -> None:
    path = tuned(other_text, steps=4)
    (facts,) = examine_checkpoints([path], tokens=other_text.val)
    report = report_of_checkpoints("it", [facts])
    assert any("set GPT2_MODEL_NAME to the pretrained model it began as" in note for note in report.notes)


def test_the_rule() -> None:
    def gains(first: float, second: float, error: float = 0.01) -> dict[int, OffsetGain]:
        return {
            1: OffsetGain(base_nats=3.5, nats=first, error=error),
            2: OffsetGain(base_nats=9.1, nats=second, error=error),
        }

    # The 135M of the measurements: doubled labels after 4 and 40 steps, and right ones at too high a learning rate.
    assert learned_doubled_labels(gains(-1.5, 2.72, 0.2))
    assert learned_doubled_labels(gains(-1.65, 3.2, 0.2))
    assert not learned_doubled_labels(gains(-2.75, 0.9, 0.14))
    assert not learned_doubled_labels(gains(-0.072, 0.409, 0.1))
    assert not learned_doubled_labels(gains(0.037, 0.771, 0.08))
    assert not learned_doubled_labels(gains(-1.6, -0.016, 0.1))
    # Another kind of text than the base's, where both gain.
    assert learned_doubled_labels(gains(0.1, 2.2, 0.1))
    assert not learned_doubled_labels(gains(0.2, 0.4))
    assert not learned_doubled_labels(gains(-0.2, -0.1))
    assert not learned_doubled_labels({})
