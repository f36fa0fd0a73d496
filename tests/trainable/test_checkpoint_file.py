"""A checkpoint's bytes: whole or not written, and no damage passes for another state."""

import json
import os
import random
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from tests.trainable.makers import MakeModel
from trainable.checkpoint.checkpoint import read_checkpoint, save_checkpoint
from trainable.checkpoint.checkpoint_file import read_payload, read_safetensors, write_payload
from trainable.checkpoint.checkpoint_path import DamagedCheckpointError
from trainable.config import TrialConfig
from trainable.errors import UserError
from trainable.state import TrainState, new_state

TRIES = 300

WRITE_BEYOND_THE_LIMIT = """
import resource, sys
from pathlib import Path
import torch
from trainable.checkpoint.checkpoint_file import write_payload
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        write_payload({"a": torch.ones(50_000)}, Path(sys.argv[1]))
    except OSError as error:
        print(error.strerror)
"""


@pytest.fixture(scope="module")
def state() -> TrainState:
    """A model of a few hundred weights after one step, optimizer and all."""
    shapes = {"n_layer": 1, "n_head": 1, "n_embd": 4, "vocab_size": 16, "n_positions": 8}
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**shapes, bos_token_id=None, eos_token_id=None))
    state = new_state(TrialConfig(), model, device=torch.device("cpu"), unigram_entropy=2.0, from_scratch=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    state.optimizer.step()
    state.optimizer_steps = 1
    return state


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(equal, one, other))
    return type(one) is type(other) and bool(one == other)


def test_no_changed_bit_passes_for_another_state(state: TrainState, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(state, path, model_name="mine", corpus_fingerprint="f")
    data, written, draw = path.read_bytes(), read_payload(path), random.Random(0)
    directory = data.index(b"PK\x01\x02")
    bits = [(draw.randrange(len(data)), draw.randrange(8)) for _ in range(TRIES)]
    bits += [(draw.randrange(directory, len(data)), draw.randrange(8)) for _ in range(TRIES)]
    # What marks a record as a folder, of which torch reads nothing.
    entries = [at for at in range(len(data)) if data.startswith(b"PK\x01\x02", at)]
    bits += [(entry + 38, 4) for entry in entries]
    messages = []
    for position, bit in bits:
        changed = bytearray(data)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        try:
            assert equal(read_checkpoint(path).ours, written), (position, bit)
        except DamagedCheckpointError as error:
            messages.append(str(error))
    assert len(messages) > len(bits) / 2
    assert [text for text in messages if "\n" in text or f"checkpoint {path} is damaged" not in text] == []
    assert len(entries) > 40


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path: Path) -> None:
    path, packed = tmp_path / "x.pt", tmp_path / "packed.pt"
    torch.save({"a": torch.zeros(10_000)}, path)
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as out:
        for record in archive.infolist():
            out.writestr(record.filename, archive.read(record))
    assert torch.load(packed)["a"].sum() == 0
    with pytest.raises(DamagedCheckpointError, match="is damaged"):
        read_payload(packed)


def test_what_does_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    payload = {"a": [torch.zeros(1_000_000)], "b": {"c": torch.zeros(1_000_000)}}
    free = iter([9_000_000, 9_100_000])
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(total=1 << 30, free=next(free)))
    with pytest.raises(OSError, match="No space left on device"):
        write_payload(payload, tmp_path / "x.pt")
    assert list(tmp_path.iterdir()) == []
    write_payload(payload, tmp_path / "x.pt")
    assert (tmp_path / "x.pt").stat().st_size > 8_000_000


def test_torch_alone_would_not_notice(state: TrainState, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    numbers = torch.arange(100, dtype=torch.int64)
    write_payload({"a": numbers}, path)
    data = bytearray(path.read_bytes())
    data[data.index(numbers.numpy().tobytes()) + 8 * 41] ^= 1
    path.write_bytes(data)
    assert torch.load(path, weights_only=True)["a"][41] == 40
    with pytest.raises(DamagedCheckpointError, match=r"is damaged: \w+/data/0 is not as it was written"):
        read_payload(path)


def test_every_cut_is_refused(state: TrainState, tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(state, path, model_name="mine", corpus_fingerprint="f")
    data = path.read_bytes()
    for length in [*range(0, len(data), len(data) // 100), *range(len(data) - 50, len(data))]:
        path.write_bytes(data[:length])
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(path)


def test_a_file_whose_writer_made_no_checksums_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.arange(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_payload(path)["a"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_damaged_file_of_others_is_never_more_than_refused(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "x.pt"
    payload = {"step": 1, "model_state_dict": {"a": torch.zeros(20), "b": torch.zeros(3, 4)}, "note": [1.5, "words"]}
    torch.save(payload, path, _use_new_zipfile_serialization=not legacy)
    content, draw = path.read_bytes(), random.Random(0)
    damaged = [content[:length] for length in range(1, len(content), max(1, len(content) // 40))]
    for _ in range(TRIES):
        changed = bytearray(content)
        changed[draw.randrange(min(len(content), 1500))] = draw.randrange(256)
        damaged.append(bytes(changed))
    messages = []
    for broken in damaged:
        path.write_bytes(broken)
        try:
            read_checkpoint(path)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert [message for message in messages if "\n" in message] == []


def test_a_machine_without_memory_is_not_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.pt"
    write_payload({"a": torch.zeros(3)}, path)

    def refuse(*arguments: object, **options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 12 bytes")

    monkeypatch.setattr(torch, "load", refuse)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        read_payload(path)


def test_a_full_disk_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    write_payload({"a": torch.zeros(50_000)}, path)
    before = path.read_bytes()
    limits = [0, 10_000, len(before) - 1000]
    ran = subprocess.run(
        [sys.executable, "-c", WRITE_BEYOND_THE_LIMIT, str(path), *map(str, limits)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent.parent.parent,
    )
    assert ran.stdout == "File too large\n" * 3
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_cut_short_before_its_rename_is_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []

    def fail_after_syncing(number: int) -> None:
        synced.append(number)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", fail_after_syncing)
    with pytest.raises(KeyboardInterrupt):
        write_payload({"a": torch.zeros(3)}, tmp_path / "x.pt")
    assert len(synced) == 1
    assert list(tmp_path.iterdir()) == []


FLOATS = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
LIES: dict[str, tuple[Any, int | None]] = {
    "a header longer than the file": ({"a": FLOATS}, 99_000_000),
    "a header of 2**63 bytes": ({"a": FLOATS}, 2**63),
    "no end of the JSON": ({"a": FLOATS}, 20),
    "tensors that overlap": ({"a": FLOATS, "b": FLOATS}, None),
    "a shape beyond any memory": ({"a": {**FLOATS, "shape": [2**62, 2**62]}}, None),
    "a shape that is not its bytes": ({"a": {**FLOATS, "shape": [2, 4]}}, None),
    "offsets beyond the file": ({"a": {**FLOATS, "shape": [2**40], "data_offsets": [0, 2**42]}}, None),
    "offsets that run backwards": ({"a": {**FLOATS, "data_offsets": [24, 0]}}, None),
    "an unknown type": ({"a": {**FLOATS, "dtype": "X9"}}, None),
    "no tensor of the bytes": ({}, None),
    "no object": ([1], None),
    "names that are no tensors": ({"a": 1}, None),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_safetensors_header_that_lies_is_refused_at_once(tmp_path: Path, lie: str) -> None:
    header, length = LIES[lie]
    text = json.dumps(header).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(24))
    started = time.perf_counter()
    with pytest.raises(DamagedCheckpointError, match=r"is damaged or not a") as caught:
        read_checkpoint(path)
    assert time.perf_counter() - started < 1
    assert str(caught.value).startswith(f"checkpoint {path} ")
    assert "\n" not in str(caught.value)


def test_a_cut_safetensors_file_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.arange(6.0), "b": torch.ones(2, dtype=torch.bfloat16)}, path)
    assert read_safetensors(path)["a"].tolist() == [0, 1, 2, 3, 4, 5]
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(DamagedCheckpointError):
            read_checkpoint(path)
