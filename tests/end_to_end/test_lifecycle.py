"""How a fleet begins and ends: in any order, at any signal, with nothing left behind."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.fleet_processes import Fleet

ENDLESS = ("--total-episodes", 4_000_000, "--episodes-per-update", 40, "--episode-length", 30)
SHORT = (
    "--total-episodes",
    400,
    "--episodes-per-update",
    40,
    "--episode-length",
    30,
    "--evaluation-episodes",
    5,
)
STOPPED = {signal.SIGINT: 130, signal.SIGTERM: 143}


def wait_for_update(fleet: Fleet, name: str, update: int) -> None:
    journal = fleet.folder / "runs" / name / "updates.jsonl"
    fleet.wait_until(
        lambda: journal.exists() and len(journal.read_text().splitlines()) >= update,
        f"update {update} was done",
    )


def count_lines(journal: Path) -> int:
    return len(journal.read_text().splitlines())


def wait_until_gone(fleet: Fleet, processes: list[psutil.Process]) -> None:
    fleet.wait_until(lambda: not any(map(alive, processes)), "all processes were gone")


def alive(process: psutil.Process) -> bool:
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def consumed(fleet: Fleet) -> int:
    return sum(stop - start for start, stop in fleet.json("ledger", "run")["train"]["consumed"])


def test_a_worker_waits_for_its_learner_and_goes_with_the_run(fleet: Fleet) -> None:
    first, port = fleet.learner(*SHORT, name="first")
    first.kill()
    first.wait()
    early = fleet.worker(port)
    learner = fleet.start("learner", "--name", "second", "--port", port, *SHORT)
    late = fleet.worker(port)
    output = fleet.finish(learner)
    assert "B_line" in output and "Meander" in output
    for worker in (early, late):
        assert "the run is complete" in fleet.finish(worker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_training_fleet_and_resume_goes_on(fleet: Fleet, number: signal.Signals) -> None:
    train = fleet.start("train", "--name", "run", "--workers", 2, *ENDLESS)
    wait_for_update(fleet, "run", 3)
    children = fleet.descendants(train)
    train.send_signal(number)
    output = fleet.finish(train, STOPPED[number])
    assert "--resume run" in output
    assert "Traceback" not in output
    wait_until_gone(fleet, children)
    done = count_lines(fleet.folder / "runs" / "run" / "updates.jsonl")
    assert consumed(fleet) == done * 40

    again = fleet.start(
        "train", "--resume", "run", "--total-episodes", (done + 3) * 40, "--evaluation-episodes", 2
    )
    fleet.finish(again)
    assert consumed(fleet) == (done + 3) * 40
    assert fleet.json("ledger", "run")["rolled_back"] == 0


def test_killing_the_learner_leaves_no_worker(fleet: Fleet) -> None:
    train = fleet.start("train", "--name", "run", "--workers", 2, *ENDLESS)
    wait_for_update(fleet, "run", 1)
    children = fleet.descendants(train)
    assert len(children) >= 2
    train.kill()
    wait_until_gone(fleet, children)


def test_a_killed_worker_is_replaced(fleet: Fleet) -> None:
    train = fleet.start("train", "--name", "run", "--workers", 2, *ENDLESS)
    wait_for_update(fleet, "run", 1)
    before = fleet.descendants(train)
    before[0].kill()
    fleet.wait_until(lambda: len(set(fleet.descendants(train)) - set(before)) > 0, "a new worker came")
    done = count_lines(fleet.folder / "runs" / "run" / "updates.jsonl")
    wait_for_update(fleet, "run", done + 3)


def test_a_worker_leaves_at_a_signal_and_its_tickets_go_on(fleet: Fleet) -> None:
    learner, port = fleet.learner(*SHORT)
    leaving, staying = fleet.worker(port), fleet.worker(port)
    wait_for_update(fleet, "run", 2)
    leaving.send_signal(signal.SIGTERM)
    fleet.finish(leaving)
    fleet.finish(learner)
    fleet.finish(staying)
    assert consumed(fleet) == 400
    assert not fleet.json("ledger", "run")["train"]["discarded"]


def test_a_second_learner_of_a_run_is_refused_and_does_no_harm(fleet: Fleet) -> None:
    learner, port = fleet.learner(*SHORT)
    second = fleet.run("learner", "--resume", "run", "--port", "auto", status=2)
    assert "another learner is training" in second
    fleet.worker(port)
    fleet.finish(learner)


def test_a_port_in_use_is_one_line_and_leaves_no_folder(fleet: Fleet) -> None:
    _, port = fleet.learner(*SHORT)
    output = fleet.run("learner", "--name", "other", "--port", port, status=2)
    assert f"port {port} is in use" in output and "Traceback" not in output
    assert not (fleet.folder / "runs" / "other").exists()
