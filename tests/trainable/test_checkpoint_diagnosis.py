import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from transformers import GPT2Config, GPT2LMHeadModel

from results.diagnosis.findings import Diagnosis
from results.diagnosis.of_checkpoint import diagnose_checkpoints, report_of_checkpoints
from trainable.checkpoint.checkpoint_path import checkpoint_files
from trainable.checkpoint.exam.exam_facts import CheckpointFacts, OffsetGain
from trainable.checkpoint.exam.examine import examine_checkpoints, in_order_of_steps
from trainable.data.tokens import Tokens
from trainable.errors import UserError

VOCAB, BLOCK, BATCH = 64, 32, 16
TRAIN_STEPS = 80


def text() -> Tokens:
    """Return ids of a language: each id has 4 likely successors, so the next is easier to tell than the one after."""
    generator = np.random.default_rng(0)
    successors = generator.integers(VOCAB, size=(VOCAB, 4))
    ids = [0]
    for choice in generator.integers(4, size=20_000):
        ids.append(int(successors[ids[-1], choice]))
    return np.asarray(ids, dtype=np.uint16)


UNIGRAM_ENTROPY = float(-sum(p * np.log(p) for p in np.bincount(text()) / len(text()) if p > 0))


def new_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, n_positions=BLOCK, n_embd=32, n_layer=2, n_head=4))


def train(model: GPT2LMHeadModel, *, offset: int = 1, steps: int = TRAIN_STEPS, lr: float = 1e-2) -> torch.optim.AdamW:
    """Train `model` to predict the token `offset` places on; 2 is what doubly shifted labels do."""
    tokens = torch.from_numpy(text().astype(np.int64))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=lr)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - BLOCK - 3, (BATCH, 1), generator=generator)
        windows = tokens[starts + torch.arange(BLOCK + 3)]
        logits = model(windows[:, :BLOCK]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, offset : offset + BLOCK].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return optimizer


def save_owners(
    model: torch.nn.Module,
    path: Path,
    *,
    step: int = TRAIN_STEPS,
    optimizer: torch.optim.Optimizer | None = None,
    **more: Any,
) -> Path:
    """Write an owner's checkpoint, whose model sits in a wrapper's attribute `model`."""
    payload = {
        "step": step,
        "model_state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "optimizer_state_dict": optimizer.state_dict() if optimizer else {"state": {}, "param_groups": []},
        "hyperparameters": {"batch_size": BATCH, "learning_rate": 1e-5, "lr_schedule": "constant", "device": "mps"},
        "vocab_size": VOCAB,
        **more,
    }
    torch.save(payload, path)
    return path


@pytest.fixture(scope="module")
def right() -> GPT2LMHeadModel:
    model = new_model()
    train(model)
    return model


def facts_of(path: Path, **more: Any) -> CheckpointFacts:
    (facts,) = examine_checkpoints([path], tokens=text(), **more)
    return facts


def findings(*facts: CheckpointFacts) -> list[Diagnosis]:
    return diagnose_checkpoints(facts, unigram_entropy=UNIGRAM_ENTROPY)


def test_a_right_checkpoint_predicts_the_next_token(right: GPT2LMHeadModel, tmp_path: Path) -> None:
    path = save_owners(right, tmp_path / "checkpoint_gpt2_text_step000080.pt")
    facts = facts_of(path)
    assert facts.optimizer_steps == TRAIN_STEPS
    assert not facts.is_ours
    assert facts.vocab_size == VOCAB
    assert list(facts.dtypes) == ["float32"]
    assert facts.learning_rate == 1e-5
    assert facts.hyperparameters["device"] == "mps"
    assert facts.offset_losses[2] - facts.offset_losses[1] > 1
    assert findings(facts) == []
    report = report_of_checkpoints(path.name, [facts], unigram_entropy=UNIGRAM_ENTROPY)
    assert report.is_healthy
    assert "+1 " in report.notes[0]
    assert report.about.startswith(f"a checkpoint of another script, step {TRAIN_STEPS}; weights: ")
    # A model folder does not say its steps, so its loss alone tells that the text is another's.
    alone = replace(facts, optimizer_steps=0, offset_losses={1: UNIGRAM_ENTROPY + 1, 2: UNIGRAM_ENTROPY + 2})
    report = report_of_checkpoints("it", [alone], unigram_entropy=UNIGRAM_ENTROPY, text="qa.txt")
    assert report.about.startswith("weights: ")
    assert " held-out tokens of qa.txt: " in report.notes[0]
    assert report.notes[1].startswith("the next token is predicted worse than word frequencies alone do")
    base = {1: OffsetGain(base_nats=3.5, nats=0.0, error=0.0)}
    report = report_of_checkpoints("it", [replace(facts, base_name="mine", base_gains=base)])
    assert report.notes[1] == "its losses are those of mine: it is that model, or nothing was trained"


def test_a_checkpoint_that_knows_no_more_than_word_frequencies(right: GPT2LMHeadModel, tmp_path: Path) -> None:
    facts = facts_of(save_owners(right, tmp_path / "step.pt"))
    for nats, said in ((math.log(VOCAB), "random weights do"), (3.5, "word frequencies do")):
        poor = replace(facts, optimizer_steps=300, offset_losses=dict.fromkeys(range(-2, 3), nats))
        (finding,) = diagnose_checkpoints([poor], unigram_entropy=3.0)
        assert finding.kind == "wrong_objective"
        assert finding.summary == f"after 300 steps the checkpoint predicts the next token no better than {said}"
        assert diagnose_checkpoints([replace(poor, optimizer_steps=299)], unigram_entropy=3.0) == []


def test_a_folder_is_not_compared_with_itself(right: GPT2LMHeadModel, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("checkpoint-1", "checkpoint-2")]
    for folder in folders:
        right.save_pretrained(folder)
    for fact in examine_checkpoints(folders, tokens=text(), model_name=str(folders[-1])):
        assert (fact.base_name, fact.base_gains) == ("", {})
        assert fact.no_base == "set GPT2_MODEL_NAME to the pretrained model it began as"
    [compared] = examine_checkpoints(folders[:1], tokens=text(), model_name=str(folders[-1]))
    assert compared.base_name == str(folders[-1])


def test_doubly_shifted_labels(tmp_path: Path) -> None:
    model = new_model()
    train(model, offset=2)
    facts = facts_of(save_owners(model, tmp_path / "doubled.pt"))
    (finding,) = findings(facts)
    assert finding.kind == "wrong_objective"
    assert "the token after the next: its labels were shifted twice" in finding.summary


def test_labels_that_were_not_shifted(tmp_path: Path) -> None:
    model = new_model()
    train(model, offset=0, steps=60)
    (finding, *_) = findings(facts_of(save_owners(model, tmp_path / "copies.pt")))
    assert finding.kind == "wrong_objective"
    assert "not shifted at all" in finding.summary


def test_random_weights_are_no_fault_at_step_0_and_are_later(tmp_path: Path) -> None:
    start = facts_of(save_owners(new_model(), tmp_path / "start.pt", step=0))
    assert findings(start) == []
    other = new_model()
    with torch.no_grad():
        for weight in other.parameters():
            weight.copy_(torch.randn_like(weight))
    (finding,) = findings(facts_of(save_owners(other, tmp_path / "noise.pt", step=500)))
    assert finding.kind == "wrong_objective"


def test_layers_that_never_had_a_gradient(tmp_path: Path) -> None:
    model = new_model()
    # As behind a no_grad: the block is the optimizer's, but no gradient comes to it.
    handle = model.transformer.h[0].register_forward_hook(lambda module, args, output: output.detach())
    optimizer = train(model, steps=20)
    handle.remove()
    path = save_owners(model, tmp_path / "detached.pt", optimizer=optimizer)
    facts = facts_of(path)
    assert facts.optimizer_tensors == len(list(model.parameters()))
    assert "model.transformer.h.0.mlp.c_fc.weight" in facts.without_gradient
    assert not any(".h.1." in name for name in facts.without_gradient)
    finding = findings(facts)[0]
    assert finding.kind == "detached_gradients"
    assert finding.confidence > 0.9


def test_an_optimizer_whose_every_tensor_moves_is_sound(tmp_path: Path) -> None:
    model = new_model()
    optimizer = train(model, steps=10)
    facts = facts_of(save_owners(model, tmp_path / "moves.pt", optimizer=optimizer))
    assert facts.without_gradient == ()
    assert facts.learning_rate == 1e-2
    assert findings(facts) == []


@pytest.mark.parametrize(("value", "where"), [(float("nan"), "weights"), (float("inf"), "optimizer")])
def test_what_is_not_finite(tmp_path: Path, value: float, where: str) -> None:
    model = new_model()
    optimizer = train(model, steps=2)
    if where == "weights":
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.weight[0, 0] = value
    else:
        optimizer.state[model.transformer.wpe.weight]["exp_avg_sq"][0, 0] = value
    facts = facts_of(save_owners(model, tmp_path / "nan.pt", optimizer=optimizer, step=2))
    finding = findings(facts)[0]
    assert finding.kind == "nonfinite_weights"
    assert ("c_fc.weight" in finding.evidence) == (where == "weights")


@pytest.mark.parametrize(("lr", "stalls"), [(1e-5, True), (1e-2, False)])
def test_pure_bf16_at_a_small_learning_rate(right: GPT2LMHeadModel, tmp_path: Path, lr: float, stalls: bool) -> None:
    model = new_model()
    model.load_state_dict(right.state_dict())
    path = save_owners(model.bfloat16(), tmp_path / "bf16.pt", hyperparameters={"learning_rate": lr})
    facts = facts_of(path)
    assert list(facts.dtypes) == ["bfloat16"]
    assert [finding.kind for finding in findings(facts)] == (["precision_stall"] if stalls else [])


def test_the_share_of_weights_that_cannot_move_is_exact(tmp_path: Path) -> None:
    model = new_model().bfloat16()
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(1.0)
    # The bf16 numbers around 1 are 2^-7 above and 2^-8 below: 1 + lr rounds back for lr under 2^-8.
    for lr, lost in ((2.0**-8 * 0.99, 1.0), (2.0**-8 * 1.01, 0.0)):
        assert bool((torch.tensor(1.0, dtype=torch.bfloat16) + lr) == 1.0) == bool(lost)
        path = save_owners(model, tmp_path / "ones.pt", hyperparameters={"learning_rate": lr})
        assert facts_of(path).unmovable_frac == lost


def test_fp32_weights_that_are_all_bf16_numbers(right: GPT2LMHeadModel, tmp_path: Path) -> None:
    model = new_model()
    model.load_state_dict(right.state_dict())
    rounded = model.bfloat16().float()
    (finding,) = findings(facts_of(save_owners(rounded, tmp_path / "rounded.pt")))
    assert finding.kind == "precision_stall"
    assert "trained in pure bf16" in finding.summary


def test_a_folder_is_compared_in_the_order_of_steps(tmp_path: Path) -> None:
    model = new_model()
    save_owners(model, tmp_path / "b_first.pt", step=100)
    for weight in model.transformer.h[0].parameters():
        weight.requires_grad = False
    train(model, steps=10)
    save_owners(model, tmp_path / "a_second.pt", step=250)
    (tmp_path / "notes.txt").write_text("no checkpoint")
    whole = (tmp_path / "b_first.pt").read_bytes()
    (tmp_path / "cut_off.pt").write_bytes(whole[: len(whole) // 2])
    paths, unread = in_order_of_steps(checkpoint_files(tmp_path))
    first, second = examine_checkpoints(paths, tokens=text())
    assert len(unread) == 1
    assert f"checkpoint {tmp_path}/cut_off.pt is damaged" in unread[0]
    assert report_of_checkpoints("it", [first, second], unread=unread).notes[0] == f"left out: {unread[0]}"
    with pytest.raises(UserError, match=r"cut_off.pt is damaged"):
        in_order_of_steps([tmp_path / "cut_off.pt"] * 2)
    assert (first.name, second.name) == ("b_first.pt", "a_second.pt")
    assert second.compared_with == "b_first.pt"
    assert second.compared_tensors == len(list(model.parameters()))
    assert set(second.unchanged_tensors) == {
        f"model.transformer.h.0.{name}" for name, _ in model.transformer.h[0].named_parameters()
    }
    (finding,) = diagnose_checkpoints([second])
    assert finding.kind == "detached_gradients"
    assert "12 of 28 tensors did not change" in finding.summary


def test_weights_that_do_not_move_at_all(tmp_path: Path) -> None:
    model = new_model()
    paths = [save_owners(model, tmp_path / f"step_{step}.pt", step=step) for step in (100, 200)]
    findings = diagnose_checkpoints(examine_checkpoints(paths, tokens=None))
    assert [finding.kind for finding in findings] == ["precision_stall"]
    assert "no weight changed between step_100.pt and step_200.pt" in findings[0].summary


def test_ids_of_another_tokenizer_leave_the_profile_out(right: GPT2LMHeadModel, tmp_path: Path) -> None:
    path = save_owners(right, tmp_path / "other.pt")
    (facts,) = examine_checkpoints([path], tokens=text() + VOCAB)
    assert facts.offset_losses == {}
    assert "another tokenizer's" in facts.no_profile
    assert report_of_checkpoints("other.pt", [facts]).notes[0].startswith("no offset profile")


def test_no_text_no_profile(right: GPT2LMHeadModel, tmp_path: Path) -> None:
    (facts,) = examine_checkpoints([save_owners(right, tmp_path / "plain.pt")], tokens=None)
    assert facts.no_profile.startswith("no text was read")
    assert diagnose_checkpoints([facts]) == []


def test_weights_of_another_model_leave_the_profile_out(tmp_path: Path) -> None:
    path = save_owners(torch.nn.Linear(3, 3), tmp_path / "linear.pt")
    assert "not GPT-2's" in facts_of(path).no_profile


def test_adapters_that_were_never_trained(right: GPT2LMHeadModel, tmp_path: Path) -> None:
    state = {f"model.{name}": tensor for name, tensor in right.state_dict().items()}
    for layer in (0, 1):
        state[f"model.transformer.h.{layer}.attn.c_attn.lora_A"] = torch.randn(4, 32)
        state[f"model.transformer.h.{layer}.attn.c_attn.lora_B"] = torch.full((96, 4), float(layer))
    facts = facts_of(save_owners(right, tmp_path / "lora.pt", model_state_dict=state))
    assert facts.zero_adapters == ("model.transformer.h.0.attn.c_attn.lora_B",)
    (finding,) = findings(facts)
    assert finding.kind == "detached_gradients"
    assert "LoRA" in finding.summary


def test_the_last_checkpoint_and_its_copy_are_not_compared(right: GPT2LMHeadModel, tmp_path: Path) -> None:
    for name in ("epoch=1-step=40.ckpt", "last.ckpt"):
        state = {f"net.{key}": tensor for key, tensor in right.state_dict().items()}
        torch.save({"global_step": 40, "state_dict": state}, tmp_path / name)
    first, second = examine_checkpoints(in_order_of_steps(checkpoint_files(tmp_path))[0], tokens=text())
    assert (first.optimizer_steps, second.optimizer_steps, second.compared_with) == (40, 40, "")
    assert findings(first) == findings(second) == []


def test_a_model_folder_that_is_gone_is_no_hindrance(right: GPT2LMHeadModel, tmp_path: Path) -> None:
    path = save_owners(right, tmp_path / "checkpoint.pt")
    assert facts_of(path, model_name=str(tmp_path / "gone")).offset_losses == facts_of(path).offset_losses


def _no_file(folder: Path) -> None:
    checkpoint_files(folder)


def _no_checkpoint(folder: Path) -> None:
    (folder / "x.pt").write_bytes(b"not a checkpoint")
    examine_checkpoints([folder / "x.pt"], tokens=None)


@pytest.mark.parametrize(
    ("act", "message"), [(_no_file, "holds no checkpoint"), (_no_checkpoint, "damaged or not a file of torch.save")]
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, act: Callable[[Path], None], message: str) -> None:
    with pytest.raises(UserError, match=message):
        act(tmp_path)
