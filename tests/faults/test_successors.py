"""A learner that comes back, elsewhere, or twice: its workers follow the newest, and nothing is harmed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.fleet_processes import Argument, Fleet
from tests.faults.test_kills import free_port

pytestmark = pytest.mark.timeout(400)
BATCH, UPDATES = 12, 400
RUN: tuple[Argument, ...] = (
    *("--env", "CartPole-v1", "--n-envs", 6, "--episode-length", 20, "--episodes-per-update", BATCH),
    *("--total-episodes", UPDATES * BATCH, "--hidden", 16, "--epochs", 2, "--checkpoint-every", 10),
    *("--evaluation-episodes", 0, "--selection-episodes", 0),
    *("--heartbeat-seconds", 0.5, "--liveness-seconds", 2),
)


def updates(fleet: Fleet) -> int:
    journal = fleet.folder / "runs" / "run" / "updates.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for_updates(fleet: Fleet, more: int) -> None:
    begin = updates(fleet)
    fleet.wait_until(lambda: updates(fleet) >= begin + more, f"{more} more updates were done")


def workers(fleet: Fleet, *ports: int) -> list[subprocess.Popen[str]]:
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports)
    return [fleet.start("worker", "--learner", addresses, "--slots", 6) for _ in range(2)]


def start(fleet: Fleet, port: int, *arguments: Argument) -> subprocess.Popen[str]:
    return fleet.start("learner", *arguments, "--port", port)


@pytest.mark.parametrize("mode", [("--lag", "exact:1"), ("--mode", "sync")], ids=["exact", "sync"])
def test_workers_follow_a_learner_that_comes_back_at_its_other_address(
    fleet: Fleet, mode: tuple[Argument, ...]
) -> None:
    here, there = free_port(), free_port()
    learner = start(fleet, here, "--name", "run", *RUN, *mode)
    playing = workers(fleet, here, there)
    wait_for_updates(fleet, 12)
    learner.kill()
    learner.wait()
    again = start(fleet, there, "--resume", "run")
    wait_for_updates(fleet, 12)
    again.terminate()
    fleet.finish(again, 143)
    ledger = fleet.json("ledger", "run")
    assert ledger["violations"] == [] and ledger["rolled_back"] > 0
    assert all(worker.poll() is None for worker in playing), "a worker needed a restart"


def test_of_two_learners_of_a_run_the_newer_goes_on_and_the_older_ends(fleet: Fleet) -> None:
    """The lock does not hold between them, as between two hosts whose shared folder has no locks."""
    here, there = free_port(), free_port()
    older = start(fleet, here, "--name", "run", *RUN, "--lag", "exact:1")
    playing = workers(fleet, here, there)
    wait_for_updates(fleet, 12)
    forget_lock(fleet.folder / "runs" / "run")
    newer = start(fleet, there, "--resume", "run")
    output = fleet.finish(older, 2)
    assert "has replaced 1 of" in output.splitlines()[-1] and "Traceback" not in output
    wait_for_updates(fleet, 12)
    newer.terminate()
    fleet.finish(newer, 143)
    ledger = fleet.json("ledger", "run")
    assert ledger["violations"] == []
    (consumed,) = ledger["train"]["consumed"]
    assert consumed[0] == 0 and consumed[1] % BATCH == 0
    assert all(worker.poll() is None for worker in playing)


def forget_lock(run: Path) -> None:
    (run / "lock").unlink()
