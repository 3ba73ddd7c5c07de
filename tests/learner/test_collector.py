"""The I/O thread, over real sockets: whatever peers send, it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, cast

import pytest
import zmq

from learner.collector import Collector
from learner.config import RunConfig
from learner.registry import Registry
from learner.roster import MOST_ENDED
from protocol.codec import decode, encode
from protocol.messages import (
    Answer,
    Goodbye,
    Heartbeat,
    Hello,
    HelloAgain,
    Holdings,
    Message,
    Query,
    Refuse,
    Report,
    SnapshotRequest,
    Version,
    Welcome,
)
from protocol.sockets import Socket
from protocol.sockets.learner import bind_learner
from protocol.sockets.worker import connect_control, connect_episodes
from protocol.specs import EnvironmentSpec, PolicySpec, Spaces
from protocol.tickets import Ticket
from tests.learner.conftest import EpisodeMaker

SPACES = Spaces(4, "float32", 2, False, 100)
DEADLINE_SECONDS = 20


class Learner:
    """A collector that listens, and peers that speak to it."""

    def __init__(self, context: zmq.Context[Socket], collector: Collector, registry: Registry, port: int):
        self.context, self.collector, self.registry, self.port = context, collector, registry, port
        self.peers: list[Socket] = []

    def peer(self) -> Socket:
        """Connect one more peer."""
        peer = connect_control(self.context, "127.0.0.1", self.port)
        self.peers.append(peer)
        assert peer.poll(DEADLINE_SECONDS * 1000, zmq.POLLOUT)
        return peer

    def ask(self, what: str = "status") -> dict[str, Any]:
        """Return a report: what was sent by the same peer before is done."""
        peer = self.peer()
        peer.send(encode(Query(cast(Any, what))))
        report = receive(peer)
        assert isinstance(report, Report)
        return dict(report.content)


@pytest.fixture
def learner() -> Iterator[Learner]:
    config = RunConfig(total_episodes=10**6, episodes_per_update=10**5)
    welcome = Welcome("run", 1, 3, "async", EnvironmentSpec("toy", {}, SPACES), PolicySpec(4, 2), 1.0, 60.0)
    registry = Registry(config, welcome, "0.1.0", time.monotonic())
    with zmq.Context() as context, bind_learner(context, "127.0.0.1", None) as sockets:
        with Collector(registry, sockets) as collector:
            learner = Learner(context, collector, registry, sockets.ports.control)
            yield learner
        for peer in learner.peers:
            peer.close()


def receive(peer: Socket) -> Message:
    assert peer.poll(DEADLINE_SECONDS * 1000), "no answer"
    return decode(peer.recv())


def hello(session: str) -> bytes:
    return encode(Hello(session, "host", 1, 2, "0.1.0"))


def heartbeat(session: str, number: int, holdings: Holdings | None = None) -> bytes:
    return encode(Heartbeat(session, number, 3, 0, "building", holdings or Holdings()))


def test_a_worker_whose_answer_would_not_fit_in_a_message_is_refused(learner: Learner) -> None:
    alternate = tuple((2 * number, 2 * number + 1) for number in range(35_000))
    later = tuple((2 * number, 2 * number + 1) for number in range(35_000, 70_000))
    peer = learner.peer()
    peer.send(hello("greedy"))
    assert isinstance(receive(peer), Welcome)
    holdings = Holdings(queued={"train": alternate}, running={"train": later})
    peer.send(heartbeat("greedy", 1, holdings))
    refusal = receive(peer)
    assert isinstance(refusal, Refuse) and "no message holds" in refusal.reason
    assert learner.ask()["workers"][0]["state"] == "refused"


def test_only_the_peer_that_said_hello_speaks_for_a_session(learner: Learner) -> None:
    """A thief who knows the name counts heartbeats far ahead, asks for weights, says goodbye and hello."""
    owner, thief = learner.peer(), learner.peer()
    owner.send(hello("mine"))
    assert isinstance(receive(owner), Welcome)
    thief.send(heartbeat("mine", 2**62))
    thief.send(encode(SnapshotRequest("mine")))
    thief.send(encode(Goodbye("mine", "so long")))
    thief.send(hello("mine"))
    thief.send(encode(Query("status")))
    report = receive(thief)
    assert isinstance(report, Report), "a thief hears nothing of what is told to the owner"
    assert report.content["rejected"] == {"control": 4}
    assert [worker["state"] for worker in report.content["workers"]] == ["building"]
    assert "mine" not in str(report.content)
    owner.send(heartbeat("mine", 1))
    assert isinstance(receive(owner), Answer)


def test_strangers_are_forgotten(learner: Learner) -> None:
    peer = learner.peer()
    for number in range(MOST_ENDED + 100):
        peer.send(heartbeat(f"unknown-{number}", 1))
        assert isinstance(receive(peer), HelloAgain)
        peer.send(encode(Hello(f"refused-{number}", "host", 1, 0, "0.1.0")))
        assert isinstance(receive(peer), Refuse)

    def remembered() -> int:
        return len(learner.collector._connections.identities)

    wait_until(lambda: remembered() == MOST_ENDED)


def test_invalid_episodes_are_counted_with_their_reason_and_do_not_flood_the_log(
    learner: Learner, make_episodes: EpisodeMaker, caplog: pytest.LogCaptureFixture
) -> None:
    (episode,) = make_episodes(PolicySpec(4, 2), [5])
    foreign = replace(episode, run="another\nrun", version=Version(3, 0))
    socket = connect_episodes(learner.context, "127.0.0.1", learner.port + 2)
    learner.peers.append(socket)
    for number in range(50):
        socket.send(encode(replace(foreign, ticket=Ticket("train", number))))
    wait_until(lambda: learner.ask()["rejected"].get("episodes") == 50)
    lines = [record.getMessage() for record in caplog.records if "episode" in record.getMessage()]
    assert len(lines) == 2, "the 1st and the 10th"
    assert all("of run another run" in line for line in lines)


def test_the_end_of_a_run_is_told_until_all_have_gone(learner: Learner) -> None:
    """One worker is slow to answer, another joins when the others have been told already."""
    first = learner.peer()
    first.send(hello("first"))
    assert isinstance(receive(first), Welcome)
    with ThreadPoolExecutor(1) as pool:
        ending = pool.submit(learner.collector.finish, "all is done")
        assert receive(first) == receive(first) == Goodbye("first", "all is done")
        late = learner.peer()
        late.send(hello("late"))
        assert isinstance(receive(late), Welcome)
        assert receive(late) == Goodbye("late", "all is done")
        assert not ending.done()
        first.send(encode(Goodbye("first", "bye")))
        late.send(encode(Goodbye("late", "bye")))
        ending.result(DEADLINE_SECONDS)
    assert [worker["state"] for worker in learner.ask()["workers"]] == ["left", "left"]


def test_what_ended_the_thread_is_what_its_users_are_told(learner: Learner) -> None:
    def fail() -> None:
        raise OSError("the disk is on fire")

    learner.registry.office.batches.take = fail  # type: ignore[method-assign]  # anything unforeseen
    learner.collector._thread.join(DEADLINE_SECONDS)
    for ask in (learner.collector.snapshot, lambda: learner.collector.next_batch(0.1)):
        with pytest.raises(OSError, match="on fire"):
            ask()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)
