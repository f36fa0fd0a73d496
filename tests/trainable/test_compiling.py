"""When layers are compiled, and that a compiled run trains the same and is evaluated by the same arithmetic."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.utils

from trainable.config import TrialConfig
from trainable.device import compiling
from trainable.device.compiling import CompileCost, compile_where_repaid, is_repaid, why_not
from trainable.device.cpu_kernels import tune_for_cpu
from trainable.loop import train
from trainable.rows import MetricsRow, StepRow
from trainable.run import start_run

CONFIG = TrialConfig(batch_size=2, block_size=16, learning_rate=1e-3, training_steps=4, dropout=0.1)
COST = CompileCost(compile_s=30.0, eager_pass_s=0.10, compiled_pass_s=0.07)


@pytest.mark.parametrize(
    ("compiled_pass_s", "passes", "repaid"),
    [(0.07, 1001, True), (0.07, 999, False), (0.10, 10**9, False), (0.12, 10**9, False), (0.01, 334, True)],
)
def test_compiling_is_repaid_by_what_the_passes_gain(compiled_pass_s: float, passes: int, repaid: bool) -> None:
    cost = CompileCost(compile_s=30.0, eager_pass_s=0.10, compiled_pass_s=compiled_pass_s)
    assert is_repaid(cost, passes=passes) is repaid


def compiled_layers(model: torch.nn.Module) -> int:
    return sum(module._compiled_call_impl is not None for module in model.modules())


@pytest.fixture
def with_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the CPU were a device where auto decides, and there were a compiler, whatever this machine has."""
    monkeypatch.setattr(compiling, "MIN_RUN_S", {"cpu": 60.0})
    monkeypatch.setattr(compiling, "why_not", lambda device_type: None)


@pytest.mark.usefixtures("with_a_compiler")
@pytest.mark.filterwarnings("ignore")  # of torch's own, in its compiler
@pytest.mark.parametrize(("cost", "steps", "count"), [(COST, 600, 2), (COST, 400, 0)])
def test_auto_goes_by_the_record(
    make_model: Any, monkeypatch: pytest.MonkeyPatch, cost: CompileCost, steps: int, count: int
) -> None:
    model, config = make_model(), TrialConfig(training_steps=steps, grad_accum_steps=2)
    monkeypatch.setattr(compiling, "_measured", lambda *_, **__: CompileCost(**asdict(COST) | {"compile_s": 1.0}))
    compiling._record_path(model, config).write_text(json.dumps(asdict(cost)))
    note = compile_where_repaid("auto", model, config)
    assert compiled_layers(model) == count
    assert note.startswith("compiled: 30 s" if count else "not compiled: 30 s")
    assert f"70.0 ms instead of 100.0, {2 * steps:,} times" in note


@pytest.mark.usefixtures("with_a_compiler")
def test_a_cost_is_measured_once_per_shape_and_leaves_no_trace(
    make_model: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "MIN_RUN_S", {"cpu": 0.0})
    probes: list[torch.nn.Module] = []
    monkeypatch.setattr(compiling, "compile_layers", probes.append)
    # Equal times, which repay nothing: on a busy machine those of the same layers differ.
    measured = compiling._seconds_a_pass
    monkeypatch.setattr(compiling, "_seconds_a_pass", lambda *of, **count: measured(*of, **count) and 1e-3)
    model = make_model(dropout=0.1).train()
    before = torch.get_rng_state()
    compile_where_repaid("auto", model, CONFIG)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert probes[0] is not model
    (record,) = (cache / "compiled").glob("cost-*.json")
    assert json.loads(record.read_text())["eager_pass_s"] == 1e-3
    compile_where_repaid("auto", model, CONFIG)
    assert sum(probe is not model for probe in probes) == 1
    record.write_text("{")  # a damaged record is measured again
    compile_where_repaid("auto", model, CONFIG)
    assert sum(probe is not model for probe in probes) == 2


def test_a_compiler_that_fails_costs_a_note_and_half_its_files(
    make_model: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(model: torch.nn.Module) -> None:
        half = cache / "compiled" / compiling.KERNELS / "half.so"
        half.parent.mkdir(parents=True)
        half.touch()
        raise ImportError(f"{half}:\n file too short")

    model = make_model()
    monkeypatch.setattr(compiling, "compile_layers", broken)
    note = compile_where_repaid("on", model, CONFIG)
    assert note.startswith("not compiled: ")
    assert note.endswith("half.so: file too short")
    assert not (cache / "compiled" / compiling.KERNELS).exists()
    assert compiled_layers(model) == 0
    error = torch.OutOfMemoryError("CUDA out of memory")
    monkeypatch.setattr(compiling, "_measured", lambda *_, **__: (_ for _ in ()).throw(error))
    note = compile_where_repaid("on", model, CONFIG)
    assert note == "not compiled: there is no memory to measure what it would gain"


def test_a_cost_is_of_a_chip_and_of_any_dropout(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrialConfig(dropout=0.1)
    path = compiling._record_path(make_model(dropout=0.1), config)
    assert compiling._record_path(make_model(dropout=0.2), TrialConfig(dropout=0.2)) == path
    assert compiling._record_path(make_model(dropout=0.0), TrialConfig(dropout=0.0)) != path
    assert compiling._record_path(make_model(dropout=0.1, n_layer=3), config) != path
    monkeypatch.setattr("trainable.device.device._chip_name", lambda: "another chip")
    assert compiling._record_path(make_model(dropout=0.1), config) != path


@pytest.mark.usefixtures("with_a_compiler")
def test_a_short_run_does_not_find_out(make_model: Any, cache: Path) -> None:
    model = make_model()
    assert compile_where_repaid("auto", model, CONFIG) == ""
    assert compiled_layers(model) == 0
    assert not list((cache / "compiled").glob("cost-*"))


def test_off_compiles_nothing_and_a_missing_compiler_is_said(make_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    for mode in ("off", "auto"):  # auto is for CUDA
        assert compile_where_repaid(mode, model, TrialConfig(training_steps=10**9)) == ""
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert compile_where_repaid("on", model, CONFIG) == f"not compiled: {why_not('cpu')}"
    assert "g++" in str(why_not("cpu"))
    assert "MPS" in str(why_not("mps"))
    assert compiled_layers(model) == 0


@pytest.mark.filterwarnings("ignore")  # of torch's own, in its compiler
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_layers_with_dropout_are_one_graph_each(make_model: Any, family: str) -> None:
    model = make_model(family, dropout=0.1)
    tune_for_cpu(model)
    model.train()
    graphs: list[Any] = []

    def count(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    for layer in compiling.layers_of(model):
        layer.compile(backend=count, fullgraph=True)
    model(input_ids=torch.arange(32).unsqueeze(0), use_cache=False).logits.sum().backward()
    assert 1 <= len(graphs) <= 2
    torch._dynamo.reset()


def test_the_layers_are_the_largest_list_and_not_the_longest() -> None:
    layers = torch.nn.ModuleList(torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(8)) for _ in range(2))
    model: Any = torch.nn.ModuleDict({"layers": layers, "head": torch.nn.Linear(2, 2)})
    assert compiling.layers_of(model) is layers


@pytest.mark.filterwarnings("ignore")  # of torch's own, in its compiler
def test_a_compiled_run_trains_the_same(make_spec: Any, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrialConfig(batch_size=2, block_size=16, learning_rate=1e-3, training_steps=4, dropout=0.0)
    found = []
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    counters = torch._dynamo.utils.counters
    counters.clear()
    for mode in ("off", "on"):
        spec = make_spec(compile_mode=mode)
        state = start_run(spec, config)
        rows = list(train(state, spec.corpus, spec.protocol, eval_steps={2}))
        found.append(rows)
        assert state.compile_note.startswith("compiled: " if mode == "on" else "")
        names = list(state.model.state_dict())
        assert not any("_orig_mod" in name for name in names)
    # A compiler that fails is passed over in silence, here it must not.
    assert counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_hit"] >= 2
    assert counters["frames"]["ok"] == counters["frames"]["total"]
    assert (cache / "compiled").is_dir()
    eager, compiled = found
    assert compiled[0].val_loss == eager[0].val_loss  # type: ignore[union-attr]
    for one, other in zip(eager, compiled, strict=True):
        if isinstance(one, StepRow) and isinstance(other, StepRow):
            assert other.train_loss == pytest.approx(one.train_loss, abs=1e-4)
            assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)
        if isinstance(one, MetricsRow) and isinstance(other, MetricsRow):
            assert other.val_loss == pytest.approx(one.val_loss, abs=1e-4)
