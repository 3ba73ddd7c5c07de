from __future__ import annotations

import os
import socket as network
import stat
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from protocol.errors import UserError
from protocol.handshakes import Fault, Handshakes
from protocol.keys import Allowed, AllowList, KeyPair, Keyring, PeerKey, is_public_key
from protocol.sockets import Context
from protocol.sockets.frames import receive_keyed, receive_nowait, send_nowait
from protocol.sockets.learner import LearnerSockets, bind_learner
from protocol.sockets.worker import Dialling, connect_control, connect_episodes, connect_step, connect_weights
from protocol.zap import Doorkeeper, reply

T = TypeVar("T")
HOST = "127.0.0.1"


def eventually(probe: Callable[[], T | None], seconds: float = 20) -> T:
    """Return the first true result of `probe`, asked again and again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := probe():
            return result
        time.sleep(0.002)
    raise AssertionError(f"it did not happen in {seconds} seconds")


# --- Files ---


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_one_file_is_all_that_a_host_needs(keyring: Keyring) -> None:
    key, file = keyring.new("lab", "worker")
    assert PeerKey.read(file) == key
    assert key.server == keyring.learner().public
    assert keyring.allowed().keys == {key.pair.public: Allowed("lab", "worker", key.pair.public)}
    assert key.pair.secret not in repr(key)


def test_only_the_owner_may_read_what_is_written(keyring: Keyring) -> None:
    before = os.umask(0)
    try:
        _, file = keyring.new("lab", "operator")
    finally:
        os.umask(before)
    assert mode(keyring.folder) == mode(file.parent) == 0o700
    files = [path for path in keyring.folder.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"lab.key", "learner.key", "allowed.toml"}
    assert {mode(path) for path in files} == {0o600}


@pytest.mark.parametrize("wide", [0o640, 0o604, 0o620])
def test_a_key_that_others_may_read_is_refused_with_what_to_run(keyring: Keyring, wide: int) -> None:
    _, file = keyring.new("lab", "worker")
    file.chmod(wide)
    with pytest.raises(UserError, match=rf"mode {wide:04o}\): chmod 600 {file}"):
        PeerKey.read(file)
    (keyring.folder / "learner.key").chmod(wide)
    with pytest.raises(UserError, match=r"chmod 600 .*learner\.key"):
        keyring.learner()
    (keyring.folder / "allowed.toml").chmod(wide)
    with pytest.raises(UserError, match=r"chmod 600 .*allowed\.toml"):
        keyring.allowed()


def test_a_folder_that_others_may_read_is_refused_with_what_to_run(keyring: Keyring) -> None:
    keyring.learner()
    keyring.folder.chmod(0o755)
    with pytest.raises(UserError, match=rf"mode 0755\): chmod 700 {keyring.folder}"):
        keyring.new("lab", "worker")


def test_the_learner_keeps_its_key(keyring: Keyring) -> None:
    assert keyring.learner() == keyring.learner()


def test_names_are_taken_once_and_keys_come_and_go(keyring: Keyring) -> None:
    key, file = keyring.new("lab", "worker")
    with pytest.raises(UserError, match="named lab is allowed already"):
        keyring.new("lab", "worker")
    with pytest.raises(UserError, match="allowed already, as lab"):
        keyring.allow("lab2", "worker", key.pair.public)
    keyring.revoke("lab")
    assert keyring.allowed() == AllowList({}, 0)
    with pytest.raises(UserError, match=r"lab\.key exists"):
        keyring.new("lab", "worker")
    keyring.allow("lab2", "operator", PeerKey.read(file).pair.public)
    keyring.revoke("lab2", now=True)
    assert keyring.allowed() == AllowList({}, 1)
    with pytest.raises(UserError, match="no key named lab2 is allowed; allowed are: none"):
        keyring.revoke("lab2")


@pytest.mark.parametrize("name", ["", "../lab", "a b", 'a"b', "-x", "x" * 65, "ü"])
def test_names_that_would_do_harm(keyring: Keyring, name: str) -> None:
    with pytest.raises(UserError, match="no name of a key"):
        keyring.new(name, "worker")
    assert not (keyring.folder / "allowed.toml").exists()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "= 1",
        'reopen = "x"',
        "keys = 1",
        "[keys]\na = 1",
        '[keys.a]\nrole = "worker"\npublic = "x"',
        "\xff",
    ],
)
def test_a_damaged_list_is_told_in_one_line(keyring: Keyring, text: str) -> None:
    _, file = keyring.new("lab", "worker")
    (keyring.folder / "allowed.toml").write_text(text, encoding="latin-1")
    if not text:
        assert keyring.allowed() == AllowList()
        return
    with pytest.raises(UserError, match=r"allowed\.toml") as raised:
        keyring.allowed()
    assert "\n" not in str(raised.value)
    file.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"lab\.key"):
        PeerKey.read(file)


def test_commands_side_by_side_lose_no_key(keyring: Keyring) -> None:
    threads = [threading.Thread(target=keyring.new, args=(f"lab{n}", "worker")) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key.name for key in keyring.allowed().keys.values()) == [f"lab{n}" for n in range(8)]
    assert len({PeerKey.read(file).server for file in (keyring.folder / "clients").iterdir()}) == 1


@given(st.text(max_size=45) | st.binary(min_size=32, max_size=32).map(lambda raw: z85.encode(raw).decode()))
def test_keys_are_told_from_other_texts(text: str) -> None:
    if is_public_key(text):
        assert len(z85.decode(text)) == 32
    else:
        assert len(text) != 40 or not text.isascii() or z85_fails(text)


def z85_fails(text: str) -> bool:
    try:
        return len(z85.decode(text)) != 32
    except Exception:
        return True


# --- The door ---

REQUEST = [b"1.0", b"7", b"fleet", b"127.0.0.1", b"", b"CURVE", bytes(32)]


def test_who_is_admitted_bears_its_key() -> None:
    public = z85.encode(bytes(32))
    assert reply(REQUEST, lambda key: key == public.decode()) == [b"1.0", b"7", b"200", b"", public, b""]
    assert reply(REQUEST, lambda key: False) == [b"1.0", b"7", b"400", b"", b"", b""]


@given(st.lists(st.binary(max_size=40), max_size=9))
def test_no_malformed_request_is_admitted(request: list[bytes]) -> None:
    if len(request) == 7 and request[0] == b"1.0" and request[2] == b"fleet":
        return
    assert reply(request, lambda key: True)[2] == b"400"


@pytest.mark.parametrize(
    ("place", "value"), [(0, b"2.0"), (2, b"other"), (2, b""), (5, b"NULL"), (5, b"PLAIN"), (6, bytes(31))]
)
def test_each_part_of_a_request_counts(place: int, value: bytes) -> None:
    changed = [value if at == place else part for at, part in enumerate(REQUEST)]
    assert reply(changed, lambda key: True)[2] == b"400"


# --- Sockets ---

SERVER, ALICE, MALLORY = KeyPair.new(), KeyPair.new(), KeyPair.new()


def dialling(pair: KeyPair, server: KeyPair = SERVER) -> Dialling:
    return Dialling(PeerKey("name", "worker", pair, server.public), watched=True)


@pytest.fixture
def context() -> Iterator[Context]:
    context = zmq.Context[zmq.Socket[bytes]]()
    yield context
    context.destroy(linger=0)


@pytest.fixture
def learner(context: Context) -> Iterator[LearnerSockets]:
    with (
        Doorkeeper(context, lambda public: public == ALICE.public),
        bind_learner(context, HOST, None, security=SERVER) as sockets,
    ):
        yield sockets


@pytest.fixture
def abroad() -> Iterator[Context]:
    """Yield the context of another process, as it were."""
    context = zmq.Context[zmq.Socket[bytes]]()
    yield context
    context.destroy(linger=0)


def test_each_frame_names_its_senders_key(abroad: Context, learner: LearnerSockets) -> None:
    peer = dialling(ALICE)
    control = connect_control(abroad, HOST, learner.ports.control, peer)
    episodes = connect_episodes(abroad, HOST, learner.ports.episodes, peer)
    step = connect_step(abroad, HOST, learner.ports.step, "session", peer)
    for sender, receiver in (
        (control, learner.control),
        (episodes, learner.episodes),
        (step, learner.step),
    ):
        eventually(partial(send_nowait, sender, b"hello"))
        _, frame, public = eventually(partial(receive_keyed, receiver))
        assert (frame, public) == (b"hello", ALICE.public)
    weights = connect_weights(abroad, HOST, learner.ports.weights, peer)

    def published() -> tuple[bytes, bytes] | None:
        learner.weights.send(b"weights")
        return receive_nowait(weights)

    assert eventually(published) == (b"", b"weights")


def test_a_frame_of_several_parts_names_its_sender_and_is_nothing(
    abroad: Context, learner: LearnerSockets
) -> None:
    episodes = connect_episodes(abroad, HOST, learner.ports.episodes, dialling(ALICE))
    eventually(lambda: send_nowait(episodes, b"a", b"b"))
    assert eventually(lambda: receive_keyed(learner.episodes)) == (b"", b"", ALICE.public)


ATTEMPTS: dict[str, tuple[Dialling, str]] = {
    "a key that is not allowed": (dialling(MALLORY), "does not let this key in"),
    "another learner's key": (dialling(ALICE, MALLORY), "another key than this key file says"),
    "no key": (Dialling(watched=True), "--key FILE"),
}


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_nobody_else_is_let_in_and_each_is_told_why(
    abroad: Context, learner: LearnerSockets, attempt: str
) -> None:
    peer, reason = ATTEMPTS[attempt]
    senders = (
        connect_control(abroad, HOST, learner.ports.control, peer),
        connect_episodes(abroad, HOST, learner.ports.episodes, peer),
        connect_step(abroad, HOST, learner.ports.step, "session", peer),
    )
    subscriber = connect_weights(abroad, HOST, learner.ports.weights, peer)
    for socket in (*senders, subscriber):
        watched = Handshakes(socket, keyed=peer.key is not None)
        fault = eventually(watched.fault)
        assert reason in fault.reason
        watched.close()
    for sender in senders:
        send_nowait(sender, b"hello")
    for _ in range(20):
        learner.weights.send(b"weights")
        time.sleep(0.005)
    assert receive_nowait(subscriber) is None
    for receiver in (learner.control, learner.episodes, learner.step):
        assert receive_nowait(receiver) is None


def test_a_key_for_a_learner_that_has_none(abroad: Context, context: Context) -> None:
    with bind_learner(context, HOST, None) as learner:
        control = connect_control(abroad, HOST, learner.ports.control, dialling(ALICE))
        watched = Handshakes(control, keyed=True)

        def final() -> Fault | None:
            fault = watched.fault()
            return fault if fault and fault.final else None

        assert "leave --key out" in eventually(final).reason
        watched.close()


def test_without_a_doorkeeper_nobody_is_let_in(abroad: Context, context: Context) -> None:
    with bind_learner(context, HOST, None, security=SERVER) as learner:
        with Doorkeeper(context, lambda public: True):
            first = connect_control(abroad, HOST, learner.ports.control, dialling(ALICE))
            eventually(lambda: send_nowait(first, b"hello"))
            eventually(lambda: receive_keyed(learner.control))
        second = connect_control(abroad, HOST, learner.ports.control, dialling(ALICE))
        assert not second.poll(300, zmq.POLLOUT)


def test_a_door_that_fails_stays_shut(abroad: Context, context: Context) -> None:
    def fails(public: str) -> bool:
        raise RuntimeError

    with Doorkeeper(context, fails), bind_learner(context, HOST, None, security=SERVER) as learner:
        control = connect_control(abroad, HOST, learner.ports.control, dialling(ALICE))
        watched = Handshakes(control, keyed=True)
        assert eventually(watched.fault).final
        watched.close()


def test_reopened_sockets_listen_where_they_did_and_honest_peers_come_back(
    abroad: Context, context: Context
) -> None:
    admitted = {ALICE.public, MALLORY.public}
    with (
        Doorkeeper(context, admitted.__contains__),
        bind_learner(context, HOST, None, security=SERVER) as learner,
    ):
        ports, senders = learner.ports, {}
        for pair in (ALICE, MALLORY):
            senders[pair.public] = connect_control(abroad, HOST, ports.control, dialling(pair))
            eventually(partial(send_nowait, senders[pair.public], b"hello"))
            eventually(lambda: receive_keyed(learner.control))
        admitted.discard(MALLORY.public)
        learner.reopen("control", "weights", "episodes", "step")
        assert learner.ports == ports
        time.sleep(0.05)  # what is sent on the old connection is lost with it

        def heard_from() -> str:
            for sender in senders.values():
                send_nowait(sender, b"again")
            received = receive_keyed(learner.control)
            return received[2] if received else ""

        assert eventually(heard_from) == ALICE.public
        assert MALLORY.public not in {heard_from() for _ in range(50)}


def test_a_port_that_another_process_took_is_told_when_reopening(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("protocol.sockets.learner._REOPEN_SECONDS", 0.1)
    with bind_learner(context, HOST, None, security=SERVER) as learner:
        learner.step.close()
        with (
            eventually(partial(taken, learner.ports.step)),
            pytest.raises(UserError, match=f"port {learner.ports.step} is in use"),
        ):
            learner.reopen("step")


def taken(port: int) -> network.socket | None:
    try:
        return network.create_server((HOST, port))
    except OSError:  # not yet free
        return None
