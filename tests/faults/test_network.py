"""Workers whose network drops, loses, starves, stalls and heals: hosts in namespaces, and a relay."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from benchmarks.relay import Relay
from protocol.sockets.frames import receive_nowait
from protocol.sockets.learner import bind_learner
from tests.end_to_end.fleet_processes import Argument, Fleet
from tests.namespaces import Host, Namespaces, lacking, needs_namespaces

pytestmark = pytest.mark.timeout(400)
needs_faults = pytest.mark.skipif(bool(lacking("nft", "tc")), reason=lacking("nft", "tc"))

BATCH, UPDATES, LIVENESS = 12, 30, 2.0
RUN: tuple[Argument, ...] = (
    *("--env", "CartPole-v1", "--n-envs", 6, "--episodes-per-update", BATCH, "--hidden", 16, "--epochs", 2),
    *("--episode-length", 20, "--evaluation-episodes", 0, "--heartbeat-seconds", 0.5, "--seed", 3),
    *("--liveness-seconds", LIVENESS, "--step-delay", "constant:2ms"),
)
SHORT, ENDLESS = (("--total-episodes", updates * BATCH) for updates in (UPDATES, 100_000))
MODES: dict[str, tuple[Argument, ...]] = {"exact": ("--lag", "exact:1"), "sync": ("--mode", "sync")}
ABROAD = ("--bind", "0.0.0.0", "--insecure")


@pytest.fixture
def hosts() -> Iterator[Namespaces]:
    with Namespaces(2) as hosts:
        yield hosts


def quiet_hash(fleet: Fleet, mode: str) -> str:
    fleet.run("train", "--name", "quiet", *RUN, *SHORT, *MODES[mode], "--workers", 1)
    return fleet.run("hash", "quiet")


def drop(host: Host, share: str = "") -> None:
    """Drop this host's packets both ways, without a word; `share` is a condition on each of them."""
    rules = ["add table inet fault"]
    for hook in ("input", "output"):
        rules.append(f"add chain inet fault {hook} {{ type filter hook {hook} priority 0; }}")
        rules.append(f"add rule inet fault {hook} meta l4proto tcp {share} drop")
    done = host.run(["nft", "; ".join(rules)])
    assert done.returncode == 0, done.stderr


def heal(host: Host) -> None:
    assert host.run(["nft", "delete table inet fault"]).returncode == 0


def starve(host: Host) -> None:
    limit = ["rate", "400kbit", "burst", "8kb", "latency", "400ms"]
    done = host.run(["tc", "qdisc", "add", "dev", host.interface, "root", "tbf", *limit])
    assert done.returncode == 0, done.stderr


def worker_on(fleet: Fleet, host: Host, address: str) -> subprocess.Popen[str]:
    fleet.via = ("nsenter", f"--net=/run/netns/{host.namespace}", "--")
    try:
        return fleet.start("worker", "--learner", address, "--slots", 6)
    finally:
        fleet.via = ()


def state(fleet: Fleet, port: int, process: subprocess.Popen[str]) -> str:
    """Return how the learner sees a worker."""
    workers = (fleet.status(port) or {"workers": []})["workers"]
    return next((str(worker["state"]) for worker in workers if worker["pid"] == process.pid), "unknown")


def version(fleet: Fleet, port: int) -> int:
    return int((fleet.status(port) or {"version": -1})["version"])


def wait_for_state(fleet: Fleet, port: int, process: subprocess.Popen[str], wanted: str) -> None:
    fleet.wait_until(lambda: state(fleet, port, process) == wanted, f"the worker was {wanted}")


def wait_for_updates(fleet: Fleet, port: int, more: int) -> None:
    begin = version(fleet, port)
    fleet.wait_until(lambda: version(fleet, port) >= begin + more, f"{more} more updates were done")


@needs_namespaces
@needs_faults
def test_a_worker_cut_off_is_noticed_replaced_and_welcomed_back(fleet: Fleet, hosts: Namespaces) -> None:
    """1. both play; 2. the cable of one is pulled; 3. the other goes on; 4. healed, the first plays again."""
    learner, port = fleet.learner(*RUN, *ENDLESS, *MODES["exact"], *ABROAD)
    cut, whole = (worker_on(fleet, host, f"{hosts.address}:{port}") for host in hosts)
    for worker in (cut, whole):
        wait_for_state(fleet, port, worker, "ready")
    hosts[0].unplug()
    wait_for_state(fleet, port, cut, "lost")
    log = (fleet.folder / "runs" / "run" / "logs" / "learner.log").read_text()
    (silent,) = re.findall(rf":{cut.pid} is lost: silent for (\S+) s", log)
    assert LIVENESS <= float(silent) < 2 * LIVENESS
    wait_for_updates(fleet, port, 5)
    hosts[0].plug_in()
    wait_for_state(fleet, port, cut, "ready")
    wait_for_updates(fleet, port, 5)
    live = fleet.json("ledger", f"127.0.0.1:{port}")
    assert live["violations"] == [] and live["train"]["discarded"] == {}
    learner.terminate()
    fleet.finish(learner, 143)
    assert fleet.json("ledger", "run")["violations"] == []
    assert cut.poll() is None and whole.poll() is None


SPEAKING = """
import sys, time
import zmq
from zmq.utils.monitor import parse_monitor_message
from protocol.codec import encode
from protocol.messages import Query
from protocol.sockets.frames import send_nowait
from protocol.sockets.worker import connect_control

host, port = sys.argv[1], int(sys.argv[2])
socket = connect_control(zmq.Context(), host, port)
news = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
while True:
    send_nowait(socket, encode(Query("status")))
    while news.poll(100):
        print(parse_monitor_message(news.recv_multipart())["event"].name, flush=True)
"""


@needs_namespaces
def test_a_connection_without_an_answer_is_given_up_and_made_again(hosts: Namespaces) -> None:
    """TCP alone would wait, with ever longer pauses: after a cut of 56 s 52 s more, where this takes 2."""
    with zmq.Context() as context, bind_learner(context, hosts.address, None, insecure=True) as learner:
        root = str(Path(__file__).parents[2])
        peer = hosts[0].popen(
            [sys.executable, "-c", SPEAKING, hosts.address, str(learner.ports.control)],
            env={"PYTHONPATH": root},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert learner.control.poll(60_000), "it never spoke"
            hosts[0].unplug()
            assert "DISCONNECTED\n" in peer.stdout  # reads until it comes; the first handshake may be missed
            hosts[0].plug_in()
            assert "HANDSHAKE_SUCCEEDED\n" in peer.stdout
            while receive_nowait(learner.control):
                pass
            assert learner.control.poll(60_000), "what it says is not heard: its old connection is in the way"
        finally:
            peer.kill()
            peer.wait()


@needs_namespaces
@needs_faults
def test_loss_little_bandwidth_and_a_partition_change_no_bit(fleet: Fleet, hosts: Namespaces) -> None:
    learner, port = fleet.learner(*RUN, *SHORT, *MODES["exact"], *ABROAD)
    workers = [worker_on(fleet, host, f"{hosts.address}:{port}") for host in hosts]
    drop(hosts[0], "numgen random mod 100 < 10")
    starve(hosts[1])
    fleet.wait_until(lambda: version(fleet, port) >= 10, "some updates were done")
    drop(hosts[1])
    wait_for_state(fleet, port, workers[1], "lost")
    heal(hosts[1])
    fleet.finish(learner)
    assert fleet.json("ledger", "run")["train"]["consumed"] == [[0, UPDATES * BATCH]]
    assert fleet.run("hash", "run") == quiet_hash(fleet, "exact")


@pytest.mark.slow
def test_a_connection_that_stalls_changes_no_bit_of_synchronous_mode(fleet: Fleet) -> None:
    """One of two workers speaks through a relay, which delays, stalls for too long, and breaks off."""
    learner, port = fleet.learner(*RUN, *SHORT, *MODES["sync"])
    with Relay(range(port, port + 4)) as relay:
        relay.delay_seconds = 0.002
        ports = ",".join(map(str, relay.ports))
        far = fleet.worker(relay.ports[0], 6, "--ports", ports)
        wait_for_state(fleet, port, far, "ready")
        near = fleet.worker(port, 6)
        fleet.wait_until(lambda: version(fleet, port) >= 5, "some updates were done")
        relay.stall()
        wait_for_state(fleet, port, far, "lost")
        relay.heal()
        wait_for_state(fleet, port, far, "ready")
        relay.cut()
        relay.heal()
        fleet.finish(learner)
        assert "the run is complete" in fleet.finish(near)
    assert fleet.json("ledger", "run")["train"]["consumed"] == [[0, UPDATES * BATCH]]
    assert fleet.run("hash", "run") == quiet_hash(fleet, "sync")
