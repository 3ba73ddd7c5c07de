"""Frames that repeat: what they have in common is packed, unpacked and checked once.

In synchronous mode two messages cross for each worker and step. From one such message to the next of a worker
one field of the header differs, `number`, and the codec writes it last, as an unsigned integer of 64 bits. So
the head of a frame, all before those 8 bytes, tells kind, other fields and where arrays lie. A frame with a
known head is only looked at for what may differ: number and contents of arrays, checked as in any frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import numpy as np

from protocol.errors import ProtocolError
from protocol.messages import Message
from protocol.schema import CHECKS, DEFAULT, MOST_INTEGER, check_booleans
from protocol.step_messages import Step, Stepped

NUMBER_BYTES = 8
WIDE = MOST_INTEGER + 1
"""Stands for a number while a header is packed."""
_UINT64 = 0xCF
"""What MessagePack writes before an unsigned integer of 64 bits."""
_MOST_HEAD_BYTES, _MOST_KEPT = 1024, 1024
"""Bounds of the memory that a peer with ever new heads can take."""
_NAMES = {kind: [field.name for field in fields(kind)] for kind in (Step, Stepped)}
_VALUES: dict[type, Callable[[Any], tuple[Any, ...]]] = {
    kind: attrgetter(*names) for kind, names in _NAMES.items()
}
_NUMBER_AT = {kind: names.index("number") for kind, names in _NAMES.items()}


@dataclass(frozen=True, slots=True)
class _Array:
    """Where an array is: the place of its field among all, its shape, dtype, and bytes of the frame."""

    at: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    stop: int
    gap: bytes
    """Zeros between it and what is before."""


@dataclass(frozen=True, slots=True)
class Template:
    """All that frames with one head have in common."""

    head: bytes
    frame_bytes: int
    kind: Callable[..., Any]
    values: tuple[Any, ...]
    """Of all fields, in order; number and arrays are filled in."""
    number_at: int
    arrays: tuple[_Array, ...]
    """In the order in which they lie."""
    check: Callable[[Any, Any], None]

    def write(self, values: tuple[Any, ...]) -> bytes:
        """Return the frame of a message with these values."""
        number = values[self.number_at]
        if not 0 <= number <= MOST_INTEGER:
            raise ProtocolError(f"number {number} is not from 0 to 2^63 - 1")
        chunks = [self.head, number.to_bytes(NUMBER_BYTES, "big")]
        for array in self.arrays:
            chunks += array.gap, values[array.at].tobytes()
        return b"".join(chunks)

    def read(self, frame: bytes) -> Message:
        """Return the message of a frame with this head. ProtocolError where the rest does not follow."""
        if len(frame) != self.frame_bytes:
            raise ProtocolError(f"the frame should end at byte {self.frame_bytes} and ends at {len(frame)}")
        head_bytes = len(self.head)
        number = int.from_bytes(frame[head_bytes : head_bytes + NUMBER_BYTES], "big")
        if number > MOST_INTEGER:
            raise ProtocolError(f"number {number} is not from 0 to 2^63 - 1")
        values = list(self.values)
        values[self.number_at] = number
        for array in self.arrays:
            values[array.at] = np.ndarray(array.shape, array.dtype, frame, array.start)
            if array.dtype.kind == "b":
                check_booleans(frame[array.start : array.stop])
        message: Message = self.kind(*values)
        self.check(message, DEFAULT)
        return message


_WRITTEN: dict[tuple[Any, ...], Template] = {}
"""By what messages have in common."""
_READ: dict[bytes, Template] = {}
"""By head."""


def write(message: Step | Stepped) -> bytes | None:
    """Return the frame of a message, None if none like it was written before."""
    values = _VALUES[type(message)](message)
    try:
        return _WRITTEN[_likeness(message, values)].write(values)
    except (KeyError, TypeError):  # a reset holds an array, which has no hash
        return None


def read(frame: bytes) -> Message | None:
    """Return the message of a frame, None if none with its head was read before; raises as `decode`."""
    head_bytes = 12 + int.from_bytes(frame[8:12], "little") - NUMBER_BYTES
    template = _READ.get(frame[:head_bytes])
    return template.read(frame) if template else None


def number_bytes(message: Step | Stepped) -> bytes:
    """Return a message's number as the end of its header. OverflowError where it is negative or too large."""
    return message.number.to_bytes(NUMBER_BYTES, "big")


def keep_written(message: Step | Stepped, frame: bytes, head_bytes: int) -> None:
    """Write what is like this message in the same way from now on; its frame was just read."""
    if (template := _READ.get(frame[:head_bytes])) is not None:
        _keep(_WRITTEN, _likeness(message, _VALUES[type(message)](message)), template)


def keep_read(
    message: Step | Stepped, frame: memoryview, head_bytes: int, header: Mapping[str, Any], start: int
) -> None:
    """Read what begins like this frame in the same way from now on, where its header ends with its number.

    `start` is the first byte after the header that belongs to arrays.
    """
    if head_bytes > _MOST_HEAD_BYTES or frame[head_bytes - 1] != _UINT64:
        return
    given, table, kind = header["fields"], header["arrays"], type(message)
    if [*header][-1] != "fields" or [*given][-1] != "number":
        return
    values = list(_VALUES[kind](message))
    owners = {given[name]: at for at, name in enumerate(_NAMES[kind]) if type(values[at]) is np.ndarray}
    if len(owners) != len(table):  # an array lies deeper
        return
    arrays, end = [], head_bytes + NUMBER_BYTES
    for index, (_, _, offset) in enumerate(table):
        at, first = owners[index], start + offset
        array, values[at] = values[at], None
        stop = first + array.nbytes
        arrays.append(_Array(at, array.shape, array.dtype, first, stop, bytes(first - end)))
        end = stop
    head, number_at = bytes(frame[:head_bytes]), _NUMBER_AT[kind]
    check: Callable[[Any, Any], None] = CHECKS[kind]
    _keep(
        _READ,
        head,
        Template(head, len(frame), kind, tuple(values), number_at, tuple(arrays), check),
    )


def _likeness(message: Step | Stepped, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what a message shares with those that one template writes."""
    like = [(v.dtype, v.shape) if type(v) is np.ndarray else v for v in values]
    like[_NUMBER_AT[type(message)]] = type(message)
    return tuple(like)


def _keep(kept: dict[Any, Template], key: Any, template: Template) -> None:
    if len(kept) >= _MOST_KEPT:
        kept.clear()
    kept[key] = template
