"""A worker that is told to drain finishes its episodes: none goes back, none is lost."""

from __future__ import annotations

import signal
import time
from typing import Any

import pytest

from rollout_worker.signals import INSISTS_SECONDS
from tests.end_to_end.fleet_processes import Fleet

BATCH = 10
TWO_UPDATES = (
    *("--total-episodes", 2 * BATCH, "--episodes-per-update", BATCH),
    *("--evaluation-episodes", 0, "--selection-episodes", 0),
)


def workers(fleet: Fleet, port: int) -> list[dict[str, Any]]:
    return list((fleet.status(port) or {"workers": []})["workers"])


def plays_all(fleet: Fleet, port: int) -> bool:
    return any(worker["running"] == BATCH for worker in workers(fleet, port) if worker["state"] == "ready")


def hosted(fleet: Fleet, port: int) -> list[int]:
    return [worker["slots"] for worker in workers(fleet, port) if worker["state"] == "ready"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_the_only_worker_finishes_what_it_plays(fleet: Fleet, number: signal.Signals) -> None:
    """Nobody else could play a ticket that went back, and the first update would never be made."""
    learner, port = fleet.learner(*TWO_UPDATES, "--episode-length", 40, "--step-delay", "constant:50ms")
    worker = fleet.worker(port, BATCH, "--drain-on-term", 60)
    fleet.wait_until(lambda: plays_all(fleet, port), "all slots were in use")
    worker.send_signal(number)
    worker.send_signal(number)  # at once, as a batch system may: still one wish
    assert f"ends: {number.name}: drained (exit status 0)" in fleet.finish(worker)
    fleet.wait_until(lambda: (fleet.status(port) or {}).get("version") == 1, "the first update was made")
    fleet.worker(port, BATCH)
    fleet.finish(learner)
    ledger = fleet.json("ledger", "run")
    train = ledger["train"]
    assert train["consumed"] == [[0, 2 * BATCH]] and not (train["discarded"] or train["outstanding"])
    assert ledger["deliveries"]["received"] == ledger["deliveries"]["first_copies"] == 2 * BATCH


def test_a_second_sigterm_and_the_end_of_the_time_send_the_tickets_back(fleet: Fleet) -> None:
    learner, port = fleet.learner(*TWO_UPDATES, "--episode-length", 100, "--step-delay", "constant:1s")
    insisted = fleet.worker(port, BATCH, "--drain-on-term", 600)
    fleet.wait_until(lambda: plays_all(fleet, port), "all tickets were under way")
    insisted.send_signal(signal.SIGTERM)
    fleet.wait_until(lambda: "SIGTERM; finishes its running" in fleet.output(insisted), "it drained")
    time.sleep(INSISTS_SECONDS)
    insisted.send_signal(signal.SIGTERM)
    assert "ends: SIGTERM (exit status 0)" in fleet.finish(insisted)
    limited = fleet.worker(port, BATCH, "--drain-on-term", 0.5)
    fleet.wait_until(lambda: plays_all(fleet, port), "all tickets were under way again")
    limited.send_signal(signal.SIGTERM)
    assert f"the time to drain is over, {BATCH} tickets go back (exit" in fleet.finish(limited)
    learner.send_signal(signal.SIGTERM)
    fleet.finish(learner, 143)


def test_in_sync_mode_a_draining_worker_hands_its_slots_back(fleet: Fleet) -> None:
    learner, port = fleet.learner(
        *("--mode", "sync", "--n-envs", BATCH, "--total-episodes", 100 * BATCH),
        *("--episodes-per-update", BATCH, "--episode-length", 30, "--step-delay", "constant:20ms"),
        *("--selection-episodes", 0),
    )
    leaving, _ = (fleet.worker(port, BATCH, "--drain-on-term", 60) for _ in range(2))
    fleet.wait_until(lambda: hosted(fleet, port) == [BATCH // 2] * 2, "both hosted slots")
    leaving.send_signal(signal.SIGTERM)
    assert "ends: SIGTERM: drained (exit status 0)" in fleet.finish(leaving)
    fleet.wait_until(lambda: (fleet.status(port) or {}).get("version", 0) >= 3, "the run went on")
    assert hosted(fleet, port) == [BATCH]
    learner.send_signal(signal.SIGTERM)
    fleet.finish(learner, 143)
    assert not fleet.json("ledger", "run")["train"]["discarded"]
