"""Models by name: presets, folders of save_pretrained, and one line for each way a name or a folder can be wrong."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    MptConfig,
    OPTConfig,
    PreTrainedModel,
)

from tests.trainable.makers import MakeModel, SaveModel
from trainable.checkpoint.checkpoint_path import check_checkpoint_path
from trainable.config import TrialConfig
from trainable.device.compiling import layers_of
from trainable.errors import UserError
from trainable.model.fingerprint import model_fingerprint
from trainable.model.lora import ALL_LINEAR, add_adapters, find_targets, merge_adapters
from trainable.model.model_names import PRESETS, SHIPPED, check_model_name, model_folder, positions_of, vocab_size_of
from trainable.model.models import (
    _tuned,
    check_model,
    context_limit,
    folder_weights,
    load_model,
    load_tokenizer,
    separator_id,
)
from trainable.model.save_folder import save_adapter_folder
from trainable.preflight.gradients import check_frozen
from trainable.preflight.optimizer_watch import OptimizerWatch
from trainable.sampling import sample


def weights_of(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_weights(first: PreTrainedModel, second: PreTrainedModel) -> None:
    expected, given = weights_of(first), weights_of(second)
    assert given.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(given[name], tensor), name


def load(name: str) -> PreTrainedModel:
    return load_model(name, dropout=0.1, seed=0)


def refusal(name: str | Path, loads: Callable[[str], object] = load) -> str:
    with pytest.raises(UserError) as caught:
        loads(str(name))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"GPT2_MODEL_NAME={name}")
    return message


@pytest.fixture
def folder(model_folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of the saved GPT-2 that a test may break."""
    return Path(shutil.copytree(model_folders["gpt2"], tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("name", ["tiny", "tiny-scratch"])
def test_tiny_is_the_documented_shape(name: str) -> None:
    model = load_model(name, dropout=0.1, seed=0)
    shapes = {"n_layer": 4, "n_head": 4, "n_embd": 128, "vocab_size": 2048, "n_positions": 1024}
    assert {name: getattr(model.config, name) for name in shapes} == shapes
    assert isinstance(model, GPT2LMHeadModel)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_186_560
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.training


def test_gpt2_scratch_is_gpt2s_own_shape() -> None:
    config = GPT2Config(**PRESETS["gpt2-scratch"])
    assert config.to_dict() == GPT2Config().to_dict()
    with torch.device("meta"):
        parameters = GPT2LMHeadModel(config).parameters()
    assert sum(parameter.numel() for parameter in parameters) == 124_439_808


def test_a_seed_gives_the_weights_of_a_preset() -> None:
    first = load_model("tiny-scratch", dropout=0.1, seed=1)
    torch.rand(100)
    assert_same_weights(load_model("tiny-scratch", dropout=0.5, seed=1), first)
    other = load_model("tiny-scratch", dropout=0.1, seed=2)
    assert not torch.equal(other.transformer.wte.weight, first.transformer.wte.weight)


def test_random_numbers_after_loading_depend_on_the_seed_alone(model_folders: dict[str, Path]) -> None:
    draws = []
    for name, seed in (("tiny-scratch", 3), (str(model_folders["gpt2"]), 3), ("tiny-scratch", 4)):
        load_model(name, dropout=0.1, seed=seed)
        draws.append(torch.rand(1).item())
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("family", ["gpt2", "untied", "llama"])
def test_a_folder_gives_the_weights_saved_in_it(
    model_folders: dict[str, Path], make_model: MakeModel, tokenizer: Tokenizer, family: str
) -> None:
    name = str(model_folders[family])
    model = load_model(name, dropout=0.1, seed=7)
    assert_same_weights(model, make_model(family))
    assert model.training
    assert context_limit(model.config) == 64
    own = load_tokenizer(name, [])
    assert own.encode("some words").ids == tokenizer.encode("some words").ids
    check_model(model, name, block_size=64, eval_block_size=64, vocab_size=own.get_vocab_size())


def test_a_relative_path_is_a_folder_too(
    model_folders: dict[str, Path], make_model: MakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model_folders["gpt2"].parent)
    for name in ("gpt2", "./gpt2"):
        assert_same_weights(load_model(name, dropout=0.1, seed=0), make_model())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_folder_saved_in_half_precision_loads_as_fp32(
    make_model: MakeModel, save_model: SaveModel, tmp_path: Path, dtype: torch.dtype
) -> None:
    half = make_model().to(dtype)
    model = load_model(str(save_model(half, tmp_path / "half")), dropout=0.1, seed=0)
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same_weights(model, half.float())


@pytest.mark.parametrize("name", ["tiny-scratch", "gpt2", "llama"])
def test_dropout_is_set_in_config_and_layers(model_folders: dict[str, Path], name: str) -> None:
    model = load_model(str(model_folders.get(name, name)), dropout=0.3, seed=0)
    fields = ["attention_dropout"] if name == "llama" else ["resid_pdrop", "embd_pdrop", "attn_pdrop"]
    assert {getattr(model.config, field) for field in fields} == {0.3}
    layers = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    assert layers == [0.3] * len(layers)
    tokens = torch.arange(32).unsqueeze(0)
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    off = load_model(str(model_folders.get(name, name)), dropout=0.0, seed=0)
    assert torch.equal(off(tokens).logits, off(tokens).logits)


def test_dropout_is_found_under_every_familys_name(folder: Path) -> None:
    edit(folder / "config.json", attn_pdrop=0, resid_pdrop=0)  # JSON has no 0.0 of its own
    config = load_model(str(folder), dropout=0.2, seed=0).config
    assert (config.attn_pdrop, config.resid_pdrop, config.embd_pdrop) == (0.2, 0.2, 0.2)
    neo, opt = _tuned(GPTNeoConfig(), 0.2), _tuned(OPTConfig(), 0.2)
    assert (neo.resid_dropout, neo.embed_dropout, neo.attention_dropout) == (0.2, 0.2, 0.2)
    assert (opt.dropout, opt.attention_dropout, opt.layerdrop) == (0.2, 0.2, 0.0)
    mpt = _tuned(MptConfig(resid_pdrop=0, emb_pdrop=0), 0.2)
    assert (mpt.resid_pdrop, mpt.emb_pdrop) == (0.2, 0.2)
    unheard_of = _tuned(GPT2Config(mixer_dropout_rate=0.5, dropout_layers=None), 0.2)
    assert (unheard_of.mixer_dropout_rate, unheard_of.dropout_layers) == (0.2, None)
    assert unheard_of.summary_first_dropout == GPT2Config().summary_first_dropout


def test_a_tied_config_over_untied_weights_is_refused(model_folders: dict[str, Path], tmp_path: Path) -> None:
    untied = Path(shutil.copytree(model_folders["untied"], tmp_path / "untied"))
    load(str(untied))
    edit(untied / "config.json", tie_word_embeddings=True)
    assert "ties the head to the input embedding" in refusal(untied)


def test_the_faster_gelu_is_the_same_function(model_folders: dict[str, Path]) -> None:
    name = str(model_folders["gpt2"])
    theirs = AutoModelForCausalLM.from_pretrained(name).eval()
    own = load_model(name, dropout=0.0, seed=0).eval()
    assert theirs.config.activation_function == "gelu_new"
    tokens = torch.arange(3 * 64).view(3, 64)
    with torch.no_grad():
        torch.testing.assert_close(own(tokens).logits, theirs(tokens).logits, rtol=0, atol=1e-5)
    inputs = torch.linspace(-8, 8, 4001)
    gelus = [model.transformer.h[0].mlp.act(inputs) for model in (own, theirs)]
    torch.testing.assert_close(*gelus, rtol=0, atol=2e-6)


def test_a_preset_has_a_tokenizer_of_the_corpus(text_file: Path) -> None:
    tokenizer = load_tokenizer("tiny-scratch", [text_file])
    assert 300 < tokenizer.get_vocab_size() <= 2048
    assert tokenizer.decode(tokenizer.encode("words").ids) == "words"


def test_a_tokenizer_neither_cuts_nor_pads(folder: Path, tokenizer: Tokenizer) -> None:
    cutting = Tokenizer.from_str(tokenizer.to_str())
    cutting.enable_truncation(5)
    cutting.enable_padding(length=50)
    cutting.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(str(folder), []).encode("word " * 30).ids == tokenizer.encode("word " * 30).ids


@pytest.mark.usefixtures("offline")
def test_names_that_are_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("words")
    (tmp_path / "empty").mkdir()
    for name, what in {
        str(tmp_path / "missing"): "no such folder",
        "./missing": "no such folder",
        "a/b/c": "no such folder",
        str(tmp_path / "file"): "is a file, not a model folder. To start from a checkpoint file, set CHECKPOINT_PATH.",
        str(tmp_path / "empty"): "has no config.json",
        "no-such-model": "not cached here and the hub does not answer. Go online once, or use presets: ti",
        "nobody/no-such-model": "not cached here",
        "two words": "is no preset, no folder, and no model that the hub shows",
        "x" * 300: "File name too long",
        "~nobody_of_that_name/x": "cannot be used",
    }.items():
        assert what in refusal(name, check_model_name)
        assert what in refusal(name)
    for name in (*PRESETS, *SHIPPED):
        check_model_name(name)


@pytest.mark.parametrize(
    "content", ['{"model_type": "gpt2"', "", "gpt2", b"\xff\xfe", "[1, 2]", "3", "null", "[" * 10**5]
)
def test_a_broken_config_is_refused_before_torch_is_asked(folder: Path, content: str | bytes) -> None:
    (folder / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "has no config.json that can be read" in refusal(folder, check_model_name)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"model_type": "no-such-type"}, "does not know its model_type"),
        ({"activation_function": "nosuch"}, "'nosuch' is not known to it."),
        ({"n_layer": "two"}, "expected int, got str"),
        ({"n_head": 3}, "must be divisible by num_heads"),
        ({"n_embd": 64}, "do not fit its config.json: 'transformer.h.0.attn.c_attn.bias' is (96,) in the file"),
        (
            {"n_layer": 1},
            "do not fit its config.json: 'transformer.h.1.attn.c_attn.weight' is in the file and not in the model (11",
        ),
        ({"n_positions": 2**40}, "which asks for 35,184,372,"),
        ({"quantization_config": {"quant_method": "fp8"}}, "its config.json says that the weights are quantized"),
        (
            {"n_layer": 4},
            "do not fit its config.json: 'transformer.h.2.attn.c_attn.bias' is missing (24 in all)",
        ),
        ({"vocab_size": 301}, "'transformer.wte.weight' is (300, 32) in the file and (301, 32) in the model"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(folder: Path, changes: dict[str, Any], what: str) -> None:
    edit(folder / "config.json", **changes)
    assert what in refusal(folder)


def test_json_that_is_no_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    assert "cannot be loaded by transformers" in refusal(folder)


def test_broken_weights_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for broken in (content[: len(content) // 2], content[:4], b"", b"words" * 100):
        weights.write_bytes(broken)
        assert "is damaged or not a file of torch.save" in refusal(folder) or broken == b""
    weights.unlink()
    assert "has none of model.safetensors, pytorch_model.bin" in refusal(folder)


@pytest.mark.parametrize("name", ["../w.safetensors", "sub/w.safetensors", "/w.safetensors"])
def test_weights_outside_the_folder_are_refused(folder: Path, name: str) -> None:
    # transformers would load them, and nobody would notice that they change: they are in no fingerprint.
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"transformer.wte.weight": name}}))
    assert "does not name files of its folder" in refusal(folder)
    edit(folder / "config.json", transformers_weights=name)
    assert "names weights outside of the folder" in refusal(folder)


@pytest.mark.parametrize("name", ["LICENSE", "chat_template.jinja", "config.json", "model.safetensors"])
def test_what_a_link_leads_out_to_is_not_read(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / "notes").touch()
    (folder / "inside").symlink_to("notes")
    load(str(folder))
    private, blob = tmp_path / "private", tmp_path / "hub" / "models--a--b" / "blobs" / "0f"
    blob.parent.mkdir(parents=True)
    if (folder / name).exists():
        (folder / name).rename(private)
    else:
        private.write_text("secret")
    (folder / name).symlink_to(private)
    assert f"{name} is a link to something outside of the folder" in refusal(folder, check_model_name)
    with pytest.raises(UserError, match=f"CHECKPOINT_PATH={folder}: {name} is a link"):
        check_checkpoint_path(folder)
    (folder / name).unlink()
    (folder / name).symlink_to(name)
    assert f"{name} is a link to something outside" in refusal(folder, check_model_name)
    # The hub's client makes such folders.
    private.rename(blob)
    (folder / name).unlink()
    (folder / name).symlink_to(blob)
    load(str(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "special_tokens_map.json", "x.jinja"])
def test_a_document_of_a_terabyte_is_not_read(folder: Path, name: str) -> None:
    (folder / name).touch()
    os.truncate(folder / name, 1 << 40)
    assert "is larger than the 256 MiB" in refusal(folder)


@pytest.mark.parametrize("field", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
@pytest.mark.parametrize("kernel", ["kernels-community/flash-attn", "flash_attention_2", "nobody/own"])
def test_a_config_brings_no_kernel(
    folder: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, field: str, kernel: str
) -> None:
    from transformers import modeling_utils

    monkeypatch.setattr(
        modeling_utils, "lazy_import_flash_attention", lambda *_, **__: pytest.fail("a kernel is asked for")
    )
    expected = weights_of(load(str(folder)))
    edit(folder / "config.json", **{field: kernel})
    model = load(str(folder))
    assert model.config._attn_implementation in (
        "sdpa",
        "eager",
        "causal_dropout_on_cpu",
        "unmasked_causal_dropout_on_cpu",
    )
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    assert folder_weights(folder).keys() == expected.keys()


def test_an_adapter_is_told(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/base"}')
    for loads in (load, check_model_name, lambda name: load_tokenizer(name, [])):
        assert "holds an adapter (adapter_config.json), not a model" in refusal(folder, loads)
    (folder / "config.json").unlink()
    assert "holds an adapter" in refusal(folder, check_model_name)


def test_code_in_a_model_folder_is_refused_and_never_runs(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")  # a person who would say yes is not asked

    class Touches:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {ran}",)

    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"})
    (folder / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    assert "it needs code of its own, which is never run" in refusal(folder)
    edit(folder / "config.json", model_type="gpt2", auto_map={})
    (folder / "model.safetensors").unlink()
    torch.save({"transformer.wte.weight": Touches()}, folder / "pytorch_model.bin")
    assert "hold Python objects besides tensors, which could run code, and nothing of them ran." in refusal(folder)
    with pytest.raises(UserError, match=rf"^checkpoint {folder} cannot be loaded by transformers: its weights hold"):
        folder_weights(folder)
    assert not ran.exists()


def test_another_kind_of_model_is_told_without_a_list_of_all(folder: Path) -> None:
    edit(folder / "config.json", model_type="t5")
    assert refusal(folder).endswith("it is no causal language model. Use another, or the text model that it holds.")


def test_of_a_model_that_sees_images_text_trains_its_own_part(
    save_model: SaveModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    text = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 16, "num_attention_heads": 2}
    config = Gemma3Config(
        text_config={**text, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=299,
    )
    base = str(save_model(Gemma3ForConditionalGeneration(config), tmp_path / "base"))
    model = load(base)
    frozen = {name.split(".")[1] for name, weight in model.named_parameters() if not weight.requires_grad}
    trained = {name.split(".")[1] for name, weight in model.named_parameters() if weight.requires_grad}
    assert (model.config.text_config.attention_dropout, context_limit(model.config)) == (0.1, 64)
    assert (frozen, trained) == ({"vision_tower", "multi_modal_projector"}, {"language_model"})
    assert layers_of(model) is model.get_decoder().layers
    assert check_frozen(model).status == "pass"
    assert len(OptimizerWatch(model.requires_grad_(True), torch.optim.AdamW(model.parameters())).tensors) == 28
    assert all("language_model" in name for targets in ("auto", ALL_LINEAR) for name in find_targets(model, targets))
    assert sample(model, tokenizer, "a") != ""
    out = tmp_path / "adapter"
    add_adapters(model, TrialConfig(use_lora=True))
    save_adapter_folder(model, tokenizer, out, model_name=base, base=base, card="", record={})
    assert json.loads((out / "tokenizer_config.json").read_bytes())["model_max_length"] == 64
    merge_adapters(model)
    model.get_decoder().norm.requires_grad_(False)
    assert check_frozen(model).measured.startswith("1 of 28 tensors frozen: model.language_model.norm.weight")


def test_a_missing_or_broken_tokenizer_is_refused(folder: Path) -> None:
    def tokenizer_of(name: str) -> Tokenizer:
        return load_tokenizer(name, [])

    for content in ('{"model":', "[]"):
        (folder / "tokenizer.json").write_text(content)
        assert "cannot be loaded by transformers" in refusal(folder, tokenizer_of)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "the folder has no tokenizer" in refusal(folder, tokenizer_of)


def test_a_tokenizer_of_another_model_is_refused(make_model: MakeModel) -> None:
    model = make_model()
    check_model(model, "mine", block_size=2, eval_block_size=2, vocab_size=300)
    with pytest.raises(UserError, match=r"GPT2_MODEL_NAME=mine: its tokenizer has 301 ids and the model embeds 300\."):
        check_model(model, "mine", block_size=2, eval_block_size=2, vocab_size=301)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_block_longer_than_the_positions_is_refused(make_model: MakeModel, family: str) -> None:
    model = make_model(family)
    check_model(model, "mine", block_size=64, eval_block_size=64, vocab_size=300)
    for sizes, wrong, setting in (
        ((65, 65), "block_size", "BLOCK_SIZE, or the space's block_size,"),
        ((64, 65), "eval_block_size", r"EVAL_BLOCK_SIZE, or the space's \[evaluation\] block_size,"),
    ):
        words = rf"^{wrong}=65 is longer than the 64 positions of GPT2_MODEL_NAME=mine\. Set {setting}"
        with pytest.raises(UserError, match=words):
            check_model(model, "mine", block_size=sizes[0], eval_block_size=sizes[1], vocab_size=300)


def test_a_vocabulary_is_as_large_as_the_model_says(make_model: MakeModel, tmp_path: Path) -> None:
    make_model("llama").save_pretrained(tmp_path / "mine")
    assert [vocab_size_of(name) for name in ("tiny", "gpt2-scratch", str(tmp_path / "mine"))] == [2048, 50_257, 300]
    assert [vocab_size_of(name) for name in ("nobody/nothing", "x" * 5000, "nul\0")] == [None] * 3
    assert [positions_of(name) for name in ("tiny", "gpt2-scratch", "nobody/nothing")] == [1024, 1024, None]
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"vocab_size": "many", "text_config": [5]}')
    assert vocab_size_of(str(tmp_path / "odd")) is None


def test_the_shipped_model_is_found_and_small_wherever_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    folder = model_folder("tiny")
    assert folder == SHIPPED["tiny"]
    assert folder.is_absolute()
    assert model_folder("./tiny") == tmp_path / "tiny"
    assert {model_folder(name) for name in PRESETS} == {None}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    assert model_fingerprint("tiny") not in (None, model_fingerprint("tiny-scratch"))


def test_the_shipped_model_is_loaded_into_fp32_the_same_everywhere() -> None:
    with safe_open(SHIPPED["tiny"] / "model.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert "lm_head.weight" not in stored
    theirs, ours = AutoModelForCausalLM.from_pretrained(SHIPPED["tiny"]), load_model("tiny", dropout=0.1, seed=0)
    for model in (theirs, ours):
        assert model.dtype == torch.float32
        assert all(torch.equal(model.state_dict()[name], tensor.float()) for name, tensor in stored.items())
        assert model.lm_head.weight is model.transformer.wte.weight


def test_the_shipped_tokenizer_knows_every_byte_and_its_end() -> None:
    tokenizer = load_tokenizer("tiny", [])
    assert tokenizer.get_vocab_size() == 2048
    for text in ("Überraschung 😀\r\n", "\t  \x00\x7f", "漢字 und Ελληνικά", "plain words"):
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert separator_id("tiny", tokenizer) == tokenizer.token_to_id("<|endoftext|>") == 0


def test_a_separator_is_the_tokenizers_own_end(text_file: Path, folder: Path, tokenizer: Tokenizer) -> None:
    preset = load_tokenizer("tiny-scratch", [text_file])
    assert separator_id("tiny-scratch", preset) == preset.token_to_id("<|endoftext|>")
    own = load_tokenizer(str(folder), [])
    edit(folder / "tokenizer_config.json", eos_token=None)
    assert separator_id(str(folder), own) is None
    edit(folder / "tokenizer_config.json", eos_token=own.id_to_token(7))
    assert separator_id(str(folder), own) == 7
