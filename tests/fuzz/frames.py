"""Frames that were tampered with, and what must be true of the decoder whatever it is given.

A mutation knows what a frame is made of: it works on the unpacked header, the table of arrays or the bytes,
and packs the whole again so that the decoder gets past the prefix.
"""

from __future__ import annotations

import random
import struct
import tomllib
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack

from protocol.codec import decode, encode
from protocol.errors import ProtocolError, UserError
from protocol.keys import AllowList
from protocol.messages import Message
from protocol.ranges import IntervalSet, check_ranges
from protocol.zap import reply

BYTES_PER_BYTE, BYTES_BESIDE = 128, 64 * 1024
"""What decoding may allocate: so much for each byte of the input, and so much beside it."""
MOST_KEPT_BYTES = 256 * 2**20
"""Of everything that was read before, and of whatever else the process allocates."""
CODEC, RANGES, ZAP, KEYS = range(4)
"""The decoders, as the first byte of an input names them."""
_NASTY: Sequence[Any] = (
    *(None, True, False, 0, 1, -1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 1, -(2**63)),
    *(0.5, float("nan"), float("inf"), -float("inf"), 1e308, "", "train", "evaluate", "x" * 300, "\0", "Ĳ"),
    *([], {}, [[0, 5]], [[5, 0]], [[0, 2**63 - 1]], [[0, 1], [1, 2]], [0], [[]], {"train": [[0, 100_000]]}),
)
_CLAIMS = (
    *(b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
    *(b"\xdd\x00\x01\x00\x00", b"\xdc\xff\xff", b"\xde\xff\xff", b"\xc9\xff\xff\xff\xff\x01", b"\xc1"),
    *(b"\x91" * 1100, b"\x81" * 600, b"\xd4\x01\x00", b"\xc4\x01a", b"\xff", b"\xa1\xff"),
)
"""Bytes of MessagePack that promise what does not come, nest too deep or are not allowed."""


def mutate(frame: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Return a frame that was tampered with, one to three times."""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        frame = draw.choice(_MUTATIONS)(frame, draw, others)
    return frame


def check(data: bytes) -> Message | None:
    """Give an input to the decoder that its first byte names; return the message if it decodes.

    Raises whatever a decoder should not: AssertionError for too much memory, and any error that is neither a
    ProtocolError nor a UserError.
    """
    if not tracemalloc.is_tracing():
        tracemalloc.start()
    limit = BYTES_PER_BYTE * len(data) + BYTES_BESIDE
    message, allocated = _given(data)
    if allocated >= limit:  # a table of the interpreter may have grown; what an input takes, it takes again
        message, allocated = _given(data)
    assert allocated < limit, f"{len(data)} bytes made it allocate {allocated}"
    if message is not None:
        assert type(decode(encode(message))) is type(message)
    return message


def _given(data: bytes) -> tuple[Message | None, int]:
    """Return the message and how many bytes were allocated at most at a time while it was read."""
    before, _ = tracemalloc.get_traced_memory()
    assert before < MOST_KEPT_BYTES, f"{before} bytes are kept of what was read before"
    tracemalloc.reset_peak()
    message = None
    try:
        message = _TARGETS[data[0] % len(_TARGETS)](data[1:]) if data else None
    except (ProtocolError, UserError) as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, "an error's text should be one short line"
    _, peak = tracemalloc.get_traced_memory()
    return message, peak - before


# --- The decoders ---


def _codec(data: bytes) -> Message:
    return decode(data)


def _ranges(data: bytes) -> None:
    try:
        value = msgpack.unpackb(data, max_array_len=1000, max_map_len=1000, max_ext_len=0)
        ranges = check_ranges(value, 100_000)
    except (ValueError, msgpack.UnpackException):
        return
    numbers = IntervalSet.from_ranges(ranges)
    assert len(numbers) == sum(stop - start for start, stop in ranges)
    assert not numbers - numbers and check_ranges(numbers.to_ranges(), 100_000) == numbers.to_ranges()


def _zap(data: bytes) -> None:
    parts = data.split(b"\xff")
    answer = reply(parts, lambda public: False)
    assert answer[2] == b"400" and len(answer) == 6


def _keys(data: bytes) -> None:
    try:
        AllowList.parse(tomllib.loads(data.decode()), Path("allowed.toml"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError):
        return


_TARGETS: tuple[Callable[[bytes], Message | None], ...] = (_codec, _ranges, _zap, _keys)

OTHER_SEEDS = (
    *(bytes([RANGES]) + msgpack.packb(value) for value in ([[0, 5], [7, 9]], [], [[0, 99_999]])),
    bytes([ZAP]) + b"\xff".join((b"1.0", b"1", b"fleet", b"127.0.0.1", b"", b"CURVE", b"k" * 32)),
    bytes([KEYS]) + b'reopen = 1\n[keys."lab"]\nrole = "worker"\npublic = "' + b"a" * 40 + b'"\n',
)
"""Inputs of the other decoders."""


# --- Mutations ---


def _unpack(frame: bytes) -> tuple[Any, bytes] | None:
    """Return header and data of a frame; None if it has been mutated beyond that."""
    try:
        (length,) = struct.unpack_from("<I", frame, 8)
        header = msgpack.unpackb(frame[12 : 12 + length], strict_map_key=False)
    except (struct.error, TypeError, ValueError, msgpack.UnpackException):
        return None
    end = 12 + length
    return (header, frame[end + -end % 64 :]) if type(header) is dict else None


def _pack(header: bytes, data: bytes, prefix: bytes) -> bytes:
    padding = bytes(-(12 + len(header)) % 64) if data else b""
    return prefix + struct.pack("<I", len(header)) + header + padding + data


def _in_header(frame: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Replace, remove, repeat or add something somewhere in the header."""
    unpacked = _unpack(frame)
    if unpacked is None:
        return _bytes(frame, draw, others)
    header, data = unpacked
    place: Any = header
    while True:
        keys = list(place) if type(place) is dict else list(range(len(place)))
        if not keys:
            break
        key = draw.choice(keys)
        if type(place[key]) in (dict, list) and place[key] and draw.random() < 0.75:
            place = place[key]
            continue
        match draw.randrange(4):
            case 0 if type(place) is dict:
                place[draw.choice(("kind", "arrays", "fields", "number", "", "x", 1))] = place.pop(key)
            case 1:
                del place[key]
            case 2 if type(place) is list:
                place.insert(key, place[key])
            case _:
                place[key] = draw.choice(_NASTY)
        break
    try:
        return _pack(msgpack.packb(header), data, frame[:8])
    except (ValueError, OverflowError):
        return frame


def _in_table(frame: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Lie about the arrays."""
    unpacked = _unpack(frame)
    if unpacked is None or type(unpacked[0].get("arrays")) is not list or not unpacked[0]["arrays"]:
        return _in_header(frame, draw, others)
    header, data = unpacked
    entry = draw.choice(header["arrays"])
    if type(entry) is list and len(entry) == 3:
        entry[draw.randrange(3)] = draw.choice(
            ("f4", "f8", "b1", "u8", "O", [2**31, 2**31], [0, 2**62], [1] * 9, [-1], 64, 1, 2**40, -64)
        )
    return _pack(msgpack.packb(header), data, frame[:8])


def _claim(frame: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Put bytes that promise too much somewhere into the header."""
    if len(frame) < 12:
        return frame + draw.choice(_CLAIMS)
    at = draw.randrange(12, len(frame) + 1)
    changed = frame[12:at] + draw.choice(_CLAIMS) + frame[at + draw.randrange(6) :]
    return frame[:8] + struct.pack("<I", len(changed)) + changed


def _bytes(frame: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Change some bytes."""
    changed = bytearray(frame)
    for _ in range(draw.choice((1, 1, 2, 8))):
        if changed:
            changed[draw.randrange(len(changed))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
    return bytes(changed)


def _cut(frame: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Cut a frame short, or let it go on."""
    at = draw.randrange(len(frame) + 1)
    return frame[:at] if draw.random() < 0.5 else frame + bytes(draw.randrange(1, 80))


def _splice(frame: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Begin like this frame and end like another."""
    other = draw.choice(others)
    return frame[: draw.randrange(len(frame) + 1)] + other[draw.randrange(len(other) + 1) :]


def _foreign_fields(frame: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    """Say that this is another kind of message."""
    mine, theirs = _unpack(frame), _unpack(draw.choice(others))
    if mine is None or theirs is None:
        return _splice(frame, draw, others)
    header = mine[0] | {"kind": theirs[0].get("kind")}
    return _pack(msgpack.packb(header), mine[1], frame[:8])


_MUTATIONS = (_in_header, _in_header, _in_header, _in_table, _claim, _bytes, _cut, _splice, _foreign_fields)
