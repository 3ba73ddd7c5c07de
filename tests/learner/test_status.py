"""What the learner shows of its fleet, whatever workers call themselves."""

from __future__ import annotations

import json

import pytest

from protocol.codec import encode
from protocol.messages import Report
from tests.learner.fleets import Fleet


def test_a_report_tells_no_session_and_fits_in_a_message_whatever_workers_call_themselves() -> None:
    fleet = Fleet()
    for number in range(2000):
        name = "\U0001f600" * 100
        fleet.hello(f"secret-{number}", host=name, pool=name, label=name)
    fleet.tick()
    first = 0
    seen: list[int] = []
    while not seen or first:
        plain = fleet.registry.report(fleet.now, first)
        assert plain["all_workers"] == 2000 and "secret" not in json.dumps(plain)
        encode(Report("status", plain))
        first = plain["next"]
        seen += [worker["number"] for worker in plain["workers"]]
    assert seen == list(range(1, 2001))


def test_status_says_what_binds() -> None:
    """1. workers are busy; 2. all idle, stragglers hold the credit; 3. a batch waits for its update."""
    fleet = Fleet(batch=2, max_lag=0)
    assert fleet.registry.status(fleet.now).binds == "workers"
    fleet.join(slots=3)
    assert fleet.registry.status(fleet.now).binds == "credit"
    fleet.episode(0)
    fleet.episode(1)
    assert fleet.registry.status(fleet.now).binds == "update"


def test_status_says_that_an_operator_has_paused_the_fleet() -> None:
    fleet = Fleet()
    fleet.join("a")
    fleet.join("b")
    fleet.registry.command("pause", ["host-a"])
    assert fleet.registry.status(fleet.now).binds == "workers"
    fleet.registry.command("pause", ["host-b"])
    assert fleet.registry.status(fleet.now).binds == "pause"


def test_status_names_the_ticket_that_holds_the_batch_back() -> None:
    fleet = Fleet(batch=2, max_lag=0, exact=True)
    fleet.join(slots=2)
    fleet.beat(answer=1, running={0, 1})
    fleet.now += 5
    fleet.episode(1)
    fleet.beat(answer=1, running={0})
    fleet.tick()
    status = fleet.registry.status(fleet.now)
    assert status.binds == "ticket" and status.ticket is not None
    assert (status.ticket.number, status.ticket.holders, status.ticket.missing) == (0, ("host-a:11",), 1)
    assert status.ticket.age_seconds == pytest.approx(5, abs=0.1)
    fleet.episode(0)
    assert fleet.registry.status(fleet.now).binds == "update"


def test_status_tells_each_workers_pace() -> None:
    fleet = Fleet()
    fleet.join()
    for second in range(1, 21):
        fleet.now += 1
        fleet.beat(answer=1, steps=50 * second, queued={0})
    assert fleet.registry.status(fleet.now).workers[0].steps_per_second == pytest.approx(50)
    fleet.now += 12
    (worker,) = fleet.registry.status(fleet.now).workers
    assert 0 < worker.steps_per_second < 40, "what is not heard of is not taken for granted"


def test_status_counts_each_workers_tickets_and_is_plain() -> None:
    fleet = Fleet(batch=8)
    fleet.join(slots=2)
    fleet.beat(answer=1, outbox={0}, running={1, 2}, queued={3})
    fleet.episode(1)
    fleet.now += 0.5
    status = fleet.registry.status(fleet.now)
    (worker,) = status.workers
    assert (worker.host, worker.pid, worker.slots) == ("host-a", 11, 2)
    assert (worker.outbox, worker.running, worker.queued) == (1, 1, 1)
    assert worker.heartbeat_age_seconds == 0.5
    plain = json.loads(json.dumps(fleet.registry.report(fleet.now)))
    assert plain["issued"] == 4 and plain["received"] == 1 and plain["workers"][0]["state"] == "ready"


def test_pool_and_label_are_shown_without_what_no_terminal_should_be_sent() -> None:
    fleet = Fleet()
    fleet.hello("a", pool="lab\x1b[2J", label="lab-17\n" + 200 * "x")
    (worker,) = fleet.registry.status(fleet.now).workers
    assert (worker.pool, worker.label) == ("lab[2J", "lab-17" + 94 * "x")
