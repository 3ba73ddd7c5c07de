from __future__ import annotations

import math
import struct
import tracemalloc
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from protocol import PROTOCOL_MAJOR, PROTOCOL_MINOR, templates
from protocol.codec import DEFAULT, Limits, decode, encode
from protocol.errors import FrameTooLarge, ProtocolError, VersionMismatch
from protocol.messages import (
    Answer,
    Episode,
    Grant,
    Heartbeat,
    Hello,
    HelloAgain,
    Holdings,
    Message,
    Query,
    Ranges,
    Report,
    Version,
    Weights,
)
from protocol.ranges import to_ranges
from protocol.step_messages import SlotReset, Step, Stepped
from protocol.tickets import Ticket

KINDS = get_args(Message)

# --- Any message, from the annotations of its class ---

plain_scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
)
plain_values = st.recursive(
    plain_scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def episodes(draw: st.DrawFn) -> Episode:
    steps, size = draw(st.integers(1, 5)), draw(st.integers(0, 4))
    hints = get_type_hints(Episode)
    scalars = {
        name: draw(values(hints[name]))
        for name in ("run", "session", "ticket", "version", "terminated", "seconds")
    }
    integers = arrays.integer_dtypes(endianness="=") | arrays.unsigned_integer_dtypes(endianness="=")
    reals = st.sampled_from([np.dtype(name) for name in ("bool", "f2", "f4", "f8")])
    return Episode(
        **scalars,
        observations=draw(finite(draw(integers | reals), (steps + 1, size))),
        actions=draw(finite(draw(integers), (steps,))),
        rewards=draw(finite(np.dtype(np.float32), (steps,))),
        log_probs=draw(finite(np.dtype(np.float32), (steps,))),
    )


@st.composite
def slot_resets(draw: st.DrawFn) -> SlotReset:
    hints, actions = get_type_hints(SlotReset), draw(arrays.integer_dtypes(endianness="="))
    return SlotReset(
        draw(st.integers(0, 2**31 - 1)),
        draw(values(hints["ticket"])),
        draw(finite(actions, (draw(st.integers(0, 4)),))),
    )


@st.composite
def steps(draw: st.DrawFn) -> Step:
    resets = draw(st.lists(slot_resets(), max_size=3, unique_by=lambda reset: reset.slot))
    taken = {reset.slot for reset in resets}
    slots = draw(st.sets(st.integers(0, 2**31 - 1).filter(lambda slot: slot not in taken), max_size=12))
    return Step(
        draw(st.integers(0, 2**63 - 1)),
        draw(st.integers(0, 2**63 - 1)),
        np.array(list(slots), np.int32),
        draw(finite(np.dtype(np.int64), (len(slots),))),
        tuple(resets),
    )


@st.composite
def answers_to_steps(draw: st.DrawFn) -> Stepped:
    rows, size = draw(st.integers(0, 5)), draw(st.integers(0, 4))
    hints = get_type_hints(Stepped)
    named = {name: draw(values(hints[name])) for name in ("session", "incarnation", "number", "failures")}
    dtype = np.dtype(draw(st.sampled_from(["u1", "i2", "f2", "f4", "f8"])))
    return Stepped(
        **named,
        observations=draw(finite(dtype, (rows, size))),
        rewards=draw(finite(np.dtype(np.float32), (rows,))),
        terminated=draw(finite(np.dtype(np.bool_), (rows,))),
        truncated=draw(finite(np.dtype(np.bool_), (rows,))),
        digests=draw(finite(np.dtype(np.uint32), (rows,))),
    )


def finite(dtype: np.dtype[Any], shape: tuple[int, ...]) -> st.SearchStrategy[NDArray[Any]]:
    bits: Any = 8 * dtype.itemsize
    elements = st.floats(allow_nan=False, allow_infinity=False, width=bits) if dtype.kind == "f" else None
    return arrays.arrays(dtype, shape, elements=elements)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    scalars: dict[Any, st.SearchStrategy[Any]] = {
        int: st.integers(0, 2**63 - 1),
        float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(max_size=12),
        bool: st.booleans(),
        Any: plain_values,
        Ranges: st.sets(st.integers(0, 50)).map(to_ranges),
        Episode: episodes(),
        Step: steps(),
        Stepped: answers_to_steps(),
    }
    if annotation in scalars:
        return scalars[annotation]
    if annotation is Grant:
        spans = st.tuples(st.integers(0, 2**40), st.integers(1, DEFAULT.max_tickets))
        versions = st.integers(0, 2**40)
        sequences: st.SearchStrategy[Any] = st.sampled_from(["train", "evaluate"])
        return st.builds(
            lambda sequence, span, version, exact: Grant(sequence, span[0], sum(span), version, exact),
            sequences, spans, versions, st.booleans(),
        )  # fmt: skip
    if is_dataclass(annotation):
        hints = get_type_hints(annotation)
        build: Any = annotation
        return st.builds(build, **{field.name: values(hints[field.name]) for field in fields(annotation)})
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is types.UnionType:
        return st.none() | values(arguments[0])
    if origin is tuple:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    assert origin is np.ndarray
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    return shapes.flatmap(lambda shape: finite(np.dtype(np.float32), shape))


messages = st.sampled_from(KINDS).flatmap(values)


def comparable(value: Any) -> Any:
    """Return what tells two messages apart: types, field by field, and arrays to the bit."""
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    if is_dataclass(value):
        return type(value), *(comparable(getattr(value, field.name)) for field in fields(value))
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value), *map(comparable, value)
    return type(value), value


def decoded_or_refused(frame: bytes) -> None:
    """Decode a frame that may be anything, and check what that cost.

    Small objects take up to 80 bytes for each byte of MessagePack that makes them (an empty mapping); a
    header that claimed what it does not hold would take thousands.
    """
    tracemalloc.start()
    try:
        decode(frame)
    except ProtocolError as error:
        assert "\n" not in str(error)
    finally:
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak_bytes < 128 * len(frame) + 64 * 1024


def unpacked(frame: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<I", frame, 8)
    return msgpack.unpackb(frame[12 : 12 + length]), frame[12 + length + -(12 + length) % 64 :]


def packed(
    header: Any, data: bytes = b"", major: int = PROTOCOL_MAJOR, minor: int = PROTOCOL_MINOR, flags: int = 0
) -> bytes:
    body = header if isinstance(header, bytes) else msgpack.packb(header)
    start = struct.pack("<4sBBHI", b"RFLT", major, minor, flags, len(body)) + body
    return start + (bytes(-len(start) % 64) + data if data else b"")


# --- What is sent arrives ---


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_round_trip(kind: type, data: st.DataObject) -> None:
    message = data.draw(values(kind))
    assert comparable(decode(encode(message))) == comparable(message)


def episode(steps: int = 3, **changes: Any) -> Episode:
    floats = np.linspace(-1, 1, steps, dtype=np.float32)
    observations = np.arange((steps + 1) * 5, dtype=np.uint8).reshape(steps + 1, 5)
    whole = Episode(
        "run",
        "s1",
        Ticket("train", 7),
        Version(1, 2),
        True,
        0.5,
        observations,
        np.arange(steps),
        floats,
        floats,
    )
    return replace(whole, **changes)


def weights(**named: NDArray[Any]) -> Weights:
    return Weights("run", Version(1, 2), "f" * 16, named)


heartbeat = Heartbeat("s1", 4, 1, 3, "ready", Holdings(queued={"train": ((0, 5), (7, 9))}), Version(1, 2))


def test_arrays_are_aligned_read_only_views_of_the_frame() -> None:
    frame = encode(episode())
    message = decode(frame)
    assert isinstance(message, Episode)
    base = np.frombuffer(frame, np.uint8).__array_interface__["data"][0]
    for array in (message.observations, message.actions, message.rewards, message.log_probs):
        address = array.__array_interface__["data"][0]
        assert base < address < base + len(frame)
        assert (address - base) % 64 == 0
        assert not array.flags.writeable


@pytest.mark.parametrize("writable", [False, True])
def test_a_memoryview_decodes_like_bytes(writable: bool) -> None:
    frame = encode(episode())
    message = decode(memoryview(bytearray(frame) if writable else frame))
    assert comparable(message) == comparable(episode())
    assert isinstance(message, Episode) and not message.rewards.flags.writeable


def test_foreign_layouts_are_sent_little_endian_in_c_order() -> None:
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    message = decode(encode(weights(big=matrix.astype(">f4"), turned=matrix.T, spread=matrix[:, ::2])))
    assert isinstance(message, Weights)
    assert message.arrays["big"].tolist() == matrix.tolist()
    assert message.arrays["turned"].tolist() == matrix.T.tolist()
    assert message.arrays["spread"].tolist() == matrix[:, ::2].tolist()


# --- Versions ---


def test_another_minor_version_may_add_fields_and_arrays() -> None:
    header, data = unpacked(encode(episode()))
    header["fields"] |= {"mood": "calm", "ticket": {"sequence": "train", "number": 7, "colour": 3}}
    header["arrays"].append(["u1", [2], 1 << 20])
    header |= {"extra": 1}
    frame = packed(header, data + bytes((1 << 20) + 2 - len(data)), minor=9)
    assert comparable(decode(frame)) == comparable(episode())


def test_a_missing_field_takes_its_default() -> None:
    header, _ = unpacked(encode(replace(heartbeat, episodes=5, error="x")))
    del header["fields"]["episodes"], header["fields"]["error"]
    assert decode(packed(header)) == heartbeat


def test_another_major_version_is_a_mismatch_whatever_follows() -> None:
    with pytest.raises(VersionMismatch) as caught:
        decode(packed(b"\xc1\xc1", major=PROTOCOL_MAJOR + 1))
    assert (caught.value.theirs, caught.value.ours) == (PROTOCOL_MAJOR + 1, PROTOCOL_MAJOR)


def test_unknown_flags_are_refused() -> None:
    with pytest.raises(ProtocolError, match="flags"):
        decode(packed({"kind": "HelloAgain", "fields": {}, "arrays": []}, flags=1))


# --- What is not a message is refused, cheaply ---


@given(st.binary(max_size=300))
def test_arbitrary_bytes(noise: bytes) -> None:
    decoded_or_refused(noise)
    decoded_or_refused(packed(noise))
    decoded_or_refused(packed(noise, noise))


@given(plain_values)
def test_arbitrary_headers(header: Any) -> None:
    decoded_or_refused(packed(header))


@given(messages, st.data())
def test_mutated_frames(message: Any, data: st.DataObject) -> None:
    frame = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, min(len(frame), 400)))
        frame[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    decoded_or_refused(bytes(frame))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path of every value inside a plain value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(inner for key, item in items for inner in places(item, (*path, key)))]


@given(messages, st.data())
def test_mutated_headers(message: Any, data: st.DataObject) -> None:
    header, arrays_data = unpacked(encode(message))
    *path, key = data.draw(st.sampled_from(places(header)[1:]))
    target = header
    for step in path:
        target = target[step]
    target[key] = data.draw(plain_values)
    decoded_or_refused(packed(header, arrays_data))


@given(messages)
def test_truncated_frames(message: Any) -> None:
    frame = encode(message)
    for length in range(max(0, len(frame) - 400), len(frame)):
        with pytest.raises(ProtocolError):
            decode(frame[:length])
    with pytest.raises(ProtocolError):
        decode(frame + b"\0")


@pytest.mark.parametrize(
    "body",
    [
        b"\xdc\xff\xff" * 1000,  # lists that claim 65,535 entries each, one inside the other
        b"\xdd\xff\xff\xff\xff" * 1000,
        b"\xdf\xff\xff\xff\xff" + b"\xa1a" * 10,
        b"\xdb\xff\xff\xff\xff",  # a string of 4 GiB
        b"\x91" * 1024 + b"\xc0",  # as deep as msgpack goes
        b"\x91" * 100_000 + b"\xc0",
        b"\x83\xa4kind" + b"\x91" * 1020 + b"\xc0",
        b"\x81\xa4kind\xc7\x04\x05abcd",  # an extension type
        b"\x81\xa4kind\xc4\x01a",  # bytes
        b"\x81\xa4kind\xa2\xff\xfe",  # not UTF-8
        b"\x81\x90\x01",  # a list as key
        b"\xc0\xc0",
        b"",
    ],
)
def test_hostile_msgpack(body: bytes) -> None:
    decoded_or_refused(packed(body))
    with pytest.raises(ProtocolError):
        decode(packed(body))


ticket = {"sequence": "train", "number": 7}
floats_data = np.arange(16, dtype="<f4").tobytes()


def deep(levels: int) -> Any:
    return [deep(levels - 1)] if levels else 0


@pytest.mark.parametrize(
    ("message", "change", "reason"),
    [
        (heartbeat, {"session": 5}, "Heartbeat.session: must be a string"),
        (heartbeat, {"number": -1}, "Heartbeat.number: must be an integer"),
        (heartbeat, {"number": True}, "Heartbeat.number: must be an integer"),
        (heartbeat, {"number": 1.0}, "Heartbeat.number: must be an integer"),
        (heartbeat, {"number": 2**63}, "Heartbeat.number: must be an integer"),
        (heartbeat, {"cpu_seconds": math.nan}, "cpu_seconds: must be a finite number"),
        (heartbeat, {"cpu_seconds": math.inf}, "cpu_seconds: must be a finite number"),
        (heartbeat, {"cpu_seconds": False}, "cpu_seconds: must be a finite number"),
        (heartbeat, {"state": "asleep"}, "state: must be one of building, ready"),
        (heartbeat, {"state": ["ready"]}, "state: must be one of"),
        (heartbeat, {"version": {"incarnation": 1}}, "version: Version lacks number"),
        (heartbeat, {"version": [1, 2]}, "version: Version must be a mapping"),
        (
            heartbeat,
            {"holdings": {"queued": {"train": [[3, 9], [0, 2]]}}},
            "Holdings.queued: range 0-2 .* unsorted",
        ),
        (heartbeat, {"holdings": {"queued": {"train": [[0, 5], [4, 9]]}}}, "overlaps"),
        (heartbeat, {"holdings": {"queued": {"train": [[-1, 5]]}}}, "outside"),
        (heartbeat, {"holdings": {"queued": {"train": [[0, 2**62]]}}}, "more than 100,000"),
        (heartbeat, {"holdings": {"queued": {"test": [[0, 1]]}}}, "must be one of train, evaluate"),
        (heartbeat, {"holdings": {"queued": [[0, 1]]}}, "must be a mapping"),
        (heartbeat, {"holdings": {"failures": {"a": 1}}}, "must be a list"),
        (heartbeat, {"holdings": {"failures": [{"ticket": ticket}]}}, "Failure lacks reason"),
        (Answer(1, 1, 1), {"grants": [{"sequence": "train", "start": 5, "stop": 5, "version": 1}]}, "empty"),
        (
            Answer(1, 1, 1),
            {"grants": [{"sequence": "train", "start": 0, "stop": 2**60, "version": 1}]},
            "too long",
        ),
        (Report("status", {}), {"content": deep(9)}, "must be a mapping"),
        (Report("status", {}), {"content": {"a": deep(9)}}, "nested too deep"),
        (Report("status", {}), {"content": {"a": {b"b": 1}}}, "not MessagePack"),
        (episode(), {"ticket": {"sequence": "train", "number": -7}}, "Ticket.number"),
        (episode(), {"terminated": 1}, "must be true or false"),
        (episode(), {"rewards": 4}, "must be the index of an array"),
        (episode(), {"rewards": -1}, "must be the index of an array"),
        (episode(), {"rewards": [0.5, 0.5]}, "must be the index of an array"),
        (episode(), {"rewards": 0}, "must be an array of float32, not uint8"),
        (episode(), {"observations": 2}, "observations must be"),
    ],
)
def test_values_that_do_not_fit(message: Any, change: dict[str, Any], reason: str) -> None:
    header, data = unpacked(encode(message))
    header["fields"] |= change
    with pytest.raises(ProtocolError, match=reason):
        decode(packed(header, data))


def test_a_missing_field_without_default_is_refused() -> None:
    header, _ = unpacked(encode(heartbeat))
    del header["fields"]["state"]
    with pytest.raises(ProtocolError, match="Heartbeat lacks state"):
        decode(packed(header))


@pytest.mark.parametrize("kind", ["Ticket", "object", "", None, 3, ["Hello"], deep(900)])
def test_an_unknown_kind_is_refused(kind: Any) -> None:
    with pytest.raises(ProtocolError, match=r"kind|MessagePack"):
        decode(packed({"kind": kind, "fields": {}, "arrays": []}))


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"f4": 1}, "must be a list"),
        ([["f4", [16]]], "dtype, shape, offset"),
        ([["O", [16], 0]], "dtype 'O' is not allowed"),
        ([["<f4", [16], 0]], "not allowed"),
        ([["V8", [8], 0]], "not allowed"),
        ([[["f4"], [16], 0]], "dtype list is not allowed"),
        ([["f4", 16, 0]], "shape"),
        ([["f4", [-16], 0]], "shape"),
        ([["f4", [True], 0]], "shape"),
        ([["f4", [16.0], 0]], "shape"),
        ([["f4", [2**63, 2**63], 0]], "elements"),
        ([["f4", [2**32, 2**32, 0], 0]], "elements"),
        ([["f4", [1] * 9, 0]], "dimensions"),
        ([["f4", [2**22], 0]], "ends at byte"),
        ([["f4", [16], 64]], "ends at byte"),
        ([["f4", [8], 32]], "aligned"),
        ([["f4", [16], -64]], "in order"),
        ([["f4", [16], 0.0]], "in order"),
        ([["f4", [16], 0], ["f4", [16], 0]], "apart"),
        ([["f4", [15], 0]], "should end"),
        ([["b1", [64], 0]], "boolean"),
        ([["f4", [0], 0]] * 300, "arrays"),
    ],
)
def test_arrays_that_do_not_fit(table: Any, reason: str) -> None:
    header, data = unpacked(encode(weights(a=np.frombuffer(floats_data, "<f4"))))
    assert data == floats_data
    with pytest.raises(ProtocolError, match=reason):
        decode(packed(header | {"arrays": table}, data))


bad = np.array([0, math.nan, 1], np.float32)


@pytest.mark.parametrize(
    "changes",
    [
        {"rewards": np.zeros(2, np.float32)},
        {"rewards": np.zeros((3, 1), np.float32)},
        {"rewards": np.zeros(3, np.float64)},
        {"rewards": bad},
        {"log_probs": bad},
        {"log_probs": -np.inf * np.ones(3, np.float32)},
        {"actions": np.zeros(4, np.int64)},
        {"actions": np.zeros(3, np.float32)},
        {"actions": np.zeros(3, np.bool_)},
        {"observations": np.zeros((3, 5), np.uint8)},
        {"observations": np.zeros(4, np.uint8)},
        {"observations": np.full((4, 5), math.inf, np.float16)},
    ],
)
def test_an_episode_must_be_consistent_and_finite(changes: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        encode(episode(**changes))


def test_an_episode_has_a_step() -> None:
    with pytest.raises(ProtocolError, match="T >= 1"):
        encode(episode(0))


@pytest.mark.parametrize("array", [bad, np.zeros(3), np.zeros(3, np.int32)])
def test_weights_are_finite_float32(array: NDArray[Any]) -> None:
    with pytest.raises(ProtocolError, match="'hidden/0/bias' must be finite float32"):
        encode(weights(**{"hidden/0/bias": array}))


def a_step(**changes: Any) -> Step:
    reset = SlotReset(7, Ticket("train", 3), np.zeros(2, np.uint8))
    return replace(Step(1, 2, np.arange(3, dtype=np.int32), np.zeros(3, np.int64), (reset,)), **changes)


def an_answer(**changes: Any) -> Stepped:
    flags, floats = np.zeros(4, np.bool_), np.zeros(4, np.float32)
    whole = Stepped("s1", 1, 2, np.zeros((4, 5), np.float32), floats, flags, flags, np.zeros(4, np.uint32))
    return replace(whole, **changes)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (a_step(slots=np.arange(3)), "Step.slots: must be an array of int32"),
        (a_step(actions=np.zeros(3, np.int32)), "Step.actions: must be an array of int64"),
        (a_step(actions=np.zeros(4, np.int64)), r"must be \[k\]"),
        (a_step(slots=np.zeros((3, 1), np.int32), actions=np.zeros((3, 1), np.int64)), r"must be \[k\]"),
        (a_step(slots=np.array([0, 1, 1], np.int32)), "each slot once"),
        (a_step(slots=np.array([0, 1, 7], np.int32)), "each slot once"),
        (a_step(slots=np.array([0, 1, -1], np.int32)), "by a number >= 0"),
        (a_step(resets=(SlotReset(7, Ticket("train", 3), np.zeros((2, 1), np.uint8)),)), r"integers \[m\]"),
        (a_step(resets=(SlotReset(7, Ticket("train", 3), np.zeros(2, np.float32)),)), r"integers \[m\]"),
        (a_step(incarnation=-1), "Step.incarnation"),
        (an_answer(rewards=np.zeros(4)), "Stepped.rewards: must be an array of float32"),
        (an_answer(terminated=np.zeros(4, np.uint8)), "Stepped.terminated: must be an array of bool"),
        (an_answer(digests=np.zeros(4, np.int32)), "Stepped.digests: must be an array of uint32"),
        (an_answer(truncated=np.zeros(3, np.bool_)), r"must be \[n\]"),
        (an_answer(digests=np.zeros((4, 1), np.uint32)), r"must be \[n\]"),
        (an_answer(rewards=np.zeros((), np.float32)), r"must be \[n\]"),
        (an_answer(observations=np.zeros((3, 5))), r"must be \[n, size\]"),
        (an_answer(observations=np.zeros(4)), r"must be \[n, size\]"),
    ],
)
def test_steps_and_answers_are_checked_by_the_sender_or_where_they_arrive(
    message: Message, reason: str
) -> None:
    for like in (a_step(), an_answer()):
        decode(encode(like))
    with pytest.raises(ProtocolError, match=reason):
        decode(encode(message))


def test_frames_that_repeat_are_told_apart_by_number_and_content_alone() -> None:
    for number in (3, 0, 2**32, 2**63 - 1):
        for message in (a_step(number=number, resets=()), an_answer(number=number)):
            rest = replace(message, number=7)
            assert len(encode(message)) == len(encode(rest))
            assert comparable(decode(encode(message))) == comparable(message)
    for wrong in (-1, 2**63):
        with pytest.raises(ProtocolError):
            encode(an_answer(number=wrong))
    frame = bytearray(encode(an_answer()))
    (header_bytes,) = struct.unpack_from("<I", frame, 8)
    frame[12 + header_bytes - 8] = 0x80
    with pytest.raises(ProtocolError, match="not from 0 to"):
        decode(bytes(frame))
    with pytest.raises(ProtocolError, match="should end at"):
        decode(encode(an_answer()) + b"\0")
    flags = an_answer(terminated=np.full(4, 2, np.uint8).view(np.bool_))
    with pytest.raises(ProtocolError, match="boolean"):
        decode(encode(flags))


def test_a_frame_that_writes_its_number_otherwise_means_the_same() -> None:
    header, data = unpacked(encode(an_answer()))
    for number in (2, 70_000, 2):
        header["fields"]["number"] = number
        assert comparable(decode(packed(header, data))) == comparable(an_answer(number=number))


def test_ever_new_heads_take_no_more_memory() -> None:
    for incarnation in range(3000):
        decode(encode(an_answer(incarnation=incarnation)))
    assert len(templates._READ) <= 1024 and len(templates._WRITTEN) <= 1024


# --- The sender is told first ---


@pytest.mark.parametrize(
    "content",
    [
        {"a": np.int64(3)},
        {"a": object()},
        {"a": {1, 2}},
        {"a": b"bytes"},
        {"a": 2**64},
        {"a": "\ud800"},
        {1: "a"},
        {"a": deep(600)},
    ],
)
def test_what_has_no_place_in_a_message_is_not_sent(content: Any) -> None:
    with pytest.raises(ProtocolError):
        encode(Report("status", content))


@pytest.mark.parametrize(
    "dtype", ["O", "c8", "U3", "M8[s]", "V4", "f16" if np.dtype("g").itemsize == 16 else "O"]
)
def test_foreign_dtypes_are_not_sent(dtype: str) -> None:
    with pytest.raises(ProtocolError, match="not allowed"):
        encode(episode(observations=np.zeros((4, 5), dtype)))


def test_a_negative_ticket_is_not_sent() -> None:
    with pytest.raises(ProtocolError, match=r"Episode.ticket: Ticket.number"):
        encode(episode(ticket=Ticket("train", -1)))


@pytest.mark.parametrize(
    ("message", "limits", "size"),
    [
        (Query("status"), Limits(max_frame_bytes=50), 59),
        (Query("status"), Limits(max_header_bytes=39), 47),
        (episode(), Limits(max_arrays=3), 4),
        (episode(), Limits(max_array_elements=19), 20),
        (episode(), Limits(max_dimensions=1), 2),
    ],
)
def test_the_sender_is_told_what_is_too_large(message: Message, limits: Limits, size: int) -> None:
    with pytest.raises(FrameTooLarge) as caught:
        encode(message, limits)
    assert caught.value.size == size
    assert f"{caught.value.limit:,}" in str(caught.value)
    with pytest.raises(FrameTooLarge):
        decode(encode(message), limits)


def test_a_frame_too_large_is_not_built() -> None:
    vast = np.broadcast_to(np.zeros(1, np.float32), (2**40,))
    tracemalloc.start()
    with pytest.raises(FrameTooLarge):
        encode(weights(a=vast))
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**20


def test_long_strings_and_lists_are_refused_on_both_sides() -> None:
    for message, limits in (
        (Hello("s", "h" * 101, 1, 1, ""), Limits(max_string_bytes=100)),
        (Report("status", {"a": list(range(101))}), Limits(max_items=100)),
        (Report("status", dict.fromkeys(map(str, range(101)), 0)), Limits(max_items=100)),
        (Answer(1, 1, 1, drop={"train": ((0, 101),)}), Limits(max_tickets=100)),
    ):
        with pytest.raises(ProtocolError):
            encode(message, limits)
        with pytest.raises(ProtocolError):
            decode(encode(message), limits)


def test_an_empty_message_is_small() -> None:
    assert len(encode(HelloAgain())) < 64
