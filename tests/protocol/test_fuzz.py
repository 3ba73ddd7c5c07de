"""A short, repeatable fuzz of the decoders; `make fuzz` goes on for a million inputs, guided by coverage."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterator

import pytest

from protocol.codec import encode
from protocol.messages import Answer, Grant, HelloAgain, Query
from tests.fuzz.frames import CODEC, OTHER_SEEDS, check, mutate
from tests.fuzz.run import by_hypothesis

INPUTS = 4000


@pytest.fixture(autouse=True)
def without_a_trace() -> Iterator[None]:
    """Stop what `check` has started: it would slow every later test."""
    yield
    tracemalloc.stop()


def test_whatever_was_tampered_with_is_a_message_or_refused() -> None:
    seeds, counts = by_hypothesis(INPUTS, seed=7)
    assert counts["inputs"] >= INPUTS
    assert INPUTS / 100 < counts["decoded"] < INPUTS / 2, "tampering should leave some sound, and most not"
    assert len({frame[:60] for frame in seeds}) > 20


def test_the_other_decoders_survive_what_was_tampered_with() -> None:
    for number in range(INPUTS):
        draw = random.Random(number)
        data = draw.choice(OTHER_SEEDS)
        check(data[:1] + mutate(data[1:], draw, [seed[1:] for seed in OTHER_SEEDS]))


def test_tampering_is_repeatable_and_changes_most_frames() -> None:
    frames = [encode(message) for message in (HelloAgain(), Query("status"), Answer(1, 1, 1))]
    frames.append(encode(Answer(1, 2, 3, grants=(Grant("train", 0, 5, 1),))))

    def all_of_them() -> list[bytes]:
        return [mutate(frames[n % 4], random.Random(n), frames) for n in range(400)]

    assert (once := all_of_them()) == all_of_them()
    assert sum(frame not in frames for frame in once) > 300


def test_too_much_memory_and_a_wrong_error_are_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(data: bytes) -> None:
        assert bytearray(10 * 2**20)

    def wrong(data: bytes) -> None:
        raise KeyError("kind")

    monkeypatch.setattr("tests.fuzz.frames._TARGETS", (greedy, wrong))
    with pytest.raises(AssertionError, match="allocate"):
        check(bytes([CODEC]))
    with pytest.raises(KeyError):
        check(bytes([1]))
