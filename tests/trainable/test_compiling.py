"""When layers are compiled, and that a compiled run trains the same and is evaluated by the same arithmetic."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo.utils

from trainable.compiling import REPAID_AFTER_STEPS, CompileMode, is_compiled
from trainable.config import TrialConfig
from trainable.loop import train
from trainable.rows import MetricsRow, StepRow
from trainable.run import start_run


@pytest.mark.parametrize(
    ("mode", "device_type", "steps", "compiled"),
    [
        ("auto", "cuda", REPAID_AFTER_STEPS, True),
        ("auto", "cuda", REPAID_AFTER_STEPS - 1, False),
        ("auto", "cpu", 10**9, False),
        ("auto", "mps", 10**9, False),
        ("on", "cpu", 1, True),
        ("on", "cuda", 1, True),
        ("on", "mps", 10**9, False),
        ("off", "cuda", 10**9, False),
    ],
)
def test_what_is_compiled(mode: CompileMode, device_type: str, steps: int, compiled: bool) -> None:
    assert is_compiled(mode, device_type=device_type, training_steps=steps) is compiled


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
        names = list(state.model.state_dict())
        assert not any("_orig_mod" in name for name in names)
    # A compiler that fails is passed over in silence, here it must not.
    assert counters["inductor"]["fxgraph_cache_miss"] + counters["inductor"]["fxgraph_cache_hit"] >= 2
    assert (cache / "compiled").is_dir()
    eager, compiled = found
    assert compiled[0].val_loss == eager[0].val_loss  # type: ignore[union-attr]
    for one, other in zip(eager, compiled, strict=True):
        if isinstance(one, StepRow) and isinstance(other, StepRow):
            assert other.train_loss == pytest.approx(one.train_loss, abs=1e-4)
            assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-3)
        if isinstance(one, MetricsRow) and isinstance(other, MetricsRow):
            assert other.val_loss == pytest.approx(one.val_loss, abs=1e-4)
