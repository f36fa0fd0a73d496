"""Whatever a checkpoint file holds, it is examined or refused in one line, and nothing in it runs."""

import io
import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from results.diagnosis.of_checkpoint import report_of_checkpoints
from results.diagnosis.render import to_json
from tests.fuzz.outcome import EXAMPLES, attempt
from trainable.checkpoint.checkpoint import FORMAT, VERSION, read_checkpoint
from trainable.checkpoint.exam.examine import examine_checkpoints
from trainable.config import DOCUMENTED

WIDE, ROWS, POSITIONS = 8, 12, 16
FEW = settings(max_examples=max(30, EXAMPLES // 4))


def weights(dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Return a GPT-2 of one layer, 8 wide."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (ROWS, WIDE),
        "transformer.wpe.weight": (POSITIONS, WIDE),
    }
    block = "transformer.h.0."
    for name in ("ln_1", "ln_2"):
        shapes |= {f"{block}{name}.weight": (WIDE,), f"{block}{name}.bias": (WIDE,)}
    for name, (rows, columns) in {
        "attn.c_attn": (WIDE, 3 * WIDE),
        "attn.c_proj": (WIDE, WIDE),
        "mlp.c_fc": (WIDE, 4 * WIDE),
        "mlp.c_proj": (4 * WIDE, WIDE),
    }.items():
        shapes |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (columns,)}
    shapes |= {"transformer.ln_f.weight": (WIDE,), "transformer.ln_f.bias": (WIDE,)}
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def owners(**changes: Any) -> dict[str, Any]:
    """Return what the owner's scripts save."""
    named = weights()
    state = {index: {"step": 5, "exp_avg": t, "exp_avg_sq": t.square()} for index, t in enumerate(named.values())}
    group = {"lr": 1e-4, "params": list(range(len(named)))}
    optimizer = {"state": state, "param_groups": [group]}
    payload = {
        "step": 5,
        "model_state_dict": named,
        "optimizer_state_dict": optimizer,
        "hyperparameters": {"n_head": 2},
    }
    return payload | changes


def ours(**changes: Any) -> dict[str, Any]:
    """Return what we save, as far as an examination reads it."""
    own = {
        "format": FORMAT,
        "version": VERSION,
        "model_name": "tiny",
        "optimizer_steps": 7,
        "config": asdict(DOCUMENTED),
    }
    return owners() | own | changes


def saved(payload: Any) -> bytes:
    file = io.BytesIO()
    torch.save(payload, file)
    return file.getvalue()


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TOKENS = (np.arange(400) % ROWS).astype(np.uint16)


def examined(path: Path) -> Any:
    facts = examine_checkpoints([path], tokens=TOKENS)
    report = report_of_checkpoints(path.name, facts, unigram_entropy=2.0)
    json.dumps(to_json(report), allow_nan=False)
    return facts


def exam_of(name: str, data: bytes, folder: Path) -> Any:
    path = folder / "fuzz.pt"
    path.write_bytes(data)
    return attempt(name, lambda: examined(path))


SAVED = {"owners": saved(owners()), "ours": saved(ours())}


@FEW
@given(st.sampled_from(sorted(SAVED)), st.integers(0, 1 << 20), st.integers(0, 40), st.binary(max_size=12))
def test_a_mutated_file_is_examined_or_refused(
    own_environment: Path, one_thread: None, whose: str, at: int, cut: int, put: bytes
) -> None:
    data = SAVED[whose]
    at %= len(data)
    exam_of("checkpoint mutated", data[:at] + put + data[at + cut :], own_environment)


def resealed(data: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """Return the archive with its pickle changed and every checksum right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(file, "w") as out:
        for record in archive.infolist():
            content = archive.read(record)
            out.writestr(record.filename, change(content) if record.filename.endswith("data.pkl") else content)
    return file.getvalue()


@FEW
@given(st.sampled_from(sorted(SAVED)), st.integers(0, 1 << 20), st.integers(0, 4), st.binary(max_size=6))
def test_a_mutated_pickle_with_the_right_checksum_is_examined_or_refused(
    own_environment: Path, one_thread: None, whose: str, at: int, cut: int, put: bytes
) -> None:
    def change(pickled: bytes) -> bytes:
        return pickled[: at % len(pickled)] + put + pickled[at % len(pickled) + cut :]

    exam_of("checkpoint pickle mutated", resealed(SAVED[whose], change), own_environment)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from([10**400, 1e308, -1])
)
TENSORS = (
    *(
        torch.tensor(1.0),
        torch.ones(3),
        torch.ones(2, 2),
        torch.zeros(0),
        torch.tensor([float("nan")]),
        torch.ones(4, 4).T,
    ),
    *(torch.ones(2, dtype=dtype) for dtype in (torch.int8, torch.bool, torch.complex64, torch.bfloat16)),
    *(torch.ones(4).to(torch.float8_e4m3fn), torch.ones(2, dtype=torch.float16) * 60_000, torch.eye(3).to_sparse()),
    *(torch.ones(1).expand(10**6, 10**9), torch.ones(2, 3, device="meta")),
)
tensors = st.sampled_from(TENSORS)
odd = st.recursive(
    scalars | tensors,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3),
    max_leaves=5,
)
NAMES = [
    *weights(),
    "transformer.h.999999999.attn.c_attn.weight",
    "transformer.h.1.attn.c_attn.weight",
    "lora_b",
    "x.attn.bias",
]
states = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), tensors, max_size=4)
optimizers = odd | st.fixed_dictionaries(
    {},
    optional={
        "param_groups": odd
        | st.lists(
            st.fixed_dictionaries({}, optional={"lr": odd, "params": odd | st.lists(odd, max_size=3)}), max_size=2
        ),
        "state": odd | st.dictionaries(st.integers(0, 3), odd | st.fixed_dictionaries({"exp_avg_sq": odd}), max_size=3),
    },
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "step": scalars,
        "optimizer_steps": scalars,
        "optimizer_state_dict": optimizers,
        "hyperparameters": odd | st.dictionaries(st.sampled_from(["n_head", "learning_rate", "a\nb"]), odd, max_size=3),
        "config": odd,
        "model_state_dict": odd | states,
        "more": odd,
    },
)


@FEW
@given(
    st.sampled_from([owners, ours]),
    changes,
    states,
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_odd_values_are_examined_or_refused(
    own_environment: Path, one_thread: None, whose: Callable[..., Any], odd_values: Any, named: Any, dtype: torch.dtype
) -> None:
    payload = whose(**{"model_state_dict": weights(dtype) | named, **odd_values})
    exam_of("checkpoint odd", saved(payload), own_environment)


FOUND: dict[str, dict[str, torch.Tensor]] = {
    "an expanded tensor": {"more.weight": TENSORS[-2]},
    "a tensor on no device": {"more.weight": TENSORS[-1]},
    "a sparse tensor": {"more.weight": torch.eye(3).to_sparse()},
    "a type of one byte": {"more.weight": torch.ones(4).to(torch.float8_e4m3fn)},
    "an embedding without rows": {"transformer.wte.weight": torch.tensor(1.0)},
    "positions without rows": {"transformer.wpe.weight": torch.tensor(1.0)},
    "a thousand million layers": {"transformer.h.999999999.attn.c_attn.weight": torch.ones(2, 2)},
}
"""Weights that were found by the tests above, made small."""
FOUND_BESIDE: dict[str, dict[str, Any]] = {
    "a tensor for hyperparameters": {"hyperparameters": torch.ones(2)},
    "a number for groups": {"optimizer_state_dict": {"param_groups": 5, "state": {0: {}}}},
    "a tensor for groups": {"optimizer_state_dict": {"param_groups": torch.ones(2)}},
    "a list for a tensor's number": {"optimizer_state_dict": {"param_groups": [{"params": [[1]]}], "state": {0: {}}}},
    "a rate of 400 digits": {"optimizer_state_dict": {"param_groups": [{"lr": 10**400}]}},
    "an infinite rate": {
        "optimizer_state_dict": {"param_groups": [{"lr": float("inf")}]},
        "model_state_dict": weights(torch.bfloat16),
    },
}


@pytest.mark.parametrize("name", sorted(FOUND))
def test_weights_that_were_found_are_examined_or_refused(own_environment: Path, name: str) -> None:
    exam_of("checkpoint found", saved(owners(model_state_dict=weights() | FOUND[name])), own_environment)


@pytest.mark.parametrize("name", sorted(FOUND_BESIDE))
def test_values_that_were_found_are_examined(own_environment: Path, name: str) -> None:
    assert exam_of("checkpoint found", saved(owners(**FOUND_BESIDE[name])), own_environment)


def test_a_safetensors_file_by_the_name_of_a_checkpoint_is_examined(own_environment: Path) -> None:
    (facts,) = exam_of("checkpoint found", safetensors.torch.save(weights()), own_environment)
    assert facts.dtypes == {"float32": sum(tensor.numel() for tensor in weights().values())}


class Reducing:
    """What a pickle with code in it holds: loading it calls `function` with `arguments`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.called = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.called


@pytest.mark.parametrize("pack", [pickle.dumps, saved])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (open, ("{}", "w")),
        (os.system, ("touch {}",)),
        (os.mkdir, ("{}",)),
        (exec, ("open('{}', 'w')",)),
        (eval, ("open('{}', 'w')",)),
        (Path.touch, (Path("{}"),)),
        (os.open, ("{}", os.O_CREAT)),
        (__import__, ("antigravity",)),
    ],
)
@pytest.mark.parametrize("where", ["model_state_dict", "hyperparameters", "step", "more", None])
def test_what_a_file_wants_to_run_does_not_run(
    tmp_path: Path,
    pack: Callable[[Any], bytes],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    where: str | None,
) -> None:
    ran = tmp_path / "ran"
    placed = [type(one)(str(one).replace("{}", str(ran))) if not isinstance(one, int) else one for one in arguments]
    bomb = Reducing(function, *placed)
    path = tmp_path / "bomb.pt"
    path.write_bytes(pack(bomb if where is None else owners(**{where: bomb})))
    assert attempt("checkpoint with code", lambda: read_checkpoint(path)) is None
    assert attempt("checkpoint with code", lambda: examined(path)) is None
    assert sorted(tmp_path.iterdir()) == [path]


UNLOOKED: dict[str, dict[str, Any]] = {
    "a tensor for a version": {"version": torch.ones(2)},
    "a number for a model": {"model_name": 5},
    "a word for the tokens": {"tokens_seen": "many"},
}


@pytest.mark.parametrize("name", sorted(UNLOOKED))
def test_an_odd_value_of_ours_is_named(own_environment: Path, name: str) -> None:
    assert exam_of("checkpoint odd", saved(ours(**UNLOOKED[name])), own_environment) is None
