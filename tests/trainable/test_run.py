"""Runs: started, cut and resumed as if never cut, bit for bit, or begun from an owner's weights."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tests.trainable.makers import MakeModel, MakeSpec, MakeTrial, owners_file
from trainable.checkpoint.checkpoint import read_checkpoint, save_checkpoint
from trainable.config import TrialConfig
from trainable.data.tokens import Corpus, load_corpus
from trainable.errors import UserError
from trainable.evaluation import EvalProtocol
from trainable.loop import TrainRow, train
from trainable.model.models import load_tokenizer
from trainable.rows import MetricsRow, StepRow
from trainable.run import RunSpec, resume_run, start_run
from trainable.schedule import learning_rate_at
from trainable.state import TrainState
from trainable.state import new_state as real_new_state

EVERYTHING: dict[str, Any] = {
    "grad_accum_steps": 2,
    "lr_schedule": "warmup_cosine",
    "warmup_steps": 3,
    "dropout": 0.2,
    "weight_decay": 0.1,
    "training_steps": 8,
}


@dataclass(frozen=True)
class Trace:
    """What a run leaves: its rows without times, and all that a later step depends on."""

    steps: list[StepRow]
    val_losses: dict[int, float]
    weights: dict[str, torch.Tensor]
    moments: list[dict[str, torch.Tensor]]
    monitor: dict[str, Any]
    random: list[float]


def traced(state: TrainState, rows: list[TrainRow]) -> Trace:
    monitor = state.monitor.state_dict()
    return Trace(
        steps=[replace(row, step_time_s=0.0) for row in rows if isinstance(row, StepRow)],
        val_losses={row.optimizer_steps: row.val_loss for row in rows if isinstance(row, MetricsRow)},
        weights=dict(state.model.state_dict()),
        moments=list(state.optimizer.state_dict()["state"].values()),
        monitor={name: value for name, value in monitor.items() if name != "speed"},
        random=[torch.rand(1).item(), torch.rand(1, generator=state.batches).item(), state.scaler.get_scale()],
    )


def rest_of(state: TrainState, spec: RunSpec) -> list[TrainRow]:
    return list(train(state, spec.corpus, spec.protocol, eval_steps={4}))


def cut_at(step: int, spec: RunSpec, config: TrialConfig, path: Path) -> None:
    """Run to a step, save, and leave the process's random numbers in another state."""
    state = start_run(spec, config)
    for row in train(state, spec.corpus, spec.protocol, eval_steps={4}):
        if isinstance(row, StepRow) and row.optimizer_steps == step:
            break
    save_checkpoint(state, path, model_name=spec.model_name, corpus_fingerprint=spec.corpus.fingerprint)
    torch.manual_seed(12345)


def assert_equal(given: Trace, whole: Trace, *, after: int) -> None:
    assert given.steps == [row for row in whole.steps if row.optimizer_steps > after]
    assert given.val_losses.items() >= {s: loss for s, loss in whole.val_losses.items() if s > after}.items()
    assert given.weights.keys() == whole.weights.keys()
    for name, tensor in whole.weights.items():
        assert torch.equal(given.weights[name], tensor), name
    assert len(given.moments) == len(whole.moments)
    for own, expected in zip(given.moments, whole.moments, strict=True):
        assert own.keys() == expected.keys()
        assert all(torch.equal(own[name], expected[name]) for name in expected)
    assert given.monitor == whole.monitor
    assert given.random == whole.random


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        ("gpt2", {"dropout": 0.0, "training_steps": 8}),
        ("gpt2", EVERYTHING),
        ("untied", EVERYTHING),
        ("llama", EVERYTHING),
        ("tiny-scratch", {**EVERYTHING, "batch_size": 1, "lr_schedule": "wsd", "decay_frac": 0.5}),
        ("gpt2", {**EVERYTHING, "precision": "bf16"}),
        ("gpt2", {**EVERYTHING, "precision": "fp16", "grad_clip_norm": 0.0}),
    ],
    ids=["plain", "everything", "untied", "llama", "tiny-scratch", "bf16", "fp16"],
)
def test_resuming_equals_never_having_stopped_bit_for_bit(
    make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path, model: str, changes: dict[str, Any]
) -> None:
    spec, config, path = make_spec(model), make_trial(**changes), tmp_path / "x.pt"
    state = start_run(spec, config)
    whole = traced(state, rest_of(state, spec))
    for cut in (1, 4, 7):
        cut_at(cut, spec, config, path)
        resumed = resume_run(spec, config, read_checkpoint(path))
        assert (resumed.optimizer_steps, resumed.tokens_seen) == (cut, cut * config.tokens_per_step)
        assert resumed.active_s > 0
        assert_equal(traced(resumed, rest_of(resumed, spec)), whole, after=cut)


def test_a_run_may_be_cut_at_every_step(make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path) -> None:
    spec, config, path = make_spec(), make_trial(**EVERYTHING), tmp_path / "x.pt"
    state = start_run(spec, config)
    whole = traced(state, rest_of(state, spec))
    cut_at(1, spec, config, path)
    steps: list[StepRow] = []
    for step in range(2, 9):
        state = resume_run(spec, config, read_checkpoint(path))
        rows = train(state, spec.corpus, spec.protocol, eval_steps=())
        assert isinstance(next(rows), MetricsRow)
        taken = next(rows)
        assert isinstance(taken, StepRow)
        steps.append(replace(taken, step_time_s=0.0))
        assert state.optimizer_steps == step
        save_checkpoint(state, path, model_name=spec.model_name, corpus_fingerprint="")
        torch.manual_seed(12345)
    assert steps == whole.steps[1:]
    assert all(torch.equal(state.model.state_dict()[name], tensor) for name, tensor in whole.weights.items())


def test_a_saved_run_goes_on_as_if_not_saved(make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path) -> None:
    spec, config = make_spec(), make_trial(**EVERYTHING)
    state = start_run(spec, config)
    whole = traced(state, rest_of(state, spec))
    state = start_run(spec, config)
    rows = []
    for row in train(state, spec.corpus, spec.protocol, eval_steps={4}):
        rows.append(row)
        save_checkpoint(state, tmp_path / "x.pt", model_name="", corpus_fingerprint="")
    assert_equal(traced(state, rows), whole, after=0)


def test_a_longer_run_takes_the_same_way_on(make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path) -> None:
    spec, path = make_spec(), tmp_path / "x.pt"
    short, long = (make_trial(dropout=0.2, training_steps=steps) for steps in (4, 8))
    state = start_run(spec, long)
    whole = traced(state, rest_of(state, spec))
    cut_at(4, spec, short, path)
    resumed = resume_run(spec, long, read_checkpoint(path))
    assert_equal(traced(resumed, rest_of(resumed, spec)), whole, after=4)


def test_what_is_set_for_the_resumed_run_counts(make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path) -> None:
    spec, path = make_spec(), tmp_path / "x.pt"
    cut_at(2, spec, make_trial(learning_rate=1e-2, weight_decay=0.0), path)
    checkpoint = read_checkpoint(path)
    norms = {}
    for weight_decay in (0.0, 10.0):
        config = make_trial(learning_rate=1e-2, weight_decay=weight_decay, training_steps=10)
        state = resume_run(spec, config, checkpoint)
        rest_of(state, spec)
        norms[weight_decay] = float(state.model.get_input_embeddings().weight.detach().norm())
    assert norms[10.0] < 0.8 * norms[0.0]
    slower = resume_run(spec, make_trial(learning_rate=1e-4), checkpoint)
    assert {row.learning_rate for row in rest_of(slower, spec) if isinstance(row, StepRow)} == {1e-4}


def test_the_loss_scale_is_kept(make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path) -> None:
    spec, config, path = make_spec(), make_trial(precision="fp16"), tmp_path / "x.pt"
    state = start_run(spec, config)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**9)
    save_checkpoint(state, path, model_name="", corpus_fingerprint="")
    assert start_run(spec, config).scaler.get_scale() != 2.0**9
    assert resume_run(spec, config, read_checkpoint(path)).scaler.get_scale() == 2.0**9


def test_a_run_goes_on_in_another_precision(
    make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, path = make_spec(), tmp_path / "x.pt"
    # As on MPS, whose fused optimizer knows no loss scaler.
    monkeypatch.setattr("trainable.state.leaves_out_steps", lambda device_type: False)
    for before, after in (("fp32", "fp16"), ("fp16", "bf16")):
        cut_at(4, spec, make_trial(precision=before), path)
        resumed = resume_run(spec, make_trial(precision=after), read_checkpoint(path))
        assert [group["fused"] for group in resumed.optimizer.param_groups] == [after != "fp16"]
        assert [row.optimizer_steps for row in rest_of(resumed, spec) if isinstance(row, StepRow)] == [5, 6]


def test_a_run_that_is_over_is_not_resumed(make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path) -> None:
    spec, path = make_spec(), tmp_path / "x.pt"
    cut_at(4, spec, make_trial(), path)
    for steps in (4, 3):
        with pytest.raises(
            UserError, match=rf"is at step 4 and TRAINING_STEPS={steps} is no further. Set RESUME_STEPS"
        ):
            resume_run(spec, make_trial(training_steps=steps), read_checkpoint(path))


def test_an_incomplete_or_foreign_state_is_refused(make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path) -> None:
    spec, config, path = make_spec(), make_trial(), tmp_path / "x.pt"
    cut_at(2, spec, config, path)
    payload = torch.load(path, weights_only=True)
    for key in ("optimizer_state_dict", "monitor", "rng"):
        values: list[Any] = [{}, None, [1]]
        for value in values:
            torch.save({**payload, key: value}, path)
            with pytest.raises(UserError, match=r"checkpoint .* is one of ours but incomplete"):
                resume_run(spec, config, read_checkpoint(path))


def test_an_owners_checkpoint_is_continued_from_its_step(
    make_spec: MakeSpec, make_trial: MakeTrial, make_model: MakeModel, tmp_path: Path
) -> None:
    spec, weights = make_spec(), make_model(seed=5).state_dict()
    config = make_trial(training_steps=1503, lr_schedule="warmup_cosine", warmup_steps=500)
    checkpoint = read_checkpoint(owners_file(tmp_path, weights))
    state = resume_run(spec, config, checkpoint)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state.model.state_dict().items())
    rows = rest_of(state, spec)
    steps = [row for row in rows if isinstance(row, StepRow)]
    assert [row.optimizer_steps for row in steps] == [1501, 1502, 1503]
    assert [row.learning_rate for row in steps] == [learning_rate_at(step, config) for step in (1500, 1501, 1502)]
    assert isinstance(rows[0], MetricsRow)
    assert rows[0].optimizer_steps == 1500


def test_a_checkpoint_of_another_vocabulary_is_refused(
    make_spec: MakeSpec, make_trial: MakeTrial, make_model: MakeModel, tmp_path: Path
) -> None:
    path = owners_file(tmp_path, make_model(vocab_size=400).state_dict())
    spec = make_spec(init_from=path)
    with pytest.raises(UserError, match=r"'transformer\.wte\.weight' is \(400, 32\) in the checkpoint and \(300, 32\)"):
        start_run(spec, make_trial())
    with pytest.raises(UserError, match=r"does not fit GPT2_MODEL_NAME"):
        resume_run(spec, make_trial(training_steps=2000), read_checkpoint(path))


def test_a_search_starts_from_a_checkpoints_weights_at_step_0(
    make_spec: MakeSpec, make_trial: MakeTrial, make_model: MakeModel, tmp_path: Path
) -> None:
    weights = make_model(seed=5).state_dict()
    for path in (owners_file(tmp_path, weights), tmp_path / "ours.pt"):
        if path.name == "ours.pt":
            cut_at(3, make_spec(), make_trial(), path)
            weights = dict(read_checkpoint(path).weights)
        state = start_run(make_spec(init_from=path), make_trial())
        assert (state.optimizer_steps, state.tokens_seen) == (0, 0)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in state.model.state_dict().items())
        assert state.optimizer.state_dict()["state"] == {}


def test_only_random_weights_are_from_scratch_and_stay_so_when_resumed(
    make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[bool] = []

    def new_state(*arguments: Any, from_scratch: bool, **values: Any) -> TrainState:
        told.append(from_scratch)
        return real_new_state(*arguments, from_scratch=from_scratch, **values)

    monkeypatch.setattr("trainable.run.new_state", new_state)
    config, path = make_trial(batch_size=1, training_steps=3), tmp_path / "x.pt"
    cut_at(1, make_spec("tiny-scratch"), config, path)
    resume_run(make_spec("tiny-scratch"), config, read_checkpoint(path))
    start_run(make_spec("tiny-scratch", init_from=path), config)
    weights = dict(read_checkpoint(path).weights)
    torch.save({"step": 1, "model_state_dict": weights}, path)
    resume_run(make_spec("tiny-scratch"), config, read_checkpoint(path))
    start_run(make_spec("gpt2"), config)
    assert told == [True, True, False, False, False]


@pytest.mark.parametrize("family", ["gpt2", "untied", "llama"])
def test_a_local_folder_trains_with_its_own_tokenizer(
    model_folders: dict[str, Path], text_file: Path, make_trial: MakeTrial, tokenizer: Tokenizer, family: str
) -> None:
    name = str(model_folders[family])
    corpus = load_corpus([text_file], load_tokenizer(name, [text_file]))
    np.testing.assert_array_equal(corpus.tokens, tokenizer.encode(text_file.read_text()).ids)
    protocol = EvalProtocol(block_size=16, tokens=256)
    spec = RunSpec(model_name=name, corpus=corpus, protocol=protocol, device="cpu", unigram_entropy=5.0)
    state = start_run(spec, make_trial(training_steps=2))
    first, *_, last = train(state, corpus, protocol, eval_steps=())
    assert isinstance(first, MetricsRow)
    assert isinstance(last, MetricsRow)
    assert last.val_loss < first.val_loss
    assert last.optimizer_steps == 2


def test_a_block_or_an_evaluation_longer_than_the_positions_is_refused(
    make_spec: MakeSpec, make_trial: MakeTrial
) -> None:
    start_run(make_spec(), make_trial(block_size=64))
    with pytest.raises(UserError, match=r"block_size=65 is longer than the 64 positions"):
        start_run(make_spec(), make_trial(block_size=65))
    with pytest.raises(UserError, match=r"block_size=128 is longer than the 64 positions"):
        start_run(make_spec(protocol=EvalProtocol(block_size=128, tokens=256)), make_trial())


def test_a_corpus_that_does_not_suit_is_refused(
    make_spec: MakeSpec, make_trial: MakeTrial, corpus: Corpus, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="its tokenizer has 301 ids and the model embeds 300"):
        start_run(make_spec(corpus=replace(corpus, vocab_size=301)), make_trial())
    np.save(tmp_path / "short.npy", corpus.tokens[:100])
    with pytest.raises(UserError, match="the corpus is too short: its validation part has 10 tokens"):
        start_run(make_spec(corpus=replace(corpus, path=tmp_path / "short.npy", sha256=None)), make_trial())


def test_bad_rules_are_refused(make_spec: MakeSpec, make_trial: MakeTrial) -> None:
    with pytest.raises(UserError, match="floor_step"):
        start_run(make_spec(stability={"floor_step": 3}), make_trial())
