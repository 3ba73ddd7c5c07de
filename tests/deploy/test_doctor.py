"""What the doctor finds at ports where a learner listens, something else does, or nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import astuple

import pytest
import zmq

import deploy.commands.doctor
from deploy.commands.doctor import examine
from deploy.zmtp import Listener, Unreachable, greet
from protocol import VERSION
from protocol.sockets.learner import LearnerSockets, bind_learner

ROLES = ("control", "weights", "episodes", "step")
KINDS = ("ROUTER", "PUB", "PULL", "ROUTER")


@pytest.fixture
def learner() -> Iterator[LearnerSockets]:
    with zmq.Context() as context, bind_learner(context, "127.0.0.1", None) as sockets:
        yield sockets


def why(port: int, seconds: float = 5.0) -> str:
    with pytest.raises(Unreachable) as caught:
        greet("127.0.0.1", port, seconds)
    return str(caught.value)


def listening(backlog: int = 5) -> tuple[socket.socket, int]:
    server = socket.create_server(("127.0.0.1", 0), backlog=backlog)
    return server, server.getsockname()[1]


def test_each_port_of_a_learner_says_what_it_is(learner: LearnerSockets) -> None:
    seen = [greet("127.0.0.1", port, 5.0) for port in astuple(learner.ports)]
    assert seen == [Listener("NULL", kind) for kind in KINDS]


def test_a_port_that_is_encrypted_says_so() -> None:
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        _, secret = zmq.curve_keypair()
        router.curve_server, router.curve_secretkey, router.linger = True, secret, 0
        port = router.bind_to_random_port("tcp://127.0.0.1")
        assert greet("127.0.0.1", port, 5.0) == Listener("CURVE", "")


def test_nothing_listens() -> None:
    server, port = listening()
    server.close()
    assert "connection refused" in why(port)


def test_whoever_drops_packets_looks_like_a_firewall() -> None:
    server, port = listening(backlog=0)
    with closing(server), ExitStack() as stack:
        for _ in range(4):  # the queue of those who wait to be accepted is full: the system drops the rest
            waiting = stack.enter_context(closing(socket.socket()))
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        assert "timed out after 0.5 s: a firewall?" in why(port, 0.5)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "something else listens there"),
        (b"\xff\0\0\0", "it hung up"),
        (b"", "it hung up"),
    ],
)
def test_something_else_listens(said: bytes, told: str) -> None:
    server, port = listening()

    def serve() -> None:
        peer, _ = server.accept()
        peer.sendall(said)
        peer.shutdown(socket.SHUT_WR)
        peer.recv(1000)
        peer.close()

    thread = threading.Thread(target=serve)
    thread.start()
    with closing(server):
        assert told in why(port)
        thread.join()


def test_a_listener_that_says_nothing_is_told() -> None:
    server, port = listening()
    with closing(server):
        assert "says nothing" in why(port, 0.3)


def test_a_name_that_is_none() -> None:
    with pytest.raises(Unreachable, match="there is no host called no-such-host"):
        greet("no-such-host.invalid", 5555, 5.0)


def test_mixed_up_ports_and_a_missing_one_are_found(
    learner: LearnerSockets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody answers at the control port either: the learner of this test only listens."""
    monkeypatch.setattr("deploy.query.ANSWER_SECONDS", 0.2)
    control, weights, episodes, _ = astuple(learner.ports)
    server, closed = listening()
    server.close()
    ports = dict(zip(ROLES, (control, episodes, weights, closed), strict=True))
    found = list(examine("127.0.0.1", ports, None))
    texts = {finding.text for finding in found if finding.grade == "bad"}
    assert any("a PULL listens there, weights needs a PUB" in text for text in texts)
    assert any(f"step port {closed}: connection refused" in text for text in texts)
    assert any("no learner answered" in text for text in texts)
    assert len(texts) == 4


@pytest.mark.parametrize(
    ("theirs", "grade"),
    [(VERSION, "good"), (f"{VERSION}.dev1", "note"), ("77.0.0", "bad"), ("", "bad")],
)
def test_versions_are_compared_as_the_learner_does(theirs: str, grade: str) -> None:
    assert deploy.commands.doctor._version(theirs).grade == grade


@pytest.mark.parametrize(("ahead", "grade"), [(0.1, "good"), (-1.9, "good"), (3600.0, "note")])
def test_a_clock_that_differs_is_a_note(ahead: float, grade: str) -> None:
    assert deploy.commands.doctor._clock(ahead).grade == grade
