from __future__ import annotations

import secrets
import socket as network
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.addresses import Ports, parse_address
from protocol.codec import Limits, decode, encode
from protocol.errors import ProtocolError, UserError
from protocol.messages import HelloAgain, Query
from protocol.sockets import Context, Socket
from protocol.sockets.frames import receive_nowait, send_nowait
from protocol.sockets.learner import LearnerSockets, PortInUse, bind_control, bind_learner
from protocol.sockets.worker import connect_control, connect_episodes, connect_weights

T = TypeVar("T")
HOST = "127.0.0.1"
LIMITS = Limits(max_frame_bytes=2**20)
QUERY, ANSWER = encode(Query("status")), encode(HelloAgain())
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(16) + b"\x00" + bytes(31)  # ZMTP 3.0


def eventually(probe: Callable[[], T | None]) -> T:
    """Return the first true result of `probe`, asked again and again for at most 20 seconds."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if result := probe():
            return result
        time.sleep(0.002)
    raise AssertionError("it did not happen in 20 seconds")


def say(dealer: Socket, frame: bytes) -> None:
    """Send over control as soon as there is a connection; nothing queues without one."""
    assert eventually(lambda: send_nowait(dealer, frame))


@pytest.fixture
def context() -> Iterator[Context]:
    context = zmq.Context[zmq.Socket[bytes]]()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def learner(context: Context) -> Iterator[LearnerSockets]:
    with bind_learner(context, HOST, None, limits=LIMITS) as sockets:
        yield sockets


def test_control_goes_both_ways(context: Context, learner: LearnerSockets) -> None:
    dealer = connect_control(context, HOST, learner.ports.control)
    say(dealer, QUERY)
    identity, frame = eventually(lambda: receive_nowait(learner.control))
    assert frame == QUERY
    assert send_nowait(learner.control, identity, ANSWER)
    assert eventually(lambda: receive_nowait(dealer)) == (b"", ANSWER)


def test_weights_arrive_newest_first(context: Context, learner: LearnerSockets) -> None:
    subscriber = connect_weights(context, HOST, learner.ports.weights)

    def published() -> tuple[bytes, bytes] | None:
        learner.weights.send(b"early")
        return receive_nowait(subscriber)

    assert eventually(published) == (b"", b"early")
    for number in range(200):
        learner.weights.send(b"%03d" % number)
    received = []

    def newest() -> bool:
        learner.weights.send(b"199")  # a conflating pipe can hold its last frame back until the next is sent
        if parcel := receive_nowait(subscriber):
            received.append(parcel[1])
        return received[-1:] == [b"199"]

    assert eventually(newest)
    assert len(received) < 200


def free_ports() -> Ports:
    servers = [network.create_server((HOST, 0)) for _ in range(4)]
    ports = Ports(*(server.getsockname()[1] for server in servers))
    for server in servers:
        server.close()
    return ports


def test_episodes_pushed_before_the_learner_listens_arrive_in_order(context: Context) -> None:
    ports = free_ports()
    push = connect_episodes(context, HOST, ports.episodes)
    assert [send_nowait(push, b"%d" % number) for number in range(4)] == [True] * 4
    with bind_learner(context, HOST, ports) as learner:
        frames = [eventually(lambda: receive_nowait(learner.episodes)) for _ in range(4)]
    assert frames == [(b"", b"%d" % number) for number in range(4)]


def test_identities_are_random(context: Context, learner: LearnerSockets) -> None:
    dealers = [connect_control(context, HOST, learner.ports.control) for _ in range(5)]
    for dealer in dealers:
        say(dealer, QUERY)
    identities = {eventually(lambda: receive_nowait(learner.control))[0] for _ in dealers}
    assert len(identities) == 5


def test_sending_to_an_unknown_peer_returns_false(learner: LearnerSockets) -> None:
    assert not send_nowait(learner.control, b"nobody", ANSWER)


def test_sending_to_a_peer_that_left_returns_false(context: Context, learner: LearnerSockets) -> None:
    dealer = connect_control(context, HOST, learner.ports.control)
    say(dealer, QUERY)
    identity, _ = eventually(lambda: receive_nowait(learner.control))
    dealer.close()
    assert eventually(lambda: not send_nowait(learner.control, identity, ANSWER))


def test_a_peer_that_stops_reading_does_not_block_the_learner(
    context: Context, learner: LearnerSockets
) -> None:
    deaf, alert = (connect_control(context, HOST, learner.ports.control) for _ in range(2))
    say(deaf, b"deaf")
    say(alert, b"alert")
    identity = {
        name: who for who, name in (eventually(lambda: receive_nowait(learner.control)) for _ in range(2))
    }
    megabyte = bytes(2**20)
    sent = 0
    while send_nowait(learner.control, identity[b"deaf"], megabyte):
        sent += 1
        assert sent < 1000
    assert sent > 0
    assert send_nowait(learner.control, identity[b"alert"], ANSWER)
    assert eventually(lambda: receive_nowait(alert)) == (b"", ANSWER)


def test_nothing_queues_for_a_learner_that_is_not_there(context: Context) -> None:
    assert not send_nowait(connect_control(context, HOST, free_ports().control), QUERY)


def test_a_push_without_a_learner_is_bounded(context: Context) -> None:
    push = connect_episodes(context, HOST, Ports.from_base(19_990).episodes)
    push.linger = 0
    accepted = 0
    while send_nowait(push, b"episode"):
        accepted += 1
        assert accepted < 100
    assert accepted > 0


# --- Hostile peers ---


def check_alive(context: Context, learner: LearnerSockets) -> None:
    """Check that a learner still hears honest workers, having dropped whatever else arrived."""
    nonce = encode(HelloAgain()) + secrets.token_bytes(8)  # refused by the codec, but known here

    def heard(socket: Socket) -> bool:
        while parcel := receive_nowait(socket):
            if parcel[1] == nonce:
                return True
            try:
                decode(parcel[1], LIMITS)
            except ProtocolError as error:
                assert str(error)
        return False

    dealer = connect_control(context, HOST, learner.ports.control)
    push = connect_episodes(context, HOST, learner.ports.episodes)
    subscriber = connect_weights(context, HOST, learner.ports.weights)
    say(dealer, nonce)
    assert send_nowait(push, nonce)
    assert eventually(lambda: heard(learner.control))
    assert eventually(lambda: heard(learner.episodes))

    def published() -> tuple[bytes, bytes] | None:
        learner.weights.send(b"weights")
        return receive_nowait(subscriber)

    assert eventually(published) == (b"", b"weights")
    for socket in (dealer, push, subscriber):
        socket.close(linger=0)


def frame_of(body: bytes, flags: int = 0) -> bytes:
    return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body


def ready(socket_type: bytes) -> bytes:
    command = b"\x05READY\x0bSocket-Type" + len(socket_type).to_bytes(4, "big") + socket_type
    return bytes([4, len(command)]) + command


def attack(port: int, socket_type: bytes | None, stream: bytes) -> network.socket:
    """Send bytes to a port, after a proper ZMTP handshake as `socket_type` where there is one."""
    peer = network.create_connection((HOST, port), timeout=5)
    try:
        if socket_type:
            peer.sendall(GREETING + ready(socket_type))
            answer = b""
            while b"READY" not in answer and (part := peer.recv(200)):
                answer += part
        peer.sendall(stream)
    except ConnectionError:
        pass  # hung up on: what it should get
    return peer


noise = st.binary(min_size=1, max_size=200)
claims = st.sampled_from([2**62, 2**63 - 1, 2**64 - 1, LIMITS.max_frame_bytes + 1])
streams = st.one_of(
    noise,
    noise.map(lambda drawn: GREETING + drawn),
    noise.map(frame_of),
    st.lists(noise, max_size=5).map(
        lambda bodies: b"".join(frame_of(body, len(body) & 1) for body in bodies)
    ),
    claims.map(lambda size: b"\x02" + size.to_bytes(8, "big")),
)


@pytest.mark.parametrize(("socket_type", "port"), [(b"DEALER", "control"), (b"PUSH", "episodes")])
def test_the_attacks_get_through(learner: LearnerSockets, socket_type: bytes, port: str) -> None:
    with attack(getattr(learner.ports, port), socket_type, frame_of(b"hello")):
        assert eventually(lambda: receive_nowait(getattr(learner, port)))[1] == b"hello"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stream=streams, handshake=st.booleans())
def test_hostile_bytes_on_each_port(
    context: Context, learner: LearnerSockets, stream: bytes, handshake: bool
) -> None:
    ports = learner.ports
    for port, kind in ((ports.control, b"DEALER"), (ports.weights, b"SUB"), (ports.episodes, b"PUSH")):
        attack(port, kind if handshake else None, stream).close()
    check_alive(context, learner)


def test_hostile_frames(context: Context, learner: LearnerSockets) -> None:
    dealer, push = context.socket(zmq.DEALER), context.socket(zmq.PUSH)
    dealer.connect(f"tcp://{HOST}:{learner.ports.control}")
    push.connect(f"tcp://{HOST}:{learner.ports.episodes}")

    def refused(receiver: Socket) -> bool:
        parcel = receive_nowait(receiver)
        if parcel:
            with pytest.raises(ProtocolError):
                decode(parcel[1])
        return parcel is not None

    for parts in (
        [b""],
        [QUERY[:-1]],
        [secrets.token_bytes(500)],
        [b"", QUERY],
        [QUERY, QUERY],
        [b"RFLT"] * 9,
    ):
        for sender, receiver in ((dealer, learner.control), (push, learner.episodes)):
            sender.send_multipart(parts)
            assert eventually(partial(refused, receiver))
    check_alive(context, learner)


def test_an_oversized_frame_is_not_received(context: Context, learner: LearnerSockets) -> None:
    push = connect_episodes(context, HOST, learner.ports.episodes)
    assert send_nowait(push, bytes(LIMITS.max_frame_bytes + 1))
    check_alive(context, learner)


# --- Addresses ---


def test_a_port_in_use_says_what_to_do(context: Context, learner: LearnerSockets) -> None:
    port = learner.ports.control
    with pytest.raises(UserError, match=f"port {port} is in use on this host: choose another with --port"):
        bind_control(context, HOST, port)
    with pytest.raises(UserError, match=f"port {port} is in use"):
        bind_learner(context, HOST, learner.ports)


def test_a_failed_bind_gives_the_other_ports_back(context: Context) -> None:
    ports = free_ports()
    with (
        network.create_server((HOST, ports.episodes)),
        pytest.raises(UserError, match=f"port {ports.episodes} is in use"),
    ):
        bind_learner(context, HOST, ports)

    def bound() -> LearnerSockets | None:  # libzmq frees a port some time after its socket is closed
        try:
            return bind_learner(context, HOST, ports)
        except PortInUse:
            return None

    assert eventually(bound).ports == ports


def test_auto_takes_blocks_of_four_apart(context: Context) -> None:
    with bind_learner(context, HOST, None) as one, bind_learner(context, HOST, None) as two:
        assert one.ports == Ports.from_base(one.ports.control)
        assert one.ports.control != two.ports.control


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_open_address_needs_insecure(context: Context, host: str) -> None:
    with pytest.raises(UserError, match=r"fleet keys new.*--insecure"):
        bind_learner(context, host, None)
    with bind_learner(context, host, None, insecure=True) as learner:
        dealer = connect_control(context, HOST, learner.ports.control)
        say(dealer, QUERY)
        assert eventually(lambda: receive_nowait(learner.control))[1] == QUERY


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_loopback_by_name_and_over_ipv6(context: Context, host: str) -> None:
    with bind_learner(context, host, None) as learner:
        dealer = connect_control(context, host, learner.ports.control)
        say(dealer, QUERY)
        assert eventually(lambda: receive_nowait(learner.control))[1] == QUERY


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "*", ""])
@pytest.mark.parametrize("ports", [None, Ports.from_base(19_990)])
def test_an_address_that_is_not_here(context: Context, host: str, ports: Ports | None) -> None:
    with pytest.raises(UserError, match=r"cannot listen on 192\.0\.2\.1|no name of a host"):
        bind_learner(context, host, ports, insecure=True)


def test_a_worker_may_name_a_host_that_does_not_resolve_yet(context: Context) -> None:
    dealer = connect_control(context, "no-such-host.invalid", 5555)
    assert not send_nowait(dealer, QUERY)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("gpu-box:5555", ("gpu-box", 5555)), ("10.0.0.7:1", ("10.0.0.7", 1)), ("[::1]:65535", ("::1", 65535))],
)
def test_addresses(text: str, expected: tuple[str, int]) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize(
    "text", ["", "gpu-box", "gpu-box:", ":5555", "::1:5555", "h:0", "h:65536", "h:-1", "h:5e3"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT"):
        parse_address(text)


def test_ports() -> None:
    assert Ports.parse("5555") == Ports(5555, 5556, 5557, 5558)
    assert Ports.parse("5555,6001,6002,7000") == Ports(5555, 6001, 6002, 7000)


@pytest.mark.parametrize(
    "text", ["", "x", "auto", "1,2,3", "1,2,3,4,5", "-1", "0", "65533", "9" * 5000, "1,1,2,3", "1,2,3,65536"]
)
def test_ports_that_are_none(text: str) -> None:
    with pytest.raises(UserError, match="port"):
        Ports.parse(text)


def test_a_peer_that_reads_nothing_for_too_long_loses_its_connection_and_what_queues_there(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.sockets.learner._UNREAD_MS", 500)
    with (
        bind_learner(context, HOST, None, limits=LIMITS) as learner,
        attack(learner.ports.control, b"DEALER", frame_of(b"hello")),
    ):
        identity, _ = eventually(lambda: receive_nowait(learner.control))
        megabyte = bytes(2**20)
        while send_nowait(learner.control, identity, megabyte):
            pass

        def gone() -> bool:
            receive_nowait(learner.control)  # a ROUTER forgets a peer once it has read to its end
            try:
                learner.control.send_multipart([identity, megabyte], zmq.DONTWAIT)
            except zmq.ZMQError as error:
                return error.errno == zmq.EHOSTUNREACH
            return False

        assert eventually(gone)
