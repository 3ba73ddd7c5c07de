"""The worker's part of synchronous mode: slots by the learner's numbers, fast-forward, failures, repeats."""

from __future__ import annotations

import secrets
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pytest
import zmq
from numpy.typing import NDArray

from protocol.codec import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import HelloAgain
from protocol.sockets import Context, Socket
from protocol.sockets.frames import receive_nowait
from protocol.sockets.learner import bind_step
from protocol.sockets.worker import connect_step
from protocol.specs import EnvironmentSpec, Spaces
from protocol.step_messages import OnStep, Present, SlotReset, Step, Stepped
from protocol.tickets import Ticket, environment_seed
from rollout_worker.environments import registry
from rollout_worker.environments.slots import SlotEnvironments, SlotFailures, StepResult
from rollout_worker.host import Host, StepService

T = TypeVar("T")
SEED = 7
SPEC = EnvironmentSpec(
    "counting", {}, Spaces(3, "float32", 100, False, 20), train_scenarios=({"start": 0}, {"start": 1000})
)


class Counting:
    """Shows seed, start plus all actions, and steps; action 9 ends, 8 raises."""

    observation_size, observation_dtype, actions, masked = 3, np.dtype(np.float32), 100, False
    max_episode_steps = 20
    ready_at: NDArray[np.float64] | None = None
    built: list[Counting]

    def __init__(self, slots: int) -> None:
        self.slots, self.calls, self.closed = slots, 0, False
        self.state = np.full((slots, 3), np.nan)
        Counting.built.append(self)

    def reset(
        self, slots: NDArray[np.int64], seeds: NDArray[np.uint64], scenarios: Sequence[Mapping[str, Any]]
    ) -> NDArray[Any]:
        self.calls += 1
        self.state[slots, 0] = seeds % np.uint64(1000)
        self.state[slots, 1] = [scenario["start"] for scenario in scenarios]
        self.state[slots, 2] = 0
        return self.state[slots].astype(np.float32)

    def step(self, slots: NDArray[np.int64], actions: NDArray[np.int64]) -> StepResult:
        self.calls += 1
        self.state[slots, 1] += actions
        self.state[slots, 2] += 1
        shown = self.state[slots].astype(np.float32)
        no = np.zeros(len(slots), np.bool_)
        result = shown, actions.astype(np.float32), actions == 9, no
        if errors := {slot: OSError("it is gone") for slot in slots[actions == 8].tolist()}:
            raise SlotFailures(errors, result)
        return result

    def close(self) -> None:
        self.closed = True


@pytest.fixture(autouse=True)
def _counting(monkeypatch: pytest.MonkeyPatch) -> None:
    Counting.built = []
    build = registry.build

    def built(spec: EnvironmentSpec, slots: int) -> SlotEnvironments:
        return Counting(slots) if spec.name == "counting" else build(spec, slots)

    monkeypatch.setattr(registry, "build", built)


class Driver:
    """A host, and the steps that a learner would send it."""

    def __init__(self, spec: EnvironmentSpec = SPEC) -> None:
        self.host, self.number = Host(registry.build(spec, 1), spec, SEED), 0

    def __call__(self, actions: Mapping[int, int], *resets: SlotReset) -> Stepped:
        self.number += 1
        return self.host.step(a_step(self.number, actions, *resets), "session")


def a_step(number: int, actions: Mapping[int, int], *resets: SlotReset, incarnation: int = 1) -> Step:
    slots, taken = np.array(list(actions), np.int32), np.array(list(actions.values()), np.int64)
    return Step(incarnation, number, slots, taken, resets)


def begin(slot: int, number: int, *actions: int) -> SlotReset:
    return SlotReset(slot, Ticket("train", number), np.array(actions, np.uint8))


def shown(number: int, moved: int, steps: int) -> list[float]:
    """What `Counting` shows."""
    seed = environment_seed(SEED, Ticket("train", number)) % 1000
    return [seed, [0, 1000][number % 2] + moved, steps]


def test_slots_go_by_the_learners_numbers_and_begin_from_their_tickets() -> None:
    step = Driver()
    answer = step({}, begin(40, 4), begin(7, 5))
    assert (answer.session, answer.incarnation, answer.number) == ("session", 1, 1)
    assert answer.observations.tolist() == [shown(4, 0, 0), shown(5, 0, 0)]
    assert answer.rewards.tolist() == [0, 0] and not answer.terminated.any() and not answer.digests.any()
    answer = step({7: 3, 40: 2}, begin(41, 6))
    assert answer.observations.tolist() == [shown(5, 3, 1), shown(4, 2, 1), shown(6, 0, 0)]
    assert answer.rewards.tolist() == [3, 2, 0] and not answer.failures
    assert (step.host.steps, step.host.passes) == (2, 2)
    assert decode(encode(answer)).__class__ is Stepped


def test_a_round_is_one_call_and_environments_are_built_as_they_are_dealt() -> None:
    step = Driver()
    step({}, *(begin(slot, slot) for slot in range(10)))
    probed, block = Counting.built
    assert probed.closed and block.slots == 10
    calls = block.calls
    step(dict.fromkeys(range(10), 1))
    assert block.calls == calls + 1
    answer = step(dict.fromkeys(range(10), 1), *(begin(slot, slot) for slot in range(10, 14)))
    assert answer.observations[9:].tolist() == [shown(9, 2, 2), *(shown(n, 0, 0) for n in range(10, 14))]
    answer = step(dict.fromkeys(reversed(range(14)), 1))
    assert answer.observations.tolist() == [
        shown(slot, 3 if slot < 10 else 1, 3 if slot < 10 else 1) for slot in reversed(range(14))
    ]
    assert [block.slots for block in Counting.built] == [1, 10, 4]
    assert step(dict.fromkeys(range(14), 9)).terminated.all()
    step({}, begin(0, 0))
    assert [block.slots for block in Counting.built if not block.closed] == [14]


def test_an_ended_slot_leaves_its_environment_to_another() -> None:
    step = Driver()
    step({}, begin(0, 0), begin(1, 1))
    assert step({0: 9, 1: 2}).terminated.tolist() == [True, False]
    answer = step({1: 2}, begin(2, 2))
    assert answer.observations.tolist() == [shown(1, 4, 2), shown(2, 0, 0)]
    assert step.host.environments == 2


def test_a_moved_slot_is_fast_forwarded_to_the_same_state_with_a_digest_of_what_it_showed() -> None:
    there, here = Driver(), Driver()
    seen = [there({}, begin(3, 4)).observations[0]]
    seen += [there({3: action}).observations[0] for action in (1, 2, 3)]
    answer = here({}, begin(9, 9), begin(3, 4, 1, 2, 3), begin(5, 5, 4))
    assert answer.observations[1].tobytes() == seen[-1].tobytes() and answer.rewards.tolist() == [0, 3, 4]
    crc = zlib.crc32(b"".join(observation.tobytes() for observation in seen[:-1]))
    first = zlib.crc32(np.array(shown(5, 0, 0), np.float32).tobytes())
    assert answer.digests.tolist() == [0, crc, first]
    assert here({3: 5}).observations.tolist() == there({3: 5}).observations.tolist()


def test_a_last_action_may_end_and_an_early_end_shows_in_the_digest() -> None:
    step = Driver()
    answer = step({}, begin(0, 0, 1, 9), begin(1, 0, 9, 1))
    assert answer.terminated.tolist() == [True, True] and not answer.failures
    whole = [np.array(shown(0, moved, steps), np.float32).tobytes() for steps, moved in enumerate((0, 9))]
    assert answer.digests[1] == zlib.crc32(whole[0]) != zlib.crc32(b"".join(whole))


def test_what_raises_is_a_failure_of_its_slot_alone() -> None:
    step = Driver()
    step({}, *(begin(slot, slot) for slot in (2, 4, 6, 8)))
    answer = step({2: 1, 4: 8, 6: 1, 8: 1}, begin(1, 1, 8, 1), begin(3, 3))
    assert {failure.slot: failure.reason for failure in answer.failures} == {
        4: "OSError: it is gone",
        1: "OSError: it is gone",
    }
    for row in (1, 4):
        assert not answer.observations[row].any() and not answer.terminated[row]
    assert answer.observations[[0, 2, 3, 5]].tolist() == [
        *(shown(slot, 1, 1) for slot in (2, 6, 8)),
        shown(3, 0, 0),
    ]
    assert step.host.failed_in_a_row == 2
    assert decode(encode(answer)).__class__ is Stepped
    answer = step({2: 1, 4: 1}, begin(6, 6))
    assert [failure.slot for failure in answer.failures] == [4]
    assert answer.observations.tolist() == [shown(2, 2, 2), [0, 0, 0], shown(6, 0, 0)]
    step({2: 9})
    assert step.host.failed_in_a_row == 0


def test_a_slot_that_is_not_open_fails() -> None:
    step = Driver()
    answer = step({99: 0})
    assert [(failure.slot, failure.reason) for failure in answer.failures] == [(99, "it has no ticket here")]
    assert answer.observations.tolist() == [[0, 0, 0]]
    step({}, begin(0, 0))
    assert not step({0: 9}).failures
    assert [failure.slot for failure in step({0: 1}).failures] == [0]


def test_an_environment_that_raises_for_all_fails_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> StepResult:
        raise OSError("all of it is gone\nfor good")

    step = Driver()
    step({}, begin(0, 0), begin(1, 1))
    monkeypatch.setattr(Counting, "step", broken)
    answer = step({0: 1, 1: 1})
    assert [failure.reason for failure in answer.failures] == ["OSError: all of it is gone"] * 2
    monkeypatch.setattr(Counting, "reset", broken)
    assert [failure.slot for failure in step({}, begin(0, 0), begin(1, 1, 2)).failures] == [0, 1]


@pytest.mark.parametrize("name", ["CartPole-v1", "cage2"])
def test_real_environments_give_the_same_wherever_they_are_hosted(name: str) -> None:
    spec = EnvironmentSpec(name, {}, registry.describe(name, {}))
    draw = np.random.default_rng(0)
    actions = draw.integers(0, spec.spaces.actions, (8, 4))
    together, moved = Driver(spec), Driver(spec)
    together({}, *(begin(slot, slot) for slot in range(4)))
    for row in actions[:-1]:
        together(dict(enumerate(row.tolist())))
    last = together(dict(enumerate(actions[-1].tolist())))
    for slot in (2, 0, 1, 3):
        alone = moved({}, begin(slot, slot, *actions[:, slot].tolist()))
        assert alone.observations[0].tobytes() == last.observations[slot].tobytes()
        assert alone.rewards[0] == last.rewards[slot]


def test_delayed_steps_are_waited_for() -> None:
    spec = EnvironmentSpec(
        "CartPole-v1", {}, registry.describe("CartPole-v1", {}), step_delay="constant:30ms"
    )
    step = Driver(spec)
    step({}, begin(0, 0), begin(1, 1))
    began = time.monotonic()
    step({0: 1, 1: 0}, begin(2, 2, 1))
    assert time.monotonic() - began >= 0.06  # a round of both, then the action of the third


# --- Over the step socket ---


def eventually(probe: Callable[[], T | None]) -> T:
    """Return the first result of `probe`, asked again and again for at most 20 seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if (result := probe()) is not None:
            return result
    raise AssertionError("it did not happen in 20 seconds")


class Line:
    """A step service and the learner's end of its socket, both in this thread."""

    def __init__(self, quiet_seconds: float = 60.0) -> None:
        self.context: Context = zmq.Context()
        self.router = bind_free(self.context)
        port = int(self.router.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
        socket = connect_step(self.context, "127.0.0.1", port, "session")
        host = Host(registry.build(SPEC, 1), SPEC, SEED)
        self.service = StepService(socket, host, "session", quiet_seconds)

    def close(self) -> None:
        self.service.close()
        self.context.destroy(linger=0)

    def hear(self) -> OnStep:
        identity, frame = eventually(lambda: receive_nowait(self.router))
        assert identity == b"session"
        message = decode(frame)
        assert isinstance(message, Present | Stepped)
        return message

    def send(self, frame: bytes) -> None:
        self.router.send_multipart([b"session", frame])
        self.service.serve()

    def ask(self, step: Step) -> OnStep:
        self.send(encode(step))
        return self.hear()

    def silent(self) -> bool:
        """Say whether nothing comes before the answer to the next step."""
        number = 1000 + secrets.randbelow(1000)
        answer = self.ask(a_step(number, {}, incarnation=9))
        return isinstance(answer, Stepped) and answer.number == number


def bind_free(context: Context) -> Socket:
    return bind_step(context, "127.0.0.1", 0)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    line.service.introduce(1)
    assert line.hear() == Present("session", 1)
    yield line
    line.close()


def test_a_step_that_comes_twice_is_answered_twice_and_made_once(line: Line) -> None:
    line.ask(a_step(4, {}, begin(0, 0)))
    step = a_step(5, {0: 3})
    once, twice = line.ask(step), line.ask(step)
    assert isinstance(once, Stepped) and isinstance(twice, Stepped)
    assert encode(once) == encode(twice) and once.observations.tolist() == [shown(0, 3, 1)]
    assert line.service.host.steps == 1


def test_a_late_step_and_one_of_an_older_incarnation_are_ignored(line: Line) -> None:
    line.ask(a_step(4, {}, begin(0, 0)))
    line.ask(a_step(9, {0: 1}))
    line.send(encode(a_step(8, {0: 1})))
    line.ask(a_step(1, {}, begin(0, 0), incarnation=3))
    line.send(encode(a_step(10, {0: 1}, incarnation=2)))
    assert line.service.host.steps == 1
    assert line.silent()


def test_a_new_incarnation_counts_and_deals_anew(line: Line) -> None:
    line.ask(a_step(7, {}, begin(0, 0)))
    answer = line.ask(a_step(1, {0: 1}, begin(1, 1), incarnation=2))
    assert isinstance(answer, Stepped) and (answer.incarnation, answer.number) == (2, 1)
    assert [failure.slot for failure in answer.failures] == [0]
    line.service.introduce(3)
    assert line.hear() == Present("session", 3)
    line.send(encode(a_step(2, {1: 1}, incarnation=2)))
    assert line.silent()


def test_what_no_learner_sends_is_refused_and_changes_nothing(line: Line) -> None:
    line.ask(a_step(1, {}, begin(0, 0)))
    for frame in (b"", b"noise", encode(HelloAgain()), encode(Present("session", 1))):
        with pytest.raises(ProtocolError):
            line.send(frame)
    for misshapen in (a_step(2, {-1: 0}), a_step(2, {0: 1}, begin(0, 0))):
        with pytest.raises(ProtocolError, match="each slot once"):
            line.send(encode(misshapen))
    answer = line.ask(a_step(2, {0: 2}))
    assert isinstance(answer, Stepped) and answer.observations.tolist() == [shown(0, 2, 1)]


def test_it_says_again_that_it_is_here_when_nothing_comes() -> None:
    line = Line(quiet_seconds=0.01)
    try:
        line.service.introduce(5)
        for _ in range(3):
            assert line.hear() == Present("session", 5)
            line.service.serve()
    finally:
        line.close()
