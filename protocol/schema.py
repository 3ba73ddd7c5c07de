"""From plain MessagePack values to messages: the annotations of the dataclasses are the schema.

It is strict: bool is not int; an integer is 0 to 2^63 - 1, as all are counts, indices or seeds; a float is
finite and may be sent as an integer. Unknown fields are ignored and missing ones take their defaults, so that
minor versions mix.
"""

from __future__ import annotations

import math
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
from numpy.typing import NDArray

from protocol.errors import ProtocolError
from protocol.messages import Episode, Grant, Message, Ranges, Weights
from protocol.ranges import check_ranges
from protocol.step_messages import SlotReset, Step, Stepped

MOST_INTEGER = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a receiver accepts, checked before memory is allocated; a sender checks the same."""

    max_frame_bytes: int = 64 * 2**20
    max_header_bytes: int = 2**20
    max_arrays: int = 256
    max_array_elements: int = 2**24
    max_dimensions: int = 8
    max_string_bytes: int = 2**16
    max_items: int = 2**16
    """Entries of one list or mapping."""
    max_tickets: int = 100_000
    """Numbers that one `Ranges` or `Grant` may span."""
    max_depth: int = 8
    """Levels of lists and mappings inside a field of plain values."""


DEFAULT = Limits()


@dataclass(frozen=True, slots=True)
class Body:
    """What the values of one header are converted with: the limits and the frame's arrays."""

    limits: Limits
    arrays: list[NDArray[Any]]


Converter = Callable[[Any, Body], Any]
"""From a plain value to a value of one type; ProtocolError where it is none."""


@cache
def _converter(annotation: Any) -> Converter:
    """Return the converter of a type, made once from its annotation."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if annotation == Ranges:
        return _to_ranges
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    if is_dataclass(annotation):
        return _to_dataclass(annotation)
    if origin is Literal:
        return _to_literal(arguments)
    if origin is types.UnionType and len(arguments) == 2 and arguments[1] is types.NoneType:
        convert = _converter(arguments[0])
        return lambda value, body: None if value is None else convert(value, body)
    if origin is tuple and arguments[1:] == (...,):
        return _to_tuple(_converter(arguments[0]))
    if origin is Mapping:
        return _to_mapping(*map(_converter, arguments))
    if origin is np.ndarray:
        (scalar,) = get_args(arguments[1])
        return _to_array(None if scalar is Any else np.dtype(scalar))
    raise TypeError(f"the codec has no converter for {annotation}")


def _to_integer(value: Any, body: Body) -> int:
    if type(value) is not int or not 0 <= value <= MOST_INTEGER:
        raise ProtocolError("must be an integer from 0 to 2^63 - 1")
    return value


def _to_float(value: Any, body: Body) -> float:
    if type(value) not in (float, int) or not math.isfinite(value):
        raise ProtocolError("must be a finite number")
    return float(value)


def _to_string(value: Any, body: Body) -> str:
    if type(value) is not str:
        raise ProtocolError("must be a string")
    return value


def _to_boolean(value: Any, body: Body) -> bool:
    if type(value) is not bool:
        raise ProtocolError("must be true or false")
    return value


def _to_plain(value: Any, body: Body) -> Any:
    _check_plain(value, body.limits.max_depth)
    return value


def _check_plain(value: Any, depth: int) -> None:
    if type(value) in (dict, list):
        if not depth:
            raise ProtocolError("is nested too deep")
        if type(value) is dict and not all(type(key) is str for key in value):
            raise ProtocolError("must have strings as keys")
        for item in value.values() if type(value) is dict else value:
            _check_plain(item, depth - 1)
    elif type(value) not in (str, int, float, bool, types.NoneType):
        raise ProtocolError("must be made of plain values")


def _to_ranges(value: Any, body: Body) -> Ranges:
    try:
        return check_ranges(value, body.limits.max_tickets)
    except ValueError as error:
        raise ProtocolError(str(error)) from error


_SCALARS: dict[Any, Converter] = {
    int: _to_integer, float: _to_float, str: _to_string, bool: _to_boolean, Any: _to_plain
}  # fmt: skip


def _to_literal(choices: tuple[str, ...]) -> Converter:
    def convert(value: Any, body: Body) -> str:
        if type(value) is not str or value not in choices:
            raise ProtocolError(f"must be one of {', '.join(choices)}")
        return value

    return convert


def _to_tuple(convert_item: Converter) -> Converter:
    def convert(value: Any, body: Body) -> tuple[Any, ...]:
        if type(value) is not list:
            raise ProtocolError("must be a list")
        return tuple([convert_item(item, body) for item in value])

    return convert


def _to_mapping(convert_key: Converter, convert_value: Converter) -> Converter:
    def convert(value: Any, body: Body) -> dict[Any, Any]:
        if type(value) is not dict:
            raise ProtocolError("must be a mapping")
        return {convert_key(key, body): convert_value(item, body) for key, item in value.items()}

    return convert


def _to_array(dtype: np.dtype[Any] | None) -> Converter:
    def convert(value: Any, body: Body) -> NDArray[Any]:
        if type(value) is not int or not 0 <= value < len(body.arrays):
            raise ProtocolError("must be the index of an array")
        array = body.arrays[value]
        if dtype is not None and array.dtype != dtype:
            raise ProtocolError(f"must be an array of {dtype}, not {array.dtype}")
        return array

    return convert


def _to_dataclass(target: Any) -> Converter:
    hints = get_type_hints(target)
    converters = [
        (field.name, _converter(hints[field.name]), field.default is MISSING is field.default_factory)
        for field in fields(target)
    ]
    check = CHECKS.get(target)

    def convert(value: Any, body: Body) -> Any:
        if type(value) is not dict:
            raise ProtocolError(f"{target.__name__} must be a mapping")
        values = {}
        for name, convert_field, required in converters:
            if name in value:
                try:
                    values[name] = convert_field(value[name], body)
                except ProtocolError as error:
                    raise ProtocolError(f"{target.__name__}.{name}: {error}") from error
            elif required:
                raise ProtocolError(f"{target.__name__} lacks {name}")
        message = target(**values)
        if check:
            check(message, body.limits)
        return message

    return convert


# --- What types cannot say ---


def _check_grant(grant: Grant, limits: Limits) -> None:
    if not 0 < grant.stop - grant.start <= limits.max_tickets:
        raise ProtocolError(f"a grant of tickets {grant.start} to {grant.stop} is empty or too long")


def _check_weights(weights: Weights, limits: Limits) -> None:
    for name, array in weights.arrays.items():
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ProtocolError(f"weights {name[:80]!r} must be finite float32")


def _check_episode(episode: Episode, limits: Limits) -> None:
    steps = episode.rewards.shape
    if len(steps) != 1 or not steps[0] or not episode.actions.shape == steps == episode.log_probs.shape:
        raise ProtocolError("an episode's actions, rewards and log_probs must be [T], with T >= 1")
    if episode.observations.ndim != 2 or len(episode.observations) != steps[0] + 1:
        raise ProtocolError("an episode's observations must be [T + 1, size]")
    if episode.actions.dtype.kind not in "iu":
        raise ProtocolError("an episode's actions must be integers")
    for array in (episode.observations, episode.rewards, episode.log_probs):
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ProtocolError("an episode's observations, rewards and log_probs must be finite")


def _check_slot_reset(reset: SlotReset, limits: Limits) -> None:
    if reset.actions.ndim != 1 or reset.actions.dtype.kind not in "iu":
        raise ProtocolError("a reset's actions must be integers [m]")


def _check_step(step: Step, limits: Limits) -> None:
    if step.slots.ndim != 1 or step.actions.shape != step.slots.shape:
        raise ProtocolError("a step's slots and actions must be [k]")
    slots = step.slots.tolist()
    if step.resets:
        slots += [reset.slot for reset in step.resets]
    if len(set(slots)) < len(slots) or (slots and min(slots) < 0):
        raise ProtocolError("a step must name each slot once, by a number >= 0")


def _check_stepped(stepped: Stepped, limits: Limits) -> None:
    rows, flags = stepped.rewards.shape, stepped.terminated.shape
    if len(rows) != 1 or not rows == flags == stepped.truncated.shape == stepped.digests.shape:
        raise ProtocolError("rewards, terminated, truncated and digests must be [n]")
    if stepped.observations.ndim != 2 or len(stepped.observations) != rows[0]:
        raise ProtocolError("observations must be [n, size]")


def check_booleans(content: bytes) -> None:
    """Raise ProtocolError where a byte of booleans is neither 0 nor 1."""
    if content.translate(None, b"\0\1"):
        raise ProtocolError("a boolean must be 0 or 1")


CHECKS: dict[type, Callable[[Any, Limits], None]] = {
    Grant: _check_grant, Weights: _check_weights, Episode: _check_episode,
    SlotReset: _check_slot_reset, Step: _check_step, Stepped: _check_stepped,
}  # fmt: skip
MESSAGES: dict[str, Converter] = {kind.__name__: _converter(kind) for kind in get_args(Message)}
