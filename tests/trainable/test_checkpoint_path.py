"""The names of checkpoints, and what their first bytes tell."""

import io
import os
import zipfile
from pathlib import Path

import pytest

from trainable.checkpoint.checkpoint_path import (
    DamagedCheckpointError,
    check_checkpoint_path,
    checkpoint_name,
    is_safetensors,
    saved_steps,
)


def archive() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as one:
        one.writestr("data.pkl", b"x")
    return file.getvalue()


SAFETENSORS = b"\x37" + bytes(7) + b'{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}  xx'
KINDS = {archive(): False, b"\x80\x02\x8a" + bytes(20): False, SAFETENSORS: True}


def test_steps_are_in_order_however_many_digits_they_have() -> None:
    steps = [0, 9, 10, 1500, 99_999_999, 100_000_000, 10**12]
    names = [checkpoint_name(step) for step in steps]
    assert names[3] == "step_00001500.pt"
    others = [".step_00000001.pt.ab.tmp", "step_00000080.pt.kept", "step_1.pt", "step_0000000007.pt", "x"]
    assert saved_steps([*reversed(names), *others]) == steps


@pytest.mark.parametrize("data", KINDS, ids=["archive", "pickle", "safetensors"])
def test_the_three_formats_are_let_through(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    check_checkpoint_path(path)
    assert is_safetensors(path) is KINDS[data]


@pytest.mark.parametrize("data", [archive(), SAFETENSORS], ids=["archive", "safetensors"])
def test_a_terabyte_behind_a_right_start_is_not_read(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    os.truncate(path, 1 << 40)
    with pytest.raises(DamagedCheckpointError, match="is damaged or not a file"):
        check_checkpoint_path(path)


@pytest.mark.parametrize("start", [b"", b"P", b"PK", b"PK\x03", b"\x40" + bytes(7), b"GGUF" + bytes(20), b"{" * 8])
def test_what_is_cut_within_its_first_bytes_is_damaged(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(start)
    with pytest.raises(
        DamagedCheckpointError, match=r"is empty|is damaged or not a file of torch\.save or safetensors"
    ):
        check_checkpoint_path(path)
