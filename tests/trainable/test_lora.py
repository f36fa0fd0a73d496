"""LoRA by peft: what is trained, saved, continued and merged, for models of three families."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.utils
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    Llama4TextConfig,
    MambaConfig,
    PreTrainedConfig,
)

from tests.trainable.makers import MakeModel, MakeSpec, MakeTrial
from trainable.checkpoint.checkpoint import read_checkpoint, save_checkpoint
from trainable.config import TrialConfig
from trainable.device.cpu_kernels.dropout import CPUDropout
from trainable.errors import UserError
from trainable.evaluation import eval_windows, evaluate
from trainable.loop import train
from trainable.loss import next_token_loss
from trainable.model.lora import (
    AdapterBase,
    adapter_parameters,
    add_adapters,
    find_targets,
    has_adapters,
    merged_model,
    save_adapters,
)
from trainable.model.models import load_model
from trainable.preflight.memory import estimate_step_bytes
from trainable.rows import MetricsRow, StepRow
from trainable.run import RunSpec, load_run_model, resume_run, start_run
from trainable.state import TrainState

FAMILIES = ["gpt2", "llama", "neox"]
TARGETS = {"gpt2": {"c_attn"}, "llama": {"q_proj", "v_proj"}, "neox": {"query_key_value"}}


@pytest.fixture
def make_lora(make_trial: MakeTrial) -> MakeTrial:
    """Return a function that makes a short run with adapters, dropout in them and in the model."""
    return lambda **changes: make_trial(
        **{"use_lora": True, "lora_dropout": 0.1, "learning_rate": 1e-2, "dropout": 0.1, **changes}
    )


def losses(state: TrainState, spec: RunSpec) -> list[float]:
    rows = train(state, spec.corpus, spec.protocol, eval_steps=())
    return [
        row.train_loss if isinstance(row, StepRow) else row.val_loss
        for row in rows
        if isinstance(row, StepRow | MetricsRow)
    ]


def save(state: TrainState, path: Path) -> Path:
    save_checkpoint(state, path, model_name="mine", corpus_fingerprint="f" * 64)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_alone_are_trained_and_saved(
    make_spec: MakeSpec, make_lora: MakeTrial, tmp_path: Path, family: str
) -> None:
    spec, config = make_spec(family), make_lora()
    state = start_run(spec, config)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name, _ in adapter_parameters(state.model)}
    assert adapted == TARGETS[family]
    before = {name: weight.detach().clone() for name, weight in state.model.named_parameters()}
    losses(state, spec)
    adapters = dict(adapter_parameters(state.model))
    moved = {name for name, weight in state.model.named_parameters() if not torch.equal(weight, before[name])}
    assert moved == set(adapters)
    in_optimizer = {id(weight) for group in state.optimizer.param_groups for weight in group["params"]}
    assert in_optimizer == {id(weight) for weight in adapters.values()}
    checkpoint = read_checkpoint(save(state, tmp_path / "step.pt"))
    assert set(checkpoint.weights) == set(adapters)
    assert checkpoint.base == state.adapter_base
    assert checkpoint.base is not None
    assert (checkpoint.base.model_name, checkpoint.base.init_from) == (spec.model_name, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_continued_equals_never_stopped(make_spec: MakeSpec, make_lora: MakeTrial, tmp_path: Path, family: str) -> None:
    spec, config = make_spec(family), make_lora(training_steps=6)
    whole = start_run(spec, config)
    expected = losses(whole, spec)
    cut = start_run(spec, config)
    rows = train(cut, spec.corpus, spec.protocol, eval_steps=())
    while cut.optimizer_steps < 3:
        next(rows)
    resumed = resume_run(spec, config, read_checkpoint(save(cut, tmp_path / "step.pt")))
    assert losses(resumed, spec)[1:] == expected[4:]
    for (name, one), (_, other) in zip(adapter_parameters(resumed.model), adapter_parameters(whole.model), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_are_those_of_a_plain_peft_model(make_spec: MakeSpec, make_lora: MakeTrial, family: str) -> None:
    from peft import LoraConfig, get_peft_model

    spec, config = make_spec(family), make_lora(dropout=0.0, lora_dropout=0.0)
    state = start_run(spec, config)
    plain = AutoModelForCausalLM.from_pretrained(spec.model_name, dtype=torch.float32)
    settings = LoraConfig(r=8, lora_alpha=16, task_type="CAUSAL_LM", fan_in_fan_out=family == "gpt2")
    peft_model = get_peft_model(plain, settings).train()
    own = dict(adapter_parameters(state.model))
    with torch.no_grad():
        for name, weight in adapter_parameters(peft_model):
            weight.copy_(own[name.removeprefix("base_model.model.")])
    optimizer = torch.optim.AdamW(own.values(), lr=config.learning_rate, weight_decay=config.weight_decay)
    theirs = torch.optim.AdamW(
        [weight for _, weight in adapter_parameters(peft_model)], lr=config.learning_rate, weight_decay=0.01
    )
    tokens = eval_windows(spec.corpus.train, spec.protocol)[:4]
    for _ in range(5):
        optimizer.zero_grad()
        theirs.zero_grad()
        loss = next_token_loss(state.model, tokens)
        logits = peft_model(input_ids=tokens[:, :-1]).logits
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        loss.backward()  # type: ignore[no-untyped-call]
        expected.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("use_lora", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_gives_the_same_bits_in_less_memory(
    make_spec: MakeSpec, make_lora: MakeTrial, family: str, use_lora: bool, precision: str
) -> None:
    config = make_lora(use_lora=use_lora, precision=precision, batch_size=16, block_size=32)
    plain, sparing = make_spec(family), make_spec(family, gradient_checkpointing=True)
    states, found = [], []
    for spec in (plain, sparing):
        states.append(start_run(spec, config))  # which seeds the dropout
        found.append(losses(states[-1], spec))
    assert found[0] == found[1]
    for one, other in zip(states[0].model.parameters(), states[1].model.parameters(), strict=True):
        assert torch.equal(one, other)
    needed = [estimate_step_bytes(state.model, config) for state in states]
    assert needed[1] < 0.8 * needed[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_dropout_in_the_adapters_is_off_in_evaluation(make_spec: MakeSpec, make_lora: MakeTrial, family: str) -> None:
    spec, config = make_spec(family), make_lora(lora_dropout=0.5)
    state = start_run(spec, config)
    assert sum(type(module) is CPUDropout and module.p == 0.5 for module in state.model.modules()) >= 2
    losses(state, spec)
    windows = eval_windows(spec.corpus.val, spec.protocol)
    state.model.train()
    assert evaluate(state.model, windows) == evaluate(state.model, windows)
    assert next_token_loss(state.model, windows) != next_token_loss(state.model, windows)


@pytest.mark.filterwarnings("ignore")  # of torch's own, in its compiler
@pytest.mark.parametrize("family", ["gpt2"])
def test_compiled_layers_train_the_same(make_spec: MakeSpec, make_lora: MakeTrial, family: str) -> None:
    config = make_lora(dropout=0.0, lora_dropout=0.0, training_steps=3)
    eager, compiled = make_spec(family), make_spec(family, compile_mode="on")
    torch._dynamo.utils.counters.clear()
    state = start_run(compiled, config)
    assert state.compile_note.startswith("compiled:")
    assert losses(state, compiled) == pytest.approx(losses(start_run(eager, config), eager), rel=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert torch._dynamo.utils.counters["graph_break"] == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_and_saved_adapters_predict_the_same(
    make_spec: MakeSpec, make_lora: MakeTrial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    spec = make_spec(family)
    state = start_run(spec, make_lora(training_steps=20))
    losses(state, spec)
    state.model.eval()
    ids = eval_windows(spec.corpus.val, spec.protocol)[:4]
    monkeypatch.setattr(socket, "socket", None)  # nothing is asked of the hub
    with torch.no_grad():
        logits = state.model(input_ids=ids).logits
        plain = AutoModelForCausalLM.from_pretrained(spec.model_name).eval()
        merged = merged_model(state.model)
        assert not torch.allclose(plain(input_ids=ids).logits, logits, atol=1e-2)
        torch.testing.assert_close(merged(input_ids=ids).logits, logits, atol=1e-5, rtol=1e-5)
        assert merged.state_dict().keys() == plain.state_dict().keys()
        assert not has_adapters(merged)
        assert has_adapters(state.model)
        assert all(weight.requires_grad for weight in merged.parameters())

        save_adapters(state.model, tmp_path, base_model=spec.model_name)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == spec.model_name
        from peft import PeftModel

        with pytest.warns(FutureWarning, match="is_gradient_checkpointing"):
            theirs = PeftModel.from_pretrained(plain, str(tmp_path)).eval()
        torch.testing.assert_close(theirs(input_ids=ids).logits, logits, atol=1e-5, rtol=1e-5)


def test_another_base_is_refused_in_a_line(
    make_spec: MakeSpec, make_lora: MakeTrial, make_model: MakeModel, save_model: Any, tmp_path: Path
) -> None:
    spec, config = make_spec("gpt2"), make_lora()
    checkpoint = read_checkpoint(save(start_run(spec, config), tmp_path / "step.pt"))
    other = make_spec(str(save_model(make_model("gpt2", seed=1), tmp_path / "other")))
    with pytest.raises(UserError, match=r"holds LoRA adapters of .*gpt2 .*other has other weights") as caught:
        resume_run(other, config, checkpoint)
    assert "\n" not in str(caught.value)
    for changes, words in (
        ({"lora_rank": 4}, "trained with LORA_RANK=8, and LORA_RANK is 4"),
        ({"lora_alpha": 8}, "trained with LORA_ALPHA=16, and LORA_ALPHA is 8"),
        ({"lora_targets": "c_proj"}, "trained with LORA_TARGETS=auto, and LORA_TARGETS is c_proj"),
        ({"use_lora": False}, "trained with USE_LORA=True, and USE_LORA is False. Set USE_LORA=True to go on"),
    ):
        with pytest.raises(UserError, match=words):
            resume_run(spec, replace(config, **changes), checkpoint)
    resumed = resume_run(spec, replace(config, lora_dropout=0.3), checkpoint)
    assert any(isinstance(module, CPUDropout) and module.p == 0.3 for module in resumed.model.modules())
    whole = read_checkpoint(save(start_run(spec, replace(config, use_lora=False)), tmp_path / "whole.pt"))
    with pytest.raises(UserError, match="trained with USE_LORA=False, and USE_LORA is True"):
        resume_run(spec, config, whole)


def test_adapters_on_the_weights_of_a_checkpoint(make_spec: MakeSpec, make_lora: MakeTrial, tmp_path: Path) -> None:
    spec, config = make_spec("gpt2"), make_lora()
    first = start_run(spec, config)
    losses(first, spec)
    path = save(first, tmp_path / "first.pt")
    # Weights alone are the merged ones, whether all weights are trained next or new adapters.
    from_there = replace(spec, init_from=path)
    full, _ = load_run_model(from_there, replace(config, use_lora=False), None)
    expected = merged_model(first.model).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in full.state_dict().items())
    second = start_run(from_there, config)
    assert second.adapter_base is not None
    assert second.adapter_base.init_from == str(path)
    losses(second, from_there)
    checkpoint = read_checkpoint(save(second, tmp_path / "second.pt"))
    # The study's own spec and the file alone lead to the same model; without the first file there is none.
    for one in (from_there, spec):
        model, _ = load_run_model(one, config, checkpoint)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), second.model.parameters(), strict=True))
    path.rename(tmp_path / "moved.pt")
    with pytest.raises(UserError, match=r"adapters for the weights of .*first.pt: .*does not exist"):
        load_run_model(spec, config, checkpoint)


def test_a_file_that_is_its_own_base_is_refused(make_spec: MakeSpec, make_lora: MakeTrial, tmp_path: Path) -> None:
    spec, config = make_spec("gpt2"), make_lora()
    state, path = start_run(spec, config), tmp_path / "step.pt"
    state.adapter_base = AdapterBase(model_name="gpt2", init_from=str(path), fingerprint="0" * 64)
    with pytest.raises(UserError, match="names itself"):
        resume_run(spec, config, read_checkpoint(save(state, path)))


@pytest.mark.parametrize(
    ("family", "targets", "count"),
    [
        *[("gpt2", "auto", 2), ("gpt2", "c_proj", 4), ("gpt2", "attn.c_proj,c_attn", 4), ("gpt2", "all-linear", 8)],
        *[("llama", "all-linear", 14), ("llama", "q_proj", 2), ("neox", "dense", 2), ("untied", "all-linear", 8)],
    ],
)
def test_targets_are_linear_layers_below_the_head(make_model: MakeModel, family: str, targets: str, count: int) -> None:
    assert len(find_targets(make_model(family), targets)) == count


@pytest.mark.parametrize(
    ("family", "targets", "words"),
    [
        ("gpt2", "q_proj", "no linear layer of this gpt2 model is named 'q_proj'; there are c_attn, c_fc, c_proj"),
        (
            "llama",
            "q_proj,v_prj",
            "is named 'v_prj'; there are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
        ),
        ("gpt2", "lm_head", "is named 'lm_head'"),
        ("gpt2", "wte", "is named 'wte'"),
    ],
)
def test_a_target_that_matches_nothing_is_refused_with_the_names_there_are(
    make_model: MakeModel, family: str, targets: str, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        find_targets(make_model(family), targets)


def test_a_model_type_without_a_default_asks_for_names(make_model: MakeModel) -> None:
    model = make_model("gpt2")
    model.config.model_type = "new-kind"
    with pytest.raises(UserError, match=r"no default for a new-kind model. Name layers: c_attn, c_fc, c_proj"):
        find_targets(model, "auto")


SMALL: dict[str, Any] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}


@pytest.mark.filterwarnings("ignore:The following:RuntimeWarning")
@pytest.mark.parametrize(
    ("config", "targets", "words"),
    [
        (MambaConfig(**SMALL), "all-linear", "does not adapt out_proj of a mamba model. Name others, of dt_proj, in_"),
        (MambaConfig(**SMALL), "out_proj", "does not adapt out_proj"),
        # Its experts are one tensor, which peft would adapt in place of the other layers of these names.
        (DeepseekV2Config(**SMALL, q_lora_rank=8), "all-linear", "does not adapt down_proj, gate_proj, up_proj of a d"),
        (DeepseekV2Config(**SMALL, q_lora_rank=8), "gate_proj", "does not adapt gate_proj"),
    ],
)
def test_layers_that_peft_does_not_adapt_are_refused(config: PreTrainedConfig, targets: str, words: str) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=words):
        add_adapters(model, TrialConfig(use_lora=True, lora_targets=targets))


def test_a_router_is_no_target() -> None:
    model = AutoModelForCausalLM.from_config(
        Llama4TextConfig(**SMALL, num_local_experts=2, interleave_moe_layer_step=1)
    )
    assert any(name.endswith(".router") for name, _ in model.named_modules())
    assert not any(name.endswith(".router") for name in find_targets(model, "all-linear"))


def test_the_seed_draws_the_adapters_and_leaves_dropout_as_without_them(make_spec: MakeSpec) -> None:
    name = make_spec("gpt2").model_name
    model = load_model(name, dropout=0.1, seed=3)
    expected = torch.rand(2)
    drawn = []
    for seed in (3, 3, 4):
        model = load_model(name, dropout=0.1, seed=seed)
        add_adapters(model, TrialConfig(use_lora=True, seed=seed))
        if seed == 3:
            assert torch.equal(torch.rand(2), expected)
        drawn.append(next(weight for _, weight in adapter_parameters(model)))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
