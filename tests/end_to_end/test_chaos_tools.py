"""What chaos is made of: a schedule from a seed, times of recovery, and a network that stalls and breaks."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos_fleet import Fleet
from benchmarks.chaos_schedule import Fault, Update, schedule, until_next_update, until_throughput_is_back
from benchmarks.relay import Relay


def test_a_schedule_follows_from_its_seed() -> None:
    faults = schedule(1, 600.0, mean_gap=4.0, learner_every=60.0)
    assert faults == schedule(1, 600.0, mean_gap=4.0, learner_every=60.0) != schedule(2, 600.0, 4.0, 60.0)
    assert faults == sorted(faults, key=lambda fault: fault.at) and 0 < faults[0].at <= faults[-1].at < 600
    kinds = Counter(fault.kind for fault in faults)
    assert kinds["learner killed"] == 9 and len(kinds) == 8
    assert 100 < len(faults) < 200


def test_recovery_is_the_time_to_the_next_update_and_to_the_old_throughput() -> None:
    steady = [Update(float(second), 1, 100) for second in range(1, 21)]
    slow = [Update(20.0 + 5 * n, 1, 100) for n in range(1, 3)]
    again = [Update(31.0 + second, 2, 100) for second in range(1, 21)]
    updates = [*steady, *slow, *again]
    hit = Fault(20.5, "worker killed", 0.0, 0.0)
    assert until_next_update(hit, updates, 1) == 4.5
    assert until_throughput_is_back(hit, updates, end=51.0) == pytest.approx(30.0 - 20.5)
    assert until_throughput_is_back(hit, updates, end=39.0) is None
    died = Fault(20.5, "learner killed", 0.0, 0.0)
    assert until_next_update(died, updates, 1) == 11.5
    assert until_next_update(died, updates, 2) is None


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def answer(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(1000):
            connection.sendall(data)


def connect(relay: Relay) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", relay.ports[0]))
    client.settimeout(10.0)
    return client


def test_a_stalled_network_delivers_late_and_a_cut_one_never(echo: int) -> None:
    with Relay([echo]) as relay, connect(relay) as client:
        client.sendall(b"one")
        assert client.recv(100) == b"one"
        relay.stall()
        client.sendall(b"two")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(100)
        relay.heal()
        client.settimeout(10.0)
        assert client.recv(100) == b"two"
        relay.cut()
        assert ended(client)
        with connect(relay) as refused:
            assert ended(refused)
        relay.heal()
        with connect(relay) as again:
            again.sendall(b"three")
            assert again.recv(100) == b"three"


def ended(client: socket.socket) -> bool:
    try:
        return client.recv(100) == b""
    except ConnectionError:
        return True


def test_updates_are_noted_once_each_and_only_whole(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, "run", 1, [])
    fleet.look(0.5)
    fleet.run.mkdir(parents=True)
    journal = fleet.run / "updates.jsonl"
    lines = [json.dumps({"incarnation": n, "consumed": [[0, n], [10, 11]]}) + "\n" for n in range(1, 4)]
    for at, text in enumerate((lines[0] + lines[1][:9], lines[0] + lines[1], "".join(lines)), 1):
        journal.write_text(text)
        fleet.look(float(at))
        fleet.look(float(at))
    assert fleet.updates == [Update(1.0, 1, 2), Update(2.0, 2, 3), Update(3.0, 3, 4)]
