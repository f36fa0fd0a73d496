"""Every run compares the files of its weights with those that the study began with."""

import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.trainable.makers import MakeSpec, MakeTrial
from trainable.errors import InputChangedError
from trainable.model.fingerprint import file_fingerprint, weight_sums
from trainable.model.models import load_model
from trainable.run import RunSpec, start_run


@pytest.fixture
def folders(model_folders: dict[str, Path], tmp_path: Path) -> tuple[Path, Path]:
    """A model folder and a checkpoint's, which a test may change."""
    return tuple(Path(shutil.copytree(model_folders["gpt2"], tmp_path / name)) for name in ("model", "start"))  # type: ignore[return-value]


@pytest.fixture
def spec(make_spec: MakeSpec, folders: tuple[Path, Path]) -> RunSpec:
    model, start = folders
    return make_spec(str(model), init_from=start, weight_sums=weight_sums(str(model), start))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_the_same_files_start_runs_without_being_read_again(
    spec: RunSpec, make_trial: MakeTrial, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sorted(spec.weight_sums) == ["checkpoint/model.safetensors", "model/config.json", "model/model.safetensors"]
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    start_run(spec, make_trial())


@pytest.mark.parametrize("folder", ["model", "start"])
def test_a_replaced_file_starts_no_run(spec: RunSpec, make_trial: MakeTrial, tmp_path: Path, folder: str) -> None:
    path = tmp_path / folder / "model.safetensors"
    flip(path)
    with pytest.raises(InputChangedError, match=f"^the input has changed since it was first read: {path}$"):
        start_run(spec, make_trial())
    path.unlink()
    with pytest.raises(InputChangedError, match=r"^the input is gone: .*model\.safetensors"):
        start_run(spec, make_trial())


def test_a_folder_that_is_gone_and_a_file_that_came_are_told(
    spec: RunSpec, make_trial: MakeTrial, folders: tuple[Path, Path]
) -> None:
    (folders[0] / "pytorch_model.bin").write_bytes(b"other weights")
    with pytest.raises(InputChangedError, match=r"has changed since it was first read: .*/pytorch_model\.bin"):
        start_run(spec, make_trial())
    shutil.rmtree(folders[0])
    with pytest.raises(InputChangedError, match=rf"^the input is gone: \S+ of {folders[0]}$"):
        start_run(spec, make_trial())


def test_files_replaced_while_they_are_read_are_noticed(
    spec: RunSpec, make_trial: MakeTrial, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_replaced(*args: Any, **kwargs: Any) -> Any:
        model = load_model(*args, **kwargs)
        flip(folders[0] / "model.safetensors")
        return model

    monkeypatch.setattr("trainable.run.load_model", then_replaced)
    with pytest.raises(InputChangedError, match="has changed since it was first read"):
        start_run(spec, make_trial())


def test_a_change_that_hides_its_time_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    before, stat = file_fingerprint(path), path.stat()
    path.write_text("two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert file_fingerprint(path) != before


def test_presets_have_no_files() -> None:
    assert weight_sums("tiny-scratch", None) == {}
    assert sorted(weight_sums("tiny", None)) == ["model/config.json", "model/model.safetensors"]
