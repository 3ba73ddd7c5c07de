"""`--mode sync`: the same bits whatever becomes of workers and learner, and what helps to debug."""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.fleet_processes import Fleet

UPDATES, BATCH, SLOTS = 24, 40, 20
RUN = (
    *("--mode", "sync", "--n-envs", SLOTS, "--total-episodes", UPDATES * BATCH),
    *("--episodes-per-update", BATCH, "--episode-length", 20, "--minibatch-steps", 400),
    *("--evaluation-episodes", 0, "--liveness-seconds", 2, "--seed", 7),
)
HOOKS = """
import time
from pathlib import Path

def wait(seen):
    "Hold the run at update 8, amid a batch, until a file is there."
    deadline = time.monotonic() + 100
    while seen.version == 8 and not Path("go").exists() and time.monotonic() < deadline:
        time.sleep(0.02)

def fail(seen):
    if seen.number == 5:
        raise ValueError(f"slot {seen.slots[2]} is at step {seen.steps[2]}")
"""


@pytest.fixture(scope="module")
def digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the hash of a quiet run with one worker."""
    fleet = Fleet(tmp_path_factory.mktemp("alone"))
    try:
        fleet.run("train", *RUN, "--name", "alone", "--workers", 1)
        return fleet.run("hash", "alone")
    finally:
        fleet.close()


def check_ledger(fleet: Fleet, name: str) -> None:
    train = fleet.json("ledger", name)["train"]
    assert train["consumed"] == [[0, UPDATES * BATCH]] and not train["discarded"]


def slots_of(fleet: Fleet, port: int) -> dict[int, int]:
    """Return how many slots each worker hosts now, by its process id; nothing of those that do not."""
    status = fleet.status(port) or {"workers": []}
    return {w["pid"]: w["slots"] for w in status["workers"] if w["state"] == "ready" and w["slots"]}


def version(fleet: Fleet, port: int) -> int:
    return int((fleet.status(port) or {"version": -1})["version"])


def test_five_workers_make_the_bits_of_one_and_their_steps_are_recorded(fleet: Fleet, digest: str) -> None:
    (fleet.folder / "hooks.py").write_text(HOOKS)
    learner, port = fleet.learner(*RUN, "--record-steps", "steps", "--step-hook", "hooks:wait")
    workers = [fleet.worker(port) for _ in range(5)]
    fleet.wait_until(lambda: all("is ready" in last_line_about(fleet, w) for w in workers), "all were ready")
    (fleet.folder / "go").touch()
    fleet.finish(learner)
    assert fleet.run("hash", "run") == digest
    check_ledger(fleet, "run")

    found = fleet.json("steps", "steps", "--picture", "timeline.png")
    assert [slot["slot"] for slot in sorted(found["slots"], key=lambda s: s["slot"])] == list(range(SLOTS))
    rounds = UPDATES * BATCH // SLOTS * 21  # a reset and 20 steps
    assert found["rounds"] == rounds
    assert {slot["answers"] for slot in found["slots"]} == {rounds}
    assert 0 < found["waiting_share"] < 1
    waits = found["wait_seconds"]
    assert 0 < waits["p50"] <= waits["p90"] <= waits["p99"] <= waits["max"]
    assert len(found["workers"]) == 5
    assert (fleet.folder / "timeline.png").read_bytes().startswith(b"\x89PNG")


def test_killed_frozen_and_added_workers_change_no_bit(fleet: Fleet, digest: str) -> None:
    (fleet.folder / "hooks.py").write_text(HOOKS)
    learner, port = fleet.learner(*RUN, "--step-hook", "hooks:wait")
    killed, frozen, _ = (fleet.worker(port) for _ in range(3))
    fleet.wait_until(lambda: version(fleet, port) == 8, "the run was held at update 8")
    fleet.wait_until(lambda: len(slots_of(fleet, port)) == 3, "three workers hosted slots")
    killed.kill()
    frozen.send_signal(signal.SIGSTOP)
    added = fleet.worker(port)
    fleet.wait_until(lambda: "is ready" in last_line_about(fleet, added), "the newcomer was ready")
    (fleet.folder / "go").touch()
    fleet.wait_until(lambda: version(fleet, port) >= 12, "the run went on without the two")
    assert slots_of(fleet, port).get(added.pid, 0) or learner.poll() is not None
    frozen.send_signal(signal.SIGCONT)
    fleet.finish(learner)
    fleet.finish(added)
    assert fleet.run("hash", "run") == digest
    check_ledger(fleet, "run")


def last_line_about(fleet: Fleet, worker: subprocess.Popen[str]) -> str:
    log = (fleet.folder / "runs" / "run" / "logs" / "learner.log").read_text()
    lines = [line for line in log.splitlines() if f":{worker.pid} " in line]
    return lines[-1] if lines else ""


def test_an_interrupted_run_goes_on_to_the_same_bits(fleet: Fleet, digest: str) -> None:
    learner, port = fleet.learner(*RUN)
    workers = [fleet.worker(port) for _ in range(2)]
    fleet.wait_until(lambda: version(fleet, port) >= 8, "update 8 was done")
    learner.send_signal(signal.SIGTERM)
    assert "fleet learner --resume run goes on" in fleet.finish(learner, 143)
    again = fleet.start("learner", "--resume", "run", "--port", port)
    fleet.finish(again)
    fleet.finish_survivors(workers)
    assert fleet.run("hash", "run") == digest
    check_ledger(fleet, "run")


def test_a_hook_that_raises_stops_the_run_with_one_line(fleet: Fleet) -> None:
    (fleet.folder / "hooks.py").write_text(HOOKS)
    output = fleet.run("train", *RUN, "--name", "run", "--step-hook", "hooks:fail", status=1)
    [line] = [line for line in output.splitlines() if "hooks:fail" in line]
    assert line.startswith("fleet: --step-hook hooks:fail raised ValueError in round 5: slot 2 is at step 3;")
    assert "Traceback" not in output
    assert 'raise ValueError(f"slot' in (fleet.folder / "runs/run/logs/learner.log").read_text()


def test_evaluation_and_another_environment(fleet: Fleet) -> None:
    """The same barrier plays evaluate tickets, and Gymnasium environments with episodes of any length."""
    table = fleet.folder / "table.json"
    cartpole = ("--env", "CartPole-v1", "--mode", "sync", "--n-envs", 6, "--total-episodes", 48)
    fleet.run(
        *("train", *cartpole, "--episodes-per-update", 24, "--minibatch-steps", 200, "--workers", 2),
        *("--selection-episodes", 5, "--evaluation-episodes", 9, "--name", "run", "--json", table),
    )
    [cell] = returns(table)
    assert cell["episodes"] == 9 and cell["mean"] > 5
    ledger = fleet.json("ledger", "run")
    assert ledger["evaluate"]["consumed"] == [[0, 2 * (5 + 9)]]  # to choose and to tell, sampled and greedy
    assert not ledger["violations"]


def returns(table: Path) -> list[dict[str, Any]]:
    return list(json.loads(table.read_text())["returns"])
