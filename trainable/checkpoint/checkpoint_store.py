"""Where a trial's checkpoints are kept: a local folder, or a pyarrow file system such as S3. It trains nothing."""

import errno
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from trainable.checkpoint.checkpoint import Checkpoint, checkpoint_payload, read_checkpoint
from trainable.checkpoint.checkpoint_file import write_payload
from trainable.checkpoint.checkpoint_path import DamagedCheckpointError, checkpoint_name, saved_steps
from trainable.data.remote_files import blocks_of, files_at, local_folder, names_in, write_whole
from trainable.state import TrainState

STATES_KEPT = 2
"""The newest checkpoint, and its predecessor in case it is damaged."""


@dataclass(frozen=True, kw_only=True)
class CheckpointStore:
    """The checkpoints of one trial. Every method raises OSError when the store cannot be reached or is full."""

    root: str
    """A folder, or a URI: file:///shared/folder, s3://bucket/prefix?endpoint_override=host:9000, gs://bucket."""
    trial_id: int

    def write(self, payload: dict[str, Any]) -> None:
        """Keep what checkpoint_payload() made, then delete all older checkpoints but its predecessor."""
        step = payload["optimizer_steps"]
        self._folder.put(payload, checkpoint_name(step))
        # Later ones were passed over when the run went back: they are damaged, and not its future any more.
        self._keep([old for old in self._steps() if old <= step][-STATES_KEPT:])

    def forget_after(self, optimizer_steps: int) -> None:
        """Delete the checkpoints of more steps: what led to them was never written down, so it is trained again."""
        self._keep([step for step in self._steps() if step <= optimizer_steps])

    def keep_newest(self) -> None:
        """Delete all but the newest checkpoint: the trial has ended."""
        self._keep(self._steps()[-1:])

    def newest(self, *, at_most: int | None = None) -> tuple[Checkpoint | None, list[str]]:
        """Return the newest whole checkpoint, of `at_most` so many steps, and a line for each damaged one.

        Raises UserError when it is whole and yet cannot be used: another version wrote it.
        """
        steps = [step for step in self._steps() if at_most is None or step <= at_most]
        damaged: list[str] = []
        found: Checkpoint | None = None
        while steps and found is None:
            name = checkpoint_name(steps.pop())
            try:
                with self._folder.local_copy(name) as path:
                    found = replace(read_checkpoint(path), path=Path(self._folder.path) / name)
            except DamagedCheckpointError:
                damaged.append(name)
        instead = f"going on from {found.path.name}" if found else "there is no earlier one to go on from"
        return found, [f"checkpoint {name} of trial {self.trial_id} is damaged; {instead}" for name in damaged]

    def delete(self) -> None:
        """Delete every checkpoint of the trial; there need be none."""
        with suppress(FileNotFoundError):
            self._folder.remove_all()

    def _steps(self) -> list[int]:
        return saved_steps(self._folder.names())

    def _keep(self, steps: list[int]) -> None:
        for stale in self._steps():
            if stale not in steps:
                self._folder.remove(checkpoint_name(stale))

    @cached_property
    def _folder(self) -> "_LocalFolder | _RemoteFolder":
        folder, name = local_folder(self.root), str(self.trial_id)
        return _RemoteFolder(self.root, name) if folder is None else _LocalFolder(folder / name)


class BackgroundSaver:
    """Saves while training goes on: the state is copied at once, and its copy is written by a thread, one at a time.

    What the thread raised is raised by the next call; whoever trains ends with wait().
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._saving: Future[None] | None = None

    def save(self, state: TrainState, *, model_name: str, corpus_fingerprint: str) -> None:
        """Begin to write a checkpoint into the store, once the save before is over; the state may change at once."""
        self.wait()
        payload = checkpoint_payload(state, model_name=model_name, corpus_fingerprint=corpus_fingerprint)
        self._saving = self._thread.submit(self._store.write, _copied(payload))

    def wait(self) -> None:
        """Return once nothing is being saved. Raises OSError where the save failed."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()


def _copied(payload: dict[str, Any]) -> Any:
    copies: dict[tuple[Any, ...], torch.Tensor] = {}

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        # Tied weights stay one tensor, or the file would hold them twice.
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        return copies[key]

    return tree_map_only(torch.Tensor, copied, payload)


class _LocalFolder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        # Not by a pattern, which finds nothing where a folder cannot be reached, too.
        with suppress(FileNotFoundError):
            return [path.name for path in self.path.iterdir()]
        return []

    def put(self, payload: dict[str, Any], name: str) -> None:
        for left_by_a_killed_writer in self.path.glob(".step_*.tmp"):
            left_by_a_killed_writer.unlink(missing_ok=True)
        write_payload(payload, self.path / name)

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        yield self.path / name

    def remove(self, name: str) -> None:
        (self.path / name).unlink(missing_ok=True)

    def remove_all(self) -> None:
        shutil.rmtree(self.path)


class _RemoteFolder:
    def __init__(self, root: str, name: str) -> None:
        self._files, place = files_at(root)  # named in its errors
        self.path = f"{place}/{name}"

    def names(self) -> list[str]:
        return names_in(self._files, self.path)

    def put(self, payload: dict[str, Any], name: str) -> None:
        target = f"{self.path}/{name}"
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / name
            write_payload(payload, local)
            write_whole(self._files, target, blocks_of(*files_at(str(local))))
            sent, arrived = local.stat().st_size, self._files.get_file_info([target])[0].size
        if sent != arrived:
            self.remove(name)
            raise OSError(errno.EIO, f"{arrived} of {sent} bytes arrived", target)

    @contextmanager
    def local_copy(self, name: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / name
            with local.open("wb") as file:
                file.writelines(blocks_of(self._files, f"{self.path}/{name}"))
            yield local

    def remove(self, name: str) -> None:
        self._files.delete_file(f"{self.path}/{name}")

    def remove_all(self) -> None:
        self._files.delete_dir(self.path)
