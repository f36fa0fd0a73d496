"""Every fault that the preflight is for, planted in a real small GPT-2 or its text, and the healthy twin beside it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from tests.trainable.makers import MakeModel, MakeSpec, MakeTrial
from trainable.config import DOCUMENTED, TrialConfig
from trainable.data.corpus import source_files
from trainable.data.tokens import Corpus, load_corpus, sample_batch
from trainable.errors import UserError
from trainable.evaluation import EvalProtocol
from trainable.model.models import load_tokenizer
from trainable.preflight import run_preflight
from trainable.preflight.check_result import Check
from trainable.preflight.initial_weights import BASE_NAME, Predictions, check_offsets
from trainable.run import RunSpec

Run = Callable[..., dict[str, Check]]
Write = Callable[[PreTrainedModel], Path]
Trained = dict[str, PreTrainedModel]

LABELS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "right": lambda tokens: tokens[:, :-1],
    "doubled": lambda tokens: tokens[:, 1:],
    "unshifted": lambda tokens: torch.cat([tokens[:, :1], tokens[:, :-2]], dim=1),
}
"""What scripts give a model that shifts its labels itself, (B, T) of tokens (B, T + 1)."""
STEPS = {"right": 100, "doubled": 150, "unshifted": 60}


@pytest.fixture(scope="session")
def trained(make_model: MakeModel, corpus: Corpus) -> Trained:
    """A model by the labels that it was trained on."""
    return {name: _trained(make_model(), corpus, LABELS[name], steps) for name, steps in STEPS.items()}


def _trained(
    model: PreTrainedModel, corpus: Corpus, labels: Callable[[torch.Tensor], torch.Tensor], steps: int
) -> PreTrainedModel:
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batches = torch.Generator().manual_seed(0)
    for _ in range(steps):
        tokens = sample_batch(corpus.train, TrialConfig(batch_size=16, block_size=32), batches)
        optimizer.zero_grad()
        model(input_ids=tokens[:, :-1], labels=labels(tokens)).loss.backward()
        optimizer.step()
    return model


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Write:
    """Return a function that writes a model as an owner's script does, from a wrapper."""

    def write(model: PreTrainedModel) -> Path:
        path = tmp_path / "checkpoint_gpt2_text_step000150_01012025_000000.pt"
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        torch.save({"step": 150, "model_state_dict": weights, "vocab_size": 300}, path)
        return path

    return write


@pytest.fixture
def preflight(tokenizer: Tokenizer, text_file: Path, make_trial: MakeTrial) -> Run:
    """Return a function that runs the preflight and gives its checks by name."""

    def run(spec: RunSpec, config: TrialConfig | None = None, **options: Any) -> dict[str, Check]:
        given: dict[str, Any] = {"tokenizer": tokenizer, "files": [text_file], **options}
        checks = list(run_preflight(spec, config or make_trial(), **given))
        assert len({check.name for check in checks}) == len(checks)
        return {check.name: check for check in checks}

    return run


def _names(checks: dict[str, Check], *statuses: str) -> set[str]:
    return {name for name, check in checks.items() if check.status in statuses}


def test_the_embedded_default_passes() -> None:
    files = source_files(None)
    tokenizer = load_tokenizer("tiny", files)
    corpus = load_corpus(files, tokenizer)
    spec = RunSpec(
        model_name="tiny", corpus=corpus, protocol=EvalProtocol(), device="cpu", unigram_entropy=corpus.unigram_entropy
    )
    checks = list(run_preflight(spec, DOCUMENTED, tokenizer=tokenizer, files=files))
    assert [check for check in checks if check.status not in ("pass", "skipped")] == []
    assert [check.name for check in checks if check.status == "skipped"] == [BASE_NAME]
    assert len(checks) == 20
    assert all(check.advice == "" for check in checks)


def test_every_check_is_made_in_exact_products(
    make_spec: MakeSpec, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checks(*arguments: object) -> Iterator[Check]:
        for _ in range(2):
            yield Check(name="c", status="pass", measured=torch.get_float32_matmul_precision(), expected="", advice="")

    monkeypatch.setattr("trainable.preflight.preflight._checks", checks)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = list(run_preflight(make_spec(), DOCUMENTED, tokenizer=tokenizer))
    finally:
        torch.set_float32_matmul_precision(before)
    assert [check.measured for check in found] == ["highest", "highest"]


def test_a_right_checkpoint_passes(
    preflight: Run, make_spec: MakeSpec, trained: Trained, write_checkpoint: Write
) -> None:
    checks = preflight(make_spec(init_from=write_checkpoint(trained["right"])))
    assert _names(checks, "fail", "warn") == set(), [check for check in checks.values() if check.status != "pass"]
    assert len(checks) == 20


def test_an_early_checkpoint_is_named_but_not_refused(
    preflight: Run, make_spec: MakeSpec, make_model: MakeModel, corpus: Corpus, write_checkpoint: Write
) -> None:
    early = _trained(make_model(), corpus, LABELS["right"], steps=5)
    checks = preflight(make_spec(init_from=write_checkpoint(early)))
    assert _names(checks, "fail") == set()
    assert _names(checks, "warn") == {"initial loss", "checkpoint offsets"}
    assert "early in a run" in checks["initial loss"].advice


@pytest.mark.parametrize(("labels", "offset"), [("doubled", "+2"), ("unshifted", "+0")])
def test_a_checkpoint_trained_on_wrong_labels_fails(
    labels: str, offset: str, preflight: Run, make_spec: MakeSpec, trained: Trained, write_checkpoint: Write
) -> None:
    checks = preflight(make_spec(init_from=write_checkpoint(trained[labels])))
    assert "checkpoint offsets" in _names(checks, "fail")
    assert f"trained on the token at {offset}" in checks["checkpoint offsets"].advice
    # The weights are wrong, the loop is not.
    assert checks["loop loss offset"].status == "pass"


def test_a_pretrained_folder_passes_with_its_tokenizer_and_fails_with_another(
    preflight: Run,
    make_spec: MakeSpec,
    trained: Trained,
    save_model: Callable[[PreTrainedModel, Path], Path],
    tokenizer: Tokenizer,
    text_file: Path,
    tmp_path: Path,
) -> None:
    folder = save_model(trained["right"], tmp_path / "pretrained")
    assert _names(preflight(make_spec(str(folder))), "fail", "warn") == set()

    other = _other_ids(tokenizer)
    corpus = load_corpus([text_file], other)
    spec = make_spec(str(folder), corpus=corpus)
    checks = preflight(spec, tokenizer=other)
    assert "initial loss" in _names(checks, "fail")
    assert "tokenizer" in checks["initial loss"].advice
    assert "trained on the token at" not in checks["checkpoint offsets"].advice
    assert checks["tokenizer ids"].status == checks["tokenizer fit"].status == "pass"


def test_no_token_is_named_where_all_are_worse_than_guessed() -> None:
    """The shipped model on the ids of another tokenizer."""
    nats = {-1: 11.71, 0: 10.16, 1: 12.02, 2: 12.14, 3: 12.15}
    losses = {offset: loss + 0.1 * torch.arange(32).sin().view(4, 8) for offset, loss in nats.items()}
    found = check_offsets(
        Predictions(
            by_offset=losses, next_token=12.0, next_token_error=0.1, uniform=11.0, vocab_size=2048, repeat_frac=0.01
        ),
        unigram_entropy=6.1,
    )
    assert found.status == "warn"
    assert found.advice.endswith("trained on other ids than the tokenizer gives.")


@pytest.mark.parametrize(("uniform", "status"), [(7.0, "warn"), (7.6, "fail")])
def test_random_weights_that_predict_the_token_they_read_were_not_trained_on_it(uniform: float, status: str) -> None:
    """Mamba's, tied, measured; and the same losses of weights that have learned to tell frequent tokens from others."""
    nats = {-1: 7.00, 0: 4.20, 1: 7.00, 2: 7.03, 3: 7.05}
    losses = {offset: loss + 0.1 * torch.arange(32).sin().view(4, 8) for offset, loss in nats.items()}
    found = check_offsets(
        Predictions(
            by_offset=losses, next_token=7.0, next_token_error=0.02, uniform=uniform, vocab_size=1000, repeat_frac=0.01
        ),
        unigram_entropy=5.73,
    )
    assert found.status == status
    assert ("The labels were not shifted" in found.advice) == (status == "fail")


def _other_ids(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokens under other ids, as in a tokenizer that was trained again."""
    import json

    parts = json.loads(tokenizer.to_str())
    vocabulary = parts["model"]["vocab"]
    order = np.random.default_rng(0).permutation(len(vocabulary))
    parts["model"]["vocab"] = {token: int(order[index]) for token, index in vocabulary.items()}
    return Tokenizer.from_str(json.dumps(parts))


def test_random_weights_in_a_folder_are_named_but_not_refused(preflight: Run, make_spec: MakeSpec) -> None:
    checks = preflight(make_spec("gpt2"))
    assert _names(checks, "fail") == set()
    assert _names(checks, "warn") == {"initial loss", "checkpoint offsets"}
    assert "look random" in checks["initial loss"].advice


def test_weights_with_nan_are_named_and_end_the_models_checks(
    preflight: Run, make_spec: MakeSpec, make_model: MakeModel, write_checkpoint: Write
) -> None:
    model = make_model()
    with torch.no_grad():
        model.get_submodule("transformer.h.1.mlp.c_fc").get_parameter("weight")[0, 0] = float("nan")
    checks = preflight(make_spec(init_from=write_checkpoint(model)))
    assert _names(checks, "fail") == {"finite weights"}
    assert "transformer.h.1.mlp.c_fc.weight" in checks["finite weights"].measured
    assert "causality" not in checks


def test_weights_that_overflow_fail(
    preflight: Run, make_spec: MakeSpec, make_model: MakeModel, write_checkpoint: Write
) -> None:
    model = make_model()
    with torch.no_grad():
        model.get_submodule("transformer.ln_f").get_parameter("weight").mul_(1e38)
    checks = preflight(make_spec(init_from=write_checkpoint(model)))
    assert {"initial loss", "first steps"} <= _names(checks, "fail")
    assert checks["finite weights"].status == "pass"


def test_a_block_longer_than_the_models_positions_fails_by_name(
    preflight: Run, make_spec: MakeSpec, make_trial: MakeTrial
) -> None:
    checks = preflight(make_spec("gpt2"), make_trial(block_size=65))
    assert _names(checks, "fail") == {"block size"}
    assert checks["block size"].advice.startswith("Lower block_size=65 and the largest block_size=65 to 64")
    checks = preflight(make_spec("gpt2"), make_trial(block_size=64), largest=make_trial(block_size=128))
    assert checks["block size"].advice.startswith("Lower the largest block_size=128 to 64")
    assert checks["memory"].status == "skipped"
    assert preflight(make_spec("gpt2"), make_trial(block_size=64))["block size"].status == "pass"


def test_a_batch_that_does_not_fit_is_refused_without_being_tried(
    preflight: Run, make_spec: MakeSpec, make_trial: MakeTrial
) -> None:
    largest = make_trial(batch_size=65_536, block_size=64)
    checks = preflight(make_spec("gpt2"), largest=largest, available_bytes=2 << 30)
    assert _names(checks, "fail") == {"memory"}
    assert "batch_size=65536 x block_size=64" in checks["memory"].measured
    assert "not tried" in checks["memory"].measured
    checks = preflight(make_spec("gpt2"), largest=make_trial(batch_size=8, block_size=64), available_bytes=2 << 30)
    assert checks["memory"].status == "pass"
    assert "a real step was run" in checks["memory"].measured


def test_memory_is_that_of_the_dropout_that_the_largest_run_has(
    preflight: Run, make_spec: MakeSpec, make_trial: MakeTrial
) -> None:
    base = make_trial(dropout=0.0)
    without, with_dropout = (
        preflight(
            make_spec("gpt2"), base, largest=make_trial(batch_size=256, block_size=64, dropout=p), available_bytes=1
        )["memory"].needed_bytes
        for p in (0.0, 0.1)
    )
    assert without is not None
    assert with_dropout is not None
    # Each of two layers keeps a mask of its two residual sums at least, (256, 64, 32) fp32.
    assert with_dropout > without + 2 * 2 * 256 * 64 * 32 * 4


def test_training_text_inside_the_validation_text_fails(
    preflight: Run, make_spec: MakeSpec, text_file: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    lines = text_file.read_text().splitlines(keepends=True)
    leaky = tmp_path / "leaky.txt"
    leaky.write_text("".join([*lines, *lines[100:150]]))
    corpus = load_corpus([leaky], tokenizer)
    checks = preflight(make_spec("gpt2", corpus=corpus), files=[leaky])
    assert _names(checks, "fail") == {"train/validation overlap"}
    assert f"to {len(corpus.val):,}, '" in checks["train/validation overlap"].measured


def test_a_loop_that_doubles_the_shift_fails(
    preflight: Run, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def doubled(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = model(input_ids=tokens[:, :-1], labels=tokens[:, 1:]).loss
        return loss

    monkeypatch.setattr("trainable.loop.next_token_loss", doubled)
    checks = preflight(make_spec("gpt2"))
    assert _names(checks, "fail") == {"loop loss offset"}
    assert "that at offset +2" in checks["loop loss offset"].advice


def test_it_leaves_random_numbers_threads_and_a_step_by_step_caller_alone(
    make_spec: MakeSpec, make_trial: MakeTrial, tokenizer: Tokenizer
) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for _ in run_preflight(make_spec("gpt2"), make_trial(dropout=0.3), tokenizer=tokenizer):
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == 1
    assert torch.is_grad_enabled()


def test_what_cannot_be_used_at_all_is_an_error_and_no_check(
    make_spec: MakeSpec, make_trial: MakeTrial, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    def checks(spec: RunSpec, **changes: Any) -> Sequence[Check]:
        return list(run_preflight(spec, make_trial(**changes), tokenizer=tokenizer))

    with pytest.raises(UserError, match="does not exist"):
        checks(make_spec("gpt2", init_from=tmp_path / "none.pt"))
    with pytest.raises(UserError, match="too short"):
        checks(make_spec("gpt2"), block_size=1_000_000)


def test_a_failed_check_raises_and_others_do_not(make_spec: MakeSpec) -> None:
    check = Check(name="memory", status="fail", measured="9 GiB", expected="at most 8", advice="Lower BATCH_SIZE.")
    with pytest.raises(UserError, match=r"memory: 9 GiB; expected: at most 8\. Lower BATCH_SIZE\."):
        check.raise_if_failed()
    for status in ("pass", "warn", "skipped"):
        replace(check, status=status).raise_if_failed()


def test_a_loop_whose_optimizer_puts_weights_back_fails(
    preflight: Run, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    class PutsBack(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            held = [one for group in self.param_groups for one in group["params"] if one.dim() == 2][2:6]
            before = [one.detach().clone() for one in held]
            result = super().step(closure)
            with torch.no_grad():
                for one, old in zip(held, before, strict=True):
                    one.copy_(old)
            return result

    monkeypatch.setattr(torch.optim, "AdamW", PutsBack)
    checks = preflight(make_spec("gpt2"))
    assert _names(checks, "fail") == {"optimizer updates"}
    assert "4 of 28 trainable tensors unchanged" in checks["optimizer updates"].measured
    assert checks["gradient reach"].status == "pass"
