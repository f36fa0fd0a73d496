"""Checkpoints: what they hold, who else's are read, and that a broken or hostile file is refused in a line."""

import os
import pickle
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import PreTrainedModel

from tests.trainable.makers import MakeModel, MakeSpec, MakeTrial, owners, owners_file
from trainable.checkpoint.checkpoint import load_weights, read_checkpoint, save_checkpoint
from trainable.checkpoint.checkpoint_path import check_checkpoint_path
from trainable.config import TrialConfig
from trainable.errors import UserError
from trainable.run import resume_run, start_run
from trainable.state import TrainState

Weights = dict[str, torch.Tensor]


def save(state: TrainState, path: Path) -> Path:
    save_checkpoint(state, path, model_name="mine", corpus_fingerprint="f" * 64)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"checkpoint {path} ")
    return message


def prefixed(weights: Weights, prefix: str) -> Weights:
    return {prefix + name: tensor for name, tensor in weights.items()}


def assert_loads(model: PreTrainedModel, path: Path, expected: Weights) -> None:
    load_weights(model, read_checkpoint(path), model_name="mine")
    given = model.state_dict()
    for name, tensor in expected.items():
        assert torch.equal(given[name], tensor), name


class Touches:
    """A pickle of it runs a command when it is loaded as pickles are."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


def test_ours_holds_the_run(make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path) -> None:
    config = make_trial(lr_schedule="wsd", warmup_steps=2, seed=3)
    state = start_run(make_spec(), config)
    state.optimizer_steps, state.tokens_seen, state.active_s = 7, 448, 1.5
    checkpoint = read_checkpoint(save(state, tmp_path / "deep" / "er" / "x.pt"))
    assert checkpoint.optimizer_steps == 7
    assert checkpoint.config == config
    assert checkpoint.model_name == "mine"
    assert checkpoint.ours is not None
    assert checkpoint.ours["corpus_fingerprint"] == "f" * 64
    assert (checkpoint.ours["tokens_seen"], checkpoint.ours["active_s"]) == (448, 1.5)
    assert checkpoint.weights.keys() == state.model.state_dict().keys()
    assert [file.name for file in (tmp_path / "deep" / "er").iterdir()] == ["x.pt"]


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.", "module.model.", "model._orig_mod."])
@pytest.mark.parametrize("family", ["gpt2", "untied", "llama"])
def test_an_owners_weights_load_whatever_wrapped_them(
    make_model: MakeModel, tmp_path: Path, family: str, prefix: str
) -> None:
    weights = make_model(family, seed=5).state_dict()
    path = owners_file(tmp_path, prefixed(weights, prefix))
    checkpoint = read_checkpoint(path)
    assert (checkpoint.optimizer_steps, checkpoint.config, checkpoint.ours) == (1500, None, None)
    assert_loads(make_model(family), path, weights)


def test_buffers_of_old_versions_are_left_out(make_model: MakeModel, tmp_path: Path) -> None:
    weights = make_model(seed=5).state_dict()
    old = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril().bool() for layer in range(2)}
    old |= {f"transformer.h.{layer}.attn.masked_bias": torch.tensor(-1e4) for layer in range(2)}
    assert_loads(make_model(), owners_file(tmp_path, prefixed({**weights, **old}, "model.")), weights)
    with pytest.raises(UserError, match=r"'transformer\.[a-z0-9.]+' is missing in the checkpoint .* \(28 in all\)"):
        assert_loads(make_model(), owners_file(tmp_path, old), weights)


def test_a_tied_head_may_be_left_out_and_an_own_one_may_not(make_model: MakeModel, tmp_path: Path) -> None:
    for family in ("gpt2", "untied"):
        weights = make_model(family, seed=5).state_dict()
        path = owners_file(tmp_path, {name: t for name, t in weights.items() if name != "lm_head.weight"})
        if family == "gpt2":
            assert_loads(make_model(), path, weights)
        else:
            with pytest.raises(UserError, match=r"'lm_head\.weight' is missing in the checkpoint .* \(1 in all\)"):
                assert_loads(make_model(family), path, weights)


def test_of_two_tied_names_either_may_be_left_out(make_model: MakeModel, tmp_path: Path) -> None:
    model, path = make_model(seed=5), tmp_path / "model.safetensors"
    save_model(model, str(path))
    assert "transformer.wte.weight" not in load_file(path)
    assert_loads(make_model(), path, model.state_dict())


def test_untied_weights_do_not_go_into_a_tied_model(make_model: MakeModel, tmp_path: Path) -> None:
    weights = make_model("untied", seed=5).state_dict()
    with pytest.raises(UserError, match=r"'lm_head\.weight' and 'transformer\.wte\.weight' differ in the checkpoint"):
        assert_loads(make_model(), owners_file(tmp_path, weights), weights)
    same = {**weights, "lm_head.weight": weights["transformer.wte.weight"]}
    assert_loads(make_model(), owners_file(tmp_path, same), same)


def test_weights_in_half_precision_are_read_as_fp32(make_model: MakeModel, tmp_path: Path) -> None:
    half = make_model(seed=5).half().state_dict()
    model = make_model()
    assert_loads(model, owners_file(tmp_path, prefixed(half, "model.")), {name: t.float() for name, t in half.items()})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_weights_of_a_safetensors_file_load_at_step_0(make_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for family in ("gpt2", "untied", "llama"):
        model = make_model(family, seed=5)
        tied = getattr(model, "all_tied_weights_keys", None) or ()
        save_file({name: tensor for name, tensor in model.state_dict().items() if name not in tied}, path)
        checkpoint = read_checkpoint(path)
        assert (checkpoint.optimizer_steps, checkpoint.config, checkpoint.model_name, checkpoint.ours) == (
            0,
            *[None] * 3,
        )
        assert_loads(make_model(family), path, model.state_dict())
    save_file({}, path)
    assert "holds no tensors" in refusal(path)


@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_that_do_not_fit_are_named_with_the_reason(make_model: MakeModel, tmp_path: Path, prefix: str) -> None:
    weights = make_model().state_dict()
    name = "transformer.h.1.mlp.c_fc.weight"
    turned = {**weights, name: weights[name].T.contiguous()}
    without = {key: tensor for key, tensor in weights.items() if key != name}
    misfits: list[tuple[Weights, str]] = [
        (make_model(vocab_size=301).state_dict(), "tensor 'transformer.wte.weight' is (301, 32) in the checkpoint and"),
        (make_model(n_embd=64).state_dict(), "tensor 'transformer.wte.weight' is (300, 64) in the checkpoint and"),
        (turned, f"tensor '{name}' is (128, 32) in the checkpoint and (32, 128) in the model"),
        (without, f"tensor '{name}' is missing in the checkpoint and (32, 128) in the model (1 in all)"),
        (
            make_model(n_layer=3).state_dict(),
            "tensor 'transformer.h.2.ln_1.weight' is (32,) in the checkpoint and missing",
        ),
        (
            make_model("llama").state_dict(),
            "tensor 'model.embed_tokens.weight' is (300, 32) in the checkpoint and missing",
        ),
    ]
    for given, what in misfits:
        path = owners_file(tmp_path, prefixed(given, prefix))
        model = make_model(seed=1)
        before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
        with pytest.raises(UserError) as caught:
            load_weights(model, read_checkpoint(path), model_name="mine")
        assert str(caught.value).startswith(f"checkpoint {path} does not fit GPT2_MODEL_NAME=mine: {what}")
        assert "Name the model it was made from." in str(caught.value)
        assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("step", [None, -1, 1500.0, "1500", True, torch.tensor(1500)])
def test_a_step_is_asked_for_only_where_a_run_is_continued(
    make_model: MakeModel, make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path, step: object
) -> None:
    weights = make_model(seed=5).state_dict()
    path = owners_file(tmp_path, weights, step=step)
    with pytest.raises(UserError) as caught:
        resume_run(make_spec(), make_trial(), read_checkpoint(path))
    assert str(caught.value) == (
        f"checkpoint {path} has no whole number 'step' and so cannot be continued. "
        "WEIGHTS_ONLY=True starts at step 0 from its weights."
    )
    state = start_run(make_spec(init_from=path), make_trial())
    assert all(torch.equal(state.model.state_dict()[name], tensor) for name, tensor in weights.items())


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_pickle_with_code_in_it_is_refused_and_nothing_runs(tmp_path: Path, protocol: int, kind: str) -> None:
    ran, path = tmp_path / "ran", tmp_path / "x.pt"
    payload = owners({"a": torch.zeros(2)}, hyperparameters={"note": Touches(ran)})
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"step": 1, "note": Touches(ran)}, protocol))
        if protocol > 0:
            pickle.loads(path.read_bytes())
            assert ran.exists()  # so it would have run
            ran.unlink()
    else:
        torch.save(payload, path, pickle_protocol=protocol, _use_new_zipfile_serialization=kind == "zip")
    message = refusal(path)
    assert not ran.exists()
    if protocol >= 2:
        assert "was refused and nothing of it ran: it holds Python objects" in message


def test_objects_that_are_no_plain_values_are_refused(tmp_path: Path) -> None:
    path = owners_file(tmp_path, {"a": torch.zeros(2)}, hyperparameters={"config": TrialConfig()})
    assert "was refused and nothing of it ran" in refusal(path)
    plain = {"device": torch.device("cpu"), "shape": torch.Size([2]), "nothing": None, "list": [1, (2.0, "words")]}
    assert read_checkpoint(owners_file(tmp_path, {"a": torch.zeros(2)}, hyperparameters=plain)).optimizer_steps == 1500


def test_what_is_no_checkpoint_is_refused_before_torch_is_asked(tmp_path: Path) -> None:
    files: dict[str, bytes] = {
        "empty.pt": b"",
        "words.txt": b"corpus of words\n" * 50,
        "page.html": b"<html></html>",
        "zeros.pt": bytes(1000),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name, what in {
        "missing.pt": "does not exist. Name a .pt, .bin or .safetensors file, or a folder made by",
        "empty.pt": "is empty",
        "words.txt": "is damaged or not a file of torch.save or safetensors",
        "page.html": "is damaged or not a file of torch.save or safetensors",
        "zeros.pt": "is damaged or not a file of torch.save or safetensors",
        "words.txt/below.pt": "cannot be read: Not a directory",
        "x" * 300: "cannot be read: File name too long",
    }.items():
        assert what in refusal(tmp_path / name)
        with pytest.raises(UserError) as caught:
            check_checkpoint_path(tmp_path / name)
        assert what in str(caught.value)


def test_a_zip_or_a_pickle_of_something_else_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    weights = make_model().state_dict()
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/words.txt", "words")
    assert "is damaged or not a file of torch.save" in refusal(path)
    contents: list[tuple[Any, str]] = [
        ([1, 2], "it holds a list"),
        (weights["lm_head.weight"], "it holds a Tensor"),
        ({}, "it holds an empty dict"),
        ({"model_state_dict": {"a": 1}}, "it holds 'model_state_dict' (a dict of 1)"),
        ({"model_state_dict": [torch.zeros(1)], "step": 3}, "it holds 'model_state_dict' (list), 'step' (int)"),
        ({"model": {1: torch.zeros(1)}}, "it holds 'model' (a dict of 1)"),
        ({"epoch": 3, "net": weights}, f"it holds 'epoch' (int), 'net' (a dict of {len(weights)})"),
        ({f"k{number}": 0 for number in range(11)}, "'k7' (int) and 3 more"),
    ]
    for payload, found in contents:
        torch.save(payload, path)
        message = refusal(path)
        assert "has no weights where this program looks for them: it holds" in message
        assert found in message
        assert "under 'model_state_dict', 'state_dict', 'model' or 'module'" in message


def test_ours_from_another_version_or_with_parts_missing_is_refused(
    make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path
) -> None:
    path = save(start_run(make_spec(), make_trial()), tmp_path / "x.pt")
    payload = torch.load(path, weights_only=True)
    for changes, what in (
        ({"version": 99}, "has version 99; this program reads 1"),
        ({"config": None}, "is one of ours but incomplete"),
        ({"optimizer_steps": "7"}, "'optimizer_steps' is of type str, not int"),
        ({"optimizer_steps": -1}, "'optimizer_steps' is -1"),
    ):
        torch.save({**payload, **changes}, path)
        assert what in refusal(path)
    for key in ("config", "model_name", "optimizer_steps"):
        torch.save({name: value for name, value in payload.items() if name != key}, path)
        assert key in refusal(path)
    torch.save({**payload, "config": {**asdict(make_trial()), "batch_sise": 1}}, path)
    assert "batch_sise" in refusal(path)
