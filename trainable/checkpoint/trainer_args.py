"""A Trainer's training_args.bin, a pickle of objects, read without running anything of it. Needs no torch."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

from trainable.errors import UserError

MAX_BYTES = 4 << 20
"""Of the pickle; a Trainer's is some kilobytes."""


class _Inert:
    """Stands for whatever class or function the pickle names: it keeps what it is given and does nothing."""

    arguments: tuple[Any, ...]
    state: Any = None

    def __new__(cls, *arguments: Any) -> "_Inert":
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _InertUnpickler(pickle.Unpickler):
    # Every name in a pickle is looked up here, so nothing but _Inert can ever be called.
    def find_class(self, module_name: str, global_name: str) -> type[_Inert]:
        return _Inert

    def persistent_load(self, pid: Any) -> None:
        return None


def read_trainer_args(folder: Path) -> dict[str, Any]:
    """Return the plain values of a Trainer's arguments by name; none where the folder has no training_args.bin.

    An enum comes as its value. Raises UserError for a file that is no such pickle.
    """
    path = folder / "training_args.bin"
    if not path.is_file():
        return {}
    try:
        found = _InertUnpickler(io.BytesIO(_pickle_in(path))).load()
        state = found.state if isinstance(found, _Inert) else None
    except Exception:
        # As with any damaged pickle: a dozen types.
        state = None
    if not isinstance(state, dict):
        raise UserError(f"{path} is not a Trainer's arguments. Remove it, or name another folder.")
    # An enum is made by its class of its value.
    values = {
        str(name): value.arguments[0] if isinstance(value, _Inert) and len(value.arguments) == 1 else value
        for name, value in state.items()
    }
    return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str)}


def _pickle_in(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        record = next(one for one in archive.infolist() if one.filename.endswith("/data.pkl"))
        if record.file_size > MAX_BYTES:
            raise ValueError("too large")
        return archive.read(record)
