"""Real learners and workers with keys: who is kept out, who is thrown out, and that training goes on."""

from __future__ import annotations

import itertools
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zmq

from deploy.query import Line, NoAnswer, ask
from protocol import VERSION
from protocol.codec import decode, encode
from protocol.errors import UserError
from protocol.keys import KeyPair, Keyring, PeerKey
from protocol.messages import (
    Answer,
    Built,
    Command,
    Episode,
    Heartbeat,
    Hello,
    Holdings,
    LogRequest,
    Query,
    SnapshotRequest,
    Version,
    Welcome,
)
from protocol.sockets import Context, Socket
from protocol.sockets.frames import receive_nowait, send_nowait
from protocol.sockets.worker import Dialling, connect_control, connect_episodes, connect_step, connect_weights
from protocol.step_messages import Present, Stepped
from protocol.tickets import Ticket
from rollout_worker.environments import registry
from tests.end_to_end.fleet_processes import DEADLINE_SECONDS, Fleet

SHORT = ("--episodes-per-update", 40, "--episode-length", 30)
BRIEF = (*SHORT, "--selection-episodes", 0, "--evaluation-episodes", 0)
RUN = ("--total-episodes", 1_000_000, *BRIEF)
HOST = "127.0.0.1"


@pytest.fixture
def keyring(fleet: Fleet) -> Keyring:
    return Keyring(fleet.folder / "keys")


def key_file(keyring: Keyring, name: str) -> Path:
    return keyring.folder / "clients" / f"{name}.key"


def log_of(fleet: Fleet) -> str:
    return (fleet.folder / "runs" / "run" / "logs" / "learner.log").read_text()


def stop(fleet: Fleet, learner: subprocess.Popen[str]) -> None:
    """End a run, and check that its ledger is in order and that all it learned are numbers."""
    learner.terminate()
    fleet.finish(learner, 143)
    ledger = fleet.json("ledger", "run")
    assert ledger["violations"] == [] and ledger["train"]["consumed"]
    log = log_of(fleet)
    assert "Traceback" not in log and "nan" not in log.lower()
    metrics = (fleet.folder / "runs" / "run" / "metrics.csv").read_text()
    assert "nan" not in metrics.split("\n", 1)[1] and "inf" not in metrics.split("\n", 1)[1]


class Tap:
    """A relay that forwards a free port to each of `targets` and keeps all that passes."""

    def __init__(self, targets: Sequence[int]) -> None:
        self.seen = bytearray()
        self._servers = [socket.create_server((HOST, 0)) for _ in targets]
        self.ports = [server.getsockname()[1] for server in self._servers]
        self._open: list[socket.socket] = []
        for server, target in zip(self._servers, targets, strict=True):
            threading.Thread(target=self._serve, args=(server, target), daemon=True).start()

    def close(self) -> None:
        for one in (*self._servers, *self._open):
            one.close()

    def _serve(self, server: socket.socket, target: int) -> None:
        while True:
            try:
                near, far = server.accept()[0], socket.create_connection((HOST, target))
            except OSError:
                return
            self._open += [near, far]
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                self.seen += data
                sink.sendall(data)
        except OSError:
            pass
        finally:
            for one in (source, sink):
                one.close()


def run_through_a_tap(fleet: Fleet, keys: Sequence[str | Path], worker_key: Sequence[str | Path]) -> Tap:
    """Train to the end with one worker behind a tap."""
    learner, port = fleet.learner("--total-episodes", 80, *BRIEF, *keys)
    tap = Tap([port, port + 1, port + 2, port + 3])
    try:
        ports = ",".join(map(str, tap.ports))
        fleet.worker(tap.ports[0], 20, "--ports", ports, *worker_key)
        fleet.finish(learner)
    finally:
        tap.close()
    return tap


def secrets_of(fleet: Fleet) -> tuple[bytes, list[bytes]]:
    """Return the run's name, and pieces of 64 bytes of the files of its last checkpoint."""
    folder = fleet.folder / "runs" / "run"
    newest = max((folder / "checkpoints").glob("update-*"))
    pieces = []
    for file in newest.glob("*.safetensors"):
        data = file.read_bytes()
        pieces += [data[at : at + 64] for at in range(4_000, len(data) - 64, 1_024)]
    pieces = random.Random(1).sample([piece for piece in pieces if len(set(piece)) > 16], 150)
    return (folder / "incarnation").read_bytes().split()[0], pieces


@pytest.mark.parametrize("encrypted", [True, False])
def test_what_goes_over_the_wire_can_be_read_only_where_there_are_no_keys(
    fleet: Fleet, keyring: Keyring, encrypted: bool
) -> None:
    keyring.new("lab", "worker")
    learner, worker = ("--keys", keyring.folder), ("--key", key_file(keyring, "lab"))
    tap = run_through_a_tap(fleet, learner if encrypted else (), worker if encrypted else ())
    run, pieces = secrets_of(fleet)
    readable = {
        "the run's name": run in tap.seen,
        "weights": any(piece in tap.seen for piece in pieces),
        "the environment": b"cage2" in tap.seen,
        "a scenario": b"meander" in tap.seen,
    }
    assert len(tap.seen) > 100_000, len(tap.seen)
    assert set(readable.values()) == {not encrypted}, readable


# --- Who is let in ---


def strangers(port: int, server: str) -> Iterator[Dialling]:
    """Yield all that someone without a valid key may try, the learner's public key known."""
    yield Dialling()
    yield Dialling(PeerKey("stranger", "operator", KeyPair.new(), server))
    yield Dialling(PeerKey("stranger", "operator", KeyPair.new(), KeyPair.new().public))


def knock(port: int, dialling: Dialling) -> list[bytes]:
    """Say on all four ports whatever an honest worker would; return all that comes back."""
    with zmq.Context() as context:
        context.linger = 0
        control = connect_control(context, HOST, port, dialling)
        weights = connect_weights(context, HOST, port + 1, dialling)
        episodes = connect_episodes(context, HOST, port + 2, dialling)
        step = connect_step(context, HOST, port + 3, "stranger", dialling)
        heard = []
        deadline = time.monotonic() + 0.7
        while time.monotonic() < deadline:
            for frame in (Hello("stranger", "h", 1, 5, VERSION), Query("status"), Query("ledger")):
                send_nowait(control, encode(frame))
            send_nowait(step, encode(Present("stranger", 1)))
            send_nowait(episodes, encode(an_episode("run", "stranger", 0)))
            for one in (control, weights, step):
                if received := receive_nowait(one):
                    heard.append(received[1])
            time.sleep(0.02)
        for one in (control, weights, episodes, step):
            one.close(linger=0)
        return heard


SPACES = registry.describe("cage2", {})
MARK = np.float32(12345.678)


def an_episode(run: str, session: str, number: int, reward: Any = 0.0, more_columns: int = 0) -> Episode:
    steps, columns = 30, SPACES.observation_size + more_columns
    rewards = np.zeros(steps, np.float32)
    rewards[3] = reward
    return Episode(
        run,
        session,
        Ticket("train", number),
        Version(1, 0),
        False,
        0.1,
        np.zeros((steps + 1, columns), SPACES.observation_dtype),
        np.zeros(steps, np.int64),
        rewards,
        np.full(steps, -1.0, np.float32),
    )


def test_keys_come_and_go_while_the_learner_is_at_work(fleet: Fleet, keyring: Keyring) -> None:
    keyring.new("early", "worker")
    learner, port = fleet.learner(*RUN, "--keys", keyring.folder)
    address = f"{HOST}:{port}"
    own = fleet.folder / "runs" / "run" / "operator.key"

    def status() -> dict[str, Any]:
        return dict(ask(address, "status", own))

    def workers(state: str) -> int:
        return sum(worker["state"] == state for worker in status()["workers"])

    # Nobody else learns anything, on any port, nor is anything of theirs looked at.
    for dialling in strangers(port, keyring.learner().public):
        assert knock(port, dialling) == []
    assert status()["rejected"] == {} and status()["workers"] == []
    # A worker without a key, and one with a key of another learner, say why in one line.
    Keyring(fleet.folder / "elsewhere").new("lost", "worker")
    without = fleet.worker(port, 1)
    wrong = fleet.worker(port, 1, "--key", key_file(Keyring(fleet.folder / "elsewhere"), "lost"))
    # A key that is allowed later is let in within seconds.
    late, file = keyring.new("late", "worker", fleet.folder / "late.key")
    keyring.revoke("late")
    time.sleep(1.5)
    refused = fleet.worker(port, 1, "--key", file)
    assert "does not let this key in" in fleet.finish(refused, 4)
    keyring.allow("late", "worker", late.pair.public)
    fleet.wait_until(lambda: admitted(address, file), "a key that is allowed is let in")
    # One of two is revoked: it is told, and ends; the other goes on, its connections closed or not.
    first = fleet.worker(port, 4, "--key", file)
    second = fleet.worker(port, 4, "--key", key_file(keyring, "early"))
    fleet.wait_until(lambda: workers("ready") == 2, "both are ready")
    fleet.run("keys", "revoke", "late", "--keys", keyring.folder)
    assert "the key late was revoked" in fleet.finish(first, 4)
    assert not admitted(address, file)
    consumed = status()["consumed"]
    fleet.run("keys", "revoke", "early", "--keys", keyring.folder)
    fleet.finish(second, 4)
    keyring.allow("early", "worker", PeerKey.read(key_file(keyring, "early")).pair.public)
    keyring.new("spare", "worker")
    fleet.wait_until(lambda: admitted(address, key_file(keyring, "early")), "it is let in again")
    third = fleet.worker(port, 20, "--key", key_file(keyring, "early"))
    fleet.wait_until(lambda: status()["consumed"] > consumed, "training goes on")
    fleet.run("keys", "revoke", "spare", "--now", "--keys", keyring.folder)
    fleet.wait_until(lambda: "closed all connections" in log_of(fleet), "all connections are closed")
    consumed = status()["consumed"]
    fleet.wait_until(lambda: status()["consumed"] > consumed + 80, "training goes on")
    assert third.poll() is None
    third.terminate()
    fleet.finish(third)
    stop(fleet, learner)
    assert not own.exists()
    for process, words in ((without, "--key FILE"), (wrong, "another key than this key file says")):
        fleet.wait_until(lambda process=process, words=words: words in fleet.output(process), words)  # type: ignore[misc]  # bound now


def admitted(address: str, file: Path) -> bool:
    try:
        ask(address, "status", file)
    except UserError:
        return False
    return True


def test_a_worker_with_a_key_tells_that_its_learner_has_none(fleet: Fleet, keyring: Keyring) -> None:
    keyring.new("lab", "worker")
    learner, port = fleet.learner(*RUN)
    worker = fleet.worker(port, 1, "--key", key_file(keyring, "lab"))
    assert "the learner has no keys" in fleet.finish(worker, 4)
    with pytest.raises(UserError, match=r"the learner has no keys|hangs up at each handshake"):
        ask(f"{HOST}:{port}", "status", key_file(keyring, "lab"))
    learner.terminate()
    fleet.finish(learner, 143)


def test_an_address_that_others_reach_needs_keys(fleet: Fleet, keyring: Keyring) -> None:
    start = ("learner", "--bind", "0.0.0.0", "--port", "auto", *RUN)
    home = str(fleet.folder / "config")
    output = fleet.run(*start, status=2, XDG_CONFIG_HOME=home)
    assert "fleet keys new NAME, or add --insecure" in output
    output = fleet.run(*start, "--insecure", "--keys", keyring.folder, status=2, XDG_CONFIG_HOME=home)
    assert "contradict each other" in output
    fleet.run("keys", "new", "lab", XDG_CONFIG_HOME=home)
    learner = fleet.start(*start, "--name", "run", XDG_CONFIG_HOME=home)
    address = fleet.folder / "runs" / "run" / "address"
    fleet.wait_until(address.exists, "it listens, with the keys that it finds where they usually are")
    port = int(address.read_text().rpartition(":")[2])
    assert knock(port, Dialling()) == []
    learner.terminate()
    learner.wait()


# --- Who may do what, and who is thrown out ---


class Hostile:
    """A peer with a valid key and no manners."""

    def __init__(self, context: Context, port: int, file: Path) -> None:
        self.dialling = Dialling(PeerKey.read(file))
        self.context, self.port, self.run, self.sessions = context, port, "", 0
        self.control = context.socket(zmq.DEALER)  # an honest one queues no more than a few messages
        self.control.sndhwm = 100_000
        assert self.dialling.key is not None
        pair = self.dialling.key.pair
        self.control.curve_publickey, self.control.curve_secretkey = (
            pair.public.encode(),
            pair.secret.encode(),
        )
        self.control.curve_serverkey = self.dialling.key.server.encode()
        self.control.connect(f"tcp://{HOST}:{port}")
        self.episodes = connect_episodes(context, HOST, port + 2, self.dialling)
        self.step = connect_step(context, HOST, port + 3, "hostile", self.dialling)

    def close(self) -> None:
        for one in (self.control, self.episodes, self.step):
            one.close(linger=0)

    def say(self, to: Socket, frame: bytes) -> bool:
        return bool(to.poll(200, zmq.POLLOUT)) and send_nowait(to, frame)

    def pour(self, frames: Iterable[bytes]) -> None:
        """Say as much as goes through, and read nothing unless nothing goes through.

        A ZeroMQ socket whose incoming queue is full does not see that its connection was closed.
        """
        sent = 0
        for frame in frames:
            if not send_nowait(self.control, frame):
                break
            sent += 1
        if not sent:
            while receive_nowait(self.control):
                pass

    def hear(self) -> list[object]:
        heard: list[object] = []
        while received := receive_nowait(self.control):
            heard.append(decode(received[1]))
        return heard

    def hello(self, session: str, slots: int = 1, **more: Any) -> None:
        self.say(self.control, encode(Hello(session, "hostile", 1, slots, VERSION, **more)))


def wrong_shapes(one: Hostile, dice: random.Random) -> None:
    for more in (-1, 1, 100):
        episode = an_episode(one.run, "hostile", dice.randrange(50), more_columns=more)
        one.say(one.episodes, encode(episode))


def not_numbers(one: Hostile, dice: random.Random) -> None:
    honest = encode(an_episode(one.run, "hostile", dice.randrange(50), MARK))
    for spoilt in (np.nan, np.inf, -np.inf, 1e30):  # an honest sender's codec refuses these
        one.say(one.episodes, honest.replace(MARK.tobytes(), np.float32(spoilt).tobytes()))


def others_tickets(one: Hostile, dice: random.Random) -> None:
    one.hello("thief", holdings=Holdings(running={"train": ((0, 400),)}, outbox={"train": ((400, 800),)}))
    for number in range(20):
        one.say(one.episodes, encode(an_episode(one.run, "thief", dice.randrange(600) + number)))


def huge_counters(one: Hostile, dice: random.Random) -> None:
    name = f"counter {dice.random()}"
    one.hello(name, 100_000)
    for number in (2**62, 2**63 - 1):
        beat = Heartbeat(name, number, 1, number, "ready", Holdings(), episodes=number, steps=number)
        one.say(one.control, encode(beat))
    one.say(one.control, encode(SnapshotRequest(name, 2**62)))


def rubbish(one: Hostile, dice: random.Random) -> None:
    for to in (one.control, one.episodes, one.step):
        one.say(to, dice.randbytes(500))
    empty = np.zeros(0, np.float32)
    flags = np.zeros(0, np.bool_)
    answer = Stepped(
        "hostile", 1, 1, np.zeros((0, 52), np.uint8), empty, flags, flags, np.zeros(0, np.uint32)
    )
    one.say(one.step, encode(answer))


ATTACKS: tuple[Callable[[Hostile, random.Random], None], ...] = (
    wrong_shapes,
    not_numbers,
    others_tickets,
    huge_counters,
    rubbish,
)


@contextmanager
def hostile(port: int, file: Path) -> Iterator[Hostile]:
    with zmq.Context() as context:
        one = Hostile(context, port, file)
        try:
            yield one
        finally:
            one.close()


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_hostile_workers_with_a_key_are_expelled_and_training_goes_on(
    fleet: Fleet, keyring: Keyring, mode: str
) -> None:
    # Whether a flood from here is too much depends on how fast this machine is; `test_conduct` needs none.
    bad = {"rude", "crowd"} if mode == "async" else {"rude"}
    for name in ("honest", "rude", "flood", "crowd"):
        keyring.new(name, "worker")
    learner, port = fleet.learner(*RUN, "--keys", keyring.folder, "--mode", mode)
    own = fleet.folder / "runs" / "run" / "operator.key"
    dice = random.Random(1)
    report = dict(ask(f"{HOST}:{port}", "status", own))
    with (
        pytest.raises(UserError, match="only an operator's may do this"),
        line(port, keyring, "rude") as worker,
    ):
        worker.ask(Command("pause", ()))
    with (
        pytest.raises(UserError, match="only an operator's may do this"),
        line(port, keyring, "rude") as worker,
    ):
        worker.ask(LogRequest(10, ()))
    with Line(f"{HOST}:{port}", own) as operator:
        assert operator.ask(Command("play", ()))["count"] == 0
    honest = fleet.worker(port, 10, "--key", key_file(keyring, "honest"))
    memory = resident_megabytes(learner)
    with (
        hostile(port, key_file(keyring, "rude")) as rude,
        hostile(port, key_file(keyring, "flood")) as flood,
        hostile(port, key_file(keyring, "crowd")) as crowd,
    ):
        rude.run = report["run"]
        frame = encode(Heartbeat("flood", 1, 1, 0, "building", Holdings()))
        expelled: set[str] = set()
        deadline = time.monotonic() + DEADLINE_SECONDS
        for turn in itertools.count():
            if "rude" not in expelled:
                ATTACKS[turn % len(ATTACKS)](rude, dice)
            if mode == "async":
                flood.pour(frame for _ in range(5_000))
            hellos = (Hello(f"{turn}.{number}", "crowd", 1, 5, VERSION) for number in range(500))
            if mode == "async":
                crowd.pour(encode(hello) for hello in hellos)
            keys = patiently_asked(port, own)["keys"]
            expelled = {key["name"] for key in keys if key["expelled"]}
            if expelled >= bad or time.monotonic() > deadline:
                break
        assert expelled >= bad, keys
        consumed = patiently_asked(port, own)["consumed"]

        def trained() -> bool:
            for frames in (flood.control, crowd.control):
                send_nowait(frames, frame)
            return bool(patiently_asked(port, own)["consumed"] > consumed + 80)

        fleet.wait_until(trained, "training goes on")
    assert resident_megabytes(learner) < memory + 300
    honest.terminate()
    fleet.finish(honest)
    stop(fleet, learner)
    for name in expelled:
        assert f"key {name} is expelled: " in log_of(fleet)


def patiently_asked(port: int, key: Path) -> Mapping[str, Any]:
    """Return a learner's status without most of its workers: in a flood, on a busy machine, it takes long."""
    attempts = 6
    for _ in range(attempts):
        with suppress(NoAnswer), Line(f"{HOST}:{port}", key) as operator:
            return operator.ask(Query("status"), DEADLINE_SECONDS / attempts)
    raise AssertionError(f"the learner did not answer for {DEADLINE_SECONDS:.0f} s")


@contextmanager
def line(port: int, keyring: Keyring, name: str) -> Iterator[Line]:
    with Line(f"{HOST}:{port}", key_file(keyring, name)) as opened:
        yield opened


def resident_megabytes(process: subprocess.Popen[str]) -> float:
    return float(psutil.Process(process.pid).memory_info().rss) / 1e6


def test_a_session_and_its_tickets_are_its_keys(fleet: Fleet, keyring: Keyring) -> None:
    """Another key can neither speak for a session nor push the episodes of its tickets."""
    for name in ("mine", "thine"):
        keyring.new(name, "worker")
    learner, port = fleet.learner(*RUN, "--keys", keyring.folder)
    own = fleet.folder / "runs" / "run" / "operator.key"
    with hostile(port, key_file(keyring, "mine")) as mine, hostile(port, key_file(keyring, "thine")) as thine:
        mine.hello("session", 3)
        heard: list[object] = []

        def heard_a(kind: type) -> bool:
            heard.extend(mine.hear())
            return any(isinstance(message, kind) for message in heard)

        fleet.wait_until(lambda: heard_a(Welcome), "it is welcomed")
        welcome = next(message for message in heard if isinstance(message, Welcome))
        built = Built(welcome.environment.spaces, probe="0", processor="none")
        beat = Heartbeat("session", 1, 1, 0, "ready", Holdings(), built=built)
        mine.say(mine.control, encode(beat))

        def granted() -> bool:
            heard.extend(mine.hear())
            return any(isinstance(message, Answer) and message.grants for message in heard)

        fleet.wait_until(granted, "it is granted tickets")
        thine.say(thine.control, encode(Heartbeat("session", 2, 1, 1, "draining", Holdings())))
        for session in ("session", "another"):
            thine.say(thine.episodes, encode(an_episode(welcome.run, session, 0)))

        def rejected() -> bool:
            found = ask(f"{HOST}:{port}", "status", own)["rejected"]
            return bool(found == {"control": 1, "episodes": 2})

        fleet.wait_until(rejected, "three messages are refused")
        mine.say(mine.episodes, encode(an_episode(welcome.run, "session", 0)))
        fleet.wait_until(lambda: ask(f"{HOST}:{port}", "status", own)["received"] == 1, "its own is taken")
        [worker] = ask(f"{HOST}:{port}", "status", own)["workers"]
        assert worker["state"] == "ready"
    learner.terminate()
    learner.wait()
