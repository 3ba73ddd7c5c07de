"""Messages to frames and back: pure functions on bytes.

A frame is little-endian throughout:

    byte 0    magic b"RFLT"
    byte 4    u8 major, u8 minor version of the protocol, u16 flags (0)
    byte 8    u32 length of the header
    byte 12   MessagePack {"kind": class, "arrays": [[dtype, shape, offset], ...], "fields": {name: value}}
    then      zeros up to a multiple of 64, and from there the arrays in C order, each at its offset, a
              multiple of 64; the last one ends the frame. Without arrays, the header ends it.

A field that is an array holds its index in "arrays". Arrays are read in place: they are read-only views that
keep the frame alive. How fields are checked is told in `schema`, how frames that repeat are handled fast in
`templates`.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR, templates
from protocol.errors import FrameTooLarge, ProtocolError, VersionMismatch
from protocol.messages import Message
from protocol.schema import DEFAULT, MESSAGES, Body, Limits, check_booleans
from protocol.step_messages import Step, Stepped

__all__ = ["DEFAULT", "Limits", "decode", "encode"]

_MAGIC = b"RFLT"
_PREFIX = struct.Struct("<4sBBHI")
_ALIGNMENT = 64  # a cache line, and the widest vector registers
_ZEROS = bytes(_ALIGNMENT)
_CODES = ("b1", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8")
_DTYPES = {code: np.dtype(f"<{code}") for code in _CODES}
_CODE_OF = {dtype: code for code, dtype in _DTYPES.items()}


def encode(message: Message, limits: Limits = DEFAULT) -> bytes:
    """Return the frame of a message.

    FrameTooLarge where it exceeds `limits`, before it is built; ProtocolError where `decode` would refuse it,
    except that of frames that repeat the contents of arrays are left to the receiver to check.
    """
    repeated = message if isinstance(message, Step | Stepped) else None
    if repeated and limits is DEFAULT and (known := templates.write(repeated)) is not None:
        return known
    table: list[tuple[str, tuple[int, ...], int]] = []
    chunks: list[Any] = []
    end = 0

    def plain(value: object) -> object:
        nonlocal end
        if isinstance(value, np.ndarray):
            offset = _aligned(end)
            gap, end = _ZEROS[: offset - end], offset + value.nbytes
            _limit("a frame, in bytes,", end, limits.max_frame_bytes)
            code = _CODE_OF.get(value.dtype) or _code(value)
            chunks.extend((gap, np.asarray(value, _DTYPES[code], order="C")))
            table.append((code, value.shape, offset))
            return len(table) - 1
        if is_dataclass(value) and not isinstance(value, type):
            content = {name: getattr(value, name) for name in _field_names(type(value))}
            if value is repeated:
                del content["number"]
                content["number"] = templates.WIDE  # last, and always as long
            return content
        if isinstance(value, Mapping):
            return dict(value)
        raise ProtocolError(f"{type(value).__name__} has no place in a message")

    try:
        body: bytes = msgpack.packb(plain(message), default=plain)  # fills the table
        if repeated:
            body = body[: -templates.NUMBER_BYTES] + templates.number_bytes(repeated)
        kind, arrays = msgpack.packb(type(message).__name__), msgpack.packb(table)
    except (ValueError, OverflowError) as error:
        raise ProtocolError(f"{type(message).__name__} cannot be packed: {error}") from error
    header = b"".join((b"\x83\xa4kind", kind, b"\xa6arrays", arrays, b"\xa6fields", body))
    prefix = _PREFIX.pack(_MAGIC, PROTOCOL_MAJOR, PROTOCOL_MINOR, 0, len(header))
    header_end = _PREFIX.size + len(header)
    start = _aligned(header_end) if table else header_end
    _limit("a frame, in bytes,", start + end, limits.max_frame_bytes)
    padding = _ZEROS[: start - header_end]
    frame = b"".join((prefix, header, padding, *chunks))
    decode(frame, limits)
    if repeated and limits is DEFAULT:
        templates.keep_written(repeated, frame, header_end - templates.NUMBER_BYTES)
    return frame


def decode(frame: bytes | memoryview, limits: Limits = DEFAULT) -> Message:
    """Return the message in a frame, its arrays as read-only views of it.

    ProtocolError, with the reason in one line, for anything else; VersionMismatch for another major version.
    """
    if type(frame) is bytes and limits is DEFAULT and (known := templates.read(frame)) is not None:
        return known
    view = memoryview(frame).cast("B").toreadonly()
    _limit("a frame, in bytes,", len(view), limits.max_frame_bytes)
    if len(view) < _PREFIX.size:
        raise ProtocolError(f"a frame of {len(view)} bytes is too short")
    magic, major, _, flags, header_bytes = _PREFIX.unpack_from(view)
    if magic != _MAGIC:
        raise ProtocolError(f"a frame must begin with {_MAGIC!r}, not {magic!r}")
    if major != PROTOCOL_MAJOR:
        raise VersionMismatch(major, PROTOCOL_MAJOR)
    if flags:
        raise ProtocolError(f"flags {flags:#x} are unknown")
    _limit("a header, in bytes,", header_bytes, limits.max_header_bytes)
    header_end = _PREFIX.size + header_bytes
    if header_end > len(view):
        raise ProtocolError(f"the header ends at byte {header_end}, the frame at {len(view)}")
    header = _unpack(view[_PREFIX.size : header_end], limits)
    if type(header) is not dict:
        raise ProtocolError("a header must be a mapping")
    kind, table = header.get("kind"), header.get("arrays", [])
    if type(kind) is not str or kind not in MESSAGES:
        raise ProtocolError(f"kind {_shown(kind)} is unknown")
    start = _aligned(header_end) if table else header_end
    message: Message = MESSAGES[kind](header.get("fields"), Body(limits, _arrays(table, view, start, limits)))
    if isinstance(message, Step | Stepped) and limits is DEFAULT:
        templates.keep_read(message, view, header_end - templates.NUMBER_BYTES, header, start)
    return message


def _unpack(packed: memoryview, limits: Limits) -> Any:
    """Unpack one MessagePack value: no extension types, no bytes."""
    try:
        # msgpack allocates lists as long as they claim to be, and 1,024 may be open at once. This dry run
        # allocates nothing and finds all that claim more than is there.
        dry_run = msgpack.Unpacker(max_buffer_size=max(len(packed), 1))  # 0 would be no limit
        dry_run.feed(packed)
        dry_run.skip()
        return msgpack.unpackb(
            packed,
            max_str_len=limits.max_string_bytes,
            max_array_len=limits.max_items,
            max_map_len=limits.max_items,
            max_bin_len=0,
            max_ext_len=0,
        )
    except (msgpack.UnpackException, ValueError) as error:
        raise ProtocolError(f"the header is not MessagePack: {error}") from error


def _arrays(table: object, view: memoryview, start: int, limits: Limits) -> list[NDArray[Any]]:
    """Return views of all arrays of a frame, which must lie in order after `start` and end where it ends."""
    if type(table) is not list:
        raise ProtocolError("arrays must be a list")
    _limit("a frame, in arrays,", len(table), limits.max_arrays)
    arrays: list[NDArray[Any]] = []
    end = 0
    for entry in table:
        if type(entry) is not list or len(entry) != 3:
            raise ProtocolError("an array must be [dtype, shape, offset]")
        code, shape, offset = entry
        dtype = _DTYPES.get(code) if type(code) is str else None
        if dtype is None:
            raise ProtocolError(f"an array of dtype {_shown(code)} is not allowed")
        if type(shape) is not list:
            raise ProtocolError("a shape must be a list of integers >= 0")
        if len(shape) > limits.max_dimensions:
            raise FrameTooLarge("an array, in dimensions,", len(shape), limits.max_dimensions)
        size = bound = 1  # numpy too refuses (0, 2**62)
        for extent in shape:
            if type(extent) is not int or extent < 0:
                raise ProtocolError("a shape must be a list of integers >= 0")
            size *= extent
            bound *= extent or 1
        if bound > limits.max_array_elements:
            raise FrameTooLarge("an array, in elements,", bound, limits.max_array_elements)
        if type(offset) is not int or offset < end or offset % _ALIGNMENT:
            raise ProtocolError("arrays must be aligned, in order and apart")
        end = offset + size * dtype.itemsize
        if start + end > len(view):
            raise ProtocolError(f"an array ends at byte {start + end}, the frame at {len(view)}")
        if code == "b1":
            check_booleans(view[start + offset : start + end].tobytes())
        arrays.append(np.ndarray(shape, dtype, view, start + offset))
    if start + end != len(view):
        raise ProtocolError(f"the frame should end at byte {start + end} and ends at {len(view)}")
    return arrays


def _limit(what: str, size: int, limit: int) -> None:
    if size > limit:
        raise FrameTooLarge(what, size, limit)


def _shown(value: object) -> str:
    return repr(value[:40]) if type(value) is str else type(value).__name__


def _aligned(size: int) -> int:
    return -size % _ALIGNMENT + size


def _code(array: NDArray[Any]) -> str:
    """Return the code of a dtype, in whatever order its bytes are."""
    code = array.dtype.str[1:]
    if code not in _DTYPES:
        raise ProtocolError(f"an array of dtype {array.dtype} is not allowed")
    return code


@cache
def _field_names(message_type: type) -> tuple[str, ...]:
    return tuple(field.name for field in fields(message_type))
