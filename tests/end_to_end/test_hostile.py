"""Whatever arrives on its ports, a learner trains on, counts the bad frames and loses nothing."""

from __future__ import annotations

import random
import socket
from collections.abc import Callable

import numpy as np
import pytest
import zmq

from protocol import VERSION
from protocol.codec import decode, encode
from protocol.messages import Goodbye, Heartbeat, Hello, Holdings, Query, Report, SnapshotRequest
from protocol.sockets.frames import send_nowait
from protocol.step_messages import Present, Stepped
from tests.end_to_end.fleet_processes import Fleet

EPISODES = 1200
RUN = ("--total-episodes", EPISODES, "--episodes-per-update", 40, "--episode-length", 30)
ROUNDS = 6

Attack = Callable[[int, random.Random], None]


def raw_bytes(port: int, dice: random.Random) -> None:
    """Speak no ZeroMQ at all."""
    with socket.create_connection(("127.0.0.1", port), 5) as stream:
        stream.sendall(dice.randbytes(dice.randrange(1, 5000)))


def greeting_then_bytes(port: int, dice: random.Random) -> None:
    """Begin as ZMTP does, then break off."""
    with socket.create_connection(("127.0.0.1", port), 5) as stream:
        stream.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48) + dice.randbytes(200))


def foreign_frames(port: int, dice: random.Random) -> None:
    """Send well-framed rubbish, some of it in several parts, from a socket of each kind."""
    for kind in (zmq.DEALER, zmq.PUSH, zmq.SUB):
        with zmq.Context() as context, context.socket(kind) as peer:
            peer.linger = 200
            peer.connect(f"tcp://127.0.0.1:{port}")
            if kind == zmq.SUB:
                peer.subscribe(dice.randbytes(20))
                continue
            if peer.poll(500, zmq.POLLOUT):
                send_nowait(peer, *(dice.randbytes(50) for _ in range(dice.randrange(1, 4))))


def strangers_messages(port: int, dice: random.Random) -> None:
    """Send valid messages that make no sense from here, whole and with a byte changed."""
    claim = Holdings(running={"train": ((0, 10_000),)}, outbox={"evaluate": ((5, 50),)})
    bits, numbers, flags = np.zeros((2, 52), np.uint8), np.zeros(2, np.float32), np.zeros(2, np.bool_)
    messages = (
        Hello("stranger", "nowhere", 1, 5, "0.0.0", run="another"),
        Heartbeat("stranger", 1, 1, 99, "ready", claim),
        Heartbeat("another stranger", 1, 1, 2, "ready", claim),
        SnapshotRequest("stranger", 12345),
        Goodbye("stranger", "so long", claim),
        Query("status"),
        Present("stranger", 1),
        Stepped("stranger", 1, 3, bits, numbers, flags, flags, np.zeros(2, np.uint32)),
    )
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 200
        peer.connect(f"tcp://127.0.0.1:{port}")
        for message in messages:
            frame = bytearray(encode(message))
            if dice.random() < 0.5:
                frame[dice.randrange(len(frame))] ^= 1 << dice.randrange(8)
            if peer.poll(500, zmq.POLLOUT):
                send_nowait(peer, bytes(frame))


def prophets_hoarders_and_thieves(port: int, dice: random.Random) -> None:
    """Name a later incarnation; claim more than an answer can drop; speak for each worker that is known."""
    now = f"{dice.random()}"
    alternate, later = (
        tuple((2 * number, 2 * number + 1) for number in range(first, first + 35_000))
        for first in (0, 35_000)
    )
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 200
        peer.connect(f"tcp://127.0.0.1:{port}")
        send_nowait(peer, encode(Query("status")))
        answer = decode(peer.recv()) if peer.poll(500) else None
        if not isinstance(answer, Report):
            return  # not the control port
        workers = answer.content["workers"]
        hoard = Holdings(queued={"train": alternate}, running={"train": later})
        for name, incarnation, holdings in (
            (f"prophet {now}", 2**40, Holdings()),
            (f"hoarder {now}", 1, hoard),
            *((worker["session"], 1, Holdings()) for worker in workers if "session" in worker),
        ):
            hello = Hello(name, "a host\nand a line", 1, 1, VERSION)
            beat = Heartbeat(name, 2**62, incarnation, 0, "building", holdings)
            for frame in (encode(hello), encode(beat)):
                if peer.poll(500, zmq.POLLOUT):
                    send_nowait(peer, frame)


ATTACKS: tuple[Attack, ...] = (
    raw_bytes,
    greeting_then_bytes,
    foreign_frames,
    strangers_messages,
    prophets_hoarders_and_thieves,
)


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_a_learner_under_attack_finishes_its_run_with_its_ledger_in_order(fleet: Fleet, mode: str) -> None:
    learner, port = fleet.learner(*RUN, "--mode", mode, "--evaluation-episodes", 2)
    dice = random.Random(1)
    rejected = 0
    for number in range(ROUNDS):
        if number == ROUNDS // 2:  # before, all that attacks is alone with the learner
            worker = fleet.worker(port)
        for attack in ATTACKS:
            for target in (port, port + 1, port + 2, port + 3):
                if learner.poll() is None:
                    attack(target, dice)
        if learner.poll() is None and (status := fleet.status(port)) is not None:
            rejected = sum(status["rejected"].values())
    output = fleet.finish(learner)
    assert "Traceback" not in output
    log = (fleet.folder / "runs" / "run" / "logs" / "learner.log").read_text()
    assert "Traceback" not in log and "\nand a line" not in log
    assert rejected > 0
    fleet.finish(worker)
    ledger = fleet.json("ledger", "run")
    assert sum(stop - start for start, stop in ledger["train"]["consumed"]) == EPISODES
    assert ledger["violations"] == []
