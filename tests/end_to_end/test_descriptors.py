"""A learner whose file descriptors are all taken by connections goes on training and writing."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from contextlib import ExitStack, suppress

import psutil

from learner.descriptors import KEPT_BACK
from tests.end_to_end.fleet_processes import DEADLINE_SECONDS, Fleet

MOST_FILES, CONNECTIONS = 160, 400
UPDATES, BATCH = 8, 20
RUN = (
    *("--total-episodes", UPDATES * BATCH, "--episodes-per-update", BATCH, "--episode-length", 20),
    *("--minibatch-steps", 200, "--checkpoint-every", 2, "--selection-episodes", 2),
    *("--evaluation-episodes", 2, "--seed", 7),
)


def flood(port: int, over: threading.Event) -> None:
    """Hold connections to a port, and come back over each that is closed."""
    with ExitStack() as opened:
        held = [opened.enter_context(connection(port)) for _ in range(CONNECTIONS)]
        while not over.wait(0.05):
            for place, one in enumerate(held):
                try:
                    while not (gone := not one.recv(4096)):
                        pass
                except BlockingIOError:
                    gone = False
                except OSError:
                    gone = True
                if gone:
                    one.close()
                    held[place] = opened.enter_context(connection(port))


def connection(port: int) -> socket.socket:
    one = socket.socket()
    one.setblocking(False)
    with suppress(BlockingIOError, OSError):
        one.connect(("127.0.0.1", port))
    return one


def ready(fleet: Fleet, port: int) -> bool:
    return bool((fleet.status(port) or {"ready": 0})["ready"])


def test_a_flood_of_connections_stops_neither_training_nor_the_ledger(fleet: Fleet) -> None:
    fleet.via = ("sh", "-c", f'ulimit -n {MOST_FILES}; exec "$@"', "sh")
    learner, port = fleet.learner(*RUN)
    fleet.via = ()
    fleet.worker(port)
    fleet.wait_until(lambda: ready(fleet, port), "the worker was there before the flood")
    over, full = threading.Event(), False
    flooding = threading.Thread(target=flood, args=(port, over))
    flooding.start()
    try:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while learner.poll() is None and time.monotonic() < deadline:
            with suppress(subprocess.TimeoutExpired, psutil.NoSuchProcess, psutil.ZombieProcess):
                full = full or psutil.Process(learner.pid).num_fds() >= MOST_FILES - KEPT_BACK
                learner.wait(0.05)
    finally:
        over.set()
        flooding.join()
    fleet.finish(learner)
    assert full
    train = fleet.json("ledger", "run")["train"]
    assert train["consumed"] == [[0, UPDATES * BATCH]] and not train["discarded"]
    run = fleet.folder / "runs" / "run"
    assert len((run / "updates.jsonl").read_text().splitlines()) == UPDATES
    assert len((run / "metrics.csv").read_text().splitlines()) == UPDATES + 1
    assert (run / "evaluation.json").exists() and (run / "learning_curve.png").exists()
