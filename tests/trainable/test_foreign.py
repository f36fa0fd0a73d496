"""Others' checkpoints: model folders, shards, a Trainer's checkpoint-N, bare state dicts, nanoGPT's, adapters."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel, Trainer, TrainingArguments

from tests.trainable.makers import MakeModel, MakeSpec, MakeTrial, SaveModel
from trainable.checkpoint.checkpoint import load_weights, read_checkpoint
from trainable.checkpoint.checkpoint_path import DamagedCheckpointError, check_checkpoint_path
from trainable.errors import UserError
from trainable.model.fingerprint import checkpoint_fingerprint
from trainable.run import resume_run, start_run


def neox(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    shapes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    own = {"vocab_size": 300, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None}
    return GPTNeoXForCausalLM(GPTNeoXConfig(**shapes, **own))


def assert_loads(model: PreTrainedModel, path: Path, expected: dict[str, torch.Tensor]) -> None:
    check_checkpoint_path(path)
    load_weights(model, read_checkpoint(path), model_name="mine")
    given = model.state_dict()
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(given[name], tensor), name


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shard", [None, "20KB"])
@pytest.mark.parametrize("family", ["gpt2", "untied", "llama", "neox"])
def test_a_model_folder_is_a_checkpoint(make_model: MakeModel, tmp_path: Path, family: str, shard: str | None) -> None:
    make = neox if family == "neox" else lambda seed=0: make_model(family, seed=seed)
    model = make(seed=5)
    model.save_pretrained(tmp_path / "m", **({"max_shard_size": shard} if shard else {}))
    assert (tmp_path / "m" / "model.safetensors.index.json").exists() == bool(shard)
    assert_loads(make(), tmp_path / "m", model.state_dict())
    checkpoint = read_checkpoint(tmp_path / "m")
    # A tokenizer is missing, without which the folder names no model to train.
    assert (checkpoint.optimizer_steps, checkpoint.model_name, checkpoint.ours) == (0, None, None)


def test_a_folder_with_its_tokenizer_names_its_model(
    make_model: MakeModel, save_model: SaveModel, tmp_path: Path
) -> None:
    folder = save_model(make_model(), tmp_path / "m")
    assert read_checkpoint(folder).model_name == str(folder)


def test_pytorch_model_bin_and_the_hubs_names_without_the_models_own_prefix(
    make_model: MakeModel, tmp_path: Path
) -> None:
    for family in ("gpt2", "llama"):
        model, folder = make_model(family, seed=5), tmp_path / family
        folder.mkdir()
        weights = model.state_dict()
        prefix = model.base_model_prefix + "."
        bare = {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}
        torch.save(weights if family == "llama" else bare, folder / "pytorch_model.bin")
        assert_loads(make_model(family), folder, weights)


def test_bare_state_dicts_and_other_keys(make_model: MakeModel, tmp_path: Path) -> None:
    weights = make_model(seed=5).state_dict()
    wrapped = {f"_orig_mod.{name}": tensor for name, tensor in weights.items()}
    for number, (payload, step) in enumerate(
        [
            (weights, 0),
            (wrapped, 0),
            ({"state_dict": {f"model.{n}": t for n, t in weights.items()}, "global_step": 7, "epoch": 1}, 7),
            ({"module": {f"module.{n}": t for n, t in weights.items()}, "global_steps": 8}, 8),
            ({"model": wrapped, "iter_num": 9}, 9),
            ({"state_dict": {f"net.model.{n}": t for n, t in weights.items()}, "global_step": 5}, 5),
            ({"model": weights}, None),
        ]
    ):
        path = tmp_path / f"{number}.pt"
        torch.save(payload, path)
        assert_loads(make_model(), path, weights)
        assert read_checkpoint(path).optimizer_steps == step


def test_a_shard_of_zero_3_has_no_weights(make_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    torch.save({"module": {name: torch.empty(0) for name in make_model().state_dict()}, "global_steps": 8}, path)
    assert "has no weights where this program looks for them: it holds 'module' (a dict of 29)" in refusal(path)


def test_shards_are_read_from_their_folder_alone(make_model: MakeModel, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    make_model().save_pretrained(folder, max_shard_size="20KB")
    index = folder / "model.safetensors.index.json"
    shards = sorted(folder.glob("model-*.safetensors"))
    shutil.move(shards[0], tmp_path / "outside.safetensors")
    assert f"lacks {shards[0].name} (1 of {len(shards)} shards)" in refusal(folder)
    document = json.loads(index.read_text())
    for name in ("../outside.safetensors", str(tmp_path / "outside.safetensors"), 3, None):
        index.write_text(json.dumps({"weight_map": {**document["weight_map"], "x": name}}))
        assert "does not name files of its folder" in refusal(folder)
    for text in ("", "[]", "{}", '{"weight_map": {}}'):
        index.write_text(text)
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(folder)


def test_a_folder_without_weights_says_what_it_holds(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds nothing. Name a .pt" in refusal(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").write_text("x")
    message = refusal(tmp_path / "empty")
    assert "has none of model.safetensors, pytorch_model.bin; it holds notes.txt." in message
    out = tmp_path / "out"
    for step in (5, 40, 100):
        (out / f"checkpoint-{step}").mkdir(parents=True)
    assert f"holds several checkpoints. Name one of them, such as {out / 'checkpoint-100'}." in refusal(out)
    for name in ("step_500.pt", "step_00000900.pt", "step_1500.pt"):
        (tmp_path / "empty" / name).touch()
    assert f"Name one of them, such as {tmp_path / 'empty' / 'step_1500.pt'}." in refusal(tmp_path / "empty")
    ours = tmp_path / "ours"
    ours.mkdir()
    for step in (5, 40):
        (ours / f"step_{step:08d}.pt").write_bytes(b"x")
    assert f"such as {ours / 'step_00000040.pt'}." in refusal(ours)
    (out / "adapter_config.json").write_text("{}")
    assert "holds a LoRA adapter (adapter_config.json), not a whole model" in refusal(out)


@pytest.fixture(scope="module")
def trainer_folder(
    make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, torch.Tensor]]:
    """A checkpoint-N of the real Trainer, and its weights."""
    out = tmp_path_factory.mktemp("trainer")
    model = make_model("gpt2", dropout=0.0)
    rows = [{"input_ids": ids, "labels": ids} for ids in torch.randint(0, 300, (8, 16))]
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=3,
        save_steps=3,
        per_device_train_batch_size=2,
        logging_steps=1,
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    return out / "checkpoint-3", {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_a_trainers_checkpoint_goes_on_with_its_weights_at_its_step(
    trainer_folder: tuple[Path, dict[str, torch.Tensor]], make_spec: MakeSpec, make_trial: MakeTrial
) -> None:
    folder, weights = trainer_folder
    assert (folder / "optimizer.pt").exists()
    checkpoint = read_checkpoint(folder)
    assert (checkpoint.optimizer_steps, checkpoint.ours) == (3, None)
    state = resume_run(make_spec(), make_trial(training_steps=6), checkpoint)
    assert (state.optimizer_steps, state.optimizer.state) == (3, {})
    for made in (state, start_run(make_spec(init_from=folder), make_trial())):
        assert all(torch.equal(made.model.state_dict()[name], tensor) for name, tensor in weights.items())
    (folder / "trainer_state.json").rename(folder / "gone.json")
    assert read_checkpoint(folder).optimizer_steps == 0
    (folder / "gone.json").rename(folder / "trainer_state.json")


def test_a_folders_fingerprint_is_that_of_its_weights(make_model: MakeModel, tmp_path: Path) -> None:
    prints = set()
    for seed, extra in ((1, "a"), (1, "b"), (2, "b")):
        folder = tmp_path / f"{seed}{extra}"
        make_model(seed=seed).save_pretrained(folder)
        (folder / "notes.txt").write_text(extra)
        prints.add(checkpoint_fingerprint(folder))
    assert len(prints) == 2


class NanoBlock(nn.Module):
    """A layer as nanoGPT has it: nn.Linear everywhere, one matrix for q, k and v, an exact GELU."""

    def __init__(self, width: int, heads: int, *, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = (nn.LayerNorm(width, bias=bias) for _ in range(2))
        self.attn = nn.ModuleDict(
            {"c_attn": nn.Linear(width, 3 * width, bias=bias), "c_proj": nn.Linear(width, width, bias=bias)}
        )
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(width, 4 * width, bias=bias), "c_proj": nn.Linear(4 * width, width, bias=bias)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows, length, width = x.shape
        parts = self.attn["c_attn"](self.ln_1(x)).split(width, dim=2)
        q, k, v = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in parts)
        scores = (q @ k.transpose(-2, -1)) / math.sqrt(k.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        attended = torch.softmax(scores.masked_fill(future, -torch.inf), -1) @ v
        x = x + self.attn["c_proj"](attended.transpose(1, 2).reshape(rows, length, width))
        hidden: torch.Tensor = x + self.mlp["c_proj"](functional.gelu(self.mlp["c_fc"](self.ln_2(x))))
        return hidden


class NanoGPT(nn.Module):
    """Karpathy's model, in the names and the layout of its ckpt.pt."""

    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(300, 32),
                "wpe": nn.Embedding(64, 32),
                "h": nn.ModuleList([NanoBlock(32, 2, bias=bias) for _ in range(2)]),
                "ln_f": nn.LayerNorm(32, bias=bias),
            }
        )
        self.lm_head = nn.Linear(32, 300, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        parts: Any = self.transformer
        x = parts["wte"](ids) + parts["wpe"](torch.arange(ids.shape[1]))
        for block in parts["h"]:
            x = block(x)
        logits: torch.Tensor = self.lm_head(parts["ln_f"](x))
        return logits


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_nanogpts_file_gives_its_logits(make_model: MakeModel, tmp_path: Path, bias: bool, prefix: str) -> None:
    torch.manual_seed(1)
    nano = NanoGPT(bias=bias)
    for parameter in nano.parameters():
        nn.init.normal_(parameter, std=0.3)
    path = tmp_path / "ckpt.pt"
    arguments = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 64, "bias": bias, "vocab_size": 300}
    torch.save(
        {
            "model": {prefix + name: tensor for name, tensor in nano.state_dict().items()},
            "optimizer": {"state": {}, "param_groups": [{"lr": 6e-4}]},
            "model_args": {**arguments, "dropout": 0.0},
            "iter_num": 2000,
            "best_val_loss": torch.tensor(3.1),
            "config": {"batch_size": 12, "learning_rate": 6e-4},
        },
        path,
    )
    model = make_model(activation_function="gelu")
    checkpoint = read_checkpoint(path)
    load_weights(model, checkpoint, model_name="mine")
    ids = torch.randint(0, 300, (2, 40))
    with torch.no_grad():
        expected, given = nano.eval()(ids), model.eval()(ids).logits
    assert checkpoint.optimizer_steps == 2000
    torch.testing.assert_close(given, expected, atol=2e-5, rtol=1e-4)
    assert float(expected.std()) > 0.5


def test_nanogpts_padded_vocabulary_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    weights = {f"transformer.{name}": torch.zeros(2) for name in ("h.0.ln_1.weight",)}
    weights["transformer.wte.weight"] = torch.zeros(320, 32)
    torch.save({"model": weights, "iter_num": 1}, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=r"tensor 'transformer\.(h\.0\.ln_1|wte)\.weight' is"):
        load_weights(make_model(), read_checkpoint(tmp_path / "ckpt.pt"), model_name="mine")
