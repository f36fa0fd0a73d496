"""A trial's checkpoints in a folder and in a remote store: which are kept, which is read, and what a failure leaves."""

import errno
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainable.makers import MakeSpec, MakeTrial
from trainable.checkpoint import checkpoint_store
from trainable.checkpoint.checkpoint import checkpoint_payload
from trainable.checkpoint.checkpoint_file import read_payload, write_payload
from trainable.checkpoint.checkpoint_path import saved_steps
from trainable.checkpoint.checkpoint_store import BackgroundSaver, CheckpointStore
from trainable.errors import UserError
from trainable.run import start_run
from trainable.state import TrainState

ROOT = Path(__file__).parent.parent.parent
PLACES = ("folder", "file", "remote")

SAVE_WITHOUT_PYARROW_ON_A_FULL_DISK = """
import resource, sys
sys.modules["pyarrow"] = None
import torch
from trainable.checkpoint.checkpoint_store import CheckpointStore
store = CheckpointStore(root=sys.argv[1], trial_id=7)
payload = {"format": "x", "step": 3, "model_state_dict": {"a": torch.ones(50_000)}}
store.write({**payload, "optimizer_steps": 3})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    store.write({**payload, "optimizer_steps": 4})
except OSError as error:
    print(error.strerror)
print(store.newest()[0].optimizer_steps)
"""


@pytest.fixture
def state(make_spec: MakeSpec, make_trial: MakeTrial) -> TrainState:
    """A run after one step, optimizer and all."""
    state = start_run(make_spec(), make_trial())
    for parameter in state.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    return state


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, which every call leaves empty."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[[str], CheckpointStore]:
    """Return a function that makes a trial's store: in a folder, by a file:// URI, or in pyarrow's store in memory."""

    def make(place: str) -> CheckpointStore:
        shared = tmp_path / "the store"
        roots = {"folder": str(shared), "file": shared.as_uri(), "remote": "mock:///deep/prefix"}
        return CheckpointStore(root=roots[place], trial_id=7)

    return make


MakeStore = Callable[[str], CheckpointStore]


def save(store: CheckpointStore | BackgroundSaver, state: TrainState, *steps: int) -> None:
    for step in steps:
        state.optimizer_steps = step
        facts = {"model_name": "mine", "corpus_fingerprint": "f"}
        if isinstance(store, BackgroundSaver):
            store.save(state, **facts)
        else:
            store.write(checkpoint_payload(state, **facts))


def damage(store: CheckpointStore, step: int) -> None:
    name = f"step_{step:08d}.pt"
    with store._folder.local_copy(name) as path:
        data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if isinstance(store._folder.path, Path):
        (store._folder.path / name).write_bytes(data)
    else:
        with store._folder._files.open_output_stream(f"{store._folder.path}/{name}") as file:
            file.write(bytes(data))


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping | list):
        for key, one in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from leaves(one, f"{where}/{key}")
    else:
        yield where, value


def same(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def names(store: CheckpointStore) -> list[int]:
    return saved_steps(store._folder.names())


@pytest.mark.parametrize("place", PLACES)
def test_the_newest_two_are_kept_and_what_leads_beyond_the_known_steps_is_forgotten(
    make_store: MakeStore, state: TrainState, scratch: Path, place: str
) -> None:
    store = make_store(place)
    assert store.newest() == (None, [])
    kept = []
    for step in (40, 80, 120, 120):
        save(store, state, step)
        kept.append(names(store))
    assert kept == [[40], [40, 80], [80, 120], [80, 120]]
    checkpoint, notes = store.newest()
    assert checkpoint is not None
    assert checkpoint.ours is not None
    assert (checkpoint.optimizer_steps, notes) == (120, [])
    assert checkpoint.path == Path(store._folder.path) / "step_00000120.pt"
    store.forget_after(120)
    assert names(store) == [80, 120]
    store.forget_after(119)
    assert names(store) == [80]
    save(store, state, 160)
    store.keep_newest()
    assert names(store) == [160]
    store.forget_after(0)
    assert names(store) == []
    store.keep_newest()
    store.delete()
    assert store.newest() == (None, [])
    store.delete()
    assert list(scratch.iterdir()) == []


def test_a_step_of_nine_digits_is_later_than_one_of_eight(make_store: MakeStore, state: TrainState) -> None:
    store = make_store("folder")
    save(store, state, 99_999_998, 99_999_999, 100_000_000)
    assert names(store) == [99_999_999, 100_000_000]
    checkpoint, _ = store.newest()
    assert checkpoint is not None
    assert checkpoint.optimizer_steps == 100_000_000
    store.forget_after(99_999_999)
    assert names(store) == [99_999_999]


@pytest.mark.parametrize("place", PLACES)
def test_a_damaged_newest_one_is_passed_over_with_a_note(
    make_store: MakeStore, state: TrainState, scratch: Path, place: str
) -> None:
    store = make_store(place)
    save(store, state, 80, 120)
    damage(store, 120)
    checkpoint, notes = store.newest()
    assert checkpoint is not None
    assert checkpoint.optimizer_steps == 80
    assert notes == ["checkpoint step_00000120.pt of trial 7 is damaged; going on from step_00000080.pt"]
    damage(store, 80)
    assert store.newest() == (
        None,
        [
            "checkpoint step_00000120.pt of trial 7 is damaged; there is no earlier one to go on from",
            "checkpoint step_00000080.pt of trial 7 is damaged; there is no earlier one to go on from",
        ],
    )
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("place", PLACES)
def test_a_run_that_went_back_leaves_its_damaged_future_behind(
    make_store: MakeStore, state: TrainState, scratch: Path, place: str
) -> None:
    store = make_store(place)
    save(store, state, 80, 120)
    damage(store, 120)
    save(store, state, 100)
    assert names(store) == [80, 100]


def test_two_trials_of_a_store_are_apart(tmp_path: Path, state: TrainState) -> None:
    one, other = (CheckpointStore(root=str(tmp_path / "s"), trial_id=trial_id) for trial_id in (1, 11))
    save(one, state, 40)
    save(other, state, 80)
    one.delete()
    assert (names(one), names(other)) == ([], [80])


def test_a_whole_checkpoint_of_another_version_is_not_passed_over(make_store: MakeStore, state: TrainState) -> None:
    store = make_store("folder")
    save(store, state, 80)
    payload = checkpoint_payload(state, model_name="mine", corpus_fingerprint="f")
    write_payload({**payload, "version": 99}, Path(store._folder.path) / "step_00000120.pt")
    with pytest.raises(UserError, match="has version 99"):
        store.newest()


def test_what_a_killed_writer_left_is_cleared_away(make_store: MakeStore, state: TrainState) -> None:
    store = make_store("folder")
    save(store, state, 80)
    (Path(store._folder.path) / ".step_00000120.pt.4711.tmp").write_bytes(b"half")
    save(store, state, 160)
    assert sorted(path.name for path in Path(store._folder.path).iterdir()) == ["step_00000080.pt", "step_00000160.pt"]


def test_a_file_that_a_person_put_beside_them_is_no_checkpoint(make_store: MakeStore, state: TrainState) -> None:
    store = make_store("folder")
    save(store, state, 80)
    (copy := Path(store._folder.path) / "step_00000080.pt.kept").write_bytes(b"mine")
    assert store.newest()[1] == []
    store.forget_after(0)
    assert list(copy.parent.iterdir()) == [copy]


def test_a_full_disk_leaves_the_checkpoint_before_and_no_pyarrow_is_needed(tmp_path: Path) -> None:
    root = tmp_path / "store"
    ran = subprocess.run(
        [sys.executable, "-c", SAVE_WITHOUT_PYARROW_ON_A_FULL_DISK, str(root)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ran.stdout == "File too large\n3\n", ran.stderr
    assert [path.name for path in (root / "7").iterdir()] == ["step_00000003.pt"]


@pytest.mark.parametrize("failure", ["refused", "cut short"])
def test_a_failed_upload_leaves_nothing_and_the_one_before(
    make_store: MakeStore, state: TrainState, scratch: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    def fail(files: Any, target: str, blocks: Iterator[bytes]) -> None:
        if failure == "refused":
            raise OSError(errno.ECONNREFUSED, "Connection refused")
        with files.open_output_stream(target) as file:
            file.write(b"".join(blocks)[:1000])

    store = make_store("remote")
    save(store, state, 80)
    assert not isinstance(store._folder.path, Path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_store, "write_whole", fail)
        with pytest.raises(OSError, match=r"Connection refused|1000 of \d+ bytes arrived"):
            save(store, state, 120)
    assert names(store) == [80]
    assert list(scratch.iterdir()) == []
    save(store, state, 160)
    assert names(store) == [80, 160]


def test_a_store_that_cannot_be_reached_is_no_empty_one(
    make_store: MakeStore, state: TrainState, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unreachable:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return self.refuse

        def refuse(self, *arguments: object, **options: object) -> None:
            raise OSError("Could not connect to server")

    store = make_store("remote")
    monkeypatch.setattr(store._folder, "_files", Unreachable())
    calls: list[Callable[[], object]] = [store.newest, store.delete, lambda: save(store, state, 40)]
    for call in calls:
        with pytest.raises(OSError, match="Could not connect"):
            call()
    assert list(scratch.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        save(CheckpointStore(root=str(tmp_path / "file" / "below"), trial_id=7), state, 40)
    (tmp_path / "7").symlink_to(tmp_path / "7")
    looped = CheckpointStore(root=str(tmp_path), trial_id=7)
    for call in (looped.newest, looped.delete):
        with pytest.raises(OSError, match="symbolic link"):
            call()


@pytest.mark.parametrize("root", ["nope://bucket/x", "s3:///x", "s3://bucket/x?endpoint_overide=host", "s3://b ad/x"])
def test_a_uri_that_names_no_store_is_refused_in_a_line(root: str) -> None:
    with pytest.raises(UserError) as caught:
        CheckpointStore(root=root, trial_id=7).newest()
    assert str(caught.value).startswith(f"STORAGE={root}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", PLACES)
def test_a_save_in_the_background_is_of_the_moment_it_was_asked_for(
    make_store: MakeStore, state: TrainState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    store, go = make_store(place), threading.Event()
    saver, write = BackgroundSaver(store), CheckpointStore.write
    state.optimizer_steps = 40
    at_once = tmp_path / "x.pt"
    write_payload(checkpoint_payload(state, model_name="mine", corpus_fingerprint="f"), at_once)

    def wait_and_write(self: CheckpointStore, payload: dict[str, Any]) -> None:
        assert go.wait(60)
        write(self, payload)

    monkeypatch.setattr(CheckpointStore, "write", wait_and_write)
    save(saver, state, 40)
    assert names(store) == []
    state.optimizer.step()
    state.optimizer_steps = 41
    go.set()
    saver.wait()
    checkpoint, _ = store.newest()
    assert checkpoint is not None
    assert checkpoint.ours is not None
    expected = dict(leaves(read_payload(at_once)))
    given = dict(leaves(checkpoint.ours))
    assert given.keys() == expected.keys()
    assert len(given) > 100
    assert [key for key in given if not same(given[key], expected[key])] == []
    assert not same(given["/model_state_dict/lm_head.weight"], state.model.state_dict()["lm_head.weight"])


def test_tied_weights_are_written_once_in_the_background_too(make_store: MakeStore, state: TrainState) -> None:
    store = make_store("folder")
    save(store, state, 40)
    saver = BackgroundSaver(store)
    save(saver, state, 80)
    saver.wait()
    sizes = [path.stat().st_size for path in sorted(Path(store._folder.path).iterdir())]
    assert abs(sizes[1] - sizes[0]) < 2000
    weights = read_payload(Path(store._folder.path) / "step_00000080.pt")["model_state_dict"]
    assert weights["lm_head.weight"].data_ptr() == weights["transformer.wte.weight"].data_ptr()


def test_what_the_thread_raised_is_raised_by_the_next_call_once(
    make_store: MakeStore, state: TrainState, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store("folder")
    saver = BackgroundSaver(store)

    def refuse(self: CheckpointStore, payload: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    calls: list[Callable[[], None]] = [lambda: save(saver, state, 80), saver.wait]
    for call in calls:
        with monkeypatch.context() as patch:
            patch.setattr(CheckpointStore, "write", refuse)
            save(saver, state, 40)
            with pytest.raises(OSError, match="No space left"):
                call()
        saver.wait()
    save(saver, state, 120, 160, 200)
    saver.wait()
    assert names(store) == [160, 200]
