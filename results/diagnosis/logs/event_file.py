"""TensorBoard's event files: the scalars of one, read record by record. It needs no TensorBoard."""

import io
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, BinaryIO

from results.diagnosis.logs.lines import LogRow
from results.diagnosis.logs.named_values import row_of

_HEAD = struct.Struct("<QI")
"""Length of the record and checksum of that length; the record and its own checksum follow."""
_CHECKSUM = struct.Struct("<I")
MAX_LENGTH_BYTES = 1 << 31
MAX_SCALARS_BYTES = 1 << 16
"""A larger record holds an image or a histogram, and is passed over unread."""
_FLOAT, _DOUBLE = 1, 2


def is_event_file(head: bytes) -> bool:
    """Whether a file begins with a record of TensorBoard's."""
    # Every event begins with its time, field 1 of eight bytes. The checksum would need a library of two seconds.
    return len(head) > _HEAD.size and _HEAD.unpack_from(head)[0] < MAX_LENGTH_BYTES and head[_HEAD.size] == 0x09


def event_rows(file: BinaryIO, notes: list[str]) -> Iterator[LogRow]:
    """Yield a row for every step at which scalars were written; a damaged end is told in `notes`."""
    step: int | None = None
    values: dict[str, object] = {}
    first_s: float | None = None
    for event in _events(file, notes):
        scalars = {value.tag: number for value in event.summary.value if (number := _scalar(value)) is not None}
        if not scalars:
            continue
        if step is not None and (event.step != step or not scalars.keys().isdisjoint(values)):
            if row := row_of(values):
                yield row
            values = {}
        step = event.step
        first_s = event.wall_time if first_s is None else first_s
        values = {**values, **scalars, "step": step, "elapsed_s": event.wall_time - first_s}
    if row := row_of(values):
        yield row


def _events(file: BinaryIO, notes: list[str]) -> Iterator[Any]:
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.record_writer import masked_crc32c

    while head := file.read(_HEAD.size):
        if len(head) < _HEAD.size or _HEAD.unpack(head)[1] != masked_crc32c(head[:8]):
            notes.append("checksum mismatch in the event file: the rest was not read")
            return
        length = _HEAD.unpack(head)[0]
        if length > MAX_SCALARS_BYTES:
            file.seek(length + _CHECKSUM.size, io.SEEK_CUR)
            continue
        record, checksum = file.read(length), file.read(_CHECKSUM.size)
        if checksum == _CHECKSUM.pack(masked_crc32c(record)):
            with suppress(DecodeError):  # of another program's events
                yield Event.FromString(record)
        else:
            notes.append("a record of the event file is damaged or cut short: it was left out")


def _scalar(value: Any) -> float | None:
    if value.HasField("simple_value"):
        return float(value.simple_value)
    # TensorFlow 2's writer puts scalars into tensors.
    tensor = value.tensor
    if not value.HasField("tensor") or any(dim.size != 1 for dim in tensor.tensor_shape.dim):
        return None
    forms = {_FLOAT: ("<f", tensor.float_val), _DOUBLE: ("<d", tensor.double_val)}
    form, values = forms.get(tensor.dtype, ("", ()))
    if form and not values and len(tensor.tensor_content) == struct.calcsize(form):
        values = struct.unpack(form, tensor.tensor_content)
    return float(values[0]) if values else None
