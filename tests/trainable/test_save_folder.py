"""A model folder: read by transformers with the trial's weights, laid out as other programs ask, replaced whole."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from tests.trainable.makers import MakeModel, MakeSpec, MakeTrial, SaveModel
from trainable.checkpoint.checkpoint import read_checkpoint
from trainable.data.corpus import source_files
from trainable.errors import UserError
from trainable.evaluation import eval_windows, evaluate
from trainable.model.model_names import RECORD, check_model_target
from trainable.model.models import load_model, load_tokenizer
from trainable.model.save_folder import base_license, save_model_folder
from trainable.run import start_run


@pytest.fixture(scope="session")
def bases(make_model: MakeModel, save_model: SaveModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """GPT-2, untied GPT-2, a Llama with a rope of its own, a NeoX, each with dropout of its own."""
    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    shapes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    own = {"vocab_size": 300, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 1}
    rope = {"rope_type": "default", "rope_theta": 50_000.0}
    neox = GPTNeoXForCausalLM(GPTNeoXConfig(**shapes, **own, rope_parameters={**rope, "partial_rotary_factor": 0.5}))
    made = {
        "gpt2": make_model(dropout=0.3),
        "untied": make_model("untied"),
        "llama": make_model("llama", rope_parameters=rope, tie_word_embeddings=True),
        "neox": neox,
    }
    return {name: save_model(model, root / name) for name, model in made.items()}


def trained(base: str, seed: int = 3) -> PreTrainedModel:
    """The base as a run has it, its weights moved."""
    model = load_model(base, dropout=0.1, seed=0)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


def save(model: PreTrainedModel, tokenizer: Tokenizer, folder: Path, base: str, **changes: Any) -> str:
    values: dict[str, Any] = {"model_name": base, "dtype": None, "card": "# A model\n", "record": {"trial_id": 7}}
    return save_model_folder(model, tokenizer, folder, **{**values, **changes})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("family", ["gpt2", "untied", "llama", "neox"])
def test_transformers_reads_the_runs_weights(
    family: str, bases: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    base, out = str(bases[family]), tmp_path / "out"
    model = trained(base)
    assert save(model, tokenizer, out, base) == "fp32"
    plain, loading = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(loading.values()), loading
    weights = model.state_dict()
    assert plain.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.state_dict().items())
    assert type(plain) is type(AutoModelForCausalLM.from_pretrained(base))
    # This program's own way to it gives the run's logits, bit for bit.
    again, ids = load_model(str(out), dropout=0.1, seed=1), torch.randint(0, 300, (2, 20))
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, model.eval()(ids).logits)
        torch.testing.assert_close(plain.eval()(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-5)
    mine, theirs = (json.loads((folder / "config.json").read_bytes()) for folder in (out, bases[family]))
    assert {name: mine[name] for name in theirs} == theirs
    read = AutoTokenizer.from_pretrained(out)
    assert read.encode("some words of it") == tokenizer.encode("some words of it").ids
    assert (out / "README.md").read_text() == "# A model\n"
    assert json.loads((out / RECORD).read_text()) == {"trial_id": 7, "dtype": "fp32"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in read_checkpoint(out).weights.items())


def test_other_programs_find_the_names_they_ask_for(
    bases: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = {}
    for family, base in bases.items():
        save(trained(str(base)), tokenizer, tmp_path / family, str(base))
        config[family] = json.loads((tmp_path / family / "config.json").read_bytes())
    # mlx-lm's GPT-2 has these names and no others, and reads n_ctx, as llama.cpp's converter does.
    names = tensors(tmp_path / "gpt2").keys()
    assert {"wte.weight", "wpe.weight", "h.1.attn.c_attn.weight", "ln_f.bias"} < names
    assert not [name for name in names if name.startswith(("transformer.", "lm_head."))]
    assert (config["gpt2"]["n_ctx"], config["gpt2"]["tie_word_embeddings"]) == (64, True)
    assert "lm_head.weight" in tensors(tmp_path / "untied")
    # transformers 5 writes rope_parameters alone; a reader of rope_theta would take its default instead.
    assert (config["llama"]["rope_theta"], config["llama"]["torch_dtype"]) == (50_000.0, "float32")
    assert "lm_head.weight" not in tensors(tmp_path / "llama")
    assert (config["neox"]["rotary_emb_base"], config["neox"]["rotary_pct"]) == (50_000.0, 0.5)
    assert "embed_out.weight" in tensors(tmp_path / "neox")


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_dtype_is_the_bases_own_or_the_one_asked_for(
    dtype: str, expected: torch.dtype, bases: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    base, model = str(bases["llama"]), trained(str(bases["llama"]))
    assert save(model, tokenizer, tmp_path / "asked", base, dtype=dtype) == dtype
    # A base in half precision keeps it.
    assert save(trained(str(tmp_path / "asked")), tokenizer, tmp_path / "own", str(tmp_path / "asked")) == dtype
    for name in ("asked", "own"):
        assert {tensor.dtype for tensor in tensors(tmp_path / name).values()} == {expected}
        assert AutoModelForCausalLM.from_pretrained(tmp_path / name).dtype == expected
    for name, tensor in tensors(tmp_path / "asked").items():
        assert torch.equal(tensor, model.state_dict()[name].to(expected))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_a_preset_goes_with_the_tokenizer_that_was_made_for_it(
    text_file: Path, make_spec: MakeSpec, make_trial: MakeTrial, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer("tiny", source_files(str(text_file)))
    state = start_run(make_spec("tiny"), make_trial())
    out = tmp_path / "out"
    save(state.model, tokenizer, out, "tiny")
    plain, read = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    end = tokenizer.token_to_id("<|endoftext|>")
    assert (read.eos_token, read.eos_token_id, plain.config.eos_token_id) == ("<|endoftext|>", end, end)
    assert (plain.generation_config.eos_token_id, read.model_max_length) == (end, 1024)
    assert read.decode(read.encode("Words, and more words.")) == "Words, and more words."
    assert plain.config.resid_pdrop == 0.1
    generated = plain.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False)
    assert generated.shape[1] <= 7
    windows = eval_windows(make_spec("tiny").corpus.val, make_spec("tiny").protocol)
    assert evaluate(load_model(str(out), dropout=0.5, seed=9), windows) == evaluate(state.model, windows)


def test_the_bases_own_files_go_along(
    bases: dict[str, Path], tokenizer: Tokenizer, save_model: SaveModel, make_model: MakeModel, tmp_path: Path
) -> None:
    base = save_model(make_model(), tmp_path / "base")
    odd = '{"temperature": 0.7, "eos_token_id": 3}'
    (base / "generation_config.json").write_text(odd)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    (base / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nlicense: not this one\n")
    config = json.loads((base / "config.json").read_bytes())
    # Code of its own, a kernel that is not installed here, and tuples.
    config |= {"auto_map": {"AutoConfig": "own.C"}, "_attn_implementation": "flash_attention_2", "return_dict": False}
    config["task_specific_params"] = {"x": 1}
    (base / "config.json").write_text(json.dumps(config))
    save(trained(str(base)), tokenizer, tmp_path / "out", str(base))
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    saved = json.loads((tmp_path / "out" / "config.json").read_bytes())
    assert saved["task_specific_params"] == {"x": 1}
    assert not {"auto_map", "_attn_implementation"} & saved.keys()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")(torch.ones(1, 4, dtype=torch.long)).logits.any()
    assert (base_license(str(base)), base_license("tiny"), base_license(str(bases["gpt2"]))) == (
        "apache-2.0",
        None,
        None,
    )


def test_what_is_not_the_same_model_is_never_overwritten(
    bases: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    out, base = tmp_path / "out", str(bases["gpt2"])
    check_model_target(out, {"trial_id": 7})
    out.mkdir()
    check_model_target(out, {"trial_id": 7})
    save(trained(base), tokenizer, out, base)
    check_model_target(out, {"trial_id": 7})
    for other in ({"trial_id": 8}, {"trial_id": 7, "study": "x"}):
        with pytest.raises(UserError, match=r"exists and is not this model\. Remove it, or name another folder"):
            check_model_target(out, other)
    for content in ("[]", "{", ""):
        (out / RECORD).write_text(content)
        with pytest.raises(UserError):
            check_model_target(out, {"trial_id": 7})
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError):
        check_model_target(tmp_path / "file")
    with pytest.raises(UserError, match=r"n cannot be written: File name too long\. Name another folder"):
        check_model_target(tmp_path / ("n" * 300))


def test_a_save_that_fails_leaves_what_was_there(
    bases: dict[str, Path], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, base = tmp_path / "out", str(bases["gpt2"])
    save(trained(base), tokenizer, out, base)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    rename = Path.rename

    def no_space(number: int) -> None:
        raise OSError(28, "No space left on device")

    def not_the_new_one(self: Path, target: Path) -> Path:
        if self.name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    for where, name, broken in ((os, "fsync", no_space), (Path, "rename", not_the_new_one)):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, broken)
            with pytest.raises(UserError, match="No space"):
                save(trained(base, seed=8), tokenizer, out, base)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
