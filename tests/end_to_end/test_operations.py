"""What an operator does to a running fleet, with the commands that do it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.end_to_end.fleet_processes import Fleet

ENDLESS = ("--env", "CartPole-v1", "--total-episodes", 4_000_000, "--evaluation-episodes", 0)
ASYNC = (*ENDLESS, "--episodes-per-update", 40, "--step-delay", "constant:5ms")
SYNC = (*ENDLESS, "--mode", "sync", "--n-envs", 20, "--episodes-per-update", 20)
RESTING_SECONDS = 1.0
BARE = """
import json, sys
for name in ("matplotlib", "rich", "safetensors", "tensorboard", "torch"):
    sys.modules[name] = None
from deploy.app import run_command
sys.exit(max(run_command(arguments) for arguments in json.loads(sys.argv[1])))
"""
"""Commands as a host runs them where only a worker is installed."""


def named(fleet: Fleet, port: int) -> dict[str, dict[str, Any]]:
    """Return the workers of a learner by label."""
    return {worker["label"]: worker for worker in (fleet.status(port) or {"workers": []})["workers"]}


def state(fleet: Fleet, port: int, label: str) -> str:
    return str(named(fleet, port).get(label, {}).get("state"))


def version(fleet: Fleet, port: int) -> int:
    return int((fleet.status(port) or {"version": -1})["version"])


def goes_on(fleet: Fleet, port: int) -> None:
    """Wait until two more updates are done."""
    now = version(fleet, port)
    fleet.wait_until(lambda: version(fleet, port) >= now + 2, "the run went on")


def rests(fleet: Fleet, port: int) -> None:
    """Wait until nothing changes any more: no episode comes, no step is made."""

    def look() -> tuple[int, ...]:
        status = fleet.status(port) or {"workers": [], "received": 0, "version": 0}
        counts = (worker[name] for worker in status["workers"] for name in ("steps", "running"))
        return (status["version"], status["received"], *counts)

    def quiet() -> bool:
        before = look()
        time.sleep(RESTING_SECONDS)
        return look() == before

    fleet.wait_until(quiet, "nothing happened any more")


def join(fleet: Fleet, port: int, label: str, pool: str, until: str = "ready") -> Any:
    worker = fleet.worker(port, 10, "--label", label, "--pool", pool)
    fleet.wait_until(lambda: state(fleet, port, label) == until, f"{label} was {until}")
    return worker


def test_draining_loses_no_episode_and_the_rest_go_on(fleet: Fleet) -> None:
    learner, port = fleet.learner(*ASYNC)
    leaving = [join(fleet, port, f"spot-{number}", "spot") for number in (1, 2)]
    join(fleet, port, "lab-1", "lab")
    goes_on(fleet, port)
    assert "no worker, host or pool is called spat: there are spot" in fleet.run("drain", "spat", status=1)
    output = fleet.run("drain", "spot", "--learner", "run")
    assert "2 workers shall drain: spot-1 (" in output
    assert "2 workers left in " in output and " episodes finished meanwhile" in output
    for worker in leaving:
        assert "ends: drained (exit status 0)" in fleet.finish(worker)
    assert [state(fleet, port, label) for label in ("spot-1", "spot-2", "lab-1")] == ["left", "left", "ready"]
    goes_on(fleet, port)
    ledger = fleet.json("ledger", f"127.0.0.1:{port}")
    assert not ledger["train"]["discarded"] and not ledger["violations"]
    assert ledger["deliveries"]["received"] == ledger["deliveries"]["first_copies"]
    learner.send_signal(signal.SIGTERM)
    fleet.finish(learner, 143)


def test_a_drained_worker_of_a_training_stays_away_until_all_shall_play(fleet: Fleet) -> None:
    train = fleet.start("train", "--name", "run", "--workers", 2, "--n-envs", 20, "--port", "auto", *ASYNC)
    address = fleet.folder / "runs" / "run" / "address"
    fleet.wait_until(address.exists, "the learner listened")
    port = int(address.read_text().rpartition(":")[2])
    fleet.wait_until(lambda: state(fleet, port, "worker-1") == "ready", "it was ready")
    assert "1 worker left" in fleet.run("drain", "worker-1")
    goes_on(fleet, port)
    assert len(fleet.descendants(train)) == 1 and state(fleet, port, "worker-1") == "left"
    fleet.run("resume")
    fleet.wait_until(lambda: state(fleet, port, "worker-1") == "ready", "it was started again")
    train.send_signal(signal.SIGTERM)
    assert "ended with status" not in fleet.finish(train, 143)


def test_a_paused_fleet_rests_whoever_joins_and_plays_for_a_restarted_learner(fleet: Fleet) -> None:
    learner, port = fleet.learner(*ASYNC)
    join(fleet, port, "one", "")
    goes_on(fleet, port)
    assert "1 worker shall pause after the episodes that run, and those that join later" in fleet.run("pause")
    fleet.wait_until(lambda: state(fleet, port, "one") == "paused", "it paused")
    join(fleet, port, "two", "", until="paused")
    fleet.wait_until(
        lambda: not any(one["running"] + one["queued"] for one in named(fleet, port).values()),
        "what ran was finished and what waited went back",
    )
    rests(fleet, port)
    status = fleet.status(port) or {}
    assert status["binds"] == "pause" and status["progress"]["phase"] == "paused"
    fleet.run("resume", "two")
    fleet.wait_until(lambda: state(fleet, port, "two") == "ready", "the second played")
    goes_on(fleet, port)
    assert state(fleet, port, "one") == "paused"
    learner.send_signal(signal.SIGTERM)
    fleet.finish(learner, 143)
    fleet.start("learner", "--resume", "run", "--port", port)
    fleet.wait_until(lambda: state(fleet, port, "one") == "ready", "both played")
    goes_on(fleet, port)
    assert not fleet.json("ledger", f"127.0.0.1:{port}")["train"]["discarded"]


def test_in_sync_mode_slots_go_on_elsewhere_and_with_all_paused_the_rounds_stop(fleet: Fleet) -> None:
    learner, port = fleet.learner(*SYNC)
    first = join(fleet, port, "one", "lab")
    join(fleet, port, "two", "lab")
    goes_on(fleet, port)
    fleet.run("pause", "one")
    fleet.wait_until(lambda: named(fleet, port)["two"]["slots"] == 20, "the other has all slots")
    goes_on(fleet, port)
    fleet.run("pause", "two")
    rests(fleet, port)
    assert (fleet.status(port) or {})["binds"] == "pause"
    fleet.run("resume")
    goes_on(fleet, port)
    assert "1 worker left" in fleet.run("drain", "one")
    fleet.finish(first)
    goes_on(fleet, port)
    ledger = fleet.json("ledger", f"127.0.0.1:{port}")
    assert not ledger["train"]["discarded"] and not ledger["violations"]
    learner.send_signal(signal.SIGTERM)
    fleet.finish(learner, 143)


def test_status_and_doctor_and_logs_tell_what_is_there(fleet: Fleet) -> None:
    _, port = fleet.learner(*ASYNC)
    join(fleet, port, "one", "lab")
    frozen = join(fleet, port, "two", "lab")
    goes_on(fleet, port)
    fleet.wait_until(
        lambda: all(
            one["episodes_per_second"] > 0 < one["cpu_percent"] for one in named(fleet, port).values()
        ),
        "both had a pace",
    )
    found = fleet.json("status", "run")
    assert [worker["label"] for worker in found["workers"]] == ["one", "two"]
    assert found["progress"]["returns"]
    text = fleet.run("status", f"127.0.0.1:{port}", "--pool", "lab")
    assert all(word in text for word in ("mean return", "binds: ", "lab ", "one ", "two ", "MiB"))

    address = f"127.0.0.1:{port}"
    asked = [["status", address], ["doctor", address], ["logs", "one", "--learner", address]]
    asked += [["pause", "--learner", address], ["resume", "--learner", address]]
    done = subprocess.run([sys.executable, "-c", BARE, json.dumps(asked)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr

    text = fleet.run("doctor", "run")
    assert text.count("reachable, a ") == 4 and "good processor: the first worker's, too" in text
    assert "bad " not in text
    text = fleet.run("doctor", f"127.0.0.1:{port + 1}", status=1)
    assert "a PUB listens there, control needs a ROUTER" in text

    assert "joined run" in fleet.run("logs", "one")
    assert len(fleet.run("logs", "one", "--lines", 1).splitlines()) == 1
    assert "is called three" in fleet.run("logs", "three", status=1)
    frozen.send_signal(signal.SIGSTOP)
    try:
        output = fleet.run("logs", "lab", status=1)
    finally:
        frozen.send_signal(signal.SIGCONT)
    assert "one (" in output and "joined run" in output and "two (" in output and "does not answer" in output


@pytest.mark.parametrize("command", [("pause",), ("resume",), ("drain", "x"), ("logs", "x"), ("status",)])
def test_a_command_without_a_learner_says_so_in_one_line(fleet: Fleet, command: tuple[str, ...]) -> None:
    (line,) = fleet.run(*command, status=2).splitlines()
    assert "there is no run under runs/: name the learner as HOST:PORT" in line
