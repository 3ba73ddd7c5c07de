"""Workers that freeze, swap, or whose environment hangs: found in time, replaced, recognised afterwards."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from typing import Any

import psutil
import pytest

from tests.end_to_end.fleet_processes import Argument, Fleet

pytestmark = pytest.mark.timeout(400)
BATCH, LIVENESS = 12, 2.0
ENDLESS: tuple[Argument, ...] = (
    *("--episodes-per-update", BATCH, "--total-episodes", 100_000 * BATCH, "--hidden", 16, "--epochs", 2),
    *("--evaluation-episodes", 0, "--heartbeat-seconds", 0.5, "--liveness-seconds", LIVENESS),
)
CARTPOLE = ("--env", "CartPole-v1", "--episode-length", 20)
HANGING = """
import os, time
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Hanging(CartPoleEnv):
    steps = 0

    def step(self, action):
        Hanging.steps += 1
        if Hanging.steps == 500 and "HANG" in os.environ:
            time.sleep(1e6)
        return super().step(action)

gymnasium.register("Hanging-v0", Hanging, max_episode_steps=20)
"""


def report(fleet: Fleet, port: int) -> dict[str, Any]:
    return fleet.status(port) or {"version": -1, "workers": []}


def row(fleet: Fleet, port: int, worker: subprocess.Popen[str]) -> dict[str, Any]:
    found = (row for row in report(fleet, port)["workers"] if row["pid"] == worker.pid)
    return next(found, {"state": "unknown", "episodes": 0})


def wait_for(fleet: Fleet, port: int, worker: subprocess.Popen[str], state: str) -> None:
    fleet.wait_until(lambda: row(fleet, port, worker)["state"] == state, f"the worker was {state}")


def wait_for_updates(fleet: Fleet, port: int, more: int) -> None:
    begin = report(fleet, port)["version"]
    fleet.wait_until(lambda: report(fleet, port)["version"] >= begin + more, f"{more} more updates were done")


def log(fleet: Fleet) -> str:
    return (fleet.folder / "runs" / "run" / "logs" / "learner.log").read_text()


def check(fleet: Fleet, port: int) -> dict[str, Any]:
    """Return the ledger of a learner at work, whose laws hold."""
    return fleet.json("ledger", f"127.0.0.1:{port}")


def test_a_frozen_worker_is_replaced_and_its_copies_are_recognised(fleet: Fleet) -> None:
    _, port = fleet.learner(*CARTPOLE, *ENDLESS, "--step-delay", "constant:5ms")
    frozen, other = fleet.worker(port, 6), fleet.worker(port, 6)
    for worker in (frozen, other):
        fleet.wait_until(lambda w=worker: row(fleet, port, w)["episodes"] > 0, "both played")  # type: ignore[misc]  # bound now
    frozen.send_signal(signal.SIGSTOP)
    wait_for(fleet, port, frozen, "lost")
    (silent,) = re.findall(rf":{frozen.pid} is lost: silent for (\S+) s", log(fleet))
    assert LIVENESS <= float(silent) < 2 * LIVENESS
    wait_for_updates(fleet, port, 4)
    before = check(fleet, port)["deliveries"]
    frozen.send_signal(signal.SIGCONT)
    wait_for(fleet, port, frozen, "ready")
    played = row(fleet, port, frozen)["episodes"]
    fleet.wait_until(lambda: row(fleet, port, frozen)["episodes"] > played, "it played again")
    after = check(fleet, port)
    assert after["deliveries"]["duplicates"] >= before["duplicates"]
    assert after["deliveries"]["invalid"] == 0 and not after["train"]["discarded"]


def test_a_worker_on_a_host_that_swaps_is_slow_and_no_more(fleet: Fleet) -> None:
    """It stands still for three seconds again and again, within its liveness limit."""
    _, port = fleet.learner(*CARTPOLE, *ENDLESS, "--liveness-seconds", 8)
    swapping = fleet.worker(port, 6)
    fleet.wait_until(lambda: row(fleet, port, swapping)["episodes"] > 0, "it played")
    for _ in range(3):
        played = row(fleet, port, swapping)["episodes"]
        swapping.send_signal(signal.SIGSTOP)
        time.sleep(3)
        swapping.send_signal(signal.SIGCONT)
        fleet.wait_until(lambda p=played: row(fleet, port, swapping)["episodes"] > p, "it went on")  # type: ignore[misc]  # bound now
    assert "is lost" not in log(fleet)
    deliveries = check(fleet, port)["deliveries"]
    assert deliveries["duplicates"] == deliveries["stale"] == deliveries["invalid"] == 0


def test_a_ticket_that_hangs_goes_to_another_worker(fleet: Fleet) -> None:
    """The worker's heartbeats go on, its environment does not; it ends later than the learner finds out."""
    (fleet.folder / "hanging.py").write_text(HANGING)
    env = ("--env", "Hanging-v0", "--allow-env", "hanging")
    path = {"PYTHONPATH": str(fleet.folder)}
    learner = fleet.start(
        *("learner", "--name", "run", "--port", "auto", *env, *ENDLESS, "--lag", "exact:1"),
        *("--stuck-after-seconds", 2),
        **path,
    )
    address = fleet.folder / "runs" / "run" / "address"
    fleet.wait_until(address.exists, "the learner listened")
    port = int(address.read_text().rpartition(":")[2])
    common = ("worker", "--learner", f"127.0.0.1:{port}", "--slots", 4, "--allow-env", "hanging")
    hanging = fleet.start(*common, **path, HANG="1")
    sound = fleet.start(*common, **path)
    fleet.wait_until(lambda: "hold" in log(fleet) and "no progress" in log(fleet), "the hang was found")
    wait_for_updates(fleet, port, 5)
    fleet.finish(hanging, 1)
    assert "makes no step" in fleet.output(hanging)
    assert sound.poll() is None and learner.poll() is None
    assert not check(fleet, port)["train"]["discarded"]


def test_a_frozen_learner_loses_nobody(fleet: Fleet) -> None:
    """It stands still for longer than its own liveness limit, and reads what came meanwhile first."""
    learner, port = fleet.learner(*CARTPOLE, *ENDLESS)
    workers = [fleet.worker(port, 6) for _ in range(2)]
    for worker in workers:
        wait_for(fleet, port, worker, "ready")
    learner.send_signal(signal.SIGSTOP)
    time.sleep(2 * LIVENESS)
    learner.send_signal(signal.SIGCONT)
    wait_for_updates(fleet, port, 3)
    assert "is lost" not in log(fleet)


def test_a_long_update_costs_nobody_the_membership_and_can_be_interrupted(fleet: Fleet) -> None:
    """One update goes on for far longer than the liveness limit; SIGTERM ends it within a minibatch."""
    long = ("--epochs", 1000, "--minibatch-steps", 2)
    learner, port = fleet.learner(*CARTPOLE, *ENDLESS, *long)
    worker = fleet.worker(port, 6)
    fleet.wait_until(lambda: report(fleet, port).get("binds") == "update", "the update held up the rest")
    begun = psutil.Process(learner.pid).cpu_times().user
    end = time.monotonic() + 3 * LIVENESS
    while time.monotonic() < end:
        beat = row(fleet, port, worker)
        assert beat["state"] == "ready" and beat["heartbeat_age_seconds"] < LIVENESS
        time.sleep(0.2)
    assert report(fleet, port)["version"] == 0 and psutil.Process(learner.pid).cpu_times().user > begun
    learner.send_signal(signal.SIGTERM)
    fleet.finish(learner, 143)
    train = fleet.json("ledger", "run")["train"]
    assert train["consumed"] == [] and train["outstanding"]
    assert worker.poll() is None
