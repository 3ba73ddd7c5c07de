"""Peers that stop reading do not make the learner's memory grow: a thousand versions, and it stays flat."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.fleet_processes import Argument, Fleet

VERSIONS, VERSION_BYTES = 1000, 4 * 256 * 256
RUN: tuple[Argument, ...] = (
    *("--env", "CartPole-v1", "--episode-length", 2, "--episodes-per-update", 2, "--hidden", "256,256"),
    *("--total-episodes", 100_000, "--evaluation-episodes", 0, "--selection-episodes", 0, "--epochs", 1),
    *("--minibatch-steps", 1000, "--checkpoint-every", 100_000, "--no-normalise-observations"),
)
DEAF = """
import sys, time
import zmq
from protocol.codec import encode
from protocol.messages import Hello, SnapshotRequest
from protocol.sockets.frames import send_nowait
from protocol.sockets.worker import connect_control, connect_weights

port, context = int(sys.argv[1]), zmq.Context()
subscribers = [connect_weights(context, "127.0.0.1", port + 1) for _ in range(3)]
for subscriber in subscribers:
    assert subscriber.poll(60_000)
control = connect_control(context, "127.0.0.1", port)
control.rcvhwm = 1
send_nowait(control, encode(Hello("deaf", "host", 1, 1, "0.1.0")))
print("frozen", flush=True)
while True:  # asks for all weights, again and again, and reads nothing of them
    send_nowait(control, encode(SnapshotRequest("deaf", None)))
    time.sleep(0.01)
"""


def resident_bytes(process: subprocess.Popen[str]) -> int:
    return int(psutil.Process(process.pid).memory_info().rss)


@pytest.mark.timeout(400)
def test_a_thousand_versions_that_nobody_reads_leave_no_trace(fleet: Fleet) -> None:
    """Of one peer, frozen, that subscribed three times, and of one that asks for weights and never reads."""
    learner, port = fleet.learner(*RUN)
    fleet.worker(port, 2)
    command = [sys.executable, "-c", DEAF, str(port)]
    root = str(Path(__file__).parents[2])
    peers = [subprocess.Popen(command, env={"PYTHONPATH": root}, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for peer in peers:
            assert peer.stdout and peer.stdout.readline() == b"frozen\n"
        peers[0].send_signal(signal.SIGSTOP)
        begin = version(fleet, port)
        fleet.wait_until(lambda: version(fleet, port) >= begin + 100, "it ran warm")
        before = resident_bytes(learner)
        fleet.wait_until(lambda: version(fleet, port) >= begin + 100 + VERSIONS, "as many versions were made")
        grown = resident_bytes(learner) - before
    finally:
        for peer in peers:
            peer.kill()
            peer.wait()
    assert grown < 60 * VERSION_BYTES < VERSIONS * VERSION_BYTES / 10


def version(fleet: Fleet, port: int) -> int:
    return int((fleet.status(port) or {"version": -1})["version"])
